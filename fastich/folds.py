"""Which rows a run learns from and which it is judged on: the splits of the records, or k folds over train and val.

With folds, fold k of a run validates and the others train; the test split stays aside. Folds are made anew from the
index whenever they are needed (about 1 s for 650,000 slices), so that a run needs to remember three numbers only:
``folds``, ``fold`` and ``fold_seed`` of its config.
"""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.errors import RecordError
from fastich.hu import is_blank
from fastich.labels import LABELS
from fastich.records.reader import RecordReader
from fastich.splits import assign_folds
from fastich.verb import say

FOLDED = ("train", "val")
"""The splits that folds are made of."""
FOLD_KEYS = ("folds", "fold", "fold_seed")
"""Of a run's config, and of a loader's."""


def run_rows(reader: RecordReader, config: Mapping[str, Any], split: str) -> NDArray[np.int64]:
    """The rows of ``split`` for a run with ``config`` (a checkpoint's, or any mapping), int64, ascending.

    Without ``folds`` these are the rows that the index says; with them ``val`` is the run's own fold and ``train`` the
    others. Other splits are the same for every run.

    Raises:
        RecordError: the records hold too few patients for the folds.
        UsageError: there is no such split.
    """
    if not config.get("folds") or split not in FOLDED:
        return reader.rows(split)
    fold_of = fold_of_rows(reader, num_folds=config["folds"], seed=config["fold_seed"])
    mine = fold_of == config["fold"]
    return np.flatnonzero(mine if split == "val" else ~mine & (fold_of >= 0)).astype(np.int64)


def fold_config(config: Mapping[str, Any], *, same_records: bool) -> dict[str, int]:
    """``folds``, ``fold`` and ``fold_seed`` of a run; 0 where it has none, and on records that it never saw."""
    return {name: int(config.get(name, 0)) if same_records else 0 for name in FOLD_KEYS}


def fold_of_rows(reader: RecordReader, *, num_folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row of the records, int64 [M]; -1 outside of train and val.

    A label that fewer patients have than there are folds is named once, in one line on stderr.

    Raises:
        RecordError: there are fewer patients than folds.
    """
    rows = np.sort(np.concatenate([reader.rows(split) for split in FOLDED]))
    patients, labels = reader.index["patient_id"].to_numpy(object)[rows], reader.labels()[rows]
    try:
        folds = assign_folds(patients, pixel_keys(reader, rows), labels, num_folds=num_folds, seed=seed)
    except ValueError as error:
        raise RecordError(f"{reader.folder}: {error}") from error
    for label, column in zip(LABELS, labels.T, strict=True):
        count = len(set(patients[column == 1]))
        if count < num_folds:
            _warn(f"folds: {label}: {count} patients for {num_folds} folds; some folds are judged without it")
    made = np.full(len(reader), -1, dtype=np.int64)
    made[rows] = folds
    return made


def pixel_keys(reader: RecordReader, rows: NDArray[np.int64]) -> NDArray[np.object_]:
    """A hash of the pixels of each of ``rows``, "" for blank images, which join nobody.

    The index does not say which are blank, so one slice of each image that two patients share is looked at.
    """
    frame = reader.index.iloc[rows][["pixel_sha1", "patient_id"]]
    sharing = frame.groupby("pixel_sha1")["patient_id"].nunique()
    keys = frame["pixel_sha1"].to_numpy(object)
    for shared in sharing.index[sharing > 1]:
        same = keys == shared
        if is_blank(reader.stored(int(rows[same][0]))):
            keys[same] = ""
    return keys


@functools.cache
def _warn(line: str) -> None:
    say(line)
