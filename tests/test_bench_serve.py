"""The load test does not lie: it counts what a server loses, refuses or never finishes, and is slow when it is slow."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT / "bench"))

import bench_serve  # noqa: E402
import serve_process  # noqa: E402
import serve_studies  # noqa: E402
from bench_serve import Load, is_held, measure, percentile, row_of, steps, verdict  # noqa: E402
from serve_load import Sent, due_times  # noqa: E402
from serve_studies import PLACEHOLDERS, Template  # noqa: E402

from fastich.dicom import read_bytes  # noqa: E402
from fastich.errors import FastichError, UsageError  # noqa: E402

FAKE = (sys.executable, str(PROJECT / "tests" / "fake_serve.py"))
NUM_SLICES = 4


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Template]:
    return serve_studies.templates(tmp_path_factory.mktemp("work"), num_studies=2, num_slices=NUM_SLICES, size=64)


Fault = Callable[[str], None]


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    """Makes the next fake server misbehave."""
    return lambda name: monkeypatch.setenv("FAKE_FAULT", name)


def load(**changes: Any) -> Load:
    values = {"way": "dimse", "rate_per_min": 180.0, "hold_s": 1.0, "arrivals": "uniform", "quiet_s": 0.4,
              "within_s": 1.2, "settle_s": 4.0}  # fmt: skip
    return Load(**values | changes)


def run(tmp_path: Path, studies: list[Template], **changes: Any) -> dict[str, Any]:
    one = load(**changes)
    text = serve_process.settings(tmp_path, tmp_path / "server" / "spool", precision="float32", quiet_s=one.quiet_s)
    return measure(one, studies, tmp_path / "server", text, command=FAKE)


def test_studies_have_new_legal_uids_and_their_pixels(studies: list[Template]) -> None:
    first, second = studies[0].study("a"), studies[0].study("b")
    seen = set()
    for study in (first, second):
        for number in range(NUM_SLICES):
            data = pydicom.dcmread(io.BytesIO(study.file(number)))
            assert data.SOPInstanceUID == data.file_meta.MediaStorageSOPInstanceUID == study.sop_uids[number]
            assert (data.StudyInstanceUID, data.SeriesInstanceUID) == (study.study_uid, study.series_uid)
            assert data.SOPInstanceUID.is_valid
            assert not any(uid.encode() in study.file(number) for uid in PLACEHOLDERS.values())
            seen |= {data.SOPInstanceUID, data.StudyInstanceUID, data.SeriesInstanceUID}
    assert len(seen) == 2 * (NUM_SLICES + 2)
    assert len({data.split(b"\xe0\x7f\x10\x00")[1] for data in first.template.slices}) == NUM_SLICES


def test_studies_are_whole_series_in_order(studies: list[Template]) -> None:
    files = [studies[1].study("x").file(number) for number in range(NUM_SLICES)]
    found = [read_bytes(file, "a slice")[0].header for file in files]
    assert len({header.series_uid for header in found}) == 1
    steps_mm = np.linalg.norm(np.diff([header.position_mm for header in found], axis=0), axis=1)
    assert steps_mm == pytest.approx(np.full(NUM_SLICES - 1, serve_studies.SPACING_MM), abs=0.01)


def test_studies_leave_at_a_fixed_rate_or_a_poisson_one() -> None:
    assert due_times(60, 3, "uniform", 0) == [0, 1, 2]
    drawn = due_times(600, 60, "poisson", 0)
    assert len(drawn) == pytest.approx(600, abs=100)
    assert drawn == sorted(drawn) == due_times(600, 60, "poisson", 0)
    assert max(drawn) < 60
    assert len(due_times(0.001, 1, "poisson", 0)) == 1


@pytest.mark.parametrize("way", ["dimse", "stow"])
def test_a_sound_server_holds_and_its_wait_is_the_quiet_time(tmp_path: Path, studies: list[Template], way: str) -> None:
    row = run(tmp_path, studies, way=way)
    assert row["held"], row
    assert (row["num_studies"], row["num_slices"], row["refusals"]) == (3, 3 * NUM_SLICES, 0)
    assert 0.35 < row["p50_s"] <= row["p95_s"] < 0.8
    assert row["states"] == {"scored": 3}
    assert row["peak_mib"] is None or row["peak_mib"] > 10
    assert not (tmp_path / "server").exists()


def test_slices_that_are_acknowledged_and_not_there_are_lost(
    tmp_path: Path, studies: list[Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "lose")
    row = run(tmp_path, studies, settle_s=2.0)
    assert row["lost_slices"] == 4
    assert row["num_slices"] == 12
    assert not row["held"]


def test_a_study_that_the_server_does_not_know_is_lost(
    tmp_path: Path, studies: list[Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "forget")
    row = run(tmp_path, studies, settle_s=1.5)
    assert (row["lost_studies"], row["lost_slices"], row["held"]) == (3, 12, False)


@pytest.mark.parametrize("way", ["dimse", "stow"])
def test_what_is_refused_for_now_is_sent_again_and_counted(
    tmp_path: Path, studies: list[Template], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "busy")
    row = run(tmp_path, studies, way=way)
    assert row["refusals"] == 2
    assert (row["num_slices"], row["not_taken"], row["lost_slices"]) == (12, 0, 0)
    assert not row["held"]


def test_a_study_that_never_ends_is_unfinished(
    tmp_path: Path, studies: list[Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "stuck")
    row = run(tmp_path, studies, settle_s=1.5)
    assert (row["unfinished"], row["lost_slices"], row["p95_s"], row["held"]) == (3, 0, None, False)


def test_a_slow_server_does_not_hold(tmp_path: Path, studies: list[Template], fault: Fault) -> None:
    fault("late")
    row = run(tmp_path, studies)
    assert 1.35 < row["p50_s"] < 1.8
    assert (row["unfinished"], row["held"]) == (0, False)


def test_a_server_that_does_not_stop_well_is_an_error(
    tmp_path: Path, studies: list[Template], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "crash")
    with pytest.raises(FastichError, match="expected exit status 0 when asked to stop, found 3"):
        run(tmp_path, studies)


def test_a_server_that_does_not_start_says_its_last_line(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('no such model')")
    with (
        pytest.raises(FastichError, match="the server did not start: ended with status 1: no such model"),
        serve_process.served(tmp_path, "", command=command),
    ):
        pass


def sent(studies: list[Template], *, acknowledged: int = NUM_SLICES, late_s: float = 0.0) -> Sent:
    return Sent(
        study=studies[0].study("by hand"), due_at=100.0, started_at=100.0 + late_s, acknowledged=acknowledged,
        last_ack_at=110.0,
    )  # fmt: skip


def answer(**changes: Any) -> dict[str, Any]:
    values = {"state": "scored", "is_partial": False, "num_instances": NUM_SLICES, "final_at": 110.5}
    return values | changes


def test_row_by_hand(studies: list[Template]) -> None:
    one = sent(studies)
    row = row_of(load(), [one], {one.study.study_uid: answer()}, 2**20)
    assert (row["p50_s"], row["p99_s"], row["peak_mib"], row["held"]) == (0.5, 0.5, 1, True)
    late = sent(studies, late_s=0.6)
    row = row_of(load(), [late], {one.study.study_uid: answer()}, None)
    assert (row["status"], row["held"]) == ("refused", False)
    assert row["why"] == "the sender was 0.6 s late: it measured itself"
    row = row_of(load(), [one], {one.study.study_uid: answer(is_partial=True)}, None)
    assert (row["unfinished"], row["held"]) == (1, False)
    short = sent(studies, acknowledged=3)
    row = row_of(load(), [short], {one.study.study_uid: answer(num_instances=3)}, None)
    assert (row["not_taken"], row["unfinished"], row["lost_slices"], row["held"]) == (1, 0, 0, False)


def test_percentile_by_hand() -> None:
    assert percentile([], 95) is None
    assert percentile([3.0], 50) == 3
    assert [percentile([float(n) for n in range(1, 21)], part) for part in (50, 95, 99)] == [10, 19, 20]


def test_rates_rise_until_one_is_not_held_then_the_gap_is_halved() -> None:
    tried = []

    def at(rate: float) -> dict[str, Any]:
        tried.append(rate)
        return {"held": rate <= 20, "rate_per_min": rate}

    assert len(list(steps(10, at))) == 5
    assert tried == [10, 15, 22.5, 18.75, 20.625]
    tried.clear()
    assert len(list(steps(1, lambda rate: {"held": True, "rate_per_min": rate}))) == bench_serve.MOST_STEPS


def test_verdict_names_the_highest_rate_that_was_held() -> None:
    rows = [{"held": True, "rate_per_min": rate, "p95_s": 5.5, "quiet_s": 5.0} for rate in (10.0, 15.0)]
    said = verdict([*rows, {"held": False, "rate_per_min": 22.5}], load(hold_s=180.0))
    assert said.startswith(
        "Highest rate held for 180 s with nothing lost: 15 studies a minute; p95 5.5 s, of which 0.5 s"
    )
    assert "and no higher one was tried" in verdict(rows, load())
    assert (
        verdict([{"held": False, "rate_per_min": 10.0}], load()) == "No rate was held for 1 s; the lowest tried was 10."
    )


def test_held_wants_p95_below_the_limit() -> None:
    spoiled = ("refusals", "faults", "not_taken", "lost_slices", "lost_studies", "unfinished")
    row = dict.fromkeys(spoiled, 0) | {"status": "ok", "p95_s": 1.1}
    assert is_held(row, load())
    assert not is_held(row | {"p95_s": 1.2}, load())
    for name in spoiled:
        assert not is_held(row | {name: 1}, load())


def test_quick_run_prints_a_table_and_appends_a_row(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_serve, "COMMAND", FAKE)
    out = tmp_path / "rows.jsonl"
    words = ["--quick", "--model", str(tmp_path), "--size", "64", "--slices", "3", "--quiet", "0.3", "--hold", "1"]
    assert bench_serve.main([*words, "--rate", "120", "--work", str(tmp_path / "work"), "--json", str(out)]) == 0
    printed = capfd.readouterr().out
    assert "3 slices of 64 px a study, poisson arrivals, quiet_s 0.3, float32" in printed
    assert "quick: a look, not a result" in printed
    assert "| 120 | yes |" in printed
    (row,) = [json.loads(text) for text in out.read_text().splitlines()]
    assert {"host", "versions", "commit", "config", "p95_s", "held"} <= row.keys()
    assert row["config"]["model"] == "own"


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UsageError, match="must be above 0"):
        bench_serve.main(["--rate", "0"])
