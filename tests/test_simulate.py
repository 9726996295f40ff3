import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_simulation_scores import evaluation

from fastich import simulate
from fastich.errors import UsageError
from fastich.serve.entities import Priority
from fastich.simulation.cases import Cases, Reading, draw_poisson, poisson_arrivals
from fastich.simulation.config import SimulateConfig, read_counts, read_hours
from fastich.simulation.effect import NO_MISSES, OperatingPoint, Resampler, Waits, effect, waits_of
from fastich.simulation.reading_room import Staff
from fastich.simulation.scores import of_rates

SMALL: dict[str, Any] = {"replications": 6, "bootstrap": 20}


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert simulate.main([*map(str, words), "--replications", "6", "--bootstrap", "20"]) == 0
    return capsys.readouterr().out


def log(folder: Path, text: str) -> Path:
    path = folder / "log.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_arrivals_follow_the_rate_of_the_hour() -> None:
    rates = [0.0] * 24
    rates[9], rates[10] = 400.0, 100.0
    found = poisson_arrivals(rates, 8 * 3600, 8 * 3600, np.random.default_rng(0))
    hour = found // 3600
    assert set(hour) == {9, 10}
    assert (hour == 9).sum() == pytest.approx(400, abs=80)
    assert (hour == 10).sum() == pytest.approx(100, abs=40)
    assert (np.diff(found) >= 0).all()


def test_reading_times_have_the_mean_that_was_asked_for_with_and_without_interruptions() -> None:
    rng = np.random.default_rng(0)
    reading = Reading(mean_s=480, variation=0.6, interruptions_per_hour=4, interruption_s=180)
    plain = reading.draw(60_000, rng)
    assert plain.mean() == pytest.approx(480, rel=0.01)
    assert plain.std() / plain.mean() == pytest.approx(0.6, rel=0.03)
    assert reading.interrupted(plain, rng).mean() == pytest.approx(480 * (1 + 4 * 180 / 3600), rel=0.01)
    assert Reading(mean_s=480, variation=0.6).interrupted(plain, rng).tolist() == plain.tolist()


def test_every_operating_point_meets_the_same_studies() -> None:
    cases = draw_poisson(
        rate_per_hour=(6.0,), start_s=0, length_s=8 * 3600, prevalence=0.3, scores=of_rates(0.9, 0.9, ""),
        reading=Reading(mean_s=480, variation=0.5), shift=0, rng=np.random.default_rng(1),
    )  # fmt: skip
    points = [OperatingPoint(name=str(cut), threshold=cut) for cut in (0.5, np.inf)]
    some, none = waits_of(cases, points, 0.0, Staff(readers=(1,)))
    assert some.first_come.tolist() == none.first_come.tolist() == none.worklist.tolist()
    assert some.saved[some.bleed].mean() > 0
    assert not none.saved.any()


def test_operating_point_cuts_scores_three_ways_and_leaves_a_log_its_decisions() -> None:
    cases = Cases(
        arrived_s=np.zeros(3), shift=np.zeros(3, np.intp), bleed=np.zeros(3, bool), score=np.array([0.1, 0.5, 0.9]),
        decision=None, read_s=np.ones(3),
    )  # fmt: skip
    cut = OperatingPoint(name="", threshold=0.9, human_first=0.5)
    assert cut.priorities(cases).tolist() == [Priority.ROUTINE, Priority.HUMAN_FIRST, Priority.FLAGGED]


def by_hand() -> Waits:
    return Waits(
        shift=np.array([0, 0, 1, 1]),
        bleed=np.array([True, False, True, False]),
        priority=np.array([2, 0, 0, 2]),
        first_come=np.array([20.0, 5.0, 10.0, 8.0]),
        worklist=np.array([0.0, 9.0, 13.0, 2.0]),
        busy=np.full(4, 5.0),
    )


def test_figures_by_hand() -> None:
    found = effect(OperatingPoint(name="x", threshold=0.5), by_hand(), Resampler.of(2, 50, 0))
    saved = found["bleeds"]["saved"]
    assert (saved["mean"]["value"], saved["median"]["value"], saved["p95"]["value"]) == (8.5, -3, 20)
    assert (saved["num"], saved["largest"]) == (2, 20)
    assert (saved["mean"]["low"], saved["mean"]["note"]) == (None, "no interval: 2 shifts, fewer than 6")
    assert found["others_delayed"]["mean"]["value"] == -1
    assert found["others_delayed"]["largest"] == 4
    assert found["missed_bleeds_delayed"]["largest"] == 3
    assert found["alarms_per_shift"]["value"] == 1
    assert found["false_alarms_per_shift"]["value"] == 0.5
    assert [found[name] for name in ("sensitivity", "specificity", "ppv", "npv")] == [0.5] * 4


