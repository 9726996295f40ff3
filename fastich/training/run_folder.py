"""A run's folder on disk: making it, saving into it, and finding the place where a killed run goes on.

Order at the end of an epoch: metrics line, last checkpoint, best checkpoint. A kill between any two is repaired on
resume: the history is cut back to the checkpoint, and a best checkpoint that was due is written from the last one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastich import checkpoint, ops, verb
from fastich.errors import CheckpointError, UsageError
from fastich.files import write_json
from fastich.training import history
from fastich.training.config import ALL_FOLDS, TrainConfig, require_same
from fastich.training.environment import versions
from fastich.training.learner import Learner
from fastich.training.position import Position
from fastich.training.predictions import Predictions

CONFIG_JSON, RUN_JSON = "config.json", "run.json"
PARTIAL = ("logits", "labels", "rows")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Where one run is written, and what every one of its checkpoints says about it."""

    path: Path
    config: TrainConfig
    dataset_sha256: str

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / checkpoint.LAST

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return self.path / checkpoint.BEST

    def save_last(self, learner: Learner, position: Position, partial: Predictions | None = None) -> None:
        """Save everything that going on needs; ``partial`` is what was predicted so far in an unfinished epoch."""
        tensors = checkpoint.model_tensors(learner.model)
        tensors |= checkpoint.optimizer_tensors(learner.model, learner.optimizer)
        tensors |= _rng_tensors(learner.precision.device)
        if partial is not None:
            tensors |= {f"partial.{name}": value for name, value in partial.tensors().items()}
        epoch = position.epoch if position.batch else position.epoch - 1
        checkpoint.save(self.last, self._meta(epoch, position, learner), tensors)

    def save_best(self, learner: Learner, position: Position) -> None:
        """Save the network of the epoch that has just ended."""
        meta = self._meta(position.epoch - 1, position, learner)
        checkpoint.save(self.best, meta, checkpoint.model_tensors(learner.model))

    def _meta(self, epoch: int, position: Position, learner: Learner) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "position": position.to_meta(),
            "config": self.config.resolved(),
            "input": self.config.network_input(),
            "dataset_sha256": self.dataset_sha256,
            "best_loss": position.stopping.best_loss,
            "best_epoch": position.stopping.best_epoch,
            "amp": learner.precision.name,
            "scaler": learner.scaler.state_dict(),
            "ops": ops.backend(),
            "versions": versions(),
        }

    def restore(self, learner: Learner) -> tuple[Position, Predictions]:
        """Bring ``learner`` to where the last checkpoint was saved; the start if there is none.

        Raises:
            CheckpointError: it is damaged, of another config or data set, or missing from a run that has a best one.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.last.exists():
            if self.best.exists():
                raise CheckpointError(
                    f"{self.last}: missing although {self.best.name} is there; restore it, or start a new --out"
                )
            self._begin(0)
            return Position(), Predictions()
        saved = checkpoint.load(self.last)
        self._require_same(saved)
        checkpoint.restore_model(learner.model, saved)
        checkpoint.restore_optimizer(learner.model, learner.optimizer, saved)
        learner.scaler.load_state_dict(saved.meta["scaler"])
        _restore_rng(saved, learner.precision.device)
        position = Position.from_meta(saved.meta["position"])
        self._begin(position.epoch)
        self._repair_best(learner, position)
        verb.say(f"resume: epoch {position.epoch + 1}, batch {position.batch} of {self.path}")
        return position, _partial(saved, position, learner.precision.device)

    def _begin(self, num_epochs: int) -> None:
        """Say in the folder what is going on in it: the config as it is now, ``num_epochs`` done, not finished."""
        (self.path / RUN_JSON).unlink(missing_ok=True)
        write_json(self.path / CONFIG_JSON, self.config.resolved() | {"input": self.config.network_input()})
        history.cut(self.path, num_epochs)

    def _require_same(self, saved: checkpoint.Checkpoint) -> None:
        require_same(saved.meta["config"], self.config, saved.path)
        if saved.meta["dataset_sha256"] != self.dataset_sha256:
            raise CheckpointError(
                f"{saved.path}: trained on records {saved.meta['dataset_sha256'][:12]}, "
                f"{self.config.records} is {self.dataset_sha256[:12]}; give the same records, or start a new --out"
            )

    def _repair_best(self, learner: Learner, position: Position) -> None:
        is_due = position.batch == 0 and position.epoch > 0 and position.stopping.best_epoch == position.epoch - 1
        if is_due:
            self.save_best(learner, position)
        elif position.stopping.best_epoch >= 0:
            checkpoint.load(self.best)


def check_out(config: TrainConfig) -> None:
    """Refuse an output folder that holds anything but a run that may go on; changes nothing.

    Raises:
        UsageError: it is not empty, and ``--resume auto`` was not given or it is no run folder.
    """
    out = config.out
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if config.resume != "auto":
        raise UsageError(f"{out} exists; go on with --resume auto, or choose another --out")
    if not (out / CONFIG_JSON).is_file():
        raise UsageError(f"{out} is not a run folder: it has no {CONFIG_JSON}; choose another --out")


def fold_name(number: int) -> str:
    """Name of a fold's own run folder inside the folder of a k-fold run."""
    return f"fold-{number}"


def num_folds(run: Path) -> int:
    """How many folds were trained into ``run``; 0 where it is not the folder of a k-fold run.

    Raises:
        CheckpointError: a fold is missing.
    """
    path = run / CONFIG_JSON
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if config.get("fold") != ALL_FOLDS:
        return 0
    found = [number for number in range(config["folds"]) if (run / fold_name(number) / RUN_JSON).is_file()]
    if len(found) < config["folds"]:
        raise CheckpointError(
            f"{run}: expected {config['folds']} finished folds, found {len(found)}; train on with --resume auto"
        )
    return len(found)


def start_folds(config: TrainConfig) -> dict[str, Any]:
    """Say in the folder of a k-fold run what is going on in it; returns what is said.

    Raises:
        CheckpointError: it was begun with another config.
    """
    path = config.out / CONFIG_JSON
    if path.is_file():
        require_same(json.loads(path.read_text(encoding="utf-8")), config, path)
    made = config.resolved() | {"input": config.network_input()}
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / RUN_JSON).unlink(missing_ok=True)
    write_json(path, made)
    return {"config": made}


def finished_fold(config: TrainConfig) -> dict[str, Any] | None:
    """What the run.json of a fold says, where it is there and of as many epochs as are asked for."""
    path = config.out / RUN_JSON
    if not path.is_file():
        return None
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    require_same(summary["config"], config, path)
    return summary if summary["config"]["epochs"] == config.epochs else None


def _rng_tensors(device: torch.device) -> dict[str, torch.Tensor]:
    states = {"rng.cpu": torch.get_rng_state()}
    return states | ({"rng.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _restore_rng(saved: checkpoint.Checkpoint, device: torch.device) -> None:
    torch.set_rng_state(saved.tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in saved.tensors:
        torch.cuda.set_rng_state(saved.tensors["rng.cuda"], device)


def _partial(saved: checkpoint.Checkpoint, position: Position, device: torch.device) -> Predictions:
    if position.batch == 0:
        return Predictions()
    logits, labels, rows = (saved.tensors[f"partial.{name}"] for name in PARTIAL)
    seen = Predictions(seconds=position.epoch_seconds)
    seen.add(logits.to(device), labels.to(device), rows)
    return seen
