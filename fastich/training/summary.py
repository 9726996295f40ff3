"""``run.json``: what ran, on what, how fast, and the epoch that was best. Written last, so it means "finished"."""

import statistics
from typing import Any

from fastich import ops
from fastich.labels import LABELS
from fastich.training import history
from fastich.training.environment import device_name, host, versions
from fastich.training.epoch import Job
from fastich.training.position import Position


def summarise(job: Job, position: Position, lines: list[history.Line]) -> dict[str, Any]:
    """The content of run.json, from an open job that has come to ``position`` and its history."""
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
        "replicas": job.learner.replicas.count if job.learner.replicas else 1,
        "num_processes": job.world.size,
        "positive_weights": _positive_weights(job),
        "dataset_sha256": job.folder.dataset_sha256,
        "config": job.config.resolved(),
        "input": job.config.network_input(),
        "versions": versions(),
        "host": host(),
    }


def _positive_weights(job: Job) -> dict[str, float] | None:
    """What each label's positives weigh under ``--class-weights inverse``."""
    weights = job.learner.loss.positive_weight_K
    return None if weights is None else dict(zip(LABELS, weights.tolist(), strict=True))


def _median_rate(lines: list[history.Line], split: str) -> float:
    """Slices a second of the median epoch: the first one pays for compiling and warming up."""
    return float(statistics.median(line[split]["slices_per_s"] for line in lines))
