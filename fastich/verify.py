"""Prove that a records folder is what was packed: every checksum, every record against the index, the splits.

Reads and decodes everything once, on threads (numpy and hashlib let go of the GIL): about 200 slices/s on one core, so
it is bound by the decode, not by the disk. Each problem is one line ``file:offset: what`` on stdout; exit status 1.
"""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import verb
from fastich.errors import RecordError
from fastich.files import TEMPORARY_SUFFIX
from fastich.labels import any_is_consistent
from fastich.records.check import Problem, ShardUnderCheck, check_hash, check_records, problem_from, walk
from fastich.records.index import DATASET_FILE, SCHEMA, label_matrix, summarise
from fastich.records.reader import RecordReader, map_shard, read_dataset, read_dataset_index

RECORDS_PER_TASK = 32
"""Enough to hide the cost of handing a task to a thread, few enough for a smooth progress bar."""


@dataclass(kw_only=True, slots=True)
class Verification:
    """What ``verify`` found; ``size_bytes`` counts the shards' bytes that were read."""

    dataset_sha256: str | None = None
    num_shards: int = 0
    num_slices: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)

    @property
    def mb_per_s(self) -> float:
        """Rate of reading, checking and decoding, 10^6 bytes of shard a second."""
        return round(self.size_bytes / 1e6 / max(self.seconds, 1e-9), 1)


def verify(folder: Path, num_threads: int | None = None) -> Verification:
    """Check the records in ``folder``; nothing is raised for damage, everything is listed.

    Raises:
        RecordError: ``folder`` is not a folder.
    """
    if not folder.is_dir():
        raise RecordError(f"{folder}: not a folder; expected the output of fastich.pack")
    started, found = time.perf_counter(), Verification()
    try:
        dataset, found.dataset_sha256 = read_dataset(folder)
    except RecordError as error:
        found.problems.append(problem_from(error, DATASET_FILE))
        return found
    index = _read_index(folder, dataset, found)
    found.problems += _check_listing(folder, dataset)
    if index is not None:
        found.problems += _check_counts(index, dataset)
        found.problems += _check_splits(folder, dataset, index)
        found.problems += _check_labels(index, dataset["index"]["file"])
    threads = num_threads or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        _check_shards(folder, dataset, index, found, pool)
    found.problems.sort(key=lambda problem: (problem.file, -1 if problem.offset is None else problem.offset))
    found.seconds = time.perf_counter() - started
    return found


def _read_index(folder: Path, dataset: dict[str, Any], found: Verification) -> pd.DataFrame | None:
    try:
        return read_dataset_index(folder, dataset)
    except RecordError as error:
        found.problems.append(problem_from(error, dataset["index"]["file"]))
        return None


def _check_listing(folder: Path, dataset: dict[str, Any]) -> Iterator[Problem]:
    """Files of ours that dataset.json does not list, and the reject list if it lists one that is not there."""
    listed = {DATASET_FILE, dataset["index"]["file"], dataset["rejects"], *(s["file"] for s in dataset["shards"])}
    if dataset["rejects"] is not None and not (folder / dataset["rejects"]).is_file():
        yield Problem(dataset["rejects"], None, f"missing, but {DATASET_FILE} lists it")
    for path in sorted(folder.iterdir()):
        ours = path.suffix in (".tfrecord", ".parquet", TEMPORARY_SUFFIX)
        if ours and path.name not in listed:
            yield Problem(path.name, None, f"extra file: {DATASET_FILE} does not list it")


def _check_counts(index: pd.DataFrame, dataset: dict[str, Any]) -> Iterator[Problem]:
    for key, counted in summarise(index).items():
        if dataset[key] != counted:
            yield Problem(DATASET_FILE, None, f"{key} is {dataset[key]}, the index says {counted}")
    for row in np.flatnonzero(index.duplicated(["shard", "offset"])):
        yield Problem(dataset["index"]["file"], None, f"row {row}: an earlier row names the same record")
    in_shard = np.bincount(index["shard"].to_numpy(), minlength=len(dataset["shards"]))
    for shard, counted in zip(dataset["shards"], in_shard, strict=True):
        if shard["num_slices"] != counted:
            yield Problem(shard["file"], None, f"{DATASET_FILE} says {shard['num_slices']} slices, the index {counted}")


def _check_splits(folder: Path, dataset: dict[str, Any], index: pd.DataFrame) -> Iterator[Problem]:
    """No patient and no image may stand in two splits, but blank images may: they are equal by chance."""
    file = dataset["index"]["file"]
    for patient, rows in _in_two_splits(index, "patient_id"):
        yield Problem(file, None, f"patient {patient} is in the splits {_names(index, rows)}: rows {rows}")
    for sha1, rows in _in_two_splits(index, "pixel_sha1"):
        if not _is_blank_row(folder, rows[0]):
            yield Problem(
                file, None, f"image with pixel_sha1 {sha1} is in the splits {_names(index, rows)}: rows {rows}"
            )