def test_alarms_of_a_log_are_those_of_one_replication() -> None:
    waits = by_hand()
    assert Resampler.of(2, 5, 0, per_shift=2).per_shift_of(waits.priority > 0, waits.shift)["value"] == 0.5


def test_what_is_undefined_is_none_with_words() -> None:
    waits = by_hand()
    nobody = Waits(**{name: getattr(waits, name)[:0] for name in Waits.__dataclass_fields__})
    found = effect(OperatingPoint(name="x", threshold=0.5), nobody, Resampler.of(2, 5, 0))
    assert found["bleeds"]["saved"]["undefined"] == "undefined: no positives"
    assert found["bleeds"]["saved"]["mean"]["value"] is None
    assert found["others_delayed"]["undefined"] == "undefined: no negatives"
    assert found["missed_bleeds_delayed"]["undefined"] == NO_MISSES
    assert found["sensitivity"] is None


def test_intervals_draw_shifts_and_count_those_that_hold_what_is_counted() -> None:
    once = by_hand()
    waits = Waits(**{name: np.tile(getattr(once, name), 4) for name in Waits.__dataclass_fields__})
    shift = waits.shift + np.repeat(np.arange(4) * 2, 4)
    draws = Resampler.of(8, 200, 0)
    mean = draws.distribution(waits.saved[waits.bleed], shift[waits.bleed], "")["mean"]
    assert -3 < mean["low"] < mean["value"] == 8.5 < mean["high"] < 20
    assert mean["note"] == "few shifts: 8"
    late = draws.distribution(waits.saved[waits.bleed & (shift == 0)], shift[waits.bleed & (shift == 0)], "")["mean"]
    assert (late["low"], late["note"]) == (None, "no interval: one shift")


def test_one_shift_has_no_interval() -> None:
    waits = by_hand()
    found = Resampler.of(1, 5, 0).distribution(waits.saved, np.zeros(4, np.intp), "")
    assert (found["mean"]["low"], found["mean"]["value"]) == (None, 5.25 - 0.5)


