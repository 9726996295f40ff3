"""From a step to decoded Hounsfield units, on threads, ahead of their use: the half of a loader that backends share.

Threads, not worker processes: numpy and the checksum let go of the interpreter lock, and nothing is copied between
processes. Work is read up to ``threads + 1`` batches ahead.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastich.errors import FastichError, RecordError
from fastich.folds import run_rows
from fastich.loaders.augment import Augmentation, draw
from fastich.loaders.buffers import Buffers
from fastich.loaders.config import LoaderConfig
from fastich.loaders.order import ALL_ROWS, Int64Array, Order, Step, labelled
from fastich.records.reader import RecordReader
from fastich.types import HuArray

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A batch before any arithmetic: the step, its int16 HU planes ([P, H, W] a slice) and what to change in them."""

    step: Step
    planes: list[HuArray]
    augmentation: Augmentation | None


class Source:
    """The slices of one split in the order that a config asks for."""

    def __init__(self, reader: RecordReader, config: LoaderConfig, order: Order | None = None) -> None:
        """Choose the rows: those of the split, or what ``order`` says instead.

        Raises:
            FastichError: the split holds no slices, or with ``drop_last`` fewer than a batch on every rank.
            UsageError: there is no such split.
        """
        labels = reader.labels()
        rows = split_rows(reader, labels, config)
        self.reader, self.config, self.buffers = reader, config, Buffers()
        self.labels: NDArray[np.int8] = labels
        self.order = order or Order(
            rows=rows,
            labels=labels[rows],
            batch_size=config.batch_size,
            seed=config.seed,
            shuffle=config.shuffle,
            balanced=config.balanced,
            rank=config.rank,
            world_size=config.world_size,
            drop_last=config.drop_last,
        )
        if not len(rows):
            raise FastichError(
                f"{reader.folder}: no slices in split {config.split!r}; pack with --labels, or more patients"
            )
        if not self.order.num_steps:
            raise FastichError(
                f"{reader.folder}: {len(rows)} slices in split {config.split!r} do not fill one batch; "
                f"lower --batch-size {config.batch_size * config.world_size}"
            )

    def work(self, epoch: int, start: int, make: Callable[[Work], T]) -> Generator[T, None, None]:
        """``make(Work)`` of each step of ``epoch`` from number ``start`` on, made on threads, in order."""
        return ahead(lambda step: make(self._read(epoch, step)), self.order.steps(epoch, start), self.config.threads)

    def empty_images(self, count: int) -> Tensor:
        """Memory for the images of ``count`` slices, float32 [count, S, S, C]: pinned for ``cuda``, else used again."""
        shape = (count, self.config.size, self.config.size, self.config.num_channels)
        return torch.empty(shape, pin_memory=True) if self.config.device == "cuda" else self.buffers.take(shape)

    def label_tensor(self, step: Step) -> Tensor:
        """Labels of a step, float32 [N, 6]."""
        return torch.from_numpy(self.labels[step.rows].astype(np.float32))

    def _read(self, epoch: int, step: Step) -> Work:
        augmentation = draw(self.config.seed, epoch, step.positions) if self.config.augment else None
        return Work(step=step, planes=[self._planes(int(row)) for row in step.rows], augmentation=augmentation)

    def _planes(self, row: int) -> HuArray:
        middle = self.reader.hu(row)
        if not self.config.adjacent:
            return middle[None]
        before, after = (middle if near == row else self.reader.hu(near) for near in self.reader.neighbours(row))
        if not before.shape == middle.shape == after.shape:
            raise RecordError(
                f"{self.reader.folder}: slices beside row {row} are {before.shape} and {after.shape} pixels, expected "
                f"{middle.shape} as that one; leave the series out or train without adjacent slices"
            )
        return np.stack([before, middle, after])


def split_rows(reader: RecordReader, labels: NDArray[np.int8], config: LoaderConfig) -> Int64Array:
    """Rows of a split: the labelled ones of a named split, all of the empty split, every row of ``all``."""
    if config.split == ALL_ROWS:
        return np.arange(len(labels), dtype=np.int64)
    rows = run_rows(reader, vars(config), config.split)
    return rows[labelled(labels[rows])] if config.split else rows


def ahead(function: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R, None, None]:
    """Yield ``function(item)`` in the order of ``items``, computed on ``threads`` threads ahead of use.

    What the function raises is raised at its item's turn, after the results before it.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="fastich-loader") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
