"""A run's folder on disk: making it, saving into it, and finding the place where a killed run goes on.

Of several processes rank 0 writes and all read; what only a rank knows is gathered before it is saved.

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
from fastich.training.distributed import World
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
    leakage_certificate: dict[str, Any]

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.path / checkpoint.LAST

    @property
    def best(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return self.path / checkpoint.BEST

    def save_last(self, learner: Learner, position: Position, partial: Predictions | None = None) -> None:
        """Save everything that going on needs; ``partial`` is what was predicted so far in an unfinished epoch.

        All ranks must come here.
        """
        tensors = checkpoint.model_tensors(learner.model)
        tensors |= checkpoint.optimizer_tensors(learner.model, learner.optimizer)
        tensors |= learner.average.tensors() if learner.average else {}
        tensors |= _rng_tensors(learner.precision.device, learner.world)
        if partial is not None:
            whole = partial.gathered(learner.world)
            tensors |= {f"partial.{name}": value for name, value in whole.tensors().items()}
        if not learner.world.is_writer:
            return
        epoch = position.epoch if position.batch else position.epoch - 1
        checkpoint.save(self.last, self._meta(epoch, position, learner), tensors)

    def save_best(self, learner: Learner, position: Position) -> None:
        """Save the network of the epoch that has just ended, as it was judged."""
        meta = self._meta(position.epoch - 1, position, learner)
        with learner.judged():
            checkpoint.save(self.best, meta, checkpoint.model_tensors(learner.model))

    def _meta(self, epoch: int, position: Position, learner: Learner) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "position": position.to_meta(),
            "config": self.config.resolved(),
            "input": self.config.network_input(),
            "dataset_sha256": self.dataset_sha256,
            "leakage_certificate": self.leakage_certificate,
            "best_loss": position.stopping.best_loss,
            "best_epoch": position.stopping.best_epoch,
            "amp": learner.precision.name,
            "scaler": learner.scaler.state_dict(),
            "ema_updates": learner.average.num_updates if learner.average else None,
            "num_processes": learner.world.size,
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
            self._begin(0, learner.world)
            return self._alike(learner.world, Position()), Predictions()
        saved = checkpoint.load(self.last)
        self._require_same(saved)
        checkpoint.restore_model(learner.model, saved)
        checkpoint.restore_optimizer(learner.model, learner.optimizer, saved)
        learner.scaler.load_state_dict(saved.meta["scaler"])
        if learner.average:
            learner.average.restore(saved)
        _restore_rng(saved, learner.precision.device, learner.world)
        position = self._alike(learner.world, Position.from_meta(saved.meta["position"]))
        self._begin(position.epoch, learner.world)
        self._repair_best(learner, position)
        verb.say(f"resume: epoch {position.epoch + 1}, batch {position.batch} of {self.path}")
        return position, _partial(saved, position, learner.precision.device, learner.world)

    def _alike(self, world: World, position: Position) -> Position:
        """``position``, at which all ranks must be.

        Raises:
            CheckpointError: they look at different folders, or at records of their own.
        """
        mine = torch.tensor([position.epoch, position.batch, int(self.dataset_sha256[:15], 16)])
        if any(not torch.equal(other, mine) for other in world.gather(mine)):
            raise CheckpointError(
                f"{self.path}: expected one run folder and one records folder for all {world.size} processes, found "
                "different ones; put --out and --records on a file system that all machines share"
            )
        return position

    def _begin(self, num_epochs: int, world: World) -> None:
        """Say in the folder what is going on in it: the config as it is now, ``num_epochs`` done, not finished."""
        if not world.is_writer:
            return
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
        if is_due and learner.world.is_writer:
            self.save_best(learner, position)
        elif not is_due and position.stopping.best_epoch >= 0:
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
    """How many folds were trained into ``run``, by CNNs or by sequence models; 0 where it holds no folds.

    Folds that were trained one a job say themselves how many they are.

    Raises:
        CheckpointError: a fold is missing, or not finished.
    """
    if (run / checkpoint.FOLDER).is_dir():
        return 0
    whole = _said(run)
    count = int(whole["folds"] if whole.get("fold") == ALL_FOLDS else _said(run / fold_name(0)).get("folds", 0))
    found = [number for number in range(count) if (run / fold_name(number) / RUN_JSON).is_file()]
    if len(found) < count:
        raise CheckpointError(
            f"{run}: expected {count} finished folds, found {len(found)}; train the others (--resume auto goes on)"
        )
    return count


def fold_folders(run: Path) -> list[Path]:
    """The run folders of the folds in ``run``; none where it holds no folds.

    Raises:
        CheckpointError: a fold is missing, or not finished.
    """
    return [run / fold_name(number) for number in range(num_folds(run))]


def _said(run: Path) -> dict[str, Any]:
    """What config.json says, where there is one."""
    path = run / CONFIG_JSON
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return said


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


def _rng_tensors(device: torch.device, world: World) -> dict[str, torch.Tensor]:
    """The generators of all ranks."""
    states = {"rng.cpu": torch.get_rng_state()}
    states |= {"rng.cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    gathered = {name: world.gather(state) for name, state in states.items()}
    return {_of_rank(name, rank): state for name, ranks in gathered.items() for rank, state in enumerate(ranks)}


def _of_rank(name: str, rank: int) -> str:
    return f"{name}.{rank}" if rank else name


def _restore_rng(saved: checkpoint.Checkpoint, device: torch.device, world: World) -> None:
    """Set the generators of this rank; one that the run has had no process for keeps its first seed."""
    on_cpu, on_cuda = (saved.tensors.get(_of_rank(name, world.rank)) for name in ("rng.cpu", "rng.cuda"))
    if on_cpu is not None:
        torch.set_rng_state(on_cpu)
    if device.type == "cuda" and on_cuda is not None:
        torch.cuda.set_rng_state(on_cuda, device)


def _partial(saved: checkpoint.Checkpoint, position: Position, device: torch.device, world: World) -> Predictions:
    """What this rank had predicted in the unfinished epoch: position p of it belongs to rank p % R."""
    if position.batch == 0:
        return Predictions()
    parts = (saved.tensors[f"partial.{name}"] for name in PARTIAL)
    logits, labels, rows = (part[world.rank :: world.size] for part in parts)
    seen = Predictions(seconds=position.epoch_seconds)
    seen.add(logits.to(device), labels.to(device), rows)
    return seen
