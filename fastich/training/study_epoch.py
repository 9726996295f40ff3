"""One epoch of the sequence model: learn from every training study, look at every validation study, save.

About 1 s for 70 studies of 33 slices on two cores.
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from fastich import verb
from fastich.loaders.order import Int64Array
from fastich.models.sequence import SequenceModel
from fastich.training import history
from fastich.training.loss_watch import NotFiniteError
from fastich.training.position import Position
from fastich.training.schedule import learning_rate
from fastich.training.study_config import StudyConfig
from fastich.training.study_data import StudySet
from fastich.training.study_folder import StudyFolder
from fastich.training.study_loss import total_loss
from fastich.training.study_predictions import StudyPredictions, predict, slice_loss

MOST_GRADIENT_NORM = 1.0
"""Longer gradients are cut: one study of 800 slices must not throw the GRU off."""


@dataclass(frozen=True, kw_only=True)
class StudyJob:
    """Everything that stays open while a run goes on; ``val_rows`` are the labelled rows of validation."""

    config: StudyConfig
    folder: StudyFolder
    model: SequenceModel
    optimizer: torch.optim.Optimizer
    training: StudySet
    validation: StudySet
    val_rows: Int64Array

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device


def make_optimizer(model: SequenceModel, config: StudyConfig) -> torch.optim.AdamW:
    """AdamW: the decay must not depend on the gradients of so few studies."""
    return torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def run_epoch(job: StudyJob, position: Position) -> Position:
    """Do ``position``'s epoch and return the next one's start.

    Raises:
        NotFiniteError: a loss is no number; the last checkpoint is as it was.
    """
    start = time.perf_counter()
    train_loss, lr = learn(job, position.epoch)
    predicted = validate(job)
    val_loss, _ = slice_loss(predicted, job.validation.labels)
    seconds = time.perf_counter() - start
    after = position.after_epoch(val_loss, seconds)
    line = {"epoch": position.epoch, "lr": lr, "train_loss": train_loss, "val_log_loss": val_loss}
    _write(job, {**line, "seconds": round(seconds, 3)}, after)
    return after


def learn(job: StudyJob, epoch: int) -> tuple[float, float]:
    """Learn from every training study once; return the mean loss and the last learning rate."""
    config, losses = job.config, []
    num_batches = job.training.num_batches(config.batch_size)
    torch.manual_seed(epoch + 1_000_003 * config.seed)  # of the dropout
    job.model.train()
    lr = config.lr
    for number, batch in enumerate(job.training.training_batches(epoch, config.batch_size, config.changes)):
        step = epoch * num_batches + number
        lr = learning_rate(config.schedule, config.lr, step, config.epochs * num_batches)
        job.optimizer.param_groups[0]["lr"] = lr
        there = batch.to(job.device)
        found = job.model(there.embedding, there.logit, there.gap_mm, there.mask)
        loss = total_loss(found, there, auxiliary_weight=config.auxiliary_weight, study_weight=config.study_weight)
        job.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(job.model.parameters(), MOST_GRADIENT_NORM)
        job.optimizer.step()
        losses.append(_finite(loss.item(), step, there.rows))
    return sum(losses) / len(losses), lr


def _finite(loss: float, step: int, rows: torch.Tensor) -> float:
    if not math.isfinite(loss):
        raise NotFiniteError(
            f"loss is {loss} at step {step}, in the study of row {int(rows[0, 0])}; the last checkpoint is intact: "
            "go on from it with a lower --lr",
            step,
            [],
        )
    return loss


def validate(job: StudyJob) -> StudyPredictions:
    """What the network says of the validation split."""
    return predict(job.model, job.validation, job.val_rows, job.config.batch_size)


def _write(job: StudyJob, line: dict[str, Any], after: Position) -> None:
    """Leave an epoch behind: metrics, then the last checkpoint, then the best (see study_folder)."""
    history.append(job.folder.path, line)
    job.folder.save_last(job.model, job.optimizer, after)
    is_best = after.stopping.best_epoch == line["epoch"]
    if is_best:
        job.folder.save_best(job.model, after)
    verb.say(
        f"epoch {line['epoch'] + 1}/{job.config.epochs}  loss {line['train_loss']:.4f}  "
        f"val log loss {line['val_log_loss']:.4f}  {line['seconds']:.1f} s{'  best' if is_best else ''}"
    )
