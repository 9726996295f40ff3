"""A split at the network's resolution, read once and kept compressed in one buffer, so that later epochs do no I/O.

What a record becomes, mostly without being decoded, is told in ``planes.py``.

Cost: the whole records are read once (the CRC covers them), those of the sample that foresees the size twice. At 256 px
a half plane takes about 56 KB: 42 GB for the 752,803 slices of RSNA 2019.

Shapes: M slices of the split, S side of a plane in pixels, B bytes.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastich.errors import FastichError
from fastich.loaders.order import Int64Array
from fastich.loaders.planes import Uint8Array, plane_payload
from fastich.loaders.source import ahead
from fastich.records.reader import RecordReader
from fastich.verb import progress, say

NUM_SAMPLED = 1024
"""Slices that are read to foresee how large the cache will be: a spread of 30 % becomes an error of 1 %."""
SAMPLE_MARGIN = 1.04
"""Four such errors. Where the sample is the whole split the foreseen size is exact and no margin is added."""
FILL_SHARE = 0.95
"""Of the free memory a cache may take; the rest is for what grows meanwhile."""
BLOCK = 64
"""Slices that a thread reads before it hands them over."""
ALIGNMENT = 16
"""Every payload starts at a multiple of it: a decoder may load whole vectors of its width table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """Flat LBP payloads of planes [S, S] in one buffer.

    Attributes:
        data: uint8 [B], in RAM or on the GPU.
        offsets: int64 [M], where each payload starts.
        sizes: int64 [M], bytes of each payload.
        half: bool [M], whether 0.5 HU must be added after decoding.
        rows: int64 [M], ascending: the reader's row of each slot.
        side: S.
    """

    data: Tensor
    offsets: Int64Array
    sizes: Int64Array
    half: NDArray[np.bool_]
    rows: Int64Array
    side: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the buffer."""
        return self.data.numel()

    def slots(self, rows: Int64Array) -> Int64Array:
        """The slot of each of ``rows``, which the cache holds."""
        return np.searchsorted(self.rows, rows).astype(np.int64)

    def payload(self, slot: int) -> memoryview:
        """The payload of ``slot``, a view into the buffer, which must be in RAM."""
        start = int(self.offsets[slot])
        buffer: Uint8Array = self.data.numpy()
        return buffer[start : start + int(self.sizes[slot])].data


def fill(reader: RecordReader, rows: Int64Array, side: int, device: torch.device, threads: int) -> Cache:
    """Read ``rows`` into a new cache on ``device``.

    Raises:
        RecordError: a record is damaged; names file and byte offset.
        FastichError: it will not fit into the memory that is free.
    """
    began_s, rows = time.perf_counter(), np.unique(rows)
    read = partial(_read_block, reader, side)
    foreseen = foresee(read, rows, threads)
    require_fit(reader.folder, foreseen, free_bytes(device), device)
    data = torch.empty(foreseen, dtype=torch.uint8, device=device)
    sizes, half, end = np.empty(len(rows), np.int64), np.empty(len(rows), np.bool_), 0
    blocks = [rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK)]
    title = f"cache ({device.type})"
    made = progress(ahead(read, blocks, threads), total=len(blocks), unit=f"blocks of {BLOCK} slices", title=title)
    for number, (block_data, block_sizes, block_half) in enumerate(made):
        if end + len(block_data) > data.numel():
            data = _enlarged(reader.folder, data, end + len(block_data))
        data[end : end + len(block_data)].copy_(torch.from_numpy(block_data))
        place = slice(number * BLOCK, number * BLOCK + len(block_sizes))
        sizes[place], half[place] = block_sizes, block_half
        end += len(block_data)
    say(f"cache: {len(rows)} slices, {end / 1e9:.3g} GB on {device.type}, in {time.perf_counter() - began_s:.1f} s")
    starts = np.cumsum(_aligned(sizes)) - _aligned(sizes)
    return Cache(data=data[:end], offsets=starts, sizes=sizes, half=half, rows=rows, side=side)


def foresee(read: "partial[Block]", rows: Int64Array, threads: int) -> int:
    """Bytes that the cache of ``rows`` will take, from a fixed random sample of them; exact for few rows."""
    sample = rows
    if len(rows) > NUM_SAMPLED:
        sample = np.sort(np.random.default_rng(0).choice(rows, NUM_SAMPLED, replace=False))
    found = sum(len(data) for data, _, _ in ahead(read, np.array_split(sample, -(-len(sample) // BLOCK)), threads))
    return found if len(sample) == len(rows) else math.ceil(found / len(sample) * len(rows) * SAMPLE_MARGIN)


def require_fit(folder: Path, needed: int, free: int, device: torch.device) -> None:
    """Refuse a cache that does not fit.

    Raises:
        FastichError: says how many bytes it needs and how many are free.
    """
    if needed > FILL_SHARE * free:
        on_gpu = device.type == "cuda"
        raise FastichError(
            f"{folder}: its cache needs {needed:,} bytes, {'the GPU' if on_gpu else 'this machine'} has {free:,} free, "
            f"of which {FILL_SHARE:.0%} may be taken; use --cache {'host or none' if on_gpu else 'none'}, a smaller "
            "--size or fewer slices"
        )


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken: of the GPU, or of the machine and the control group that the process is in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    available = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    return int(min(available, *map(_group_free_bytes, control_groups())))


def control_groups(membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """The control group (version 2) that this process is in and those above it, at least ``mount`` itself."""
    lines = membership.read_text(encoding="utf-8").splitlines() if membership.exists() else []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return [mount / part for part in (Path(own), *Path(own).parents)] if own else [mount]


def _group_free_bytes(group: Path) -> float:
    """What the limit of a control group leaves, file pages counted as free; infinite without a limit."""
    try:
        limit, used = ((group / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
    except FileNotFoundError:
        return math.inf
    file_pages = int(stat["inactive_file"]) + int(stat["active_file"])
    return math.inf if limit == "max" else int(limit) - int(used) + file_pages


Block = tuple[Uint8Array, Int64Array, NDArray[np.bool_]]
"""Payloads end to end, each filled up to ``ALIGNMENT``; their sizes; their ``half`` marks."""


def _read_block(reader: RecordReader, side: int, rows: Iterable[int]) -> Block:
    entries = [plane_payload(reader, int(row), side) for row in rows]
    sizes = np.array([len(payload) for payload, _ in entries], np.int64)
    ends = np.cumsum(_aligned(sizes))
    data = np.zeros(int(ends[-1]), np.uint8)
    for (payload, _), end, size in zip(entries, ends, sizes, strict=True):
        start = end - _aligned(size)
        data[start : start + size] = payload
    return data, sizes, np.array([half for _, half in entries], np.bool_)


def _aligned(sizes: Int64Array) -> Int64Array:
    return -(-sizes // ALIGNMENT) * ALIGNMENT


def _enlarged(folder: Path, data: Tensor, needed: int) -> Tensor:
    """A buffer for at least ``needed`` bytes with what ``data`` holds: the sample foresaw too few."""
    size = math.ceil(needed * SAMPLE_MARGIN)
    require_fit(folder, size, free_bytes(data.device), data.device)
    made = torch.empty(size, dtype=torch.uint8, device=data.device)
    made[: data.numel()].copy_(data)
    return made
