"""Fills the side store: one pass of a run's network over the records, at the cost of an evaluation of every slice.

Training slices of a network are ones that it has learned by heart, so what it says of them is surer than what it will
say of others. Passes with the loader's augmentation on show the sequence model slices that the network has not seen,
and it learns from these alone (docs/trust.md has what that brings).
The slices of a series are changed alike, since what a slice differs in from the next is what the model looks at.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastich import embeddings, verb
from fastich.checkpoint import LoadedRun, weights_sha256
from fastich.embeddings import Chunk, Identity, Int64Array, Store
from fastich.errors import RecordError
from fastich.labels import NUM_LABELS
from fastich.loaders import open_loader
from fastich.loaders.order import ALL_ROWS, group_order
from fastich.models.classifier import Classifier
from fastich.records.index import series_numbers
from fastich.records.reader import RecordReader
from fastich.training.feed import Feed
from fastich.training.predictions import Forward
from fastich.training.prefetch import on_device
from fastich.training.replicas import Replicas

PASS_SEED = 0
"""Of the augmentation; a pass's number is its epoch."""


class Embedder(nn.Module):
    """A classifier that also hands over what its head saw: images [N, 3, S, S] -> float32 [N, C + 6]."""

    def __init__(self, model: Classifier) -> None:
        """``model`` keeps its weights."""
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features, then the logits of the head."""
        embedding = self.model.embedding(images)
        return torch.cat([embedding.float(), self.model.head(embedding).float()], dim=1)


def stores_of(
    run: LoadedRun, records: Path, reader: RecordReader, train_rows: Int64Array, passes: int, feed: Feed
) -> tuple[Store, ...]:
    """The store of every slice, then ``passes`` stores of ``train_rows``, each with other augmentation.

    Raises:
        RecordError: a store is damaged.
    """
    every = np.arange(len(reader), dtype=np.int64)
    return tuple(
        ensure_store(run, records, reader, train_rows if number else every, number, feed)
        for number in range(passes + 1)
    )


def ensure_store(
    run: LoadedRun, records: Path, reader: RecordReader, rows: Int64Array, augmented_pass: int, feed: Feed
) -> Store:
    """The store of ``rows``, opened if it is there, else made by running the network.

    Raises:
        RecordError: it is damaged.
    """
    identity = identity_of(run, reader, feed.precision.name, augmented_pass)
    store = embeddings.open_store(records, identity, rows)
    if store is None:
        verb.say(f"embeddings: {identity.folder(records)} is made now, {len(rows)} slices")
        chunks = _chunks(run, records, reader, rows, augmented_pass, feed)
        embeddings.write_store(records, identity, rows, chunks)
        store = embeddings.open_store(records, identity, rows)
    if store is None:
        raise RecordError(f"{identity.folder(records)}: another process wrote there; run one at a time")
    return store


def identity_of(run: LoadedRun, reader: RecordReader, precision: str, augmented_pass: int = 0) -> Identity:
    """What a store of this network over these records, seen in ``precision``, must say of itself."""
    return Identity(
        weights_sha256=weights_sha256(run.model),
        dataset_sha256=reader.dataset_sha256,
        input=run.meta["input"],
        precision=precision,
        augmented_pass=augmented_pass,
    )


def _chunks(
    run: LoadedRun, records: Path, reader: RecordReader, rows: Int64Array, augmented_pass: int, feed: Feed
) -> Iterator[Chunk]:
    """What the network says of ``rows``, batch by batch; in a pass the slices of a series are augmented alike."""
    device = feed.precision.device
    config = feed.loader_config(run, records, ALL_ROWS, augment=augmented_pass > 0, seed=PASS_SEED)
    groups = np.split(rows, np.arange(feed.batch_size, len(rows), feed.batch_size))
    order = group_order(groups, reader.labels(), series_numbers(reader.index))
    with contextlib.ExitStack() as stack:
        loader = stack.enter_context(contextlib.closing(open_loader(config, order)))
        forward = _forward(stack, run, feed)
        batches = verb.progress(
            loader.epoch(augmented_pass), total=loader.num_batches, unit="batches", title="embeddings"
        )
        for batch in on_device(batches, device):
            with torch.inference_mode(), feed.precision.autocast():
                values = forward(batch.images).cpu().numpy()
            yield batch.rows.numpy(), values[:, :-NUM_LABELS], values[:, -NUM_LABELS:]


def _forward(stack: contextlib.ExitStack, run: LoadedRun, feed: Feed) -> Forward:
    """The network in eval mode on its device: on a CPU with threads, parts of a batch at once (``replicas.py``)."""
    embedder = Embedder(run.model).to(feed.precision.device).eval()
    if feed.num_replicas == 1:
        return embedder
    return stack.enter_context(contextlib.closing(Replicas(embedder, feed.num_replicas, feed.precision)))
