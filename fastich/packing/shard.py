"""Pass 2 of packing: one shard, from DICOM to bytes; idempotent, so a killed pack is finished by doing it again.

A shard and its part file: the shard is renamed into place first, the part after it, so a part means that its shard is
complete (``packing.part``). Half of the time of an uncompressed slice goes to hashing (SHA-1 of its pixels, SHA-256 of
its record), a quarter to encoding, the rest to reading, checking and writing; a worker holds one slice in memory, or
one multi-frame file. Nothing here loads pandas or pyarrow, which would be most of the start of a worker process.
"""

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastich import dicom, ops
from fastich.errors import DicomError, FastichError
from fastich.files import sha256_file
from fastich.hu import is_blank
from fastich.packing.part import Outcome, read_part, write_part
from fastich.records.shard_file import ShardWriter
from fastich.types import RejectReason
from fastich.windowing import area_matrix


class PlannedSlice(NamedTuple):
    """What pass 2 needs to know of one row of the plan; ``labels`` are six of -1, 0 or 1."""

    path: str
    frame: int
    sop_uid: str
    labels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Everything a worker needs for one shard: where it and its part are written, and the slices planned for it."""

    path: Path
    part: Path
    slices: tuple[PlannedSlice, ...]
    dicom: Path
    codec: str
    size: int | None


@dataclass(frozen=True, kw_only=True)
class ShardDone:
    """How many planned slices a shard stands for, and how many of them were dealt with now (none if it was there)."""

    num_slices: int
    num_packed: int


def write_shard(job: ShardJob) -> ShardDone:
    """Write the shard and its part, unless an earlier run has finished them."""
    if is_done(job):
        return ShardDone(num_slices=len(job.slices), num_packed=0)
    kept: dict[str, tuple[str, str]] = {}
    with dicom.Decoder() as decoder, ShardWriter(job.path) as writer:
        source = SliceSource(job.dicom, decoder)
        outcomes = [_pack_slice(one, source, writer, kept, job) for one in job.slices]
    write_part(job.part, outcomes, writer.close())
    return ShardDone(num_slices=len(outcomes), num_packed=len(outcomes))


def _pack_slice(
    one: PlannedSlice, source: "SliceSource", writer: ShardWriter, kept: dict[str, tuple[str, str]], job: ShardJob
) -> Outcome:
    try:
        pixels = source.read(one.path, one.frame)
    except DicomError as error:
        return Outcome(reason=error.reason.value, detail=error.detail)
    sha1 = hashlib.sha1(np.ascontiguousarray(pixels, "<u2").data, usedforsecurity=False).hexdigest()
    if one.sop_uid in kept:
        return _twin(sha1, *kept[one.sop_uid])
    kept[one.sop_uid] = (sha1, one.path)
    blank = is_blank(pixels)
    if job.size is not None:
        pixels = resize_record(pixels, job.size)
    height, width = pixels.shape
    place = writer.append(ops.encode(pixels, job.codec), height, width, one.labels, one.sop_uid)
    return Outcome(place=place, height=height, width=width, pixel_sha1=sha1, blank=blank)


def _twin(sha1: str, kept_sha1: str, kept_path: str) -> Outcome:
    same = sha1 == kept_sha1
    reason = RejectReason.DUPLICATE if same else RejectReason.CONFLICTING_DUPLICATE
    return Outcome(reason=reason.value, detail=f"{kept_path} has the same SOP Instance UID and is kept")


def resize_record(pixels: NDArray[np.uint16], size: int) -> NDArray[np.uint16]:
    """Area mean of record ``pixels`` [H, W] to [size, size], by the rule of ``windowing.resize_area``.

    In float64, so that rounding does not depend on how a BLAS orders its sums: equal input gives equal bytes. Padding
    is air already (0 in a record, as is what lies outside the image), so the mean is the one a loader would take.
    """
    height, width = pixels.shape
    square = max(height, width)
    factor, rest = divmod(square, size)
    if height == width and rest == 0 and factor.bit_count() == 1:
        return _block_means(pixels, factor)
    mean = _weights(height, square, size) @ pixels.astype(np.float64) @ _weights(width, square, size).T
    return np.rint(mean).astype(np.uint16)


def _block_means(pixels: NDArray[np.uint16], factor: int) -> NDArray[np.uint16]:
    """The area mean where blocks of ``factor`` by ``factor`` pixels, a power of two, become one: 512 to 256, mostly.

    All weights are then powers of two, so the products of the general way are exact and this gives the same bytes, in
    0.3 ms instead of 4.
    """
    size, width = len(pixels) // factor, pixels.shape[1]
    rows = pixels.reshape(size, factor, width).sum(axis=1, dtype=np.float64)
    sums: NDArray[np.float64] = functools.reduce(np.add, (rows[:, first::factor] for first in range(factor)))
    return np.rint(sums / factor**2).astype(np.uint16)


@functools.lru_cache(maxsize=8)
def _weights(num_in: int, num_square: int, size: int) -> NDArray[np.float64]:
    return area_matrix(num_in, num_square, size).astype(np.float64)


class SliceSource:
    """Reads planned slices; keeps the frames of the last two files, for multi-frame files are planned by frame."""

    def __init__(self, root: Path, decoder: dicom.Decoder) -> None:
        self._root, self._decoder = str(root), decoder
        self._files: dict[str, list[NDArray[np.uint16]]] = {}

    def read(self, path: str, frame: int) -> NDArray[np.uint16]:
        """Frame ``frame`` of the file ``path`` (relative to the root) as a record stores it, uint16 [H, W].

        Raises:
            DicomError: it cannot be used.
        """
        if path not in self._files:
            records = dicom.read_records(os.path.join(self._root, path), self._decoder)
            while len(self._files) > 1:
                del self._files[next(iter(self._files))]
            self._files[path] = records
        if frame >= len(self._files[path]):
            raise DicomError(RejectReason.DAMAGED_PIXELS, f"frame {frame} cannot be read")
        return self._files[path][frame]


def is_done(job: ShardJob) -> bool:
    """Tell whether an earlier run finished this shard: its part is there, and the shard is what the part says."""
    if not job.part.exists():
        return False
    try:
        _, info = read_part(job.part, len(job.slices))
        return job.path.stat().st_size == info.size_bytes and sha256_file(job.path) == info.sha256
    except (FastichError, FileNotFoundError):
        return False
