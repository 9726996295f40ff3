"""What the network said about a split: collected on the device, brought to the host once, then counted.

An epoch of the full challenge is 750,000 rows x 12 float32 = 36 MB, so all of it is kept; no second pass for metrics.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastich.labels import NUM_LABELS, enforce_any
from fastich.loaders import Batch
from fastich.metrics import slice_summary
from fastich.training.precision import Precision
from fastich.training.prefetch import on_device

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(kw_only=True)
class Predictions:
    """Logits and labels [n, 6] each, batch by batch, and how long they took."""

    logits: list[torch.Tensor] = field(default_factory=list)
    labels: list[torch.Tensor] = field(default_factory=list)
    rows: list[torch.Tensor] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, logits: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> None:
        """Keep one batch, without waiting for the device."""
        self.logits.append(logits.detach().to(torch.float32, copy=True))  # a CUDA graph writes over its outputs
        self.labels.append(labels.to(logits.device, non_blocking=True))
        self.rows.append(rows)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All batches joined: ``logits`` and ``labels`` float32 [n, 6], ``rows`` int64 [n]."""
        empty = torch.empty(0, NUM_LABELS)
        return {
            "logits": torch.cat(self.logits) if self.logits else empty,
            "labels": torch.cat(self.labels) if self.labels else empty,
            "rows": torch.cat(self.rows) if self.rows else torch.empty(0, dtype=torch.int64),
        }

    def loss(self) -> float:
        """Mean binary cross entropy over slices and labels, in float64."""
        joined = self.tensors()
        loss = nn.functional.binary_cross_entropy_with_logits(joined["logits"].double(), joined["labels"].double())
        return float(loss)

    def probability(self) -> NDArray[np.float64]:
        """Sigmoid of the logits with the rule of ``any`` applied: [n, 6]."""
        return probability_of(self.tensors()["logits"].double().cpu().numpy())

    def summary(self) -> dict[str, Any]:
        """Loss; precision, recall (at 0.5) and AUC for each label and their mean; slices; slices a second."""
        joined = self.tensors()
        counted = slice_summary(joined["labels"].cpu().numpy().astype(np.int8), self.probability())
        num_slices = len(joined["rows"])
        return {
            **counted,
            "loss": self.loss(),
            "num_slices": num_slices,
            "seconds": round(self.seconds, 3),
            "slices_per_s": round(num_slices / self.seconds, 2) if self.seconds > 0 else None,
        }


def probability_of(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sigmoid of ``logit`` [n, 6], not calibrated, with the rule of ``any`` applied."""
    return np.asarray(enforce_any(np.exp(-np.logaddexp(0.0, -logit))), dtype=np.float64)


@torch.inference_mode()
def predict(
    model: nn.Module, forward: Forward, batches: Iterable[Batch], precision: Precision, batch_size: int
) -> Predictions:
    """Run ``model`` in eval mode over ``batches``.

    Args:
        model: whose mode is switched; it is left in eval mode.
        forward: the model or its compiled form.
        batches: what a loader's ``epoch`` gives.
        precision: of the forward pass.
        batch_size: every batch is padded to it, so a compiled ``forward`` sees one shape.
    """
    model.eval()
    seen = Predictions()
    for batch in on_device(batches, precision.device):
        with precision.autocast():
            logits = forward(_pad(batch.images, batch_size))[: len(batch.images)]
        seen.add(logits, batch.labels, batch.rows)
    return seen


def _pad(images: torch.Tensor, batch_size: int) -> torch.Tensor:
    lacking = batch_size - len(images)
    if lacking <= 0:
        return images
    padding = images.new_zeros(lacking, *images.shape[1:])
    return torch.cat([images, padding]).contiguous(memory_format=torch.channels_last)
