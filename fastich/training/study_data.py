"""Studies as the sequence model sees them: every slice of a series in order, its gaps in mm, padded batches.

Each series is a sequence of its own, so that no slice goes without an answer (RSNA 2019 has one series a study); a
study's answer is the largest of its series'. A series is taken whole: slices without a label give context and count in
no loss. What is random about a sequence is a pure function of (seed, epoch, number of the sequence).
Shapes: B sequences, L slices of the longest, C embedding channels, K labels, M rows of the index.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastich.embeddings import Store
from fastich.folds import run_rows
from fastich.labels import UNKNOWN
from fastich.loaders.order import Int64Array, labelled
from fastich.records.index import series_codes
from fastich.records.reader import RecordReader

ORDER_STREAM, CHANGE_STREAM = 2, 3
"""Last word of the random seeds here; the loaders use 0 and 1 (``loaders/order.py``, ``loaders/augment.py``)."""
NO_ROW = -1
LEAST_KEPT = 0.5
"""Share of slices that a random drop keeps at least, on average."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """One series: its study, its rows [L] in order along z, and where each lies, mm along the normal (NaN unknown)."""

    study_uid: str
    rows: Int64Array
    z_mm: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StudyBatch:
    """B padded sequences, on the CPU: what ``SequenceModel.forward`` takes, and what is to be learned.

    Attributes:
        embedding: float32 [B, L, C].
        logit: float32 [B, L, K], of the CNN.
        gap_mm: float32 [B, L], NaN where unknown and at the first slice.
        mask: bool [B, L], false for padding.
        labels: float32 [B, L, K], -1 where unknown and in the padding.
        rows: int64 [B, L], -1 in the padding.
    """

    embedding: Tensor
    logit: Tensor
    gap_mm: Tensor
    mask: Tensor
    labels: Tensor
    rows: Tensor

    @property
    def study_labels(self) -> Tensor:
        """The largest label over the slices of each sequence, float32 [B, K]; -1 where none is known."""
        return self.labels.amax(dim=1)

    def to(self, device: torch.device) -> "StudyBatch":
        """The same on ``device``."""
        return StudyBatch(*(value.to(device, non_blocking=True) for value in vars(self).values()))


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How training sequences are varied.

    Attributes:
        subsample: share of sequences that lose slices: half of these keep every second one, half a random part.
        reverse: turn every second sequence around.
        seed: with epoch and number of the sequence it decides all.
    """

    subsample: float = 0.0
    reverse: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Picked:
    """One sequence of a training batch: the slices at ``places`` [L] of ``series``, out of the store of a number."""

    series: Series
    places: Int64Array
    store: int


@dataclass(frozen=True, kw_only=True, eq=False)
class StudySet:
    """The series of one split with what the CNN says of their slices.

    Attributes:
        series: of the split, in the index's order.
        labels: int8 [M, K] of the whole index, -1 unknown.
        stores: of every row first, then those of augmented training slices, which are learned from.
    """

    series: Sequence[Series]
    labels: NDArray[np.int8]
    stores: tuple[Store, ...]

    def batches(self, batch_size: int) -> Iterator[StudyBatch]:
        """All series in order, as they are."""
        for start in range(0, len(self.series), batch_size):
            some = self.series[start : start + batch_size]
            yield collate([self._read(one, np.arange(len(one.rows)), self.stores[0]) for one in some])

    def training_batches(self, epoch: int, batch_size: int, changes: Changes) -> Iterator[StudyBatch]:
        """All series of ``epoch`` in random order and changed at random.

        Each comes out of one of the augmented stores at random. Where there is none it is what the CNN says of the
        very slices that it has learned from, which is surer than what it will say of others.
        """
        stores = self.stores[1:] or self.stores
        for batch in training_plan(self.series, epoch, batch_size, changes, len(stores)):
            yield collate([self._read(one.series, one.places, stores[one.store]) for one in batch])

    def _read(self, series: Series, places: Int64Array, store: Store) -> StudyBatch:
        """One sequence, not padded: the slices at ``places`` [L] of ``series``, in that order."""
        embedding, logit = look_up(store, self.stores[0], series.rows[places])
        return sequence(series, places, self.labels, torch.from_numpy(embedding), torch.from_numpy(logit))


def rows_of(reader: RecordReader, config: Mapping[str, Any], split: str) -> Int64Array:
    """The labelled rows of ``split`` for a CNN of ``config`` (its fold, where it is one of k), ascending."""
    rows = run_rows(reader, config, split)
    return rows[labelled(reader.labels()[rows])]


