"""From answers to outcomes: what the three-way rule and doubts make of a study."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring_data import QUICK, Site, slice_bytes, study_bytes, write_files
from toy_model import WEIGHTS, write_model
from toy_study import add_study, sequence_model

from fastich.artifact import read_manifest, write_manifest
from fastich.conformal import Triage
from fastich.errors import ArtifactError, DicomError, FastichError
from fastich.score import ScoreConfig, score
from fastich.serve.entities import Outcome, Priority, StudyState
from fastich.serve.scoring.engine import Engine
from fastich.serve.scoring.late import Pixels
from fastich.serve.scoring.notes import HU_EDGES, MAX_FILES, NoteBook, count_hu, note_of
from fastich.serve.scoring.outcome import model_of
from fastich.serve.session import Session, open_session
from fastich.serve.spool import Spool
from fastich.serve.study_session import StudyScores, StudySession, open_study_session
from fastich.types import RejectReason

TRIAGE = Triage(alpha_miss=0.1, alpha_alarm=0.1, num_bleed=20, num_without=20, clear=0.55, flag=0.9)
CLEAR, BETWEEN, FLAG = 0, 20, 80
"""HU whose p(any) is 0.5, 0.77 and 0.99."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with contextlib.closing(made.store):
        yield made


@pytest.fixture
def session(tmp_path: Path) -> Session:
    artifact = write_model(tmp_path / "model", threshold=0.999)
    write_manifest(tmp_path / "model", dataclasses.replace(artifact, triage=TRIAGE.to_document()))
    return open_session(tmp_path / "model")


@pytest.mark.parametrize(
    ("hu", "triage", "priority"),
    [
        (CLEAR, "clear", Priority.ROUTINE),
        (BETWEEN, "human first", Priority.HUMAN_FIRST),
        (FLAG, "flag", Priority.FLAGGED),
    ],
)
@pytest.mark.parametrize("doubted", [False, True])
def test_three_way_rule_sets_the_priority_and_doubt_turns_clear_into_human_first(
    site: Site, session: Session, hu: int, triage: str, priority: Priority, doubted: bool
) -> None:
    files = study_bytes([0] * 5 + [hu] + [0] * 10)
    if doubted:
        files[9] = slice_bytes(9, PixelData=b"\1\1")
    with site.running(session):
        site.receive(files)
        study = site.final()
    if doubted and triage == "clear":
        triage, priority = "human first", Priority.HUMAN_FIRST
    assert study.document is not None
    assert (study.document["triage"], study.priority) == (triage, priority)
    assert bool(study.document["gate"]["cautions"]) is doubted


def test_study_that_reaches_a_threshold_is_not_clear_whatever_the_three_way_rule_says(
    site: Site, tmp_path: Path
) -> None:
    artifact = write_model(tmp_path / "model", threshold=0.5)
    triage = dataclasses.replace(TRIAGE, clear=0.8)
    write_manifest(tmp_path / "model", dataclasses.replace(artifact, triage=triage.to_document()))
    with site.running(open_session(tmp_path / "model")):
        site.receive(study_bytes([BETWEEN] * 16))
        study = site.final()
    assert study.document is not None
    assert "any" in study.document["findings"]
    assert (study.document["triage"], study.priority) == ("human first", Priority.HUMAN_FIRST)
    assert study.reason.startswith("in doubt: clear by the three-way rule, yet at the threshold of")


BONE = {"series": 2, "ConvolutionKernel": "BONE"}


def test_study_is_not_clear_where_the_whole_preferred_series_was_damaged(site: Site, session: Session) -> None:
    soft = [slice_bytes(number, PixelData=b"\1\1") for number in range(12)]
    with site.running(session):
        site.receive([*soft, *study_bytes([CLEAR] * 12, **BONE)])
        study = site.final()
    assert study.document is not None
    assert (study.document["triage"], study.priority) == ("human first", Priority.HUMAN_FIRST)
    assert study.reason == "in doubt: 12 files of series that are not scored cannot be used"


