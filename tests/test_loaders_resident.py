"""The GPU loader on CPU tensors, with the CUDA kernels under their emulator."""

import shutil

import pytest
import torch
from loaders_data import write_records

from fastich import ops
from fastich.errors import RecordError
from fastich.loaders import LoaderConfig, open_loader, resident
from fastich.loaders.cache import fill
from fastich.loaders.source import Source
from fastich.ops_cuda import CudaDecodeWindow
from fastich.records.reader import RecordReader

pytestmark = [
    pytest.mark.skipif(not ops.KERNELS, reason="the native kernels are not built"),
    pytest.mark.skipif(not shutil.which("g++"), reason="g++ builds the emulated kernels"),
]

TOLERANCE, TOLERANCE_AUGMENTED = 1e-4, 1e-3
"""Normalised units, as between the native loader and the torch reference."""


def made(library, folder, **changes):
    """The loader on the GPU's protocol, and what the loader on the CPU gives for the same config."""
    usual = {"records": folder, "split": "train", "batch_size": 3, "size": 64, "shuffle": True, "seed": 2}
    config = LoaderConfig(**usual | changes, cache="host")
    source = Source(RecordReader(folder), config)
    decode = CudaDecodeWindow(config.windows, config.size, layout=ops.HWC, library=library)
    cache = fill(source.reader, source.order.rows, config.size, torch.device("cpu"), 2)
    return resident.Resident(source, cache, decode), cache, open_loader(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("resident")
    write_records(path, [(512, 512), (64, 64), (128, 128), (50, 70)] * 3)
    return path


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
@pytest.mark.parametrize("size", [64, 48])
def test_batches_are_those_of_the_cache_in_ram(emulated_library, folder, augment, size):
    found, _, expected = made(emulated_library, folder, augment=augment, size=size)
    batches = list(found.batches(1, 0))
    assert len(batches) == expected.num_batches > 2
    for one, other in zip(batches, expected.epoch(1), strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.labels, other.labels)
        tolerance = TOLERANCE_AUGMENTED if augment else TOLERANCE
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=tolerance)
        assert one.images.is_contiguous(memory_format=torch.channels_last)


def test_it_starts_at_any_batch(emulated_library, folder):
    found, _, _ = made(emulated_library, folder, augment=True)
    whole, tail = list(found.batches(1, 0)), list(found.batches(1, 2))
    assert [batch.rows.tolist() for batch in tail] == [batch.rows.tolist() for batch in whole[2:]]


def test_half_planes_of_512_px_records_are_those_of_the_native_loader(emulated_library, tmp_path):
    write_records(tmp_path, [(512, 512)] * 2)
    found, cache, _ = made(emulated_library, tmp_path, size=256, batch_size=2, split="all")
    assert cache.half.all()
    (one,) = found.batches(0, 0)
    config = LoaderConfig(records=tmp_path, split="all", batch_size=2, shuffle=True, seed=2, backend="native")
    (other,) = open_loader(config).epoch(0)
    torch.testing.assert_close(one.images, other.images, rtol=0, atol=TOLERANCE)


def test_a_slice_that_does_not_decode_is_named_at_the_next_look(emulated_library, folder, monkeypatch):
    monkeypatch.setattr(resident, "CHECK_EVERY", 2)
    found, cache, _ = made(emulated_library, folder)
    bad = 4
    cache.data[int(cache.offsets[bad]) + 16] = 200  # a width of 200 bits
    seen = []
    text = rf"shard-.*tfrecord:\d+: row {cache.rows[bad]}: its copy in the cache does not decode \(damaged payload\)"
    with pytest.raises(RecordError, match=text):
        for batch in found.batches(0, 0):
            seen.append(batch)
    at = next(number for number, batch in enumerate(seen) if int(cache.rows[bad]) in batch.rows.tolist())
    assert len(seen) == 2 * (at // 2 + 1)
    found.check()  # what was told once is not told again


def test_statuses_are_looked_at_once_in_twenty_batches_and_at_the_end(emulated_library, folder, monkeypatch):
    found, _, _ = made(emulated_library, folder, batch_size=1)
    looks, calls = [], []
    look, queue = resident.Resident.check, resident.Resident._queue
    monkeypatch.setattr(resident.Resident, "check", lambda self: (looks.append(len(calls)), look(self)))
    monkeypatch.setattr(resident.Resident, "_queue", lambda self, todo: (calls.append(todo), queue(self, todo))[1])
    for epoch in range(3):
        list(found.batches(epoch, 0))
    assert looks == [10, 20, 30]
    monkeypatch.setattr(resident, "CHECK_EVERY", 4)
    list(found.batches(0, 0))
    assert looks[3:] == [34, 38, 40]
