"""Floating-point operations and bytes of memory traffic of DenseNet121, counted and not measured.

Every operator that torch dispatches is counted with the bytes of its input and output tensors (views move none), on the
meta device, where nothing is computed: it takes a second and no memory. That is eager mode's traffic if no tensor stays
in a cache between operators; compiled and perfectly fused figures are estimates: 140 and 54 MB forward in 16 bits.
Convolutions and matrix products are counted by torch's own FlopCounterMode (a multiply-add is two).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fastich.labels import NUM_LABELS
from fastich.models.classifier import build_model

FREE = ("view", "expand", "permute", "transpose", "slice", "t.", "as_strided", "detach", "alias", "select", "unsqueeze")
"""Operators that move no data."""


class ByteCounter(TorchDispatchMode):
    """Adds up the bytes that operators read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.total_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__
        if not any(name.startswith(free) for free in FREE):
            self.total_bytes += sum(_bytes((args, kwargs, result)))
        return result


def _bytes(values: Any) -> Iterator[int]:
    for leaf in tree_leaves(values):
        if isinstance(leaf, torch.Tensor):
            yield math.prod(leaf.shape) * leaf.element_size()


def count(size: int, *, training: bool, dtype: torch.dtype, batch: int = 8) -> tuple[float, float]:
    """(FLOP, bytes) a slice of DenseNet121 at ``size`` px: forward, or with ``training`` forward and backward."""
    with torch.device("meta"):
        model = build_model(weights="none").to(dtype).train(training)
        images = torch.empty(batch, 3, size, size, dtype=dtype)
        labels = torch.empty(batch, NUM_LABELS, dtype=dtype)
    with FlopCounterMode(display=False) as flop, ByteCounter() as moved, torch.set_grad_enabled(training):
        logits = model(images)
        if training:
            torch.nn.functional.binary_cross_entropy_with_logits(logits, labels).backward()
    return flop.get_total_flops() / batch, moved.total_bytes / batch
