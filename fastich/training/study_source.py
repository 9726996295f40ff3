"""Where the batches of the sequence model come from: what a CNN has said of the slices, or what it says of them now.

``Stored`` reads the side store, so an epoch costs a second. ``EndToEnd`` sends the slices of every step through the
CNN, with gradient, so an epoch costs what one of the CNN's does, and a third more where a step has several parts.

End to end the CNN stays in eval mode. Its batch norms keep the statistics of its own training: the slices of a study
are so alike that statistics of their own would take what is common to them away, a large bleed say, and would be gone
at prediction. And so the parts of a step do not hang together: each goes through the CNN by itself, and again on the
way back (gradient checkpointing). A study of any length then fits where ``feed.batch_size`` slices do.
Shapes: n slices of a step, L of a study, S side in pixels, C embedding channels.
"""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.checkpoint import checkpoint

from fastich.checkpoint import LoadedRun
from fastich.embeddings import Int64Array, Store
from fastich.labels import NUM_LABELS
from fastich.loaders import Batch, open_loader
from fastich.loaders.order import ALL_ROWS, group_order
from fastich.training.config import NUM_CHANNELS
from fastich.training.embedder import Embedder
from fastich.training.feed import Feed
from fastich.training.prefetch import on_device
from fastich.training.study_data import Changes, Series, StudyBatch, StudySet, collate, sequence, training_plan

IN_MEMORY = Path("in memory")
"""The folder of a store that is in no folder."""


class StudySource(Protocol):
    """Training studies as batches, and the validation studies as the CNN sees them now."""

    @property
    def embedding_size(self) -> int:
        """C."""

    @property
    def num_series(self) -> int:
        """Training sequences of an epoch."""

    def training_batches(self, epoch: int, batch_size: int, changes: Changes) -> Iterator[StudyBatch]:
        """The batches of ``epoch``."""

    def validation(self) -> StudySet:
        """The validation studies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """Out of the side store."""

    training: StudySet
    val: StudySet

    @property
    def embedding_size(self) -> int:
        """C."""
        return self.training.stores[0].embedding_size

    @property
    def num_series(self) -> int:
        """Training sequences of an epoch."""
        return len(self.training.series)

    def training_batches(self, epoch: int, batch_size: int, changes: Changes) -> Iterator[StudyBatch]:
        """The batches of ``epoch``."""
        return self.training.training_batches(epoch, batch_size, changes)

    def validation(self) -> StudySet:
        """The validation studies."""
        return self.val


@dataclass(frozen=True, kw_only=True, eq=False)
class EndToEnd:
    """Out of the CNN, whose weights learn too.

    Attributes:
        run: the CNN, on the device.
        records: the records folder.
        labels: int8 [M, 6] of the whole index.
        places: int64 [M], a number for each series: its slices are augmented alike.
        training: series to learn from.
        val: series to validate on.
        feed: how validation slices get through the CNN; ``batch_size`` slices at once in training too.
        seed: of the augmentation of slices, which is on where the CNN was trained with it.
    """

    run: LoadedRun
    records: Path
    labels: NDArray[np.int8]
    places: Int64Array
    training: Sequence[Series]
    val: Sequence[Series]
    feed: Feed
    seed: int

    @property
    def embedding_size(self) -> int:
        """C, seen on one black image."""
        image = torch.zeros(1, NUM_CHANNELS, self.run.size, self.run.size, device=self.feed.precision.device)
        with torch.inference_mode():
            return int(self._see(Embedder(self.run.model).eval(), image)[0].shape[1])

    @property
    def num_series(self) -> int:
        """Training sequences of an epoch."""
        return len(self.training)

    def training_batches(self, epoch: int, batch_size: int, changes: Changes) -> Iterator[StudyBatch]:
        """The batches of ``epoch``; embeddings and logits carry the gradient back into the CNN."""
        self.run.model.eval()
        embedder = Embedder(self.run.model)
        plan = list(training_plan(self.training, epoch, batch_size, changes))
        rows = [np.concatenate([one.series.rows[one.places] for one in batch]) for batch in plan]
        augment = bool(self.run.config.get("augment", False))
        with contextlib.closing(self._loaded(rows, epoch, augment=augment)) as batches:
            for picked, batch in zip(plan, batches, strict=True):
                embedding, logit = self._see(embedder, batch.images)
                lengths = [len(one.places) for one in picked]
                parts = zip(picked, torch.split(embedding, lengths), torch.split(logit, lengths), strict=True)
                yield collate([sequence(one.series, one.places, self.labels, *values) for one, *values in parts])

    def validation(self) -> StudySet:
        """The validation studies as the CNN sees them now."""
        rows = np.concatenate([one.rows for one in self.val])
        groups = np.split(rows, np.arange(self.feed.batch_size, len(rows), self.feed.batch_size))
        embedder, seen = Embedder(self.run.model).eval(), []
        with torch.inference_mode(), contextlib.closing(self._loaded(groups, 0, augment=False)) as batches:
            for batch in batches:
                seen.append([value.cpu().numpy() for value in self._see(embedder, batch.images)])
        embedding, logit = (np.concatenate(part) for part in zip(*seen, strict=True))
        store = Store(folder=IN_MEMORY, embedding=embedding.astype(np.float16), logit=logit, rows=rows)
        return StudySet(series=self.val, labels=self.labels, stores=(store,))

    def _see(self, embedder: Embedder, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [n, C] and logits [n, 6] of ``images`` [n, 3, S, S], a part after the other (see above)."""
        parts = torch.split(images, self.feed.batch_size)
        again = len(parts) > 1 and torch.is_grad_enabled()
        with self.feed.precision.autocast():
            seen = [checkpoint(embedder, part, use_reentrant=False) if again else embedder(part) for part in parts]
        values = torch.cat(seen)
        return values[:, :-NUM_LABELS], values[:, -NUM_LABELS:]

    def _loaded(self, groups: Sequence[Int64Array], epoch: int, *, augment: bool) -> Generator[Batch, None, None]:
        """The images of each of ``groups`` of rows, on the device."""
        device = self.feed.precision.device
        most = max(len(group) for group in groups)
        config = self.feed.loader_config(
            self.run, self.records, ALL_ROWS, batch_size=most, augment=augment, seed=self.seed
        )
        with contextlib.closing(open_loader(config, group_order(groups, self.labels, self.places))) as loader:
            yield from on_device(loader.epoch(epoch), device)
