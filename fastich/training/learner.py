"""One training step: network, optimizer and scaler held together. One path for every precision and device.

Shapes: N slices, S side in pixels.
"""

import time
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from fastich.loaders import Batch
from fastich.models.densenet import DenseNet121Classifier, to_channels_last
from fastich.training.precision import Precision
from fastich.training.predictions import Forward
from fastich.training.replicas import Replicas

BETAS, EPS, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 2e-5
"""The study's Adam (its section 4)."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What a step needs. ``forward`` is ``model``, its compiled form or its replicas; they share their weights."""

    model: DenseNet121Classifier
    forward: Forward
    optimizer: torch.optim.Adam
    scaler: GradScaler
    precision: Precision
    replicas: Replicas | None

    def step(self, batch: Batch, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Learn from one batch; return the loss (scalar) and the logits [N, 6], both still on the device."""
        device = self.precision.device
        images = batch.images.to(device, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        loss, logits = self.replicas.learn(images, labels) if self.replicas else self._learn(images, labels)
        self.optimizer.param_groups[0]["lr"] = lr
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss, logits

    def _learn(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and logits of one batch; its gradients are left on the weights."""
        with self.precision.autocast():
            logits = self.forward(images)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), logits.detach()

    def close(self) -> None:
        """Stop the threads, where there are any."""
        if self.replicas:
            self.replicas.close()


def make_learner(
    model: DenseNet121Classifier, precision: Precision, *, lr: float, compiled: bool, replicas: int = 1
) -> Learner:
    """Put ``model`` on the device, channels_last, with the study's Adam (fused: one pass over the weights).

    Args:
        model: the network.
        precision: device and number format.
        lr: learning rate of the first step.
        compiled: run its ``torch.compile`` form.
        replicas: parts of a batch that are learned from at once, on threads (CPU, not compiled).
    """
    model = to_channels_last(model.to(precision.device))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True)
    split = Replicas(model, replicas, precision) if replicas > 1 else None
    return Learner(
        model=model,
        forward=cast(Forward, torch.compile(model)) if compiled else split or model,
        optimizer=optimizer,
        scaler=GradScaler(precision.device.type, enabled=precision.needs_scaler),
        precision=precision,
        replicas=split,
    )


class Clock:
    """Seconds of work done, not of work handed over: it waits for the device before it is read."""

    def __init__(self, precision: Precision, already_s: float = 0.0) -> None:
        """Start, with the seconds of an earlier session on it."""
        self._precision, self._already_s = precision, already_s
        self._start_s = self._now_s()

    def _now_s(self) -> float:
        if self._precision.device.type == "cuda":
            torch.cuda.synchronize(self._precision.device)
        return time.perf_counter()

    def seconds(self) -> float:
        """Seconds since the start, and before."""
        return self._already_s + self._now_s() - self._start_s
