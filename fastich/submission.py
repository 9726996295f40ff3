"""The challenge's submission file: ``ID,Label``, six rows a slice (``ID_<hex>_<subtype>``), a probability in each.

The order is that of the sample submission where there is one, else that of the records. Slices that could not be packed
must be in the file too. 121,232 slices (727,392 rows) take some seconds, all of it before or after the network.

Source: https://www.kaggle.com/competitions/rsna-intracranial-hemorrhage-detection/overview/evaluation
Shapes: M packed slices, U slices that could not be packed, R = rows of the file.
"""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich.errors import LabelError, RecordError
from fastich.files import atomic_path
from fastich.labels import LABELS, NUM_LABELS, enforce_any
from fastich.rsna import LONG_HEADER

HEADER = ("ID", "Label")
CHALLENGE_ID = re.compile(r"ID_[0-9a-f]+")


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Where each row of the file comes from.

    Attributes:
        names: object [R], ``ID_<hex>_<subtype>`` as written.
        slices: int64 [R], which slice: one of the M packed ones, then of ``left_out``.
        labels: int64 [R], place in ``labels.LABELS``.
        left_out: ids [U] of slices that the file must name and that were not packed.
    """

    names: NDArray[np.object_]
    slices: NDArray[np.int64]
    labels: NDArray[np.int64]
    left_out: tuple[str, ...]


def packed_ids(index: pd.DataFrame, where: Path) -> list[str]:
    """The challenge's id of each row of an index [M]: its SOP Instance UID, else the name of its file.

    Raises:
        RecordError: a slice has neither, or two slices have one id; names the first.
    """
    ids = [_challenge_id(*names) for names in zip(index["sop_uid"], index["source"], strict=True)]
    for row, name in enumerate(ids):
        if not name:
            uid, source = index["sop_uid"].iloc[row], index["source"].iloc[row]
            raise RecordError(f"{where}: expected slices of the challenge, named ID_<hex>, found {uid} ({source})")
    again = pd.Series(ids).duplicated()
    if again.any():
        raise RecordError(f"{where}: expected each id once, found {ids[int(again.argmax())]} twice; pack again")
    return ids


def _challenge_id(sop_uid: str, source: str) -> str:
    return next((name for name in (sop_uid, Path(source).stem) if CHALLENGE_ID.fullmatch(name)), "")


def rejected_ids(rejects: Path, packed: Sequence[str]) -> list[str]:
    """Ids of the challenge's files in a list of rejects that are not among ``packed``, each once."""
    with rejects.open(newline="", encoding="utf-8") as handle:
        stems = [Path(line["path"]).stem for line in csv.DictReader(handle)]
    known = set(packed)
    return [stem for stem in dict.fromkeys(stems) if CHALLENGE_ID.fullmatch(stem) and stem not in known]


def read_names(path: Path) -> list[str]:
    """The first column of a sample submission, in its order.

    Raises:
        LabelError: it is not a table with the header ``ID,Label``.
        OSError: it cannot be opened.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as error:  # pandas' parser errors, and bytes that are no text
        raise LabelError(f"{path}: expected a CSV with the header ID,Label, found {error}") from error
    names = [str(column).strip().lower() for column in table.columns]
    if sorted(names) != sorted(LONG_HEADER):
        raise LabelError(f"{path}: expected a CSV with the header ID,Label, found the header {','.join(table.columns)}")
    return [str(name).strip() for name in table.iloc[:, names.index(LONG_HEADER[0])]]


def arrange(packed: Sequence[str], rejected: Sequence[str], wanted: Sequence[str] | None, where: str) -> Layout:
    """The rows of the file, each slice with all six labels.

    Args:
        packed: ids [M] of the records' rows.
        rejected: ids of files that could not be packed.
        wanted: the rows of the sample submission; without it the packed and the rejected slices, in that order.
        where: the sample submission, for errors.

    Raises:
        LabelError: the sample names a slice that was neither packed nor rejected, lacks one that was packed, has no row
            for a label, or has one twice; names the first.
    """
    names = [*packed, *rejected]
    rows = [f"{name}_{label}" for name in names for label in LABELS] if wanted is None else list(wanted)
    slices, labels = _places(rows, names, where)
    seen = np.bincount(slices * NUM_LABELS + labels, minlength=len(names) * NUM_LABELS).reshape(-1, NUM_LABELS)
    is_asked = np.asarray(seen.any(axis=1), dtype=np.bool_)
    if not is_asked[: len(packed)].all():
        extra = packed[int(is_asked.argmin())]
        raise LabelError(f"{where}: expected rows for every packed slice, found none for {extra}; is it another set's?")
    wrong = np.argwhere(is_asked[:, None] & (seen != 1))
    if len(wrong):
        number, label = wrong[0]
        raise LabelError(
            f"{where}: expected each row once, found {seen[number, label]} of {names[number]}_{LABELS[label]}"
        )
    is_left_out = is_asked[len(packed) :]
    left_out = tuple(name for name, asked in zip(rejected, is_left_out, strict=True) if asked)
    place = np.concatenate([np.arange(len(packed)), len(packed) - 1 + np.cumsum(is_left_out)])
    return Layout(names=np.asarray(rows, dtype=object), slices=place[slices], labels=labels, left_out=left_out)


def _places(rows: Sequence[str], names: Sequence[str], where: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of ``names`` and which label each row is of, int64 [R] each.

    Raises:
        LabelError: a row is of neither; names the first.
    """
    parts = [row.rpartition("_") for row in rows]
    of_name, of_label = ({value: i for i, value in enumerate(values)} for values in (names, LABELS))
    slices = np.array([of_name.get(part[0], -1) for part in parts], dtype=np.int64)
    labels = np.array([of_label.get(part[2], -1) for part in parts], dtype=np.int64)
    for places, expected in (
        (labels, f"an ID that ends in one of {', '.join(LABELS)}"),
        (slices, "only slices that were packed or rejected (pack every file of the test set)"),
    ):
        if (places < 0).any():
            row = int(places.argmin())
            raise LabelError(f"{where}: row {row + 2}: expected {expected}, found {rows[row]!r}")
    return slices, labels


def write(path: Path, layout: Layout, probability: NDArray[np.float64]) -> None:
    """Write the file, whole or not at all.

    Args:
        path: the file.
        layout: its rows.
        probability: float64 [M + U, 6] of the packed slices and of those left out; p(any) is raised where it must be.

    Raises:
        ValueError: a probability is not finite or outside of 0 to 1.
    """
    if not (np.isfinite(probability) & (probability >= 0) & (probability <= 1)).all():
        raise ValueError("probability: expected finite values from 0 to 1")
    values = enforce_any(probability)[layout.slices, layout.labels]
    table = pd.DataFrame(dict(zip(HEADER, (layout.names, values), strict=True)))
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.9g", lineterminator="\n")