def _in_two_splits(index: pd.DataFrame, column: str) -> Iterator[tuple[str, list[int]]]:
    """Each value of ``column`` that stands in two splits or more, with its first row in each."""
    first = index[index["split"] != ""].drop_duplicates([column, "split"])
    shared = first[first.duplicated(column, keep=False)]
    for value, rows in shared.groupby(column).groups.items():
        yield str(value), [int(row) for row in rows]


def _names(index: pd.DataFrame, rows: list[int]) -> str:
    return " and ".join(index["split"][row] for row in rows)


def _is_blank_row(folder: Path, row: int) -> bool:
    """Tell whether a slice is blank; what cannot be read is not, and is listed anyway."""
    try:
        with RecordReader(folder) as reader:
            return reader.is_blank(row)
    except RecordError:
        return False


def _check_labels(index: pd.DataFrame, file: str) -> Iterator[Problem]:
    """A row has six labels or none, none only outside the splits, and ``any`` is the OR of the others."""
    labels, in_split = label_matrix(index), index["split"].to_numpy() != ""
    unknown = (labels < 0).any(axis=1)
    for row in np.flatnonzero(unknown & ((labels >= 0).any(axis=1) | in_split)):
        yield Problem(file, None, f"row {row}: labels {labels[row].tolist()} in split {index['split'][row]!r}: unknown")
    for row in np.flatnonzero(~unknown & ~any_is_consistent(labels)):
        yield Problem(file, None, f"row {row}: 'any' of {labels[row].tolist()} is not the OR of the five others")


def _check_shards(
    folder: Path, dataset: dict[str, Any], index: pd.DataFrame | None, found: Verification, pool: ThreadPoolExecutor
) -> None:
    """Hash each shard and check its records on ``pool``; what is wrong goes into ``found``."""
    columns = {} if index is None else {name: index[name].to_numpy() for name in SCHEMA.names}
    wholes, parts = [], []
    for number, entry in enumerate(dataset["shards"]):
        shard = _open_shard(folder, dataset, columns, number, found)
        if shard is None:
            continue
        found.num_shards += 1
        found.size_bytes += len(shard.bytes)
        wholes.append(pool.submit(check_hash, shard, entry["sha256"]))
        offsets, damage = walk(shard)
        found.problems += damage
        for start in range(0, len(offsets), RECORDS_PER_TASK):
            parts.append(pool.submit(check_records, shard, offsets[start : start + RECORDS_PER_TASK]))
    records = (problems for part in parts for problems in part.result())
    for problems in verb.progress(records, total=dataset["num_slices"], unit="slices", title="verify"):
        found.problems += problems
        found.num_slices += 1
    for whole in wholes:
        found.problems += whole.result()


def _open_shard(
    folder: Path, dataset: dict[str, Any], columns: dict[str, NDArray[Any]], number: int, found: Verification
) -> ShardUnderCheck | None:
    """Map a shard and pick its rows of the index; a wrong size is listed and what is there is still checked."""
    entry = dataset["shards"][number]
    path = folder / entry["file"]
    try:
        view = map_shard(path, entry["size_bytes"])
    except RecordError as error:
        found.problems.append(problem_from(error, entry["file"]))
        if not path.is_file():
            return None
        view = map_shard(path, path.stat().st_size)
    rows = np.flatnonzero(columns["shard"] == number) if columns else None
    return ShardUnderCheck(
        file=entry["file"],
        bytes=view,
        codec=dataset["codec"],
        native=dataset["size"] is None,
        columns=columns,
        row_at=None if rows is None else dict(zip(columns["offset"][rows].tolist(), rows.tolist(), strict=True)),
    )


def main(argv: list[str]) -> int:
    """``python -m fastich.verify``: print the problems, or one line with counts and rate."""
    made = verb.parser("verify", "Check every byte of a records folder; exit status 1 if anything is wrong.")
    made.add_argument("records", type=Path, metavar="RECORDS", help="folder written by fastich.pack")
    made.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = made.parse_args(argv)
    found = verify(args.records)
    print(_json(found) if args.json else _text(found))
    return 1 if found.problems else 0


def _text(found: Verification) -> str:
    if found.problems:
        return "\n".join(str(problem) for problem in found.problems)
    size_mb = found.size_bytes / 1e6
    return f"ok: {found.num_slices} slices, {found.num_shards} shards, {size_mb:.1f} MB at {found.mb_per_s} MB/s"


def _json(found: Verification) -> str:
    return json.dumps({"ok": not found.problems, **asdict(found), "mb_per_s": found.mb_per_s}, indent=2)


if __name__ == "__main__":
    verb.run(main)
