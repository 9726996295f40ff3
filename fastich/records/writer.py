"""Write a records folder: shards first, index next, dataset.json last; each file is whole or absent.

A shard is written under a temporary name, hashed as it grows (no second read), fsynced and renamed, so a kill at any
moment leaves nothing that looks finished. The bytes depend on the arguments only.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

from fastich import files
from fastich.records.format import FORMAT_VERSION, FRAME_HEADER, crc32c, example_around, frame
from fastich.records.index import (
    DATASET_FILE,
    INDEX_FILE,
    check_index,
    parse_dataset,
    render_dataset,
    summarise,
    write_index,
)

META_KEYS = ("codec", "size", "split", "shards", "rejects", "versions")
"""What the caller of ``finish_dataset`` knows and the index does not."""


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


def finish_dataset(folder: Path, index: pd.DataFrame, meta: dict[str, Any]) -> dict[str, Any]:
    """Write index.parquet, then dataset.json, and return the latter's value; nothing else in ``folder`` is touched.

    ``index`` has the columns of ``index.SCHEMA``; its order is study, series, z. ``meta`` has ``META_KEYS``: codec,
    size (None or pixels), split ({"rule", "seed", ...}), shards (``ShardInfo`` in order of number), rejects (file name
    or None) and versions ({"fastich", "numpy", "pydicom", ...}); more keys are kept as they are. Nothing in it may
    change from run to run: equal input must give equal bytes.

    Raises:
        RecordError: the index is not one of this format.
    """
    assert set(META_KEYS) <= set(meta), f"meta lacks {set(META_KEYS) - set(meta)}"
    check_index(index)
    with files.atomic_path(folder / INDEX_FILE) as temporary:
        write_index(temporary, index)
    value = {
        "format_version": FORMAT_VERSION,
        "codec": meta["codec"],
        "size": meta["size"],
        **summarise(index),
        **{key: item for key, item in meta.items() if key not in ("codec", "size", "shards")},
        "shards": [asdict(shard) for shard in meta["shards"]],
        "index": {"file": INDEX_FILE, "sha256": files.sha256_file(folder / INDEX_FILE)},
    }
    text = render_dataset(value)
    files.write_text(folder / DATASET_FILE, text)
    return parse_dataset(text.encode())
