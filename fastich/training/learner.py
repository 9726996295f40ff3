"""One training step: network, optimizer and scaler held together. One path for every precision and device.

Shapes: N slices, S side in pixels.
"""

import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from fastich.loaders import Batch
from fastich.models.classifier import Classifier, to_channels_last
from fastich.training.graphs import StepGraph
from fastich.training.modes import compiled
from fastich.training.precision import Precision
from fastich.training.predictions import Forward
from fastich.training.profiling import Span, no_span
from fastich.training.replicas import Replicas

BETAS, EPS, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 2e-5
"""The study's Adam (its section 4)."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What a step needs. ``forward`` is ``model``, its compiled form or its replicas; they share their weights."""

    model: Classifier
    forward: Forward
    optimizer: torch.optim.Adam
    scaler: GradScaler
    precision: Precision
    replicas: Replicas | None
    graph: StepGraph
    span: Span

    def step(self, batch: Batch, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Learn from one batch; return the loss (scalar) and the logits [N, 6], both still on the device.

        Nothing here waits for a GPU: the fused Adam takes the loss scale and its overflow flag as tensors.
        """
        device = self.precision.device
        images = batch.images.to(device, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        set_learning_rate(self.optimizer, lr)
        return self.graph.run(self._whole_step, images, labels)

    def _whole_step(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Everything that a step does on the device."""
        loss, logits = self.replicas.learn(images, labels) if self.replicas else self._learn(images, labels)
        with self.span("optimiser"):
            self.scaler.step(self.optimizer)
            self.scaler.update()
        return loss, logits

    def _learn(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and logits of one batch; its gradients are left on the weights."""
        with self.span("forward"):
            with self.precision.autocast():
                logits = self.forward(images)
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        with self.span("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), logits.detach()

    def close(self) -> None:
        """Stop the threads, where there are any."""
        if self.replicas:
            self.replicas.close()


def make_learner(
    model: Classifier,
    precision: Precision,
    *,
    lr: float,
    compile_mode: str = "none",
    replicas: int = 1,
    cuda_graph: bool = False,
    span: Span = no_span,
) -> Learner:
    """Put ``model`` on the device, channels_last, with the study's Adam (fused: one pass over the weights).

    Args:
        model: the network.
        precision: device and number format.
        lr: learning rate of the first step.
        compile_mode: of ``modes.COMPILE_MODES``.
        replicas: parts of a batch that are learned from at once, on threads (CPU, not compiled).
        cuda_graph: replay the step as one CUDA graph; the learning rate is then read from the device.
        span: times the parts of a step.
    """
    model = to_channels_last(model.to(precision.device))
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=torch.tensor(lr, device=precision.device) if cuda_graph else lr,
        betas=BETAS,
        eps=EPS,
        weight_decay=WEIGHT_DECAY,
        fused=True,
        capturable=cuda_graph,
    )
    split = Replicas(model, replicas, precision, span) if replicas > 1 else None
    return Learner(
        model=model,
        forward=split or compiled(model, compile_mode),
        optimizer=optimizer,
        scaler=GradScaler(precision.device.type, enabled=precision.needs_scaler),
        precision=precision,
        replicas=split,
        graph=StepGraph(precision.device, enabled=cuda_graph),
        span=span,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of the next step, in place where it stands in a tensor (a recorded step reads it there)."""
    (group,) = optimizer.param_groups
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


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
