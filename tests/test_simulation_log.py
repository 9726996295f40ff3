from pathlib import Path

import numpy as np
import pytest

from fastich.errors import FastichError
from fastich.serve.entities import Priority
from fastich.simulation.cases import Reading
from fastich.simulation.log import Log, read_log
from fastich.simulation.scores import of_rates

READING = Reading(mean_s=480, variation=0.5)


def written(folder: Path, text: str) -> Path:
    path = folder / "log.csv"
    path.write_text(text, encoding="utf-8")
    return path


def log_of(folder: Path, text: str) -> Log:
    return read_log(written(folder, text))


def test_iso_times_count_from_the_midnight_before_the_first_study(tmp_path: Path) -> None:
    found = log_of(tmp_path, "arrived_at\n2026-03-02T01:00:00\n2026-03-01T23:00:00\n")
    assert found.arrived_s.tolist() == [23 * 3600, 25 * 3600]


def test_iso_times_with_offsets_are_compared_as_instants(tmp_path: Path) -> None:
    found = log_of(tmp_path, "arrived_at\n2026-03-01T10:00:00+01:00\n2026-03-01T10:00:00Z\n")
    assert np.diff(found.arrived_s).tolist() == [3600]
    assert found.arrived_s[0] == 10 * 3600


def test_seconds_and_every_column_are_read_in_order_of_arrival(tmp_path: Path) -> None:
    text = (
        "read_minutes,arrived_at,bleed,decision\n2,90000,1,flag\n3,86500,0,human first\n\n4,86500.5,0,not evaluated\n"
    )
    found = log_of(tmp_path, text)
    assert found.arrived_s.tolist() == [100, 100.5, 3600]
    assert found.read_s is not None
    assert found.read_s.tolist() == [180, 240, 120]
    assert found.bleed is not None
    assert found.bleed.tolist() == [False, False, True]
    assert found.decision is not None
    assert found.decision.tolist() == [Priority.HUMAN_FIRST, Priority.ROUTINE, Priority.FLAGGED]


def test_what_the_log_says_is_not_drawn_and_what_it_lacks_is(tmp_path: Path) -> None:
    scores = of_rates(0.9, 0.9, "test")
    full = log_of(tmp_path, "arrived_at,bleed,p_any,read_minutes\n0,1,0.7,5\n60,0,0.2,6\n")
    draws = [full.draw(np.zeros(2, np.intp), 0.5, scores, READING, np.random.default_rng(seed)) for seed in (1, 2)]
    assert draws[0].read_s.tolist() == draws[1].read_s.tolist() == [300, 360]
    assert draws[0].score is not None
    assert draws[0].score.tolist() == [0.7, 0.2]
    bare = log_of(tmp_path, "arrived_at\n0\n60\n")
    draws = [bare.draw(np.zeros(2, np.intp), 0.5, scores, READING, np.random.default_rng(seed)) for seed in (1, 2)]
    assert draws[0].read_s.tolist() != draws[1].read_s.tolist()
    assert draws[0].score is not None
    assert draws[0].decision is None


def test_shifts_follow_one_another_before_and_after_their_start(tmp_path: Path) -> None:
    found = log_of(tmp_path, "arrived_at\n25200\n28800\n57600\n144000\n")
    start_s, shift = found.shifts(8 * 3600, 8 * 3600)
    assert start_s == 0
    assert shift.tolist() == [0, 1, 2, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "",
            "expected the column arrived_at and any of bleed, p_any, decision, read_minutes, .* found no header",
        ),
        ("bleed\n1\n", "expected the column arrived_at .* found bleed"),
        ("arrived_at,arrived_at\n1,1\n", "each once, found arrived_at, arrived_at"),
        ("arrived_at,who\n1,x\n", "found arrived_at, who"),
        ("arrived_at,bleed,p_any,decision\n", "expected p_any or decision, found both"),
        ("arrived_at,p_any\n0,0.5\n", "need the column bleed"),
        ("arrived_at\n", "expected a row for each study"),
        ("arrived_at\n1\nnoon\n", "row 3: arrived_at: expected an ISO 8601 time or seconds, found 'noon'"),
        ("arrived_at\n-1\n", "row 2: arrived_at: expected seconds of at least 0, found '-1'"),
        ("arrived_at\n1\n2026-03-01T10:00\n", "row 3: arrived_at: expected one kind .* ISO times and seconds"),
        ("arrived_at\n2026-03-01T10:00Z\n2026-03-01T10:00\n", "found ISO times and ISO times with an offset"),
        ("arrived_at,bleed\n1,yes\n", "row 2: bleed: expected 0 or 1, found 'yes'"),
        ("arrived_at,bleed,p_any\n1,1,1.2\n", "row 2: p_any: expected a probability from 0 to 1, found '1.2'"),
        (
            "arrived_at,bleed,decision\n1,1,stat\n",
            "row 2: decision: expected flag, human first, clear or not evaluated",
        ),
        ("arrived_at,read_minutes\n1,0\n", "row 2: read_minutes: expected minutes above 0, found '0'"),
        ("arrived_at,read_minutes\n1,nan\n", "row 2: read_minutes: expected minutes above 0, found 'nan'"),
        ("arrived_at,bleed\n1\n", "row 2: expected 2 cells, found 1"),
        ('arrived_at\n"1\n', "expected a CSV file in UTF-8, found unexpected end of data"),
    ],
)
def test_a_fault_is_one_line_that_names_its_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FastichError, match=message) as caught:
        log_of(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FastichError, match="expected a CSV file in UTF-8"):
        read_log(path)
