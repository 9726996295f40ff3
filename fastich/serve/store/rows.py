"""Rows to entities and back. Arrays are stored as the bytes of little-endian float32, so they come back bit for bit."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.labels import NUM_LABELS
from fastich.serve.entities import (
    Comment,
    Delivery,
    DeliveryState,
    Description,
    Event,
    Instance,
    InstanceState,
    Origin,
    Outcome,
    Priority,
    Score,
    ScoredSlice,
    Study,
    StudyState,
)
from fastich.serve.store.door import Row
from fastich.study_rule import SliceAnswer
from fastich.types import SliceHeader

CLOCK_SLACK_S = 10.0
"""Times that lie further ahead than this were written while the clock was wrong; threads differ by less."""
FLOAT32 = np.dtype("<f4")
TUPLES = ("pixel_spacing_mm", "position_mm", "orientation", "window")
"""Fields of a slice header that JSON turns into lists."""

STUDIES = """
SELECT studies.*, expectations.num_instances AS expected_instances, scores.document AS document,
  (SELECT COUNT(*) FROM instances WHERE instances.study_uid = studies.study_uid) AS num_instances,
  (SELECT COUNT(*) FROM instances WHERE instances.study_uid = studies.study_uid AND instances.state = 'waiting')
    AS num_waiting,
  (SELECT COUNT(*) FROM conflicts WHERE conflicts.study_uid = studies.study_uid) AS num_conflicts
FROM studies
  LEFT JOIN expectations ON expectations.study_uid = studies.study_uid
  LEFT JOIN scores ON scores.score_id = studies.score_id
"""
"""Every column that ``study`` needs; what follows is a WHERE."""


def json_of(value: Mapping[str, Any] | None) -> str | None:
    """Compact JSON, or None; NaN is refused."""
    return None if value is None else json.dumps(value, allow_nan=False, separators=(",", ":"))


def study(row: Row) -> Study:
    """A row of ``STUDIES``."""
    names = [field.name for field in dataclasses.fields(Description)]
    return Study(
        study_uid=row["study_uid"],
        description=Description(**{name: row[name] for name in names}),
        origin=origin(row),
        arrived_at=row["arrived_at"],
        last_at=row["last_at"],
        revision=row["revision"],
        num_instances=row["num_instances"],
        num_waiting=row["num_waiting"],
        num_conflicts=row["num_conflicts"],
        state=StudyState(row["state"]),
        reason=row["reason"],
        priority=Priority(row["priority"]),
        scored_revision=row["scored_revision"],
        score_id=row["score_id"],
        document=None if row["document"] is None else json.loads(row["document"]),
        final_at=row["final_at"],
        acknowledged_by=row["acknowledged_by"],
        acknowledged_at=row["acknowledged_at"],
        expected_instances=row["expected_instances"],
    )


def origin(row: Row) -> Origin:
    """Where what the row is about came from."""
    return Origin(way=row["way"], sender=row["sender"], address=row["address"])


def instance(row: Row) -> Instance:
    """A row of ``instances``."""
    return Instance(
        sop_uid=row["sop_uid"],
        sop_class_uid=row["sop_class_uid"],
        study_uid=row["study_uid"],
        series_uid=row["series_uid"],
        object_name=row["object_name"],
        size_bytes=row["size_bytes"],
        received_at=row["received_at"],
        origin=origin(row),
        content_sha256=row["content_sha256"],
        pixel_sha256=row["pixel_sha256"],
        state=InstanceState(row["state"]),
        reason=row["reason"],
        detail=row["detail"],
        attempts=row["attempts"],
    )


def slice_values(sop_uid: str, study_uid: str, scored: ScoredSlice) -> tuple[Any, ...]:
    """A row for ``slices``, in the order of its columns."""
    answer = scored.answer
    height, width = (0, 0) if answer.cam is None else answer.cam.shape[-2:]
    return (
        sop_uid,
        scored.header.frame,
        study_uid,
        json.dumps(dataclasses.asdict(scored.header), allow_nan=False, separators=(",", ":")),
        blob(answer.probability),
        blob(answer.logit),
        blob(answer.embedding),
        blob(answer.cam),
        height,
        width,
    )


def scored_slice(row: Row) -> ScoredSlice:
    """A row of ``slices``."""
    fields = json.loads(row["header"])
    fields |= {name: None if fields[name] is None else tuple(fields[name]) for name in TUPLES}
    cam = None if row["cam"] is None else floats(row["cam"]).reshape(NUM_LABELS, row["cam_height"], row["cam_width"])
    return ScoredSlice(
        header=SliceHeader(**fields),
        answer=SliceAnswer(
            probability=floats(row["probability"]),
            logit=floats(row["logit"]),
            embedding=None if row["embedding"] is None else floats(row["embedding"]),
            cam=cam,
        ),
    )


def blob(values: NDArray[np.float32] | None) -> bytes | None:
    """The bytes of an array as little-endian float32."""
    return None if values is None else np.ascontiguousarray(values, dtype=FLOAT32).tobytes()


def floats(raw: bytes) -> NDArray[np.float32]:
    """The array, flat, that ``blob`` wrote; it may be written to."""
    return np.frombuffer(raw, dtype=FLOAT32).astype(np.float32)


def score(row: Row) -> Score:
    """A row of ``scores``."""
    return Score(
        score_id=row["score_id"],
        study_uid=row["study_uid"],
        revision=row["revision"],
        created_at=row["created_at"],
        partial=bool(row["is_partial"]),
        outcome=Outcome(
            state=StudyState(row["state"]),
            reason=row["reason"],
            priority=Priority(row["priority"]),
            document=None if row["document"] is None else json.loads(row["document"]),
        ),
    )


def delivery(row: Row) -> Delivery:
    """A row of ``deliveries``."""
    return Delivery(
        delivery_id=row["delivery_id"],
        study_uid=row["study_uid"],
        score_id=row["score_id"],
        destination=row["destination"],
        kind=row["kind"],
        state=DeliveryState(row["state"]),
        attempts=row["attempts"],
        next_at=row["next_at"],
        last_error=row["last_error"],
        delivered_at=row["delivered_at"],
    )


def comment(row: Row) -> Comment:
    """A row of ``comments``."""
    return Comment(
        comment_id=row["comment_id"],
        study_uid=row["study_uid"],
        who=row["who"],
        created_at=row["created_at"],
        text=row["body"],
    )


def event(row: Row) -> Event:
    """A row of ``events``."""
    return Event(
        event_id=row["event_id"],
        kind=row["kind"],
        study_uid=row["study_uid"],
        created_at=row["created_at"],
        values=json.loads(row["body"]),
    )