def test_a_log_that_says_everything_is_replayed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: the bleed comes second behind a long read and passes one study; that one waits its 5 minutes more."""
    path = log(
        tmp_path,
        "arrived_at,bleed,decision,read_minutes\n2026-01-05T08:00,0,clear,10\n"
        "2026-01-05T08:01,0,clear,20\n2026-01-05T08:02,1,flag,5\n",
    )
    found = json.loads(run(capsys, "--log", path, "--json"))
    assert found["assumptions"] == ["nothing is drawn"]
    assert (found["num_replications"], found["num_shifts"], found["sweep"]) == (1, 1, [])
    one = found["operating_point"]
    assert one["bleeds"]["wait_first_come"]["mean"]["value"] == 28
    assert one["bleeds"]["wait_worklist"]["mean"]["value"] == 8
    assert one["bleeds"]["saved"]["mean"]["value"] == 20
    assert one["others_delayed"]["mean"]["value"] == 2.5
    assert one["others_delayed"]["largest"] == 5
    assert one["alarms_per_shift"]["value"] == 1
    assert found["load"] == pytest.approx(35 / 480)
    text = run(capsys, "--log", path)
    assert "95 % intervals over 1 shifts: none from fewer than 6 shifts" in text
    assert NO_MISSES in text


def test_late_notification_saves_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = log(
        tmp_path,
        "arrived_at,bleed,decision,read_minutes\n0,0,clear,10\n60,0,clear,20\n120,1,flag,5\n",
    )
    for seconds, saved in ((470, 20), (490, 0)):
        found = json.loads(run(capsys, "--log", path, "--notification-s", seconds, "--json"))
        assert found["operating_point"]["bleeds"]["saved"]["mean"]["value"] == saved


def test_random_shifts_end_in_tables_and_the_same_seed_in_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "--rate-per-hour", 7)
    assert "6 random shifts, each from an empty worklist" in text
    assert "through sensitivity 0.95 and specificity 0.9 (the defaults)" in text
    for line in ("bleeds: opened earlier by", "studies without: opened later by", "alarms a shift", "1% false alarms"):
        assert line in text
    assert text == run(capsys, "--rate-per-hour", 7)
    assert text != run(capsys, "--rate-per-hour", 7, "--seed", 1)


def test_more_false_alarms_are_more_alarms_and_never_less_sensitive(capsys: pytest.CaptureFixture[str]) -> None:
    swept = json.loads(run(capsys, "--json"))["sweep"]
    assert len(swept) == 7
    for name in ("sensitivity",):
        assert [one[name] for one in swept] == sorted(one[name] for one in swept)
    assert [one["alarms_per_shift"]["value"] for one in swept] == sorted(
        one["alarms_per_shift"]["value"] for one in swept
    )


def test_overload_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert "more comes than is read" in run(capsys, "--rate-per-hour", 20)


def test_an_evaluations_own_scores_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = evaluation(tmp_path / "e", [1, 0, 0], [0.9, 0.1, 0.5])
    found = json.loads(run(capsys, "--evaluation", folder, "--human-first", 0.3, "--json"))
    assert found["operating_point"]["sensitivity"] == 1
    assert "1 studies with and 2 without a bleed of e, cut at 0.4" in " ".join(found["assumptions"])


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_plot_is_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, start: bytes) -> None:
    path = tmp_path / f"plot{suffix}"
    run(capsys, "--plot", path)
    first = path.read_bytes()
    assert first.startswith(start)
    assert len(first) > 10_000
    run(capsys, "--plot", path)
    assert path.read_bytes() == first


def test_a_log_with_decisions_has_a_plot_of_one_panel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "--log", log(tmp_path, "arrived_at,bleed,decision\n0,0,clear\n"), "--plot", tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 3000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"prevalence": 1.5}, "--prevalence must be <= 1, found 1.5"),
        ({"read_minutes": 0.0}, "--read-minutes must be > 0, found 0"),
        ({"notification_s": -1.0}, "--notification-s must be >= 0, found -1"),
        ({"shift_start": 24.0}, "--shift-start must be from 0 to 24, found 24"),
        ({"rate_per_hour": (0.0,)}, "--rate-per-hour must not be negative, and above 0 at some hour"),
        ({"readers": (0,)}, "--readers must not be negative, and at least 1 at some hour"),
        ({"model": Path("m"), "sensitivity": 0.9}, "one source of scores, found --model and --sensitivity"),
        ({"human_first": 0.8, "threshold": 0.5}, "--human-first must not be above --threshold"),
        ({"plot": Path("a.pdf")}, r"--plot: expected a name that ends in \.png or \.svg, found a\.pdf"),
    ],
)
def test_settings_that_mean_nothing_are_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SimulateConfig(**words)


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (None, {"threshold": 0.5}, "--threshold and --human-first cut p.any.: give --evaluation, or a log"),
        ("arrived_at,bleed,p_any\n0,1,0.5\n", {}, r"log\.csv: has p_any; give the --threshold"),
        (
            "arrived_at,bleed,p_any\n0,1,0.5\n", {"threshold": 0.5, "model": Path("m")},
            r"log\.csv: has p_any; leave out --model",
        ),
        ("arrived_at,bleed,decision\n0,1,flag\n", {"threshold": 0.5}, r"log\.csv: has decision; leave out --threshold"),
        (None, {"rate_per_hour": (1e-9,)}, "expected at least one study, found none"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, text: str | None, words: dict[str, Any], message: str
) -> None:
    path = log(tmp_path, text) if text else None
    with pytest.raises(UsageError, match=message):
        simulate.simulate(SimulateConfig(log=path, **SMALL, **words))


def test_numbers_by_hour_are_one_or_24() -> None:
    assert read_hours("2.5") == (2.5,)
    assert read_counts(",".join("1" * 24)) == (1,) * 24
    with pytest.raises(ValueError, match="expected one number or 24, found 2"):
        read_hours("1,2")
    with pytest.raises(ValueError, match="expected whole numbers"):
        read_counts("1.5")


def test_a_bad_row_is_one_line_on_stderr(tmp_path: Path) -> None:
    path = log(tmp_path, "arrived_at\n1\nlate\n")
    command = [sys.executable, "-m", "fastich.simulate", "--log", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {path}: row 3: arrived_at: expected an ISO 8601 time or seconds, found 'late'\n"
