import functools
import math
import re

import numpy as np
import pytest
import torch
from loaders_data import damage, write_records

from fastich import ops, ops_cuda
from fastich.errors import FastichError, RecordError, UsageError
from fastich.hu import to_record
from fastich.loaders import LoaderConfig, cache, choose_backend, open_loader, planes
from fastich.records import codec
from fastich.records.index import DATASET_FILE
from fastich.records.reader import RecordReader
from fastich.windowing import resize_area

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(not ops.KERNELS, reason="the native kernels are not built")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    return folder, write_records(folder, [(512, 512)] * 3)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    return folder, write_records(folder, [(64, 64), (50, 70), (32, 32), (512, 512)], series_length=1)


def filled(folder, side, rows=None):
    reader = RecordReader(folder)
    return cache.fill(reader, np.arange(len(reader)) if rows is None else rows, side, CPU, 2)


def decoded(made: cache.Cache) -> list[np.ndarray]:
    return [codec.decode(made.payload(slot), made.side, made.side, "lbp") for slot in range(len(made.rows))]


def test_half_first_records_give_their_half_planes_without_a_decode(large, monkeypatch):
    folder, images = large
    monkeypatch.setattr(ops, "decode", None)
    made = filled(folder, 256)
    assert made.half.all()
    for plane, hu in zip(decoded(made), images, strict=True):
        exact = resize_area(hu, 256) + 1024
        assert np.abs(plane + 0.5 - exact).max() <= 0.5


def test_a_record_of_the_networks_side_is_kept_as_it_is(mixed):
    folder, images = mixed
    made = filled(folder, 64, np.array([0]))
    assert not made.half.any()
    assert bytes(made.payload(0)) == bytes(RecordReader(folder).payload(0)) == codec.encode(to_record(images[0]))


@pytest.mark.parametrize("side", [32, 512, 40, 100])
def test_other_records_become_their_rounded_area_mean_flat(mixed, side):
    folder, images = mixed
    made = filled(folder, side)
    assert not made.half.any()
    for slot, (plane, hu) in enumerate(zip(decoded(made), images, strict=True)):
        assert made.payload(slot)[5] == codec.MODE_FLAT
        assert np.abs(plane - (resize_area(hu, side) + 1024)).max() <= 0.501


def test_raw_records_are_compressed(tmp_path):
    images = write_records(tmp_path, [(64, 64)] * 2)
    reader = RecordReader(tmp_path)
    raw = {row: memoryview(codec.encode(to_record(hu), "raw")) for row, hu in enumerate(images)}
    reader.codec, reader.payload = "raw", lambda row, check_crc=True: raw[row]
    made = cache.fill(reader, np.arange(2), 64, CPU, 1)
    assert all(np.array_equal(plane, to_record(hu)) for plane, hu in zip(decoded(made), images, strict=True))


def test_slots_are_found_by_row_and_payloads_are_aligned(mixed, monkeypatch):
    monkeypatch.setattr(cache, "BLOCK", 2)
    made = filled(mixed[0], 32, np.array([3, 0, 2, 3]))
    assert made.rows.tolist() == [0, 2, 3]
    assert made.slots(np.array([3, 0, 2])).tolist() == [2, 0, 1]
    assert (made.offsets % cache.ALIGNMENT == 0).all()
    assert made.size_bytes >= int(made.sizes.sum())


def test_the_foreseen_size_is_exact_for_a_small_split(mixed):
    reader = RecordReader(mixed[0])
    read = functools.partial(cache._read_block, reader, 32)
    assert cache.foresee(read, np.arange(4), 2) == filled(mixed[0], 32).size_bytes


def test_a_sample_that_foresaw_too_few_bytes_enlarges_the_buffer(mixed, monkeypatch):
    whole = filled(mixed[0], 32)
    monkeypatch.setattr(cache, "foresee", lambda *_: 32)
    grown = filled(mixed[0], 32)
    assert all(bytes(whole.payload(slot)) == bytes(grown.payload(slot)) for slot in range(4))


def test_a_large_split_is_foreseen_from_a_sample_with_a_margin(large, monkeypatch):
    reader = RecordReader(large[0])
    read = functools.partial(cache._read_block, reader, 256)
    monkeypatch.setattr(cache, "NUM_SAMPLED", 1)
    lengths = [len(read([row])[0]) for row in range(3)]
    assert cache.foresee(read, np.arange(3), 1) in [math.ceil(3 * length * cache.SAMPLE_MARGIN) for length in lengths]


def test_a_cache_that_does_not_fit_says_needed_and_free_bytes_before_it_reads(mixed, monkeypatch):
    needed = filled(mixed[0], 32).size_bytes
    monkeypatch.setattr(cache, "free_bytes", lambda device: 1234)
    monkeypatch.setattr(torch, "empty", None)
    message = (
        rf"{re.escape(str(mixed[0]))}: its cache needs {needed:,} bytes, this machine has 1,234 free.*--cache none"
    )
    with pytest.raises(FastichError, match=message):
        filled(mixed[0], 32)


