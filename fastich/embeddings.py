"""The side store of a records folder: what one CNN says of every slice, written once and mapped when it is read.

The sequence model is trained for tens of epochs on the CNN's embeddings; making them again each time would cost what
the CNN costs. A store is ``RECORDS/side/embeddings-<first 12 hex digits of the weights' SHA-256>-<precision>/`` and
holds ``embedding.npy`` float16 [M, C], ``logit.npy`` float32 [M, 6], ``rows.npy`` int64 [M] and, last, ``meta.json``.
Below it ``pass-1`` and so on hold the same of augmented training slices. 2 KiB a slice: 1.6 GB for the 752,803 of
RSNA 2019.

A store is used for the very weights, records, input and precision that it was made from, else it is made again. Opening
reads it once (its hashes are compared). One process writes a store at a time.
Shapes: M slices, C embedding channels.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.errors import FastichError, RecordError
from fastich.files import fsync_folder, sha256_file, write_json
from fastich.labels import NUM_LABELS

FORMAT_VERSION = 3
SIDE_FOLDER = "side"
EMBEDDING, LOGIT, ROWS, META = "embedding.npy", "logit.npy", "rows.npy", "meta.json"
WHAT_TO_DO = "remove that folder: it is made again"

Int64Array = NDArray[np.int64]
Chunk = tuple[Int64Array, NDArray[np.float32], NDArray[np.float32]]
"""Rows int64 [N], their embeddings float32 [N, C] and logits float32 [N, 6]."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a store was made from; all of it must agree before the store is used.

    Attributes:
        weights_sha256: of the CNN (``checkpoint.weights_sha256``).
        dataset_sha256: of the records.
        input: size, windows, adjacent: what the CNN was fed with.
        precision: number format of the CNN's pass: bfloat16 moves a logit by some hundredths.
        augmented_pass: 0 for slices as they are, else the number of the pass with augmentation on.
    """

    weights_sha256: str
    dataset_sha256: str
    input: dict[str, Any]
    precision: str
    augmented_pass: int = 0

    def folder(self, records: Path) -> Path:
        """Where the store lies."""
        store = records / SIDE_FOLDER / f"embeddings-{self.weights_sha256[:12]}-{self.precision}"
        return store / f"pass-{self.augmented_pass}" if self.augmented_pass else store


@dataclass(frozen=True, kw_only=True, eq=False)
class Store:
    """An open store: ``embedding`` float16 [M, C] and ``logit`` float32 [M, 6] are mapped, ``rows`` [M] ascends."""

    folder: Path
    embedding: NDArray[np.float16]
    logit: NDArray[np.float32]
    rows: Int64Array

    @property
    def embedding_size(self) -> int:
        """C."""
        return int(self.embedding.shape[1])


def open_store(records: Path, identity: Identity, rows: Int64Array) -> Store | None:
    """The store of exactly ``rows`` of ``records``, or None where there is none made from ``identity``.

    Raises:
        RecordError: it is there and damaged; names the file.
    """
    folder = identity.folder(records)
    if not (folder / META).is_file():
        return None
    meta = _read_meta(folder / META)
    wanted = {"format_version": FORMAT_VERSION, **vars(identity)}
    if any(meta.get(key) != value for key, value in wanted.items()):
        return None
    shapes = {EMBEDDING: (np.float16, 2), LOGIT: (np.float32, 2), ROWS: (np.int64, 1)}
    arrays = {name: _open_array(folder / name, meta, *shape) for name, shape in shapes.items()}
    embedding, logit, found = (arrays[name] for name in (EMBEDDING, LOGIT, ROWS))
    if not (len(embedding) == len(logit) == len(found) and logit.shape[1] == NUM_LABELS):
        raise RecordError(
            f"{folder}: expected as many embeddings and logits [M, {NUM_LABELS}] as rows, found "
            f"{embedding.shape}, {logit.shape}, {found.shape}; {WHAT_TO_DO}"
        )
    if not np.array_equal(found, rows):
        return None
    return Store(folder=folder, embedding=embedding, logit=logit, rows=np.array(found))


def write_store(records: Path, identity: Identity, rows: Int64Array, chunks: Iterator[Chunk]) -> None:
    """Write the store of ``rows``, whole or not at all; what stood in its place goes when the new one is complete.

    Args:
        records: the records folder.
        identity: what it is made from.
        rows: rows of the index, ascending.
        chunks: together they hold each of ``rows`` once, in any order.

    Raises:
        FastichError: a value is not finite, or a row is missing from ``chunks``.
        OSError: the disk is full or cannot be written.
    """
    folder = identity.folder(records)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a writer that was killed
    temporary.mkdir(parents=True)
    try:
        size = _write_arrays(temporary, rows, chunks)
        files = {
            name: {"sha256": sha256_file(temporary / name), "size_bytes": (temporary / name).stat().st_size}
            for name in (EMBEDDING, LOGIT, ROWS)
        }
        meta = {"format_version": FORMAT_VERSION, **vars(identity), "embedding_size": size, "num_rows": len(rows)}
        write_json(temporary / META, {**meta, "files": files})
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_arrays(folder: Path, rows: Int64Array, chunks: Iterator[Chunk]) -> int:
    """The three arrays, those that are large through maps, so that none stands in memory; returns C."""
    first = next(chunks)
    size = int(first[1].shape[1])
    embedding = np.lib.format.open_memmap(folder / EMBEDDING, mode="w+", dtype=np.float16, shape=(len(rows), size))
    logit = np.lib.format.open_memmap(folder / LOGIT, mode="w+", dtype=np.float32, shape=(len(rows), NUM_LABELS))
    is_there = np.zeros(len(rows), dtype=np.bool_)
    for some, embedded, said in itertools.chain([first], chunks):
        at = np.searchsorted(rows, some)
        assert np.array_equal(rows[at], some), "the loader gave a row that was not asked for"
        with np.errstate(over="ignore"):  # float16 ends at 65,504; what is beyond becomes infinite and is refused
            embedding[at], logit[at] = embedded.astype(np.float16), said
        bad = ~(np.isfinite(embedding[at]).all(axis=1) & np.isfinite(said).all(axis=1))
        if bad.any():
            raise FastichError(f"the network gave values that are not finite in float16 for row {int(some[bad][0])}")
        is_there[at] = True
    if not is_there.all():
        raise FastichError(f"{folder}: expected every row, found no embedding of row {int(rows[~is_there][0])}")
    embedding.flush()
    logit.flush()
    np.save(folder / ROWS, rows)
    return size


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise RecordError(f"{path}: expected a JSON object ({error}); {WHAT_TO_DO}") from error


def _open_array(path: Path, meta: dict[str, Any], dtype: Any, ndim: int) -> NDArray[Any]:
    """One mapped array, compared with what meta.json says of its file."""
    entry = meta.get("files", {}).get(path.name, {})
    if not path.is_file():
        raise RecordError(f"{path}: missing, but {META} names it; {WHAT_TO_DO}")
    if (size := path.stat().st_size) != entry.get("size_bytes"):
        raise RecordError(f"{path}: expected {entry.get('size_bytes')} bytes, found {size}; {WHAT_TO_DO}")
    if (found := sha256_file(path)) != entry.get("sha256"):
        raise RecordError(
            f"{path}: damaged: SHA-256 is {found[:12]}, {META} says {str(entry.get('sha256'))[:12]}; {WHAT_TO_DO}"
        )
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.dtype != dtype or array.ndim != ndim:
        raise RecordError(
            f"{path}: expected {np.dtype(dtype)} of {ndim} dimensions, found {array.dtype} {array.shape}; {WHAT_TO_DO}"
        )
    return array
