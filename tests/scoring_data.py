"""Studies of a toy model for tests of the gate and of scoring: a slice is one value, so its score is known."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dicom_data import ct_hu_file
from serve_data import SPOOL, an_ingest, received

from fastich.serve.config import ScoringConfig
from fastich.serve.entities import Origin, Outcome, Receipt, Study, StudyState
from fastich.serve.ingest import Ingest
from fastich.serve.scoring.engine import Engine
from fastich.serve.session import Session
from fastich.serve.spool import Spool
from fastich.serve.store import Store, open_store
from fastich.serve.study_session import StudySession

ORIGIN = Origin(way="dimse", sender="CT1", address="192.0.2.7")
QUICK = ScoringConfig(batch_size=4, max_wait_ms=5, decode_workers=2, quiet_s=0.15, lease_s=30, max_attempts=2)
WAIT_S = 20.0


def slice_bytes(number: int, hu: int = 0, *, study: int = 1, series: int = 1, side: int = 32, **changes: Any) -> bytes:
    """Slice ``number`` (7.5 mm apart, axial) of value ``hu``, with any element changed or left out (None)."""
    values = {
        "SOPInstanceUID": f"1.2.{study}.{series}.{number + 1}",
        "StudyInstanceUID": f"1.2.{study}",
        "SeriesInstanceUID": f"1.2.{study}.{series}",
        "PatientID": f"P{study}",
        "InstanceNumber": number + 1,
        "ImagePositionPatient": [0, 0, 7.5 * number],
        "PixelSpacing": [5, 5],
    }
    return ct_hu_file(np.full((side, side), hu, dtype=np.int16), **(values | changes))


def study_bytes(values: Sequence[int], **changes: Any) -> list[bytes]:
    """Slices of ``values`` HU from feet to head."""
    return [slice_bytes(number, hu, **changes) for number, hu in enumerate(values)]


def write_files(folder: Path, files: Sequence[bytes]) -> Path:
    """The files in a folder, in an order of names that is not the slices'."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(files):
        (folder / f"{(7 * number) % 101:03d}-{number}.dcm").write_bytes(data)
    return folder


class Site:
    """A store, a spool and an ingest; ``engine`` gives a running engine."""

    def __init__(self, folder: Path) -> None:
        self.store: Store = open_store(folder / "fastich.sqlite")
        self.spool = Spool(folder / "spool", SPOOL)
        self.engine: Engine | None = None
        self.ingest: Ingest = an_ingest(self.store, self.spool, notify=self.wake)

    def wake(self) -> None:
        if self.engine is not None:
            self.engine.wake()

    def receive(self, files: Sequence[bytes]) -> list[Receipt]:
        return [self.ingest.accept(received(self.spool, data), ORIGIN) for data in files]

    @contextlib.contextmanager
    def running(
        self,
        session: Session,
        study_session: StudySession | None = None,
        config: ScoringConfig = QUICK,
        deliveries_for: Callable[[Outcome], Sequence[tuple[str, str]]] = lambda outcome: (),
    ) -> Iterator[Engine]:
        engine = Engine(self.store, self.spool, session, study_session, config, deliveries_for=deliveries_for)
        engine.start()
        self.engine = engine
        try:
            yield engine
        finally:
            self.engine = None
            engine.stop(drain_s=5)

    def final(self, study_uid: str = "1.2.1", *, revision: int = 0) -> Study:
        """The study once it is final at ``revision`` or later."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            study = self.store.study(study_uid)
            if study is not None and study.state is not StudyState.RECEIVING and study.scored_revision >= revision:
                return study
            time.sleep(0.01)
        raise AssertionError(f"{study_uid} is not final after {WAIT_S:g} s: {self.store.counts()}")
