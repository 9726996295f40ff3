"""A site's own outcomes, read strictly and joined with what ``fastich.score --json`` said of the same slices.

The table has a column ``sop_uid`` or ``study_uid`` and any of the six labels: 1, 0, or blank where nobody knows. Where
it speaks of studies, a study's logits are those that it was scored with: the study head's where study.onnx decided,
else the largest of its slices.
Seconds for 100,000 rows. Shapes: N rows that both sides know, K = 6 labels in the order of ``labels.LABELS``.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.errors import FastichError, LabelError
from fastich.labels import ANY, LABELS, UNKNOWN

UNITS = {"sop_uid": "slice", "study_uid": "study"}
VALUES = {"": UNKNOWN, "0": 0, "1": 1}
NAMED_UIDS = 3
"""Uids that a message names before it says how many more there are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcomes:
    """The table: for each uid six labels of 1, 0 and -1 (unknown); ``unit`` is ``slice`` or ``study``.

    ``any`` is 1 where a subtype is, whatever the table says of it.
    """

    unit: str
    labels: Mapping[str, tuple[int, ...]]
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """Raw logits float64 [N, 6], labels int64 [N, 6] (-1 unknown), patients [N]; uids of the table without a score."""

    logit: NDArray[np.float64]
    labels: NDArray[np.int64]
    patients: NDArray[np.object_]
    without_score: tuple[str, ...]


def read_outcomes(path: Path) -> Outcomes:
    """The outcomes in a CSV file with a header line.

    Raises:
        LabelError: the file is not CSV, a column is unknown or missing, a value is not 0, 1 or blank, or two rows of
            one uid, or ``any`` and a subtype, contradict each other.
    """
    content = path.read_bytes()
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"{path}: expected a CSV file in UTF-8, found {error}") from error
    header = [cell.strip() for cell in rows[0]] if rows else []
    key = _checked_header(path, header)
    labels: dict[str, tuple[int, ...]] = {}
    for uid, found, where in _rows(path, header, key, rows[1:]):
        labels[uid] = _merged(labels.get(uid), found, f"{where}, {key} {uid}")
    if not labels:
        raise LabelError(f"{path}: expected a row for each {UNITS[key]} below the header, found none")
    labels = {uid: (*known[:ANY], 1) if 1 in known[:ANY] else known for uid, known in labels.items()}
    return Outcomes(unit=UNITS[key], labels=labels, sha256=hashlib.sha256(content).hexdigest())


def _checked_header(path: Path, header: list[str]) -> str:
    keys = [name for name in header if name in UNITS]
    unknown = [name for name in header if name not in (*UNITS, *LABELS)]
    if unknown:
        raise LabelError(
            f"{path}: expected columns {' or '.join(UNITS)} and any of {', '.join(LABELS)}, found {', '.join(unknown)}"
        )
    if len(keys) != 1 or len(set(header)) != len(header) or len(header) < 2:
        raise LabelError(
            f"{path}: expected one column {' or '.join(UNITS)} and at least one label, each once, "
            f"found {', '.join(header) or 'no header'}"
        )
    return keys[0]


def _rows(path: Path, header: list[str], key: str, rows: list[list[str]]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Uid, labels and place of each row that is not empty."""
    for number, cells in enumerate(rows, start=2):
        where = f"{path}: row {number}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise LabelError(f"{where}: expected {len(header)} cells, found {len(cells)}")
        row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        if not row[key]:
            raise LabelError(f"{where}: expected a {key}, found none")
        for name in set(header) - {key}:
            if row[name] not in VALUES:
                raise LabelError(f"{where}: {name}: expected 0, 1 or blank, found {row[name]!r}")
        yield row[key], tuple(VALUES[row.get(label, "")] for label in LABELS), where


def _merged(before: tuple[int, ...] | None, now: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Both rows of one uid, each filling what the other leaves blank."""
    known = now if before is None else tuple(b if n == UNKNOWN else n for b, n in zip(before, now, strict=True))
    for label, b, n in zip(LABELS, before or known, known, strict=True):
        if UNKNOWN != b != n:
            raise LabelError(f"{where}: {label} is {n} here and {b} in an earlier row; keep one of them")
    if known[ANY] == 0 and 1 in known[:ANY]:
        raise LabelError(f"{where}: any is 0 although {LABELS[known.index(1)]} is 1; correct one of them")
    return known


def read_scores(path: Path) -> dict[str, Any]:
    """What ``python -m fastich.score --json`` printed.

    Raises:
        FastichError: the file holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        str(document["model"]["weights_sha256"])
        list(_slices(document))
        list(_studies(document))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FastichError(
            f"{path}: expected what this version's python -m fastich.score --json prints, with the logit of each "
            f"slice, found {type(error).__name__} {error}; score again"
        ) from error
    return dict(document)


def _slices(document: Mapping[str, Any]) -> Iterator[tuple[str, str, list[float]]]:
    """Sop uid, patient and six raw logits of each slice."""
    for study in document["studies"]:
        for one in (one for series in study["series"] for one in series["slices"]):
            yield str(one["sop_uid"]), str(study["patient_id"]), _logit(one)


def _studies(document: Mapping[str, Any]) -> Iterator[tuple[str, str, list[float]]]:
    """Study uid, patient and six raw logits of each study; where it states none, those of its slices in turn."""
    for study in document["studies"]:
        scored = [study] if "logit" in study else (one for series in study["series"] for one in series["slices"])
        for one in scored:
            yield str(study["study_uid"]), str(study["patient_id"]), _logit(one)


def _logit(scored: Mapping[str, Any]) -> list[float]:
    return [float(scored["logit"][label]) for label in LABELS]


def join(outcomes: Outcomes, scores: Mapping[str, Any], where: str) -> Joined:
    """Outcomes beside raw logits, in the order of the table; ``where`` names both files in the message.

    Of what was scored more than once, frames of one file say, the largest logits count.

    Raises:
        FastichError: no uid of the table was scored.
    """
    logit: dict[str, list[float]] = {}
    patient: dict[str, str] = {}
    for uid, patient_id, found in (_slices if outcomes.unit == "slice" else _studies)(scores):
        logit[uid] = [max(pair) for pair in zip(logit.get(uid, found), found, strict=True)]
        patient[uid] = patient_id
    both = [uid for uid in outcomes.labels if uid in logit]
    without = tuple(uid for uid in outcomes.labels if uid not in logit)
    if not both:
        raise FastichError(
            f"{where}: expected a {outcomes.unit} that was scored, found none of {len(without)}, "
            f"first {', '.join(without[:NAMED_UIDS])}; give the scores of the same studies"
        )
    return Joined(
        logit=np.array([logit[uid] for uid in both], dtype=np.float64),
        labels=np.array([outcomes.labels[uid] for uid in both], dtype=np.int64),
        patients=np.array([patient[uid] for uid in both], dtype=object),
        without_score=without,
    )
