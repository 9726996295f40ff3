"""Pass 2 of packing: one shard, from DICOM to bytes; idempotent, so a killed pack is finished by doing it again.

A shard and its part file: the shard is renamed into place first, the part after it, so a part means that its shard is
complete. A part holds the plan's rows with what became of each. The cost is that of reading DICOM (0.5-1.2 ms a slice)
and of encoding; a worker holds one slice in memory, or one multi-frame file.
"""

import functools
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fastich import dicom, ops
from fastich.errors import DicomError, FastichError
from fastich.files import atomic_path, sha256_file
from fastich.hu import to_record
from fastich.labels import LABELS
from fastich.records.index import shard_name
from fastich.records.writer import RecordPlace, ShardInfo, ShardWriter
from fastich.splits import is_blank
from fastich.types import RejectReason, Slice
from fastich.windowing import area_matrix

INFO_KEY = b"fastich_shard"
NO_PLACE = RecordPlace(offset=0, size=0, payload_offset=0, payload_size=0, crc32c=0)


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Everything a worker needs for one shard; ``rows`` are the plan's rows of that shard."""

    number: int
    num_shards: int
    rows: pd.DataFrame
    dicom: Path
    out: Path
    parts: Path
    codec: str
    size: int | None

    @property
    def path(self) -> Path:
        """Where the shard is written."""
        return self.out / shard_name(self.number, self.num_shards)

    @property
    def part(self) -> Path:
        """Where its rows are written."""
        return part_path(self.parts, self.number)


def part_path(parts: Path, number: int) -> Path:
    """``part-00003.parquet`` in the folder of parts."""
    return parts / f"part-{number:05d}.parquet"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one planned slice: a place in the shard, or a reason."""

    place: RecordPlace = NO_PLACE
    height: int = 0
    width: int = 0
    pixel_sha1: str = ""
    blank: bool = False
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class ShardDone:
    """How many planned slices a shard stands for, and how many of them were dealt with now (none if it was there)."""

    num_slices: int
    num_packed: int


def write_shard(job: ShardJob) -> ShardDone:
    """Write the shard and its part, unless an earlier run has finished them."""
    if is_done(job):
        return ShardDone(num_slices=len(job.rows), num_packed=0)
    kept: dict[str, tuple[str, str]] = {}
    outcomes: list[Outcome] = []
    with dicom.Decoder() as decoder, ShardWriter(job.path) as writer:
        source = SliceSource(job.dicom, decoder)
        labels = job.rows[list(LABELS)].to_numpy(np.int8).tolist()
        for row, row_labels in zip(job.rows.itertuples(index=False), labels, strict=True):
            outcomes.append(_pack_slice(row, row_labels, source, writer, kept, job))
    _write_part(job, outcomes, writer.close())
    return ShardDone(num_slices=len(outcomes), num_packed=len(outcomes))


def _pack_slice(
    row: Any,
    labels: list[int],
    source: "SliceSource",
    writer: ShardWriter,
    kept: dict[str, tuple[str, str]],
    job: ShardJob,
) -> Outcome:
    try:
        pixels = to_record(source.read(row.path, row.frame).hu)
    except DicomError as error:
        return Outcome(reason=error.reason.value, detail=error.detail)
    sha1 = hashlib.sha1(np.ascontiguousarray(pixels, "<u2").data, usedforsecurity=False).hexdigest()
    if row.sop_uid in kept:
        return _twin(sha1, *kept[row.sop_uid])
    kept[row.sop_uid] = (sha1, row.path)
    blank = is_blank(pixels)
    if job.size is not None:
        pixels = resize_record(pixels, job.size)
    height, width = pixels.shape
    place = writer.append(ops.encode(pixels, job.codec), height, width, labels, row.sop_uid)
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
    mean = _weights(height, square, size) @ pixels.astype(np.float64) @ _weights(width, square, size).T
    return np.rint(mean).astype(np.uint16)


@functools.lru_cache(maxsize=8)
def _weights(num_in: int, num_square: int, size: int) -> NDArray[np.float64]:
    return area_matrix(num_in, num_square, size).astype(np.float64)


class SliceSource:
    """Reads planned slices; keeps the frames of the last two files, for multi-frame files are planned by frame."""

    def __init__(self, root: Path, decoder: dicom.Decoder) -> None:
        self._root, self._decoder = root, decoder
        self._files: dict[str, dict[int, Slice]] = {}

    def read(self, path: str, frame: int) -> Slice:
        """Frame ``frame`` of the file ``path`` (relative to the root).

        Raises:
            DicomError: it cannot be used.
        """
        if path not in self._files:
            slices = dicom.read_file(self._root / path, root=self._root, decoder=self._decoder)
            while len(self._files) > 1:
                del self._files[next(iter(self._files))]
            self._files[path] = {one.header.frame: one for one in slices}
        if frame not in self._files[path]:
            raise DicomError(RejectReason.DAMAGED_PIXELS, f"frame {frame} cannot be read")
        return self._files[path][frame]


def _write_part(job: ShardJob, outcomes: list[Outcome], info: ShardInfo) -> None:
    part = job.rows.rename(columns={"height": "native_height", "width": "native_width"}).reset_index(drop=True)
    for name in RecordPlace.__slots__:
        part[name] = np.asarray([getattr(outcome.place, name) for outcome in outcomes], dtype=np.int64)
    for name in ("height", "width", "pixel_sha1", "blank", "reason", "detail"):
        part[name] = [getattr(outcome, name) for outcome in outcomes]
    table = pa.Table.from_pandas(part, preserve_index=False)
    table = table.replace_schema_metadata({INFO_KEY: json.dumps(asdict(info)).encode()})
    with atomic_path(job.part) as temporary:
        pq.write_table(table, temporary)


def read_part(path: Path) -> tuple[pd.DataFrame, ShardInfo]:
    """A part's rows and what it says of its shard.

    Raises:
        FastichError: the part is damaged.
    """
    try:
        table = pq.read_table(path)
        info = ShardInfo(**json.loads(table.schema.metadata[INFO_KEY]))
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise FastichError(f"{path}: damaged ({error}); remove it and go on with --resume") from error
    frame: pd.DataFrame = table.to_pandas()
    return frame, info


def is_done(job: ShardJob) -> bool:
    """Tell whether an earlier run finished this shard: its part is there, and the shard is what the part says."""
    if not job.part.exists():
        return False
    try:
        _, info = read_part(job.part)
        return job.path.stat().st_size == info.size_bytes and sha256_file(job.path) == info.sha256
    except (FastichError, FileNotFoundError):
        return False
