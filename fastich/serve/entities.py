"""The nouns of the triage server: what arrives, what is said of it, what leaves. Plain values that cross its borders.

Times are seconds since the epoch (UTC), names end in ``_at``. Numpy and the standard library only.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastich.study_rule import SliceAnswer
from fastich.types import SliceHeader


class StudyState(enum.StrEnum):
    """Where a study stands; all but ``RECEIVING`` are final until more of it arrives."""

    RECEIVING = "receiving"
    SCORED = "scored"
    NOT_EVALUATED = "not evaluated"
    FAILED = "failed"


class InstanceState(enum.StrEnum):
    """Where one stored object stands; all but ``WAITING`` are final."""

    WAITING = "waiting"
    SCORED = "scored"
    NOT_EVALUATED = "not evaluated"
    FAILED = "failed"


class Priority(enum.IntEnum):
    """How far up the worklist a study is raised; nothing is ever pushed below its place in order of arrival."""

    ROUTINE = 0
    HUMAN_FIRST = 1
    FLAGGED = 2


class DeliveryState(enum.StrEnum):
    """Where one message to one destination stands; ``DEAD`` waits for a person, ``SUPERSEDED`` was never sent."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"
    SUPERSEDED = "superseded"


class Refused(enum.Enum):
    """Why an object was not taken in. The value is the reason in words, for replies and logs."""

    MALFORMED = "not a DICOM object"
    INVALID_UID = "a UID that breaks PS3.5 9.1"
    MISMATCH = "the data set is not the instance that was announced"
    FORBIDDEN_SYNTAX = "a transfer syntax that is not taken from a network"
    TOO_LARGE = "larger than the cap"
    STORAGE_FULL = "the spool is full"
    BUSY = "too much is waiting"
    DATABASE = "the database cannot be written"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where an object came from: ``way`` is dimse, stow, upload or folder; ``sender`` an AE title or user."""

    way: str
    sender: str = ""
    address: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """An object that is fsynced and committed.

    ``duplicate``: this very instance was here already; ``conflict``: its UID was, with other content, and it was kept
    aside; ``own``: a result that this server wrote came back, and was not taken in.
    """

    sop_uid: str
    sop_class_uid: str
    study_uid: str
    duplicate: bool = False
    conflict: bool = False
    own: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Instance:
    """One stored object. ``object_name`` is its name in the spool (``spool.Spool.path_of``), "" once it was deleted.

    ``content_sha256`` is of the data set without the file meta, ``pixel_sha256`` of the image, pixels with their
    meaning and place ("" without one): they tell a duplicate from a conflict.
    """

    sop_uid: str
    sop_class_uid: str
    study_uid: str
    series_uid: str
    object_name: str
    size_bytes: int
    received_at: float
    origin: Origin
    content_sha256: str = ""
    pixel_sha256: str = ""
    state: InstanceState = InstanceState.WAITING
    reason: str = ""
    detail: str = ""
    attempts: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What the worklist shows of a study, as its first instance says; empty where absent. Never logged."""

    patient_id: str = ""
    patient_name: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_time: str = ""
    study_description: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredSlice:
    """One scored frame: its header (``path`` is the object's name in the spool) and what the network said.

    The answer has ``probability``, ``logit`` [6], ``embedding`` [C] and ``cam`` [6, h, w], all float32.
    """

    header: SliceHeader
    answer: SliceAnswer


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """One study as the worklist knows it.

    ``revision`` counts its instances as they came, ``scored_revision`` is the one that the newest result is about:
    where they differ, or ``state`` is receiving, the result is partial. ``document`` is the newest score (``Score``).
    """

    study_uid: str
    description: Description
    origin: Origin
    arrived_at: float
    last_at: float
    revision: int
    num_instances: int
    num_waiting: int
    num_conflicts: int
    state: StudyState
    reason: str
    priority: Priority
    scored_revision: int
    score_id: int | None
    document: Mapping[str, Any] | None
    final_at: float | None
    acknowledged_by: str | None
    acknowledged_at: float | None
    expected_instances: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a study at one revision.

    ``document`` is None where nothing was scored. It holds ``score.study_row``'s JSON and beside it ``model``
    (``score.model_row``), ``study_rule``, ``left_out`` (instances with reasons) and ``gate`` (the reasons of the gate).
    """

    state: StudyState
    reason: str = ""
    priority: Priority = Priority.ROUTINE
    document: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One result in a study's history; ``partial`` where more of the study was on its way."""

    score_id: int
    study_uid: str
    revision: int
    created_at: float
    partial: bool
    outcome: Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One message for one destination, made from one score: ``kind`` is sr, sc or webhook."""

    delivery_id: int
    study_uid: str
    score_id: int
    destination: str
    kind: str
    state: DeliveryState
    attempts: int
    next_at: float
    last_error: str = ""
    delivered_at: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comment:
    """What somebody wrote about a study."""

    comment_id: int
    study_uid: str
    who: str
    created_at: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something the page should know: ``kind`` is ``study``, ``comment`` or ``delivery``; counts up without gaps."""

    event_id: int
    kind: str
    study_uid: str
    created_at: float
    values: Mapping[str, Any] = field(default_factory=dict)
