"""One shard file being written: records one after another, hashed as they grow, whole or absent.

Apart from ``records.writer`` because packing's worker processes write shards and nothing else: they need neither pandas
nor pyarrow, whose import would be most of their start.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from fastich import files
from fastich.records.format import FRAME_HEADER, crc32c, example_around, frame


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordPlace:
    """Where a record lies in its shard; offsets in bytes from the start of the file, crc32c of the payload."""

    offset: int
    size: int
    payload_offset: int
    payload_size: int
    crc32c: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """A finished shard as dataset.json lists it."""

    file: str
    sha256: str
    size_bytes: int
    num_slices: int


class ShardWriter:
    """A shard being written; nothing stands under ``path`` before ``close``. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self._file = self._stack.enter_context(self._stack.enter_context(files.atomic_path(path)).open("wb"))
        self._hash = hashlib.sha256()
        self._size_bytes = 0
        self._num_slices = 0

    def append(self, payload: bytes, height: int, width: int, labels: Sequence[int], sop: str) -> RecordPlace:
        """Add one slice: its payload from ``codec.encode``, its shape, six labels (-1 unknown) and SOP Instance UID."""
        before, after = example_around(len(payload), height, width, labels, sop)
        record = frame(before, payload, after)
        self._file.write(record)
        self._hash.update(record)
        place = RecordPlace(
            offset=self._size_bytes,
            size=len(record),
            payload_offset=self._size_bytes + FRAME_HEADER.size + len(before),
            payload_size=len(payload),
            crc32c=crc32c(payload),
        )
        self._size_bytes += len(record)
        self._num_slices += 1
        return place

    def close(self) -> ShardInfo:
        """Make the shard durable under its name; a second call only says again what was written."""
        self._stack.close()
        return ShardInfo(
            file=self.path.name,
            sha256=self._hash.hexdigest(),
            size_bytes=self._size_bytes,
            num_slices=self._num_slices,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
