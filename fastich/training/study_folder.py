"""A study run's folder on disk: like a CNN's run folder, with the sequence model in its checkpoints.

The best checkpoint is what the run keeps (``--keep``). It is written before the first epoch too: the sequence model
starts as the CNN's own answer, so what is kept is never worse on validation. Order at the end of an epoch: metrics
line, last checkpoint, best checkpoint; a kill between two of them is repaired on resume. All random numbers of an epoch
follow from the seed and its number.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from fastich import checkpoint, verb
from fastich.checkpoint import Checkpoint
from fastich.errors import CheckpointError, UsageError
from fastich.files import write_json
from fastich.leakage_sides import CERTIFICATE_KEY
from fastich.models.weights import Tensors
from fastich.training import history
from fastich.training.environment import versions
from fastich.training.position import Position
from fastich.training.run_folder import CONFIG_JSON, RUN_JSON
from fastich.training.study_config import StudyConfig, require_same

KIND = "study"
MODEL_PREFIX, CNN_PREFIX = "model.", "cnn."
PREFIXES = {"sequence": MODEL_PREFIX, "cnn": CNN_PREFIX}
"""What the tensors of each network are called in a study checkpoint, before the name in the state dict."""


@dataclass(frozen=True, kw_only=True)
class StudyFolder:
    """Where one study run is written, and what every one of its checkpoints says about it.

    Attributes:
        path: the folder.
        config: as asked for.
        dataset_sha256: of the records.
        cnn: of the CNN it starts from: ``run`` (as seen from ``path``), ``which``, ``weights_sha256``, ``epoch``,
            ``embedding_size``.
        leakage_certificate: of the CNN, whose splits are those of the sequence model; None where it has none.
    """

    path: Path
    config: StudyConfig
    dataset_sha256: str
    cnn: dict[str, Any]
    leakage_certificate: dict[str, Any] | None

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / checkpoint.LAST

    @property
    def best(self) -> Path:
        """The checkpoint of the epoch that is kept."""
        return self.path / checkpoint.BEST

    def save_last(
        self, networks: nn.ModuleDict, optimizer: torch.optim.Optimizer, scaler: GradScaler, position: Position
    ) -> None:
        """Save everything that going on needs."""
        tensors = network_tensors(networks) | checkpoint.optimizer_tensors(networks, optimizer)
        checkpoint.save(self.last, self._meta(position) | {"scaler": scaler.state_dict()}, tensors)

    def save_best(self, networks: nn.ModuleDict, position: Position) -> None:
        """Save the networks of the epoch that has just ended."""
        checkpoint.save(self.best, self._meta(position), network_tensors(networks))

    def _meta(self, position: Position) -> dict[str, Any]:
        return {
            "kind": KIND,
            "epoch": position.epoch - 1,
            "position": position.to_meta(),
            "config": self.config.resolved(),
            "cnn": self.cnn,
            "dataset_sha256": self.dataset_sha256,
            CERTIFICATE_KEY: self.leakage_certificate,
            "best_loss": position.stopping.best_loss,
            "best_epoch": position.stopping.best_epoch,
            "versions": versions(),
        }

    def restore(
        self,
        networks: nn.ModuleDict,
        optimizer: torch.optim.Optimizer,
        scaler: GradScaler,
        start: Callable[[], Position],
    ) -> Position:
        """Bring the networks to where the last checkpoint was saved; ``start()``, saved as the best, if there is none.

        Raises:
            CheckpointError: it is damaged, or of another config, CNN or data set.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.last.exists():
            position = start()
        else:
            saved = checkpoint.load(self.last)
            self._require_same(saved)
            restore_networks(networks, saved)
            checkpoint.restore_optimizer(networks, optimizer, saved)
            scaler.load_state_dict(saved.meta["scaler"])
            position = Position.from_meta(saved.meta["position"])
            verb.say(f"resume: epoch {position.epoch + 1} of {self.path}")
        (self.path / RUN_JSON).unlink(missing_ok=True)
        write_json(self.path / CONFIG_JSON, self.config.resolved())
        history.cut(self.path, position.epoch)
        if position.stopping.best_epoch == position.epoch - 1:  # the start, or a kill before it was written
            self.save_best(networks, position)
        return position

    def _require_same(self, saved: Checkpoint) -> None:
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


def network_tensors(networks: nn.ModuleDict) -> Tensors:
    """The networks' part of a checkpoint: ``model.*`` of the sequence model and, end to end, ``cnn.*``."""
    return {PREFIXES[name] + key: value for name, part in networks.items() for key, value in part.state_dict().items()}


def restore_networks(networks: nn.ModuleDict, saved: Checkpoint) -> None:
    """Load the networks' part; of a CNN, names and shapes must be its own too.

    Raises:
        CheckpointError: names or shapes differ.
    """
    for name, part in networks.items():
        its = {MODEL_PREFIX + key: value for key, value in saved.part(PREFIXES[name]).items()}
        checkpoint.restore_model(part, Checkpoint(path=saved.path, meta=saved.meta, tensors=its))


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
