"""Training options as a whole: what is refused, what a checkpoint holds to, and that a run with all of them resumes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from test_train import Killed, Toy, assert_same_run, config, kill_at, toy  # noqa: F401 (a fixture)

from fastich import checkpoint, train
from fastich.errors import CheckpointError, UsageError
from fastich.training import run_folder
from fastich.training.config import FREE_ON_RESUME, TrainConfig, require_same

OPTIONS: dict[str, Any] = {
    "loss": "focal", "focal_gamma": 1.5, "class_weights": "inverse", "ema": 0.8, "clip_norm": 0.5, "accumulate": 3,
    "schedule": "cosine", "warmup_epochs": 0.5, "checkpoint_steps": 1,
}  # fmt: skip
"""32 slices make 4 batches an epoch: a group of three and one of one."""


@pytest.fixture
def tiny(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> Toy:  # noqa: F811
    monkeypatch.setenv("TINY_NETWORK", "norm")
    monkeypatch.setattr(train, "build_model", tiny_run.build)
    return toy


@pytest.mark.parametrize("step", [2, 3, 4, 6])
def test_a_run_with_every_option_goes_on_to_the_same_weights(tiny: Toy, tmp_path: Path, step: int) -> None:
    train.train(config(tmp_path / "whole", **OPTIONS))
    tiny.change["train"] = kill_at(step)
    with pytest.raises(Killed):
        train.train(config(tmp_path / "killed", **OPTIONS))
    tiny.change.clear()
    if step > 2:
        assert checkpoint.load(tmp_path / "killed" / checkpoint.LAST).meta["position"]["batch"] in (0, 3)
    train.train(config(tmp_path / "killed", resume="auto", **OPTIONS))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_best_checkpoint_that_was_due_is_the_average_too(
    tiny: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise Killed

    train.train(config(tmp_path / "whole", **OPTIONS))
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "save_best", kill)
        with pytest.raises(Killed):
            train.train(config(tmp_path / "killed", **OPTIONS))
    train.train(config(tmp_path / "killed", resume="auto", **OPTIONS))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_what_is_validated_and_kept_is_the_average(tiny: Toy, tmp_path: Path) -> None:
    train.train(config(tmp_path / "run", epochs=1, **{name: OPTIONS[name] for name in ("ema", "accumulate")}))
    last, best = (checkpoint.load(tmp_path / "run" / name) for name in (checkpoint.LAST, checkpoint.BEST))
    assert last.meta["ema_updates"] == 2
    kept, average, raw = best.part("model."), last.part("ema."), last.part("model.")
    assert set(average) == {name for name, value in kept.items() if value.is_floating_point()}
    for name, value in average.items():
        assert torch.equal(value, kept[name])
    assert not torch.equal(raw["layers.0.weight"], average["layers.0.weight"])


def test_the_network_of_the_last_checkpoint_is_the_average_where_there_is_one(toy: Toy, tmp_path: Path) -> None:  # noqa: F811
    train.train(config(tmp_path / "run", epochs=1, ema=0.9))
    best, last = (checkpoint.load_run(tmp_path / "run", which).model.state_dict() for which in ("best", "last"))
    assert all(torch.equal(value, last[name]) for name, value in best.items())


def test_inverse_weights_are_counted_on_the_training_split_and_written_down(tiny: Toy, tmp_path: Path) -> None:
    tiny.reader.toy_labels[:, 0] = 0
    summary = train.train(config(tmp_path / "run", epochs=1, class_weights="inverse"))
    share = tiny.reader.toy_labels[:32, 5].mean()
    assert summary["positive_weights"]["any"] == pytest.approx((1 - share) / share)
    assert summary["positive_weights"]["epidural"] == 1.0
    assert train.train(config(tmp_path / "plain", epochs=1))["positive_weights"] is None


def test_the_validation_loss_is_plain_whatever_is_learned_from(tiny: Toy, tmp_path: Path) -> None:
    """Before anything is learned, three losses see the same validation loss."""
    losses = {}
    for name, changes in (("bce", {}), ("weighted", {"class_weights": "challenge"}), ("focal", {"loss": "focal"})):
        train.train(config(tmp_path / name, epochs=1, lr=1e-30, **changes))
        losses[name] = json.loads((tmp_path / name / "metrics.jsonl").read_text())["val"]["loss"]
    assert losses["weighted"] == losses["focal"] == losses["bce"]


def test_config_json_and_checkpoints_hold_every_option(tiny: Toy, tmp_path: Path) -> None:
    train.train(config(tmp_path / "run", epochs=1, **OPTIONS))
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    saved = checkpoint.load(tmp_path / "run" / checkpoint.BEST).meta["config"]
    for name, value in OPTIONS.items():
        assert written[name] == saved[name] == value


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - FREE_ON_RESUME))
def test_an_option_that_changes_the_weights_may_not_change_on_resume(tmp_path: Path, name: str) -> None:
    begun = config(tmp_path, **OPTIONS).resolved()
    other = {"loss": "focal", "schedule": "cosine", **OPTIONS, name: _another(name)}
    if name in ("loss", "schedule"):
        other |= {"focal_gamma": 2.0} if name == "loss" else {"warmup_epochs": 0.0}
        begun |= {"focal_gamma": 2.0} if name == "loss" else {"warmup_epochs": 0.0}
    flag = "--" + name.replace("_", "-")
    with pytest.raises(CheckpointError, match=f"the run was started with {flag} {OPTIONS[name]}, now {_another(name)}"):
        require_same(begun, config(tmp_path, **other), tmp_path)


def _another(name: str) -> Any:
    return {"loss": "bce", "schedule": "constant", "class_weights": "none", "accumulate": 2}.get(name, 0.25)


def test_a_run_of_a_release_without_an_option_goes_on_at_its_default(tmp_path: Path) -> None:
    begun = {name: value for name, value in config(tmp_path).resolved().items() if name not in OPTIONS}
    begun["schedule"] = "constant"
    assert require_same(begun, config(tmp_path), tmp_path) is None
    with pytest.raises(CheckpointError, match=r"started with --ema 0.0, now 0.9; give the old value"):
        require_same(begun, config(tmp_path, ema=0.9), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "hinge"}, "--loss: expected one of bce, focal, found 'hinge'"),
        ({"class_weights": "square"}, "--class-weights: expected one of none, challenge, inverse, found 'square'"),
        ({"schedule": "linear"}, "--schedule: expected one of constant, one-cycle, cosine, found 'linear'"),
        ({"loss": "focal", "focal_gamma": 0.0}, "--focal-gamma must be > 0, found 0.0"),
        ({"focal_gamma": 3.0}, "--focal-gamma belongs to --loss focal, found bce"),
        ({"ema": 1.0}, "--ema must be >= 0 and below 1, found 1.0"),
        ({"ema": math.nan}, "--ema must be >= 0 and below 1, found nan"),
        ({"ema": -0.1}, "--ema must be >= 0 and below 1, found -0.1"),
        ({"clip_norm": -1.0}, "--clip-norm must be >= 0, found -1.0"),
        ({"clip_norm": math.nan}, "--clip-norm must be >= 0, found nan"),
        ({"accumulate": 0}, "--accumulate must be > 0, found 0"),
        ({"warmup_epochs": 1.0}, "--warmup-epochs belongs to --schedule cosine, found constant"),
        ({"warmup_epochs": 2.0, "schedule": "cosine"}, "--warmup-epochs must be below --epochs 2, found 2.0"),
        ({"cuda_graph": True, "accumulate": 2}, "--cuda-graph records one step that is always the same"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config(tmp_path, **changes)


def test_defaults_learn_as_the_study_did() -> None:
    made = TrainConfig(records=Path("records"), out=Path("run"))
    assert (made.loss, made.class_weights, made.schedule) == ("bce", "none", "constant")
    assert (made.ema, made.clip_norm, made.accumulate, made.warmup_epochs) == (0, 0, 1, 0)
