"""A stored score as its outputs tell it: one noun that the report, the key image and the webhook are all made from.

Everything stands in the score's own document, never in the model that is loaded now: what is sent an hour late, or by
another process, is what was found then.
"""

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fastich
from fastich.labels import ANY, LABELS
from fastich.serve.entities import Priority, Score
from fastich.serve.outputs import uids

PRELIMINARY = "PRELIMINARY, NOT FOR DIAGNOSIS; RESEARCH USE ONLY"
VERSIONS = (fastich.__version__, importlib.metadata.version("highdicom"))
"""What stands in the objects beside the result: of other software they are other bytes, so another object."""
FLAGGED = "flagged"
"""What a study is that reaches its threshold, of a model without a three-way rule."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeySlice:
    """The slice that a label is likeliest on.

    ``object_name`` is its file in the spool, ``frame`` counts from 0, ``number`` from 1 in its series, ``z_mm`` is None
    where the header has no position.
    """

    label: str
    object_name: str
    frame: int
    sop_uid: str
    series_uid: str
    number: int
    num_slices: int
    z_mm: float | None
    probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What was found in a study.

    ``probability``, ``thresholds`` and ``key_slices`` are by label; ``found`` are the labels that reach their
    thresholds; ``triage`` is flag, clear or human first, or flagged or not flagged where the model has no three-way
    rule; ``scored`` is (SOP instance UID, series UID) of each scored instance; ``left_out`` the reasons with their
    counts; ``cautions`` what the gate doubts; ``complete`` is False where more was on its way, or a scored series lacks
    a file that was sent (a localizer or a dose page is no lack); ``said`` is a digest of it all.
    """

    study_uid: str
    created_at: float
    complete: bool
    priority: Priority
    probability: Mapping[str, float]
    thresholds: Mapping[str, float]
    threshold_rule: str
    found: tuple[str, ...]
    triage: str
    key_slices: Mapping[str, KeySlice]
    scored: tuple[tuple[str, str], ...]
    num_slices: int
    left_out: Mapping[str, int]
    cautions: tuple[str, ...]
    study_rule: str
    model: Mapping[str, Any]
    said: str

    def uid(self, kind: str) -> str:
        """The UID of one kind of object about this result (``uids.of_result``)."""
        return uids.of_result(
            kind,
            self.study_uid,
            str(self.model["sha256"]),
            (sop_uid for sop_uid, _ in self.scored),
            "\0".join((self.said, *VERSIONS)),
        )


def result_of(score: Score, history: Sequence[Score]) -> Result:
    """The result in ``score``, whose study was scored (its document is not None).

    Where an earlier one of ``history`` says the same, the result is that one: a study that was judged again without
    anything new is the same object, to the byte.
    """
    document = score.outcome.document
    assert document is not None, "a study that was not scored has no such result"
    key = {label: _key_slice(document, label) for label in LABELS}
    left_out = Counter(str(one["reason"]) for one in document["left_out"])
    said = digest(score)
    return Result(
        study_uid=score.study_uid,
        created_at=min([one.created_at for one in history if digest(one) == said], default=score.created_at),
        complete=not score.partial and not any(one["missed"] for one in document["left_out"]),
        priority=score.outcome.priority,
        probability=document["probability"],
        thresholds=document["model"]["study_thresholds"],
        threshold_rule=str(document["model"]["study_threshold_rule"]),
        found=tuple(document["findings"]),
        triage=document["triage"] or (FLAGGED if document["flagged"] else "not flagged"),
        key_slices=key,
        scored=_scored(document),
        num_slices=int(document["num_slices"]),
        left_out=dict(sorted(left_out.items())),
        cautions=tuple(document["gate"]["cautions"]),
        study_rule=str(document["study_rule"]),
        model=document["model"],
        said=said,
    )


def digest(score: Score) -> str:
    """SHA-256 of everything that a score says but when it was made."""
    outcome = score.outcome
    told = [score.study_uid, score.partial, outcome.state, outcome.reason, int(outcome.priority), outcome.document]
    return hashlib.sha256(json.dumps(told, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _key_slice(document: Mapping[str, Any], label: str) -> KeySlice:
    """Of ``any`` the one that the document names, of a subtype the first of its likeliest."""
    named = document["key_slice"]
    places = [
        (series, at, row)
        for series in document["series"]
        for at, row in enumerate(series["slices"])
        if label != LABELS[ANY] or (row["path"], row["frame"]) == (named["path"], named["frame"])
    ]
    series, at, row = max(places, key=lambda place: float(place[2]["probability"][label]))
    return KeySlice(
        label=label,
        object_name=row["path"],
        frame=row["frame"],
        sop_uid=_instance(row["sop_uid"]),
        series_uid=series["series_uid"],
        number=at + 1,
        num_slices=len(series["slices"]),
        z_mm=row["z_mm"],
        probability=row["probability"][label],
    )


def _scored(document: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    rows = (
        (_instance(row["sop_uid"]), series["series_uid"]) for series in document["series"] for row in series["slices"]
    )
    return tuple(dict.fromkeys(rows))


def _instance(sop_uid: str) -> str:
    """The instance of a frame: ``dicom.read_file`` calls frame k > 0 of it <UID>#k."""
    return str(sop_uid).partition("#")[0]
