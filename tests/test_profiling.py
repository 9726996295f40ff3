import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_epoch import CountingLoader, TinyNet, count_waits, job
from test_train import Toy, config, without_time

from fastich import checkpoint, train
from fastich.errors import FastichError
from fastich.training import history, profiling
from fastich.training.epoch import learn
from fastich.training.position import Position
from fastich.training.predictions import Predictions
from fastich.training.profiling import Profile
from fastich.training.step_parts import PARTS

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run without and with --profile, two replicas."""
    runs = tuple(tmp_path_factory.mktemp("runs") / name for name in ("plain", "profiled"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "open_loader", Toy().open)
        for run in runs:
            train.train(config(run, threads=2, profile=run.name == "profiled"))
    return runs


def test_a_profiled_run_has_the_same_weights_and_metrics(profiled: tuple[Path, Path]) -> None:
    plain, seen = (checkpoint.load(run / checkpoint.LAST) for run in profiled)
    assert plain.tensors.keys() == seen.tensors.keys()
    assert [key for key, value in plain.tensors.items() if not torch.equal(value, seen.tensors[key])] == []
    plain_lines, seen_lines = ([without_time(line) for line in history.read(run)] for run in profiled)
    assert plain_lines == seen_lines


def test_the_trace_shows_three_steps_with_the_work_of_both_replicas(profiled: tuple[Path, Path]) -> None:
    events = json.loads((profiled[1] / "profile" / "trace.json").read_text())["traceEvents"]
    spans = Counter(event["name"] for event in events if event.get("cat") == "user_annotation")
    assert {name: spans[name] for name in ("data", "host-to-device", "forward", "backward", "optimiser")} == {
        "data": 4,  # the fourth finds the first epoch's end
        "host-to-device": 3,
        "forward": 6,
        "backward": 6,
        "optimiser": 3,
    }
    assert len({event["tid"] for event in events if event["name"] == "forward"}) == 2


def test_the_table_says_where_every_millisecond_went(profiled: tuple[Path, Path]) -> None:
    made = json.loads((profiled[1] / "profile" / "table.json").read_text())
    assert made["device"] == "cpu"
    assert made["steps"] == 8 - profiling.NUM_BEFORE - profiling.NUM_TRACED
    assert set(made["share"]) == set(made["ms"]) == set(PARTS)
    assert sum(made["share"].values()) == pytest.approx(1, abs=1e-4)
    assert sum(made["ms"].values()) == pytest.approx(made["step_ms"], rel=1e-3)
    assert all(made["share"][name] > 0.05 for name in ("forward", "backward"))


def test_the_table_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "NUM_TIMED", 4)
    profile = Profile(tmp_path, CPU, enabled=True)
    made = job(tmp_path, 12)
    object.__setattr__(made, "profile", profile)
    object.__setattr__(made.learner, "span", profile.span)
    learn(made, Position(), Predictions())
    profile.close()
    assert "profile: 4 steps of" in capsys.readouterr().err
    assert json.loads((tmp_path / "profile" / "table.json").read_text())["steps"] == 4


def test_a_session_with_too_few_steps_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "open_loader", Toy().open)
    with pytest.raises(FastichError, match="--profile needs 7 steps, 4 are left; lower --batch-size or more --epochs"):
        train.train(config(tmp_path / "run", epochs=1, profile=True))


def test_a_run_that_dies_while_it_is_traced_leaves_the_trace(tmp_path: Path) -> None:
    profile = Profile(tmp_path, CPU, enabled=True)
    for _ in range(profiling.NUM_BEFORE + 1):
        with profile.span("data"):
            pass
        profile.step_done()
    profile.close()
    assert (tmp_path / "profile" / "trace.json").exists()
    assert not (tmp_path / "profile" / "table.json").exists()


def test_no_profile_writes_and_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(tmp_path, 20)
    assert count_waits(made, monkeypatch) == {"tolist": 1}
    made.profile.close()
    assert list(tmp_path.iterdir()) == []


class FakeEvent:
    """Stands for a CUDA event on a clock that ticks a millisecond at each record."""

    now_ms = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.now_ms += 1
        self.at_ms = FakeEvent.now_ms

    def elapsed_time(self, later: "FakeEvent") -> float:
        return later.at_ms - self.at_ms


def test_on_a_gpu_events_are_read_after_one_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[object] = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    profile = Profile(tmp_path, torch.device("cuda"), enabled=True)
    profile._num_steps, profile._timing = profiling.NUM_BEFORE + profiling.NUM_TRACED, True
    profile._folder.mkdir()
    for _ in range(profiling.NUM_TIMED):
        for name in ("data", "host-to-device", "forward", "backward", "optimiser"):
            with profile.span(name):
                pass
        profile.step_done()
    made = json.loads((tmp_path / "profile" / "table.json").read_text())
    assert waits == [torch.device("cuda")]
    assert made["step_ms"] == 10  # from the first of eleven records to the last
    assert made["ms"] == {
        "data": 3, "host-to-device": 1, "forward": 1, "backward": 1, "optimiser": 1, "rest": 3
    }  # fmt: skip


def test_the_learner_names_each_part_once_a_step() -> None:
    names: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            names.append(name)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    precision = job(Path("unused"), 1).learner.precision
    made = train.make_learner(TinyNet(), precision, lr=1e-3, span=Named)  # type: ignore[arg-type]
    made.step(next(iter(CountingLoader(1).epoch(0))), 1e-3)
    assert names == ["forward", "backward", "optimiser"]
