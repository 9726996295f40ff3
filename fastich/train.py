"""Train the network on packed records: the study's recipe by default, on whatever device there is.

One epoch is: learn from every training batch, look at every validation batch, write one line of metrics, save. On an
A40 at 256 px with ``--amp`` the network, not the loader, sets the pace (about 800 slices/s by its memory traffic); on
two CPU cores at 96 px it is some tens of slices/s. The device is waited for once in twenty steps, not each step.

A run folder holds config.json, metrics.jsonl, curves/, checkpoints/ and, written last, run.json.
"""

import contextlib
import dataclasses
import statistics
from typing import Any

import torch

from fastich import ops, verb
from fastich.errors import FastichError
from fastich.files import write_json
from fastich.folds import run_rows
from fastich.labels import UNKNOWN
from fastich.loaders import Loader, open_loader
from fastich.models.classifier import build_model
from fastich.training import curves, history
from fastich.training.config import ALL_FOLDS, TrainConfig
from fastich.training.environment import device_name, host, torch_threads, versions
from fastich.training.epoch import Job, run_epoch
from fastich.training.learner import Learner, make_learner
from fastich.training.modes import require_runnable
from fastich.training.position import Position
from fastich.training.precision import Precision, choose_device, choose_precision
from fastich.training.predictions import Predictions
from fastich.training.profiling import FEWEST_STEPS, Profile, Span, no_span
from fastich.training.replicas import FEWEST_SLICES
from fastich.training.run_folder import RUN_JSON, RunFolder, check_out, finished_fold, fold_name, start_folds
from fastich.training.tensorboard import Board


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("train", __doc__)
    verb.add_config_flags(made, TrainConfig)
    train(verb.config_from_args(made.parse_args(argv), TrainConfig))
    return 0


def train(config: TrainConfig) -> dict[str, Any]:
    """Train as asked and return what run.json holds.

    Raises:
        FastichError: one of its kinds, for whatever input, files or the machine got in the way.
    """
    if config.fold == ALL_FOLDS:
        return train_folds(config)
    check_out(config)
    device = choose_device(config.device)
    precision = choose_precision(config.amp, device)
    require_runnable(config.compile, config.cuda_graph, precision)
    replicas = num_replicas(config, device)
    with torch_threads(1 if replicas > 1 else config.num_threads), contextlib.ExitStack() as stack:
        # the smaller split first: a cache that does not fit is said before the larger one is read
        val_loader, train_loader = (_open(stack, config, split, device) for split in ("val", "train"))
        profile = stack.enter_context(contextlib.closing(Profile(config.out, device, enabled=config.profile)))
        learner = stack.enter_context(contextlib.closing(start_learner(config, precision, replicas, profile.span)))
        folder = RunFolder(path=config.out, config=config, dataset_sha256=train_loader.reader.dataset_sha256)
        position, seen = folder.restore(learner)
        board = (
            stack.enter_context(contextlib.closing(Board(config.out, position.epoch))) if config.tensorboard else None
        )
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
        return _finish(job, position)


def train_folds(config: TrainConfig) -> dict[str, Any]:
    """Train every fold in turn, each into a run folder of its own; one that is finished is left as it is.

    Returns what OUT/run.json holds: the config, and of each fold what its own run.json says of its best epoch.
    """
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


def _open(stack: contextlib.ExitStack, config: TrainConfig, split: str, device: torch.device) -> Loader:
    """Open the loader of one split and refuse one that cannot be learned from or judged on."""
    loader = stack.enter_context(contextlib.closing(open_loader(config.loader_config(split, device.type))))
    if loader.num_slices == 0:
        raise FastichError(f"{config.records}: no slices in split {split!r}; pack with --labels, or more patients")
    if loader.num_batches == 0:
        raise FastichError(
            f"{config.records}: {loader.num_slices} slices in split {split!r} do not fill one batch; "
            f"lower --batch-size {config.batch_size}"
        )
    labels = loader.reader.labels()[run_rows(loader.reader, config.resolved(), split)]
    if (labels == UNKNOWN).any():
        raise FastichError(
            f"{config.records}: {int((labels == UNKNOWN).any(axis=1).sum())} slices in split {split!r} have no label; "
            "pack again with the label table"
        )
    return loader


def num_replicas(config: TrainConfig, device: torch.device) -> int:
    """On a CPU each thread takes a part of the batch through the network; a compiled one is left in one piece.

    Never more parts than the batch fills: with more threads than that, a batch would be left to one of them.
    """
    if device.type != "cpu" or config.compile != "none":
        return 1
    return max(1, min(config.num_threads, config.batch_size // FEWEST_SLICES))


def start_learner(config: TrainConfig, precision: Precision, replicas: int = 1, span: Span = no_span) -> Learner:
    """The network with its first weights, on the device; all random numbers follow from the seed."""
    torch.manual_seed(config.seed)
    if precision.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    model = build_model(config.backbone, weights=config.weights)
    return make_learner(
        model,
        precision,
        lr=config.lr,
        compile_mode=config.compile,
        replicas=replicas,
        cuda_graph=config.cuda_graph,
        span=span,
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
        f"backbone: {config.backbone}; weights: {config.weights}; threads: {config.num_threads}"
    )
    verb.say(f"slices: {job.train_loader.num_slices} to train, {job.val_loader.num_slices} to validate")


def _finish(job: Job, position: Position) -> dict[str, Any]:
    """Draw the curves a last time and write run.json."""
    lines = history.read(job.config.out)
    curves.draw(job.config.out, lines)
    summary = _summary(job, position, lines)
    write_json(job.config.out / RUN_JSON, summary)
    stopped = "early stopping" if position.epoch < job.config.epochs else "all epochs done"
    verb.say(
        f"{stopped}: best epoch {position.stopping.best_epoch + 1}, validation loss {position.stopping.best_loss:.4f}, "
        f"{position.seconds:.0f} s; {job.folder.best}"
    )
    return summary


def _summary(job: Job, position: Position, lines: list[history.Line]) -> dict[str, Any]:
    precision = job.learner.precision
    return {
        "best_epoch": position.stopping.best_epoch,
        "best": lines[position.stopping.best_epoch],
        "epochs_run": position.epoch,
        "stopped_early": position.epoch < job.config.epochs,
        "seconds": round(position.seconds, 3),
        "slices_per_s": {split: _median_rate(lines, split) for split in ("train", "val")},
        "num_slices": {"train": job.train_loader.num_slices, "val": job.val_loader.num_slices},
        "num_parameters": sum(parameter.numel() for parameter in job.learner.model.parameters()),
        "device": precision.device.type,
        "device_name": device_name(precision.device),
        "amp": precision.name if job.config.amp else None,
        "compile": job.config.compile,
        "cuda_graph": job.config.cuda_graph,
        "loader": job.train_loader.backend,
        "cache": job.config.cache,
        "ops": ops.backend(),
        "replicas": num_replicas(job.config, precision.device),
        "dataset_sha256": job.folder.dataset_sha256,
        "config": job.config.resolved(),
        "input": job.config.network_input(),
        "versions": versions(),
        "host": host(),
    }


def _median_rate(lines: list[history.Line], split: str) -> float:
    """Slices a second of the median epoch: the first one pays for compiling and warming up."""
    return float(statistics.median(line[split]["slices_per_s"] for line in lines))


if __name__ == "__main__":
    verb.run(main)
