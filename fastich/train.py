"""Train the network on packed records: the study's recipe by default, on whatever device there is.

One epoch is: learn from every training batch, look at every validation batch, write one line of metrics, save. On an
A40 at 256 px with ``--amp`` the network, not the loader, sets the pace (about 800 slices/s by its memory traffic); on
two CPU cores at 96 px it is some tens of slices/s. The device is waited for once in twenty steps, not each step.

Several GPUs, or processes on a CPU: ``torchrun --nproc-per-node N -m fastich.train ...``; ``--batch-size`` stays that
of a step of all of them.

A run folder holds config.json, metrics.jsonl, curves/, checkpoints/ and, written last, run.json.
"""

import contextlib
import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastich import verb
from fastich.errors import FastichError, UsageError
from fastich.files import write_json
from fastich.folds import FOLD_KEYS, FOLDED, run_rows
from fastich.labels import UNKNOWN
from fastich.leakage import certify, require_clean
from fastich.loaders import Loader, open_loader
from fastich.models.classifier import build_model
from fastich.records.reader import RecordReader
from fastich.training import curves, history
from fastich.training.config import ALL_FOLDS, TrainConfig
from fastich.training.distributed import ALONE, World, find_world, take_gpu, timeout_s
from fastich.training.environment import device_name, torch_threads
from fastich.training.epoch import Job, run_epoch
from fastich.training.learner import Learner, make_learner
from fastich.training.losses import make_loss
from fastich.training.modes import require_runnable, require_shareable
from fastich.training.position import Position
from fastich.training.precision import Precision, choose_device, choose_precision
from fastich.training.predictions import Predictions
from fastich.training.profiling import FEWEST_STEPS, Profile, Span, no_span
from fastich.training.replicas import FEWEST_SLICES
from fastich.training.run_folder import RUN_JSON, RunFolder, check_out, finished_fold, fold_name, start_folds
from fastich.training.summary import summarise
from fastich.training.tensorboard import Board


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("train", __doc__)
    verb.add_config_flags(made, TrainConfig)
    train(verb.config_from_args(made.parse_args(argv), TrainConfig))
    return 0


def train(config: TrainConfig) -> dict[str, Any]:
    """Train as asked and return what run.json holds; of several processes rank 0 returns it, the others nothing.

    Raises:
        FastichError: one of its kinds, for whatever input, files or the machine got in the way.
    """
    world = find_world()
    if not world.is_writer:
        verb.hush(f"rank {world.rank}")
    if config.fold == ALL_FOLDS:
        return train_folds(config, world)
    check_out(config)
    take_gpu(world)
    device = choose_device(config.device)
    precision = choose_precision(config.amp, device)
    require_runnable(config.compile, config.cuda_graph, precision, world)
    require_shareable(config.cache, world)
    replicas = num_replicas(config, device, world)
    with torch_threads(1 if replicas > 1 else config.num_threads), contextlib.ExitStack() as stack:
        # the smaller split first: a cache that does not fit is said before the larger one is read
        val_loader, train_loader = (_open(stack, config, split, device, world) for split in ("val", "train"))
        stack.enter_context(world.joined(device, timeout_s(config.compile)))
        is_profiled = config.profile and world.is_writer
        profile = stack.enter_context(contextlib.closing(Profile(config.out, device, enabled=is_profiled)))
        labels = _labels(train_loader, config)
        learner = start_learner(config, precision, replicas, profile.span, labels=labels, world=world)
        stack.enter_context(contextlib.closing(learner))
        folder = _folder(config, train_loader.reader)
        position, seen = folder.restore(learner)
        board = Board(config.out, position.epoch) if config.tensorboard and world.is_writer else None
        if board:
            stack.enter_context(contextlib.closing(board))
        job = Job(
            config=config,
            folder=folder,
            learner=learner,
            train_loader=train_loader,
            val_loader=val_loader,
            board=board,
            profile=profile,
        )
        _require_steps_to_profile(job, position)
        _announce(job)
        while position.epoch < config.epochs and not position.stopping.is_over(config.patience):
            position, seen = run_epoch(job, position, seen), Predictions()
        return _finish(job, position) if world.is_writer else {}


def train_folds(config: TrainConfig, world: World) -> dict[str, Any]:
    """Train every fold in turn, each into a run folder of its own; one that is finished is left as it is.

    Returns what OUT/run.json holds: the config, and of each fold what its own run.json says of its best epoch.

    Raises:
        UsageError: there are several processes, of which each fold wants to be a job of its own.
    """
    if world.size > 1:
        raise UsageError("--fold all trains in one process; under torchrun give one fold a job: --fold 0, --fold 1 ...")
    check_out(config)
    made = start_folds(config)
    folds = []
    for number in range(config.folds):
        one = dataclasses.replace(config, out=config.out / fold_name(number), fold=number)
        verb.say(f"fold {number} of {config.folds}: {one.out}")
        folds.append(finished_fold(one) or train(one))
    summary = made | {"folds": [{name: fold[name] for name in ("best_epoch", "best", "seconds")} for fold in folds]}
    write_json(config.out / RUN_JSON, summary)
    return summary


