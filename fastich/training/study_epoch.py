"""One epoch of the sequence model: learn from every training study, look at every validation study, save.

About 1 s for 70 studies of 33 slices on two cores, out of the side store. End to end it costs what the CNN costs.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.amp.grad_scaler import GradScaler

from fastich import verb
from fastich.loaders.order import Int64Array
from fastich.models.sequence import SequenceModel, SequenceNetwork, members_of
from fastich.training import history
from fastich.training.loss_watch import NotFiniteError
from fastich.training.position import Position
from fastich.training.schedule import learning_rate
from fastich.training.study_config import BEST, StudyConfig
from fastich.training.study_data import StudyBatch
from fastich.training.study_folder import StudyFolder
from fastich.training.study_loss import total_loss
from fastich.training.study_predictions import StudyPredictions, predict, slice_loss
from fastich.training.study_source import StudySource

PEAK = "peak_lr"
"""Key of a parameter group: the learning rate that its schedule rises to."""
MOST_GRADIENT_NORM = 1.0
"""Longer gradients are cut: one study of 800 slices must not throw the GRU off."""


@dataclass(frozen=True, kw_only=True)
class StudyJob:
    """Everything that stays open while a run goes on.

    Attributes:
        config: as asked for.
        folder: where the run is written.
        model: the sequence model, on the device.
        networks: what learns: ``sequence`` and, end to end, ``cnn``.
        optimizer: of all networks; a group for each.
        scaler: of float16, end to end.
        source: where batches come from.
        labels: int8 [M, 6] of the whole index.
        val_rows: the labelled rows of validation.
    """

    config: StudyConfig
    folder: StudyFolder
    model: SequenceNetwork
    networks: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    source: StudySource
    labels: NDArray[np.int8]
    val_rows: Int64Array

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device


def make_optimizer(networks: nn.ModuleDict, config: StudyConfig) -> torch.optim.AdamW:
    """AdamW: the decay must not depend on the gradients of so few studies. A CNN learns at ``cnn_lr``."""
    rates = {"sequence": config.lr, "cnn": config.cnn_lr}
    groups = [{"params": list(part.parameters()), PEAK: rates[name]} for name, part in networks.items()]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)


def run_epoch(job: StudyJob, position: Position) -> Position:
    """Do ``position``'s epoch and return the next one's start.

    Raises:
        NotFiniteError: a loss is no number; the last checkpoint is as it was.
    """
    start = time.perf_counter()
    train_loss, lr = learn(job, position.epoch)
    predicted = validate(job)
    val_loss, _ = slice_loss(predicted, job.labels)
    seconds = time.perf_counter() - start
    stopping = position.stopping
    decided = stopping.after if job.config.keep == BEST else stopping.newest
    after = position.after_stopping(decided(position.epoch, val_loss), seconds)
    line = {"epoch": position.epoch, "lr": lr, "train_loss": train_loss, "val_log_loss": val_loss}
    _write(job, {**line, "seconds": round(seconds, 3)}, after)
    return after


def learn(job: StudyJob, epoch: int) -> tuple[float, float]:
    """Learn from every training study once; return the mean loss and the last learning rate."""
    config, losses = job.config, []
    num_batches = -(-job.source.num_series // config.batch_size)
    torch.manual_seed(epoch + 1_000_003 * config.seed)  # of the dropout
    job.model.train()
    for number, batch in enumerate(job.source.training_batches(epoch, config.batch_size, config.changes)):
        step = epoch * num_batches + number
        for group in job.optimizer.param_groups:
            group["lr"] = learning_rate(config.schedule, group[PEAK], step, config.epochs * num_batches)
        losses.append(_step(job, step, batch.to(job.device)))
    return sum(losses) / len(losses), job.optimizer.param_groups[0]["lr"]


def _step(job: StudyJob, step: int, batch: StudyBatch) -> float:
    """Learn from one batch and return its loss, of several members the mean.

    Their losses are added up, so that each member's gradient and its cut are those of a model that learns alone.
    """
    members = members_of(job.model)
    total = torch.stack([_loss(member, batch, job.config) for member in members]).sum()
    loss = total.item() / len(members)
    _require_finite(loss, step, batch.rows)
    job.optimizer.zero_grad(set_to_none=True)
    job.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
    job.scaler.unscale_(job.optimizer)
    for member in members:
        nn.utils.clip_grad_norm_(member.parameters(), MOST_GRADIENT_NORM)
    if "cnn" in job.networks:
        nn.utils.clip_grad_norm_(job.networks["cnn"].parameters(), MOST_GRADIENT_NORM * len(members))
    job.scaler.step(job.optimizer)
    job.scaler.update()
    return loss


def _loss(member: SequenceModel, batch: StudyBatch, config: StudyConfig) -> torch.Tensor:
    """What one sequence model has still to learn of a batch."""
    found = member(batch.embedding, batch.logit, batch.gap_mm, batch.mask)
    return total_loss(found, batch, auxiliary_weight=config.auxiliary_weight, study_weight=config.study_weight)


def _require_finite(loss: float, step: int, rows: torch.Tensor) -> None:
    if not math.isfinite(loss):
        raise NotFiniteError(
            f"loss is {loss} at step {step}, in the study of row {int(rows[0, 0])}; the last checkpoint is intact: "
            "go on from it with a lower --lr",
            step,
            [],
        )


def validate(job: StudyJob) -> StudyPredictions:
    """What the network says of the validation split."""
    return predict(job.model, job.source.validation(), job.val_rows, job.config.batch_size)


def _write(job: StudyJob, line: dict[str, Any], after: Position) -> None:
    """Leave an epoch behind: metrics, then the last checkpoint, then what is kept (see study_folder)."""
    history.append(job.folder.path, line)
    job.folder.save_last(job.networks, job.optimizer, job.scaler, after)
    is_kept = after.stopping.best_epoch == line["epoch"]
    if is_kept:
        job.folder.save_best(job.networks, after)
    verb.say(
        f"epoch {line['epoch'] + 1}/{job.config.epochs}  loss {line['train_loss']:.4f}  "
        f"val log loss {line['val_log_loss']:.4f}  {line['seconds']:.1f} s{'  kept' if is_kept else ''}"
    )