def series_of(index: pd.DataFrame, rows: Int64Array) -> list[Series]:
    """The whole series that hold one of ``rows``, in the index's order."""
    codes = series_codes(index)
    wanted = np.flatnonzero(np.isin(codes, codes[rows]))
    starts = np.flatnonzero(np.diff(codes[wanted], prepend=-1))
    study, z_mm = index["study_uid"].to_numpy(), index["z_mm"].to_numpy(dtype=np.float64)
    return [
        Series(study_uid=str(study[some[0]]), rows=some, z_mm=z_mm[some])
        for some in np.split(wanted.astype(np.int64), starts[1:])
    ]


def training_plan(
    series: Sequence[Series], epoch: int, batch_size: int, changes: Changes, num_stores: int = 1
) -> Iterator[list[Picked]]:
    """The batches of ``epoch``: which series, which of their slices in which order, and out of which store."""
    order = np.random.default_rng([changes.seed, epoch, ORDER_STREAM]).permutation(len(series))
    for start in range(0, len(order), batch_size):
        batch = []
        for number in order[start : start + batch_size]:
            rng = np.random.default_rng([changes.seed, epoch, int(number), CHANGE_STREAM])
            store, one = int(rng.integers(num_stores)), series[number]
            batch.append(Picked(series=one, places=choose_slices(len(one.rows), rng, changes), store=store))
        yield batch


def sequence(
    series: Series, places: Int64Array, labels: NDArray[np.int8], embedding_LC: Tensor, logit_LK: Tensor
) -> StudyBatch:
    """One sequence, not padded: the slices at ``places`` [L] of ``series``, in that order, as the CNN sees them.

    ``labels`` are those of the whole index, int8 [M, K].
    """
    rows = series.rows[places]
    return StudyBatch(
        embedding=embedding_LC[None],
        logit=logit_LK[None],
        gap_mm=torch.from_numpy(gaps_mm(series.z_mm[places]))[None],
        mask=torch.ones(1, len(rows), dtype=torch.bool),
        labels=torch.from_numpy(labels[rows].astype(np.float32))[None],
        rows=torch.from_numpy(rows)[None],
    )


def gaps_mm(z_mm: NDArray[np.float64]) -> NDArray[np.float32]:
    """Distance of each slice from the one before, float32 [L]; NaN at the first and where a place is unknown."""
    return np.abs(np.diff(z_mm, prepend=np.nan)).astype(np.float32)


def choose_slices(length: int, rng: np.random.Generator, changes: Changes) -> Int64Array:
    """Which slices of a series are shown, and in which order: int64 [at least 1]."""
    places = np.arange(length, dtype=np.int64)
    if rng.random() < changes.subsample:
        if rng.random() < 0.5:
            places = places[rng.integers(2) if length > 1 else 0 :: 2]
        else:
            kept = rng.random(length) < rng.uniform(LEAST_KEPT, 1.0)
            kept[rng.integers(length)] = True
            places = places[kept]
    return places[::-1].copy() if changes.reverse and rng.random() < 0.5 else places


def look_up(store: Store, whole: Store, rows: Int64Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings [L, C] and logits [L, K] of ``rows`` out of ``store``; out of ``whole`` where that lacks a row."""
    at = np.minimum(np.searchsorted(store.rows, rows), len(store.rows) - 1)
    embedding, logit = store.embedding[at].astype(np.float32), np.array(store.logit[at])
    lacking = store.rows[at] != rows
    if lacking.any():
        at = np.searchsorted(whole.rows, rows[lacking])
        embedding[lacking], logit[lacking] = whole.embedding[at], whole.logit[at]
    return embedding, logit


def collate(sequences: list[StudyBatch]) -> StudyBatch:
    """Sequences of one study each as one batch, each padded behind to the longest."""
    longest = max(one.mask.shape[1] for one in sequences)
    padding = {"gap_mm": float("nan"), "labels": float(UNKNOWN), "rows": NO_ROW}

    def joined(name: str) -> Tensor:
        return torch.cat([_padded(getattr(one, name), longest, padding.get(name, 0)) for one in sequences])

    return StudyBatch(*(joined(field.name) for field in dataclasses.fields(StudyBatch)))


def _padded(values_1Lx: Tensor, length: int, value: float) -> Tensor:
    lacking = values_1Lx.new_full((1, length - values_1Lx.shape[1], *values_1Lx.shape[2:]), value)
    return torch.cat([values_1Lx, lacking], dim=1)