def test_study_is_not_clear_where_the_preferred_series_was_set_aside_for_a_hole(site: Site, session: Session) -> None:
    soft = study_bytes([CLEAR] * 16)
    del soft[5:8]
    with site.running(session):
        site.receive([*soft, *study_bytes([CLEAR] * 16, **BONE)])
        study = site.final()
    assert study.priority is Priority.HUMAN_FIRST
    assert study.reason.startswith("in doubt: a series was set aside: a gap of 30 mm, at most 20")


def test_another_examination_beside_a_plain_head_is_no_doubt(site: Site, session: Session) -> None:
    with site.running(session):
        site.receive([*study_bytes([CLEAR] * 16), *study_bytes([CLEAR] * 16, series=2, KVP=40)])
        study = site.final()
    assert (study.reason, study.priority) == ("", Priority.ROUTINE)


@pytest.mark.parametrize(("hu", "triage", "priority"), [(CLEAR, None, 0), (BETWEEN, None, 0), (FLAG, "flag", 2)])
def test_partial_result_flags_or_says_nothing(
    site: Site, session: Session, hu: int, triage: str | None, priority: int
) -> None:
    with site.running(session, config=dataclasses.replace(QUICK, quiet_s=60.0)):
        site.receive(study_bytes([hu, 0]))
        found = until_partial(site)
    assert found.document is not None
    assert (found.document["triage"], int(found.priority)) == (triage, priority)


def until_partial(site: Site) -> Any:
    until = time.monotonic() + 10
    while not (found := site.store.scores_of("1.2.1")) or site.store.count_waiting():
        assert time.monotonic() < until
        time.sleep(0.02)
    return found[-1].outcome


def test_study_that_was_raised_and_is_not_evaluated_in_the_end_keeps_its_place(site: Site, session: Session) -> None:
    with site.running(session, config=dataclasses.replace(QUICK, quiet_s=60.0)):
        site.receive(study_bytes([FLAG, FLAG]))
        assert until_partial(site).priority is Priority.FLAGGED
    with site.running(session):
        study = site.final()
    assert study.state is StudyState.NOT_EVALUATED
    assert study.reason == "2 slices, expected 10 to 1200"
    assert study.priority is Priority.FLAGGED


def test_sequence_model_decides_as_in_score(site: Site, tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    add_study(tmp_path / "model", sequence_model(1024))
    session, study_session = open_session(tmp_path / "model"), open_study_session(tmp_path / "model")
    values = list(np.random.default_rng(0).integers(-10, 60, 16))
    files = study_bytes(values)
    config = ScoreConfig(model=tmp_path / "model")
    (expected,) = score([write_files(tmp_path / "in", files)], session, config, study_session)["studies"]
    with site.running(session, study_session):
        site.receive(files[::-1])
        study = site.final()
    assert study.document is not None
    assert study.document["probability"] == pytest.approx(expected["probability"], abs=1e-6)
    for found, wanted in zip(study.document["series"][0]["slices"], expected["series"][0]["slices"], strict=True):
        assert found["probability"] == pytest.approx(wanted["probability"], abs=1e-6)
    assert study.document["study_rule"].startswith("study head of study.onnx")


class FailingStudy:
    """A sequence model that fails a number of times."""

    def __init__(self, session: StudySession, num_times: int) -> None:
        self._session, self.num_left = session, num_times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *values: Any) -> StudyScores:
        if len(values[0]) < 10:  # a partial result
            return self._session.run(*values)
        self.num_left -= 1
        if self.num_left >= 0:
            raise ArtifactError("study.onnx: expected finite study_logit, found NaN or infinity; export again")
        return self._session.run(*values)


@pytest.mark.parametrize(("num_times", "state"), [(1, StudyState.SCORED), (9, StudyState.FAILED)])
def test_study_that_cannot_be_judged_is_tried_again_then_failed_with_the_reason(
    site: Site, tmp_path: Path, num_times: int, state: StudyState
) -> None:
    write_model(tmp_path / "model")
    add_study(tmp_path / "model", sequence_model(1024))
    session, study_session = open_session(tmp_path / "model"), open_study_session(tmp_path / "model")
    assert study_session is not None
    site.receive(study_bytes([0] * 16))
    failing = FailingStudy(study_session, num_times)
    with site.running(session, failing, config=dataclasses.replace(QUICK, quiet_s=0.0)):  # type: ignore[arg-type]
        study = site.final()
    assert study.state is state
    if state is StudyState.FAILED:
        assert study.reason.startswith("tried 2 times: study.onnx: expected finite study_logit")


