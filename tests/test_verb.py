import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from fastich import verb
from fastich.errors import FastichError, UsageError


@dataclass(frozen=True, kw_only=True)
class Config:
    out: Path = verb.required("output folder")
    size: int = verb.option(256, "side in pixels")
    limit: float | None = verb.option(None, "limit in % of something")
    mode: str = verb.option("a", "mode", choices=("a", "b"))
    fast: bool = verb.option(False, "be fast")
    tune: str = verb.option("off", "tuning", choices=("off", "some", "all"), bare="some")

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"--size must be >= 1, found {self.size}")


def parsed(*argv: str) -> Config:
    made = argparse.ArgumentParser()
    verb.add_config_flags(made, Config)
    return verb.config_from_args(made.parse_args(argv), Config)


def test_flags_are_made_from_the_config() -> None:
    assert parsed("--out", "x") == Config(out=Path("x"))
    given = parsed("--out", "x", "--size", "8", "--limit", "0.5", "--mode", "b", "--fast")
    assert given == Config(out=Path("x"), size=8, limit=0.5, mode="b", fast=True)
    assert verb.plain(given) == {"out": "x", "size": 8, "limit": 0.5, "mode": "b", "fast": True, "tune": "off"}


def test_a_flag_may_stand_alone_for_a_value() -> None:
    given = {
        ("--tune",): "some",
        ("--tune", "all"): "all",
        ("--no-tune",): "off",
        ("--tune", "--fast"): "some",
        (): "off",
    }
    assert {argv: parsed("--out", "x", *argv).tune for argv in given} == given


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    told = " ".join(capsys.readouterr().out.split())
    assert "side in pixels (default: 256)" in told
    assert "limit in % of something" in told
    assert "tuning (default: off; alone: some)" in told


def test_a_value_the_config_refuses_is_bad_usage() -> None:
    with pytest.raises(UsageError, match="--size must be >= 1"):
        parsed("--out", "x", "--size", "0")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (FastichError("no CT\nin x"), 1, "error: no CT in x"),
        (UsageError("bad flag"), 2, "error: bad flag"),
        (ZeroDivisionError("division by zero"), 1, "error: ZeroDivisionError: division by zero"),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: [Errno 13] Permission denied: '/x'"),
    ],
)
def test_errors_become_one_line_and_a_status(
    error: Exception, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> int:
        raise error

    with pytest.raises(SystemExit) as stopped:
        verb.run(main, [])
    assert stopped.value.code == status
    assert capsys.readouterr().err == line + "\n"


def test_debug_shows_the_traceback() -> None:
    def main(argv: list[str]) -> int:
        raise FastichError("x")

    with pytest.raises(FastichError):
        verb.run(main, ["--debug"])


def test_done_is_status_zero() -> None:
    with pytest.raises(SystemExit) as stopped:
        verb.run(lambda argv: None, [])
    assert stopped.value.code == 0


def test_progress_is_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(verb.progress([1, 2], total=2, unit="slice", title="x")) == [1, 2]
    assert capsys.readouterr().err == ""


def test_a_process_beside_another_says_nothing_but_its_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "_beside", [])
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    def fail(argv: list[str]) -> int:
        verb.say("loading")
        raise FastichError("records are damaged")

    assert verb.shows_progress()
    verb.hush("rank 3")
    assert not verb.shows_progress()
    with pytest.raises(SystemExit):
        verb.run(fail, [])
    assert capsys.readouterr().err == "rank 3: error: records are damaged\n"