def test_a_gpu_that_is_too_small_is_told_of_the_host():
    with pytest.raises(
        FastichError, match=r"42,000,000,000 bytes, the GPU has 30,000,000,000 free.*--cache host or none"
    ):
        cache.require_fit("records", 42 * 10**9, 30 * 10**9, torch.device("cuda"))
    cache.require_fit("records", 42 * 10**9, 48 * 10**9, torch.device("cuda"))


def test_the_limit_of_a_control_group_counts(tmp_path):
    assert cache._group_free_bytes(tmp_path) == math.inf
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\nactive_file 100\n")
    assert cache._group_free_bytes(tmp_path) == math.inf
    (tmp_path / "memory.max").write_text("1000\n")
    assert cache._group_free_bytes(tmp_path) == 500
    assert 0 < cache.free_bytes(CPU) < 2**50


def test_the_control_group_is_the_processs_own_with_those_above_it(tmp_path):
    membership = tmp_path / "cgroup"
    for line, expected in (("0::/", ["."]), ("0::/job/step", ["job/step", "job", "."]), ("3:cpu:/old", ["."])):
        membership.write_text(f"1:name=x:/other\n{line}\n")
        assert cache.control_groups(membership, tmp_path) == [tmp_path / part for part in expected]
    assert cache.control_groups(tmp_path / "none", tmp_path) == [tmp_path]


def test_a_damaged_record_stops_the_filling_with_file_and_offset(tmp_path):
    write_records(tmp_path, [(64, 64)] * 4)
    offset = damage(tmp_path, 2)
    with pytest.raises(RecordError, match=rf"shard-.*tfrecord:{offset}: checksum of the payload of row 2"):
        filled(tmp_path, 32)


@pytest.mark.parametrize(("side", "at", "value"), [(256, 5, 9), (256, 16, 17), (256, 16, 16), (64, 16, 16), (64, 4, 2)])
def test_bytes_that_do_not_decode_are_refused_while_filling_though_their_crc_is_right(mixed, side, at, value):
    reader = RecordReader(mixed[0])
    row = 3 if side == 256 else 0
    bad = bytearray(reader.payload(row))
    bad[at] = value
    if at == 16 and value == 16:  # as if every run were full: the stream would pass the end
        bad[16 : 16 + codec.num_runs(side, side)] = bytes([16]) * codec.num_runs(side, side)
    reader.payload = lambda row, check_crc=True: memoryview(bad)
    with pytest.raises(RecordError, match=r"shard-.*tfrecord:\d+: row \d: LBP"):
        planes.plane_payload(reader, row, side)


@needs_kernels
def test_each_slice_is_read_from_disk_once_for_all_epochs(mixed):
    config = LoaderConfig(records=mixed[0], split="all", batch_size=2, size=32, cache="host")
    loader = open_loader(config)
    loader.reader.payload = None
    assert sum(len(batch.rows) for epoch in range(3) for batch in loader.epoch(epoch)) == 12
    loader.close()
    assert loader.cache is None


@needs_kernels
def test_a_cache_that_cannot_be_is_refused(mixed, monkeypatch):
    usual = {"records": mixed[0], "split": "all", "batch_size": 2}
    with pytest.raises(UsageError, match="cache must be one of none, host, device, found 'disk'"):
        LoaderConfig(**usual, cache="disk")
    with pytest.raises(
        UsageError, match="cache device is the memory of a GPU, but the device is the CPU; use cache host"
    ):
        LoaderConfig(**usual, cache="device")
    with pytest.raises(UsageError, match="cache host is read by the native loader, but dali was demanded"):
        choose_backend("dali", "cpu", cache="host")
    with pytest.raises(UsageError, match="cache host does not take adjacent slices"):
        open_loader(LoaderConfig(**usual, cache="host", adjacent=True))
    monkeypatch.setattr(ops, "KERNELS", None)
    with pytest.raises(UsageError, match="cache host needs the native kernels, which are not built"):
        choose_backend("auto", "cpu", cache="host")


@needs_kernels
def test_a_cache_on_the_gpu_needs_the_cuda_kernels(mixed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ops_cuda, "backend", lambda: "cuda-13.0")
    assert choose_backend("auto", "cuda", cache="device") == "native-cuda"
    monkeypatch.setattr(ops_cuda, "backend", lambda: "absent")
    config = LoaderConfig(records=mixed[0], split="all", batch_size=2, cache="device", device="cuda")
    with pytest.raises(UsageError, match="cache device needs the CUDA kernels, which are not built"):
        open_loader(config)


@needs_kernels
def test_a_records_folder_that_is_not_complete_is_refused_as_ever(tmp_path):
    write_records(tmp_path, [(64, 64)])
    (tmp_path / DATASET_FILE).unlink()
    with pytest.raises(RecordError, match="not a complete records folder"):
        open_loader(LoaderConfig(records=tmp_path, split="all", batch_size=1, cache="host"))
