"""Batches on the device that trains, copied there beside the step before: nothing here waits on the host.

The copy of a batch is queued on a stream of its own while the step before it still computes (the host runs ahead), so
from pinned memory it costs no time but the first. The host is at most as far ahead as the loss watch lets it be: 20
batches, 1 GB at 64 slices of 256 px. On a CPU, and where a loader has left images on the GPU, nothing is copied.
"""

from collections.abc import Iterable, Iterator

import torch

from fastich.loaders import Batch
from fastich.loaders.streams import SideStream
from fastich.training.profiling import Span, no_span


def on_device(batches: Iterable[Batch], device: torch.device, span: Span = no_span) -> Iterator[Batch]:
    """``batches`` with images and labels on ``device``; ``span`` times the wait for each and its copy."""
    side, source = SideStream(device), iter(batches)
    while True:
        with span("data"):
            batch = next(source, None)
        if batch is None:
            return
        with side.queued(), span("host-to-device"):
            images, labels = (part.to(device, non_blocking=True) for part in (batch.images, batch.labels))
        side.hand_over(images, labels)
        yield Batch(images=images, labels=labels, rows=batch.rows)