def test_deliveries_that_cannot_be_said_cost_a_study_its_tries_and_not_the_others(site: Site, session: Session) -> None:
    def deliveries_for(outcome: Outcome) -> list[tuple[str, str]]:
        if outcome.document is not None and outcome.document["study_uid"] == "1.2.1":
            raise KeyError("destination")
        return []

    site.receive([*study_bytes([0] * 16), *study_bytes([0] * 16, study=2)])
    with site.running(session, deliveries_for=deliveries_for):
        bad, good = site.final("1.2.1"), site.final("1.2.2")
    assert bad.state is StudyState.FAILED
    assert bad.reason.startswith("tried 2 times: KeyError in test_scoring_outcome.py, line ")
    assert good.state is StudyState.SCORED


def test_25_final_result_wakes_who_sends_it_once_it_is_written(site: Site, session: Session) -> None:
    heard: list[StudyState] = []

    def hear() -> None:
        study = site.store.study("1.2.1")
        heard.extend([study.state] if study else [])

    engine = Engine(site.store, site.spool, session, None, QUICK, deliveries_for=lambda _: (), on_final=hear)
    site.receive(study_bytes([CLEAR] * 16))
    engine.start()
    try:
        site.final()
    finally:
        engine.stop(drain_s=5)
    assert heard == [StudyState.SCORED]


def test_damaged_triage_rule_is_refused_when_the_model_is_opened(tmp_path: Path) -> None:
    artifact = write_model(tmp_path / "model")
    write_manifest(tmp_path / "model", dataclasses.replace(artifact, triage={"clear": 3}))
    assert read_manifest(tmp_path / "model").triage is not None
    with pytest.raises(ArtifactError, match=r"model.json: damaged"):
        model_of(open_session(tmp_path / "model"), None)


def test_hu_are_counted_as_a_histogram_does() -> None:
    hu = np.random.default_rng(0).integers(-1024, 1500, (64, 48)).astype(np.int16)
    hu[::4, ::4] //= 10
    expected = np.histogram(hu[::4, ::4], bins=[*HU_EDGES[:-1], HU_EDGES[-1] - 1e-9])[0]
    assert count_hu(hu).tolist() == expected.tolist()
    assert count_hu(np.full((8, 8), -1000, dtype=np.int16)).tolist() == [0] * 20


def test_note_book_forgets_the_longest_unused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastich.serve.scoring.notes.MAX_FILES", 2)
    assert MAX_FILES > 1000
    book = NoteBook(Spool.__new__(Spool))
    for name in ("a", "b", "c"):
        book.put(name, ())
    assert list(book._notes) == ["b", "c"]


def test_file_that_changed_after_it_was_read_is_an_error_without_its_name() -> None:
    def read(path: str) -> Any:
        raise DicomError(RejectReason.UNREADABLE, "FileNotFoundError: No such file or directory")

    one = note_of(header=_header())
    with pytest.raises(FastichError, match="a stored file no longer is what it was"):
        Pixels(read, 4).of(one.header)


def test_pixels_of_few_files_are_kept() -> None:
    calls: list[str] = []

    def read(path: str) -> Any:
        calls.append(path)
        return [dataclasses.make_dataclass("One", ["header", "hu"])(_header(path=path), np.zeros((2, 2), np.int16))]

    pixels = Pixels(read, 2)
    for path in ("a", "b", "a", "c", "a"):
        pixels.of(_header(path=path))
    assert calls == ["a", "b", "c", "a"]


def _header(path: str = "secret") -> Any:
    from_store = {"path": path, "frame": 0}
    return dataclasses.make_dataclass("Header", from_store)(**from_store)


def test_toy_weights_are_those_that_the_thresholds_here_assume() -> None:
    assert WEIGHTS[-1] == 0.06
