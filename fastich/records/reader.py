"""Random access to a records folder: open checks the contents page and the index, every read checks bounds and CRC32C.

Opening costs one read of the index (about 1 s for 750,000 slices); a read costs a checksum at several GB/s and the
decode. Shards are mapped when first touched. Damage is an error that names file and byte offset, never wrong pixels.
"""

import hashlib
import mmap
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import ops
from fastich.errors import RecordError, UsageError
from fastich.hu import from_record, is_blank
from fastich.records.format import crc32c
from fastich.records.index import DATASET_FILE, SPLITS, label_matrix, parse_dataset, read_index, series_codes
from fastich.types import HuArray


class RecordReader:
    """A complete records folder, open for reading by any number of threads.

    Attributes:
        folder: the folder as given.
        dataset: the value of dataset.json.
        dataset_sha256: hex SHA-256 of dataset.json's bytes: the identity of the data set.
        index: one row a slice, in the order study, series, z (columns: ``index.SCHEMA``).
        codec: ``lbp`` or ``raw``.
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder``.

        Raises:
            RecordError: not a complete records folder, of another version, or its index is damaged.
        """
        self.folder = Path(folder)
        self.dataset, self.dataset_sha256 = read_dataset(self.folder)
        self.codec: str = self.dataset["codec"]
        self.index: pd.DataFrame = read_dataset_index(self.folder, self.dataset)
        self._series = series_codes(self.index)
        self._places: dict[str, NDArray[Any]] = {
            name: self.index[name].to_numpy()
            for name in ("shard", "payload_offset", "payload_size", "crc32c", "height", "width", "split")
        }
        self._shards: dict[int, memoryview] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._series)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the mapped shards; each is unmapped when its last payload is gone."""
        with self._lock:
            self._shards.clear()

    def payload(self, row: int, *, check_crc: bool = True) -> memoryview:
        """The encoded pixels of slice ``row``, a read-only view into the mapped shard.

        Raises:
            RecordError: the shard is missing, truncated or damaged; names file and byte offset.
        """
        number, start = int(self._at("shard", row)), int(self._at("payload_offset", row))
        shard, end = self._shard(number), start + int(self._at("payload_size", row))
        if end > len(shard):
            raise RecordError(f"{self._path(number)}:{start}: payload of row {row} ends at {end}, file at {len(shard)}")
        view = shard[start:end]
        expected = int(self._at("crc32c", row))
        if check_crc and (found := crc32c(view)) != expected:
            raise RecordError(
                f"{self._path(number)}:{start}: checksum of the payload of row {row} is {found:08x}, expected "
                f"{expected:08x}: the shard is damaged; see fastich.verify, restore or pack again"
            )
        return view

    def stored(self, row: int, *, check_crc: bool = True) -> NDArray[np.uint16]:
        """The record's pixels of slice ``row``, uint16 [H, W] (HU + 1024).

        Raises:
            RecordError: as ``payload``, or the payload does not decode.
        """
        view = self.payload(row, check_crc=check_crc)
        try:
            return ops.decode(view, *self.shape(row), self.codec)
        except RecordError as error:
            raise RecordError(f"{self.place(row)}: row {row}: {error}") from error

    def place(self, row: int) -> str:
        """Where the payload of slice ``row`` lies: ``file:offset``."""
        return f"{self._path(int(self._at('shard', row)))}:{self._at('payload_offset', row)}"

    def shape(self, row: int) -> tuple[int, int]:
        """Height and width of slice ``row``, pixels."""
        return int(self._at("height", row)), int(self._at("width", row))

    def hu(self, row: int) -> HuArray:
        """Slice ``row`` in Hounsfield units, int16 [H, W]."""
        return from_record(self.stored(row))

    def is_blank(self, row: int) -> bool:
        """Tell whether slice ``row`` is blank as ``hu.is_blank`` means it: equal to others by chance.

        A resized blank image has more values where its two met, but on few pixels: there nine tenths must be of two.
        """
        pixels = self.stored(row)
        if self.dataset["size"] is None:
            return is_blank(pixels)
        counts = np.sort(np.unique(pixels, return_counts=True)[1])
        return bool(counts[-2:].sum() >= 0.9 * pixels.size)

    def rows(self, split: str) -> NDArray[np.int64]:
        """The row numbers of ``split`` (train, val, test, or empty for rows without a label), ascending.

        Raises:
            UsageError: there is no such split.
        """
        if split not in SPLITS:
            raise UsageError(f"split {split!r}: expected one of {', '.join(SPLITS[:-1])}")
        return np.flatnonzero(self._places["split"] == split).astype(np.int64)

    def labels(self) -> NDArray[np.int8]:
        """All labels, int8 [num_rows, 6] in the order of ``labels.LABELS``, -1 unknown."""
        return label_matrix(self.index)

    def neighbours(self, row: int) -> tuple[int, int]:
        """The rows before and after ``row`` along z; at an end of the series, ``row`` itself."""
        last = len(self) - 1
        before = row - 1 if row > 0 and self._series[row - 1] == self._series[row] else row
        after = row + 1 if row < last and self._series[row + 1] == self._series[row] else row
        return before, after

    def _at(self, column: str, row: int) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a data set of {len(self)}")
        return self._places[column][row]

    def _path(self, number: int) -> Path:
        return self.folder / str(self.dataset["shards"][number]["file"])

    def _shard(self, number: int) -> memoryview:
        with self._lock:
            if number not in self._shards:
                self._shards[number] = map_shard(self._path(number), self.dataset["shards"][number]["size_bytes"])
            return self._shards[number]


def read_dataset(folder: Path) -> tuple[dict[str, Any], str]:
    """The value of a folder's dataset.json, checked, and the hex SHA-256 of its bytes.

    Raises:
        RecordError: there is none, or it is damaged or of another version.
    """
    path = folder / DATASET_FILE
    if not path.is_file():
        raise RecordError(
            f"{folder}: not a complete records folder: no {DATASET_FILE} in it; finish it with fastich.pack --resume"
        )
    raw = path.read_bytes()
    return parse_dataset(raw, str(path)), hashlib.sha256(raw).hexdigest()


def read_dataset_index(folder: Path, dataset: dict[str, Any]) -> pd.DataFrame:
    """The index that ``dataset`` names, checked against its hash, its row count and the number of shards.

    Raises:
        RecordError: it is missing, damaged, or does not belong to this dataset.json.
    """
    path = folder / dataset["index"]["file"]
    if not path.is_file():
        raise RecordError(f"{path}: missing, but {DATASET_FILE} names it; restore it or pack again")
    raw = path.read_bytes()
    found = hashlib.sha256(raw).hexdigest()
    if found != dataset["index"]["sha256"]:
        raise RecordError(
            f"{path}: SHA-256 is {found[:12]}..., {DATASET_FILE} says {dataset['index']['sha256'][:12]}...: "
            "the index is damaged or from another data set; restore it or pack again"
        )
    frame = read_index(raw, str(path))
    if len(frame) != dataset["num_slices"]:
        raise RecordError(f"{path}: holds {len(frame)} rows, {DATASET_FILE} says {dataset['num_slices']}")
    if len(frame) and frame["shard"].max() >= len(dataset["shards"]):
        raise RecordError(f"{path}: names shard {frame['shard'].max()}, {DATASET_FILE} lists {len(dataset['shards'])}")
    return frame


def map_shard(path: Path, size_bytes: int) -> memoryview:
    """A read-only view of a whole shard, whose size must be as dataset.json says.

    Raises:
        RecordError: the file is missing or of another size.
    """
    try:
        with path.open("rb") as handle:
            found = handle.seek(0, 2)
            if found != size_bytes:
                state = "truncated" if found < size_bytes else "too long"
                raise RecordError(
                    f"{path}:{min(found, size_bytes)}: {state}: {found} bytes, expected {size_bytes}; "
                    "restore it or pack again"
                )
            return memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) if found else b"")
    except FileNotFoundError as error:
        raise RecordError(f"{path}: missing, but {DATASET_FILE} lists it; restore it or pack again") from error