def _open(stack: contextlib.ExitStack, config: TrainConfig, split: str, device: torch.device, world: World) -> Loader:
    """Open the loader of one split and refuse one that cannot be learned from or judged on."""
    loader = stack.enter_context(contextlib.closing(open_loader(config.loader_config(split, device.type, world))))
    if loader.num_slices == 0:
        raise FastichError(f"{config.records}: no slices in split {split!r}; pack with --labels, or more patients")
    if loader.num_batches == 0:
        raise FastichError(
            f"{config.records}: {loader.num_slices} slices in split {split!r} do not fill one batch; "
            f"lower --batch-size {config.batch_size}"
        )
    labels = _labels(loader, config)
    if (labels == UNKNOWN).any():
        raise FastichError(
            f"{config.records}: {int((labels == UNKNOWN).any(axis=1).sum())} slices in split {split!r} have no label; "
            "pack again with the label table"
        )
    return loader


def _folder(config: TrainConfig, reader: RecordReader) -> RunFolder:
    """The run folder, once the splits of the records are known to share nobody (or that is allowed)."""
    resolved = config.resolved()
    split = reader.index["split"].to_numpy(object).copy()
    for name in FOLDED if config.folds else ():
        split[run_rows(reader, resolved, name)] = name
    folds = {name: resolved[name] for name in FOLD_KEYS} if config.folds else None
    found = certify(reader, split, folds)
    return RunFolder(
        path=config.out,
        config=config,
        dataset_sha256=reader.dataset_sha256,
        leakage_certificate=require_clean(found, config.records, allow=config.allow_leakage),
    )


def _labels(loader: Loader, config: TrainConfig) -> NDArray[np.int8]:
    """Labels [M, 6] of the slices of a loader's split, of the run's fold where it has one."""
    return loader.reader.labels()[run_rows(loader.reader, config.resolved(), loader.config.split)]


def num_replicas(config: TrainConfig, device: torch.device, world: World = ALONE) -> int:
    """On a CPU each thread takes a part of the batch through the network; a compiled one is left in one piece.

    Of several processes each is one part already: give ``torchrun`` as many as there are cores, and ``--threads 1``.
    Never more parts than the batch fills: with more threads than that, a batch would be left to one of them.
    """
    if device.type != "cpu" or config.compile != "none" or world.size > 1:
        return 1
    return max(1, min(config.num_threads, config.batch_size // FEWEST_SLICES))


def start_learner(
    config: TrainConfig,
    precision: Precision,
    replicas: int = 1,
    span: Span = no_span,
    *,
    labels: NDArray[np.int8] | None = None,
    world: World = ALONE,
) -> Learner:
    """The network with its first weights, on the device; all random numbers follow from the seed.

    ``labels`` are the training split's, which ``--class-weights inverse`` counts.
    """
    torch.manual_seed(config.seed)
    if precision.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    model = build_model(config.backbone, weights=config.weights)
    if world.rank:
        torch.manual_seed(world.seed(config.seed))
    return make_learner(
        model,
        precision,
        lr=config.lr,
        compile_mode=config.compile,
        loss=make_loss(config.loss, config.focal_gamma, config.class_weights, labels, balanced=config.balanced),
        replicas=replicas,
        cuda_graph=config.cuda_graph,
        span=span,
        clip_norm=config.clip_norm,
        ema=config.ema,
        world=world,
    )


def _require_steps_to_profile(job: Job, position: Position) -> None:
    """Refuse to profile a session that is over before there is anything to look at."""
    num_batches = job.train_loader.num_batches
    left = (job.config.epochs - position.epoch) * num_batches - position.batch
    if job.config.profile and left < FEWEST_STEPS:
        raise FastichError(
            f"--profile needs {FEWEST_STEPS} steps, {left} are left; lower --batch-size or more --epochs"
        )


def _announce(job: Job) -> None:
    precision, config = job.learner.precision, job.config
    verb.say(
        f"device: {device_name(precision.device)}; amp: "
        f"{precision.name if precision.is_mixed else 'off'}; compile: {config.compile}; "
        f"cuda graph: {'on' if config.cuda_graph else 'off'}; cache: {config.cache}; "
        f"backbone: {config.backbone}; weights: {config.weights}; threads: {config.num_threads}; "
        f"processes: {job.world.size}"
    )
    verb.say(f"slices: {job.train_loader.num_slices} to train, {job.val_loader.num_slices} to validate")


def _finish(job: Job, position: Position) -> dict[str, Any]:
    """Draw the curves a last time and write run.json."""
    lines = history.read(job.config.out)
    curves.draw(job.config.out, lines)
    summary = summarise(job, position, lines)
    write_json(job.config.out / RUN_JSON, summary)
    stopped = "early stopping" if position.epoch < job.config.epochs else "all epochs done"
    verb.say(
        f"{stopped}: best epoch {position.stopping.best_epoch + 1}, validation loss {position.stopping.best_loss:.4f}, "
        f"{position.seconds:.0f} s; {job.folder.best}"
    )
    return summary


if __name__ == "__main__":
    verb.run(main)
