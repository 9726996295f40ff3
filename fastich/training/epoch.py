"""One epoch: learn from every training batch, look at every validation batch, write a line of metrics, save.

Metrics of the training split come from the very outputs that were learned from, so they cost no second pass.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from fastich import verb
from fastich.files import write_json
from fastich.loaders import Batch, Loader
from fastich.training import curves, history
from fastich.training.accumulation import is_checkpoint_due, num_updates, part_of
from fastich.training.config import TrainConfig
from fastich.training.distributed import World
from fastich.training.learner import Clock, Learner
from fastich.training.loss_watch import LossWatch, NotFiniteError, require_finite
from fastich.training.position import Position
from fastich.training.predictions import Predictions, predict
from fastich.training.prefetch import on_device
from fastich.training.profiling import Profile
from fastich.training.run_folder import RunFolder
from fastich.training.schedule import learning_rate
from fastich.training.tensorboard import Board

LONG_EPOCH_S = 60.0
"""From here on the curves, which take 0.7 s, are drawn after each epoch and not only at the end."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that stays open while a run goes on."""

    config: TrainConfig
    folder: RunFolder
    learner: Learner
    train_loader: Loader
    val_loader: Loader
    board: Board | None
    profile: Profile

    def names(self, rows: torch.Tensor) -> list[str]:
        """SOP instance UIDs of row numbers."""
        return [str(uid) for uid in self.train_loader.reader.index["sop_uid"].iloc[rows.cpu().numpy()]]

    @property
    def world(self) -> World:
        """The processes that train together."""
        return self.learner.world

    def lr(self, step: int) -> float:
        """The learning rate of the optimiser step that batch ``step``, counted over the whole run, belongs to."""
        config, num_batches = self.config, self.train_loader.num_batches
        each_epoch = num_updates(num_batches, config.accumulate)
        epoch, number = divmod(step, num_batches)
        update = epoch * each_epoch + number // config.accumulate
        num_warmup = round(config.warmup_epochs * each_epoch)
        return learning_rate(config.schedule, config.lr, update, config.epochs * each_epoch, num_warmup)


def run_epoch(job: Job, position: Position, seen: Predictions) -> Position:
    """Do what is left of ``position``'s epoch, of which ``seen`` was predicted before; return the next one's start.

    Raises:
        NotFiniteError: a loss or weight is no number; the last checkpoint is as it was.
    """
    trained = learn(job, position, seen).gathered(job.world)
    last_step = (position.epoch + 1) * job.train_loader.num_batches - 1
    job.learner.settle()
    require_finite(job.learner.model, last_step)
    with job.learner.judged():
        validated = _validate(job, position)
    line: history.Line = {
        "epoch": position.epoch,
        "step": last_step + 1,
        "lr": job.lr(last_step),
        "train": trained.summary(),
        "val": validated.summary(),
    }
    loss = job.world.of_writer(line["val"]["loss"])  # machines may differ in the last digit, and must stop alike
    after = position.after_epoch(loss, trained.seconds + validated.seconds)
    _write(job, line, after)
    return after


def learn(job: Job, position: Position, seen: Predictions) -> Predictions:
    """Learn from the batches of ``position``'s epoch that are left; return all that this rank predicted in it."""
    job.learner.model.train()
    watch, clock = LossWatch(job.names, job.world), Clock(job.learner.precision, already_s=seen.seconds)
    num_batches = job.train_loader.num_batches
    given = job.train_loader.epoch(position.epoch, position.batch)
    batches = on_device(given, job.learner.precision.device, job.profile.span)
    with _bar(job, job.train_loader, f"epoch {position.epoch + 1}", position.batch) as bar:
        for number, batch in enumerate(batches, position.batch):
            step = position.epoch * num_batches + number
            part = part_of(number, num_batches, job.config.accumulate)
            loss, logits = job.learner.step(batch, job.lr(step), part)
            seen.add(logits, batch.labels, batch.rows)
            watch.add(step, loss, batch.rows)
            bar.update(len(batch.rows) * job.world.size)
            if watch.is_due:
                bar.set_postfix(loss=f"{_check(job, watch):.4f}")
            if is_checkpoint_due(job.config.checkpoint_steps, step, part) and number + 1 < num_batches:
                _check(job, watch)
                job.train_loader.check()
                job.learner.settle()
                require_finite(job.learner.model, step)
                seen.seconds = clock.seconds()
                job.folder.save_last(job.learner, position.at_batch(number + 1, seen.seconds), seen)
            job.profile.step_done()
    _check(job, watch)
    seen.seconds = clock.seconds()
    return seen


def _check(job: Job, watch: LossWatch) -> float:
    """Look at the recent losses; on a bad one leave all its slices in nonfinite.json, then stop."""
    try:
        return watch.check() or 0.0
    except NotFiniteError as error:
        if job.world.is_writer:
            write_json(job.config.out / "nonfinite.json", {"step": error.step, "sop_uids": error.sop_uids})
        job.world.meet()  # the first process to end makes torchrun end the others: not before the file is there
        raise


def _validate(job: Job, position: Position) -> Predictions:
    clock = Clock(job.learner.precision)
    with _bar(job, job.val_loader, "validate", 0) as bar:
        batches = _counted(job.val_loader.epoch(0), bar, job.world.size)
        batch_size = job.world.share(job.config.batch_size)
        mine = predict(job.learner.model, job.learner.forward, batches, job.learner.precision, batch_size)
    mine.seconds = clock.seconds()
    seen = mine.gathered(job.world).each_row_once()
    if not math.isfinite(seen.loss()):
        step = (position.epoch + 1) * job.train_loader.num_batches - 1
        raise NotFiniteError(f"validation loss is {seen.loss()} after step {step}; lower --lr", step, [])
    return seen


def _counted(batches: Iterator[Batch], bar: "tqdm[Any]", num_ranks: int) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        bar.update(len(batch.rows) * num_ranks)


def _bar(job: Job, loader: Loader, title: str, start_batch: int) -> "tqdm[Any]":
    return tqdm(
        total=loader.num_slices,
        initial=start_batch * job.config.batch_size,
        unit=" slices",
        desc=title,
        disable=not verb.shows_progress(),
        leave=False,
    )


def _write(job: Job, line: history.Line, after: Position) -> None:
    """Leave an epoch behind: metrics, then the last checkpoint, then the best (see run_folder), then pictures."""
    if job.world.is_writer:
        history.append(job.config.out, line)
    job.folder.save_last(job.learner, after)
    if not job.world.is_writer:
        return
    is_best = after.stopping.best_epoch == line["epoch"]
    if is_best:
        job.folder.save_best(job.learner, after)
    if line["train"]["seconds"] > LONG_EPOCH_S:
        curves.draw(job.config.out, history.read(job.config.out))
    if job.board:
        job.board.add(line)
    train, val = line["train"], line["val"]
    verb.say(
        f"epoch {line['epoch'] + 1}/{job.config.epochs}  loss {train['loss']:.4f} val {val['loss']:.4f}  "
        f"auc any {_shown(train['auc']['any'])} val {_shown(val['auc']['any'])} macro {_shown(val['auc']['macro'])}  "
        f"{train['slices_per_s']:.0f} slices/s{'  best' if is_best else ''}"
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
