"""A study run's folder on disk: like a CNN's run folder, with the sequence model in its checkpoints.

The best checkpoint is written before the first epoch too: the sequence model starts as the CNN's own answer, so what
is kept is never worse on validation. Order at the end of an epoch: metrics line, last checkpoint, best checkpoint; a
kill between two of them is repaired on resume. All random numbers of an epoch follow from the seed and its number.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastich import checkpoint, verb
from fastich.errors import CheckpointError, UsageError
from fastich.files import write_json
from fastich.models.sequence import SequenceModel
from fastich.training import history
from fastich.training.environment import versions
from fastich.training.position import Position
from fastich.training.run_folder import CONFIG_JSON, RUN_JSON
from fastich.training.study_config import StudyConfig, require_same

KIND = "study"


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """Where one study run is written, and what every one of its checkpoints says about it.

    Attributes:
        path: the folder.
        config: as asked for.
        dataset_sha256: of the records.
        cnn: of the CNN: ``run`` (as seen from ``path``), ``which``, ``weights_sha256``, ``epoch``, ``embedding_size``.
    """

    path: Path
    config: StudyConfig
    dataset_sha256: str
    cnn: dict[str, Any]

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / checkpoint.LAST

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest validation log loss of slices."""
        return self.path / checkpoint.BEST

    def save_last(self, model: SequenceModel, optimizer: torch.optim.Optimizer, position: Position) -> None:
        """Save everything that going on needs."""
        tensors = checkpoint.model_tensors(model) | checkpoint.optimizer_tensors(model, optimizer)
        checkpoint.save(self.last, self._meta(position), tensors)

    def save_best(self, model: SequenceModel, position: Position) -> None:
        """Save the network of the epoch that has just ended."""
        checkpoint.save(self.best, self._meta(position), checkpoint.model_tensors(model))

    def _meta(self, position: Position) -> dict[str, Any]:
        return {
            "kind": KIND,
            "epoch": position.epoch - 1,
            "position": position.to_meta(),
            "config": self.config.resolved(),
            "cnn": self.cnn,
            "dataset_sha256": self.dataset_sha256,
            "best_loss": position.stopping.best_loss,
            "best_epoch": position.stopping.best_epoch,
            "versions": versions(),
        }

    def restore(self, model: SequenceModel, optimizer: torch.optim.Optimizer, start: Position) -> Position:
        """Bring the network to where the last checkpoint was saved; ``start``, saved as the best, if there is none.

        Raises:
            CheckpointError: it is damaged, or of another config, CNN or data set.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        position = start
        if self.last.exists():
            position = self._load(model, optimizer)
        (self.path / RUN_JSON).unlink(missing_ok=True)
        write_json(self.path / CONFIG_JSON, self.config.resolved())
        history.cut(self.path, position.epoch)
        if position.stopping.best_epoch == position.epoch - 1:  # the start, or a kill before it was written
            self.save_best(model, position)
        return position

    def _load(self, model: SequenceModel, optimizer: torch.optim.Optimizer) -> Position:
        saved = checkpoint.load(self.last)
        require_same(saved.meta["config"], self.config, saved.path)
        for what, found, now in (
            ("records", saved.meta["dataset_sha256"], self.dataset_sha256),
            ("the CNN", saved.meta["cnn"]["weights_sha256"], self.cnn["weights_sha256"]),
        ):
            if found != now:
                raise CheckpointError(
                    f"{saved.path}: trained on {what} {found[:12]}, found {now[:12]} now; "
                    "give the same, or start a new --out"
                )
        checkpoint.restore_model(model, saved)
        checkpoint.restore_optimizer(model, optimizer, saved)
        position = Position.from_meta(saved.meta["position"])
        verb.say(f"resume: epoch {position.epoch + 1} of {self.path}")
        return position


def relative_run(run: Path, out: Path) -> str:
    """The CNN's run folder as seen from the study run's: both can be moved together."""
    return os.path.relpath(run.resolve(), out.resolve())


def check_out(out: Path, resume: str) -> None:
    """Refuse an output folder that holds anything but a study run that may go on; changes nothing.

    Raises:
        UsageError: it is not empty, and ``--resume auto`` was not given or it is no run folder.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if resume != "auto":
        raise UsageError(f"{out} exists; go on with --resume auto, or choose another --out")
    if not (out / CONFIG_JSON).is_file():
        raise UsageError(f"{out} is not a run folder: it has no {CONFIG_JSON}; choose another --out")
