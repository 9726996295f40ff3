"""What tests of the server's core share: a clock that stands still, CT files with legal UIDs, entities by number."""

from pathlib import Path
from typing import Any

import numpy as np
from dicom_data import ct_hu_file, slice_hu

from fastich.labels import NUM_LABELS
from fastich.serve.config import SpoolConfig
from fastich.serve.entities import (
    Description,
    Instance,
    Origin,
    Outcome,
    Priority,
    ScoredSlice,
    StudyState,
)
from fastich.serve.ingest import Ingest
from fastich.serve.spool import Spool
from fastich.serve.store import Store
from fastich.study_rule import SliceAnswer
from fastich.types import SliceHeader

CT = "1.2.840.10008.5.1.4.1.1.2"
ORIGIN = Origin(way="dimse", sender="SCANNER", address="192.0.2.7")
WHO = Description(
    patient_id="4711",
    patient_name="SECRET^NAME",
    accession_number="A1",
    study_date="20250102",
    study_time="030405",
    study_description="CT HEAD",
)
SPOOL = SpoolConfig(min_free_mib=0)


class Clock:
    """A clock that tests move."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def uid(number: int) -> str:
    return f"2.25.{number}"


def instance(number: int, study: int = 1, at: float = 1_000_000.0, **changes: Any) -> Instance:
    values: dict[str, Any] = {
        "sop_uid": uid(number),
        "sop_class_uid": CT,
        "study_uid": study_uid(study),
        "series_uid": "2.25.9000",
        "object_name": f"{number:064x}",
        "size_bytes": 100 + number,
        "received_at": at,
        "origin": ORIGIN,
        "content_sha256": f"c{number}",
        "pixel_sha256": f"p{number}",
    }
    return Instance(**values | changes)


def study_uid(study: int) -> str:
    return f"2.25.77.{study}"


def scored_slice(number: int, frame: int = 0, **changes: Any) -> ScoredSlice:
    rng = np.random.default_rng(number)
    values: dict[str, Any] = {
        "path": f"{number:064x}",
        "frame": frame,
        "sop_uid": uid(number),
        "study_uid": study_uid(1),
        "series_uid": "2.25.9000",
        "patient_id": "4711",
        "rows": 64,
        "columns": 48,
        "pixel_spacing_mm": (0.1, 0.3),
        "position_mm": (1.0, 2.0, 3.0 * number),
        "orientation": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        "thickness_mm": None,
        "header_tilt_deg": -12.5,
        "instance_number": number,
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "bits_stored": 16,
        "signed": True,
        "encoding": "signed",
        "window": None,
    }
    answer = SliceAnswer(
        probability=rng.random(NUM_LABELS, dtype=np.float32),
        logit=rng.normal(size=NUM_LABELS).astype(np.float32),
        embedding=rng.normal(size=1024).astype(np.float32),
        cam=rng.normal(size=(NUM_LABELS, 2, 3)).astype(np.float32),
    )
    return ScoredSlice(header=SliceHeader(**values | changes), answer=answer)


def outcome(priority: Priority = Priority.ROUTINE, state: StudyState = StudyState.SCORED, **document: Any) -> Outcome:
    return Outcome(state=state, priority=priority, document=document or {"probability": {"any": 0.25}})


def ct_bytes(number: int, study: int = 1, seed: int = 0, **changes: Any) -> bytes:
    """A CT file of 40 x 48 pixels whose UIDs are those of ``instance``."""
    uids = {"SOPInstanceUID": uid(number), "StudyInstanceUID": study_uid(study), "SeriesInstanceUID": "2.25.9000"}
    return ct_hu_file(slice_hu(seed=seed), **uids | changes)


def received(spool: Spool, data: bytes) -> Path:
    """A file as a receiver leaves it."""
    path = spool.temporary()
    path.write_bytes(data)
    return path


def an_ingest(store: Store, spool: Spool, config: SpoolConfig = SPOOL, **changes: Any) -> Ingest:
    return Ingest(store, spool, config, **{"notify": lambda: None} | changes)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
