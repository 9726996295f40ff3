import sys
from pathlib import Path

import pytest

from fastich import steps
from fastich.errors import FastichError, UsageError


def test_a_failing_step_stops_the_chain_and_is_named() -> None:
    with pytest.raises(FastichError, match="python -m x ended with status 3"):
        steps.run([sys.executable, "-c", "raise SystemExit(3)"], shown="python -m x")


def test_a_step_reports_its_seconds() -> None:
    assert 0 < steps.run([sys.executable, "-c", ""], shown="nothing") < 60


def test_a_step_is_the_command_that_it_shows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "out.txt").open("w", encoding="utf-8") as output:
        steps.step("cli", "--version", stdout=output)
    assert capfd.readouterr().err == "$ python -m fastich.cli --version\n"


def test_a_folder_that_the_command_did_not_make_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"exists and was not made by the experiment; choose another --out"):
        steps.clear(tmp_path, "experiment")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_what_the_command_made_before_is_replaced(tmp_path: Path) -> None:
    for _ in range(2):
        steps.clear(tmp_path / "made", "demo")
        assert [path.name for path in (tmp_path / "made").iterdir()] == [".fastich-demo"]
        (tmp_path / "made" / "old").write_text("old")
