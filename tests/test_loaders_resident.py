"""The GPU loader on CPU tensors: the stand-in decodes at the addresses it is given, as the CUDA kernel will."""

import ctypes

import numpy as np
import pytest
import torch
from loaders_data import write_records

from fastich import ops
from fastich.errors import RecordError
from fastich.loaders import LoaderConfig, open_loader, resident
from fastich.loaders.cache import fill
from fastich.loaders.source import Source
from fastich.records.reader import RecordReader
from fastich.windowing import DEFAULT_WINDOWS

pytestmark = pytest.mark.skipif(not ops.KERNELS, reason="the native kernels are not built")


def array(address: int, shape: tuple[int, ...], kind: type) -> np.ndarray:
    count = int(np.prod(shape))
    memory = (ctypes.c_uint8 * (count * np.dtype(kind).itemsize)).from_address(address)
    return np.frombuffer(memory, kind).reshape(shape)


class StandIn:
    """``resident.BatchDecoder`` on the CPU."""

    def __init__(self, size: int) -> None:
        self.fused = ops.DecodeWindow(DEFAULT_WINDOWS, size, layout=ops.HWC)
        self.spoiled: int | None = None
        self.calls = 0

    def scratch_bytes(self, count: int, height: int, width: int) -> int:
        return count * height * width

    def __call__(
        self, *, count, data, offset, size, height, width, matrices, intensity, out, status, scratch, stream
    ) -> None:
        assert scratch
        assert stream == 0
        offsets, sizes = array(offset, (count,), np.int64), array(size, (count,), np.int64)
        heights, widths = array(height, (count,), np.int32), array(width, (count,), np.int32)
        statuses = array(status, (count,), np.int32)
        maps = None if matrices is None else array(matrices, (count, 2, 3), np.float32)
        for item, (gain, offset_hu) in enumerate(array(intensity, (count, 2), np.float32).tolist()):
            payload = memoryview(array(data + int(offsets[item]), (int(sizes[item]),), np.uint8))
            place = out + item * self.fused.size**2 * self.fused.num_windows * 4
            self.fused(
                payload, int(heights[item]), int(widths[item]), "lbp", place,
                matrix=None if maps is None else maps[item], gain=gain, offset_hu=offset_hu,
            )  # fmt: skip
            statuses[item] = 0
        if self.calls == self.spoiled:
            statuses[1] = 1
        self.calls += 1


def made(folder, **changes):
    """The loader on the GPU's protocol, and what the loader on the CPU gives for the same config."""
    usual = {"records": folder, "split": "train", "batch_size": 3, "size": 64, "shuffle": True, "seed": 2}
    config = LoaderConfig(**usual | changes, cache="host")
    source = Source(RecordReader(folder), config)
    decode = StandIn(config.size)
    cache = fill(source.reader, source.order.rows, config.size, torch.device("cpu"), 2)
    return resident.Resident(source, cache, decode), decode, open_loader(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("resident")
    write_records(path, [(512, 512), (64, 64), (128, 128), (50, 70)] * 3)
    return path


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
@pytest.mark.parametrize("size", [64, 256])
def test_batches_are_those_of_the_cache_in_ram(folder, augment, size):
    found, _, expected = made(folder, augment=augment, size=size)
    batches = list(found.batches(1, 0))
    assert len(batches) == expected.num_batches > 2
    for one, other in zip(batches, expected.epoch(1), strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.images, other.images)
        assert one.images.is_contiguous(memory_format=torch.channels_last)


def test_it_starts_at_any_batch(folder):
    found, _, _ = made(folder, augment=True)
    whole, tail = list(found.batches(1, 0)), list(found.batches(1, 2))
    assert [batch.rows.tolist() for batch in tail] == [batch.rows.tolist() for batch in whole[2:]]


def test_a_slice_that_does_not_decode_is_named_at_the_next_look(folder, monkeypatch):
    monkeypatch.setattr(resident, "CHECK_EVERY", 2)
    found, decode, _ = made(folder)
    decode.spoiled = 0
    seen = []
    with pytest.raises(
        RecordError, match=r"shard-.*tfrecord:\d+: row \d+: its copy in the cache does not decode"
    ) as caught:
        for batch in found.batches(0, 0):
            seen.append(batch)
    assert len(seen) == 2
    assert f"row {int(seen[0].rows[1])}: " in str(caught.value)
    found.check()  # what was told once is not told again


def test_statuses_are_looked_at_once_in_twenty_batches_and_at_the_end(folder, monkeypatch):
    found, decode, _ = made(folder, batch_size=1)
    looks = []
    look = resident.Resident.check
    monkeypatch.setattr(resident.Resident, "check", lambda self: (looks.append(decode.calls), look(self)))
    for epoch in range(3):
        list(found.batches(epoch, 0))
    assert looks == [10, 20, 30]
    monkeypatch.setattr(resident, "CHECK_EVERY", 4)
    list(found.batches(0, 0))
    assert looks[3:] == [34, 38, 40]
