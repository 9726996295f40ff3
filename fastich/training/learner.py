"""One training step: network, optimizer and scaler held together. One path for every precision and device.

Shapes: N slices, S side in pixels.
"""

import contextlib
import functools
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from fastich.loaders import Batch
from fastich.models.classifier import Classifier, to_channels_last
from fastich.training.accumulation import WHOLE, Part
from fastich.training.averaging import Average
from fastich.training.distributed import ALONE, World
from fastich.training.graphs import StepGraph
from fastich.training.losses import Loss
from fastich.training.modes import compiled
from fastich.training.precision import Precision
from fastich.training.predictions import Forward
from fastich.training.profiling import Span, no_span
from fastich.training.replicas import Replicas

BETAS, EPS, WEIGHT_DECAY = (0.9, 0.999), 1e-8, 2e-5
"""The study's Adam (its section 4)."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What a step needs. ``forward`` is ``model``, its compiled form, its replicas or, among several processes, the
    ``synced`` form of one of them, which adds up their gradients; all share their weights.
    """

    model: Classifier
    forward: Forward
    loss: Loss
    optimizer: torch.optim.Adam
    scaler: GradScaler
    precision: Precision
    replicas: Replicas | None
    synced: DistributedDataParallel | None
    graph: StepGraph
    span: Span
    clip_norm: float
    average: Average | None
    world: World

    def step(self, batch: Batch, lr: float, part: Part = WHOLE) -> tuple[torch.Tensor, torch.Tensor]:
        """Learn from one batch; return its loss (scalar) and the logits [N, 6], both still on the device.

        The weights move after the last ``part`` of a group. Nothing here waits for a GPU: the fused Adam takes the loss
        scale and its overflow flag as tensors.
        """
        device = self.precision.device
        images = batch.images.to(device, non_blocking=True)
        labels = batch.labels.to(device, non_blocking=True)
        set_learning_rate(self.optimizer, lr)
        done = self.graph.run(functools.partial(self._whole_step, part=part), images, labels)
        if self.average and part.is_last:
            self.average.update()
        return done

    def _whole_step(
        self, images: torch.Tensor, labels: torch.Tensor, part: Part = WHOLE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Everything that a step does on the device, the moving average aside."""
        learn = self.replicas.learn if self.replicas else self._learn
        loss, logits = learn(images, labels, part)
        if part.is_last:
            with self.span("optimiser"):
                self._update()
        return loss, logits

    def _learn(
        self, images: torch.Tensor, labels: torch.Tensor, part: Part = WHOLE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and logits of one batch; the gradients of its share in the group's mean are left on the weights."""
        apart = self.synced.no_sync() if self.synced and not part.is_last else contextlib.nullcontext()
        with apart:
            with self.span("forward"):
                with self.precision.autocast():
                    logits = self.forward(images)
                loss = self.loss(logits.float(), labels)
            with self.span("backward"):
                if part.is_first:
                    self.optimizer.zero_grad(set_to_none=True)
                self.scaler.scale(loss / part.count).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), logits.detach()

    def _update(self) -> None:
        """The optimiser's step, from gradients whose norm over all weights is at most ``clip_norm`` (0: any)."""
        if self.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def judged(self) -> AbstractContextManager[None]:
        """Inside, the network is the one that is validated and kept: its moving average, where there is one."""
        return self.average.in_place() if self.average else contextlib.nullcontext()

    def settle(self) -> None:
        """Make what each process counted by itself one: the running statistics of batch norm, and their averages."""
        statistics = [value for value in self.model.buffers() if value.is_floating_point()]
        self.world.average(statistics + (self.average.statistics if self.average else []))

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
    loss: Loss = Loss(),  # noqa: B008 (frozen, without tensors)
    replicas: int = 1,
    cuda_graph: bool = False,
    span: Span = no_span,
    clip_norm: float = 0.0,
    ema: float = 0.0,
    world: World = ALONE,
) -> Learner:
    """Put ``model`` on the device, channels_last, with the study's Adam (fused: one pass over the weights).

    Args:
        model: the network.
        precision: device and number format.
        lr: learning rate of the first step.
        compile_mode: of ``modes.COMPILE_MODES``.
        loss: what is minimised.
        replicas: parts of a batch that are learned from at once, on threads (CPU, not compiled, one process).
        cuda_graph: replay the step as one CUDA graph; the learning rate is then read from the device.
        span: times the parts of a step.
        clip_norm: largest norm of the gradient over all weights, 0 for any.
        ema: decay of the moving average, 0 for none.
        world: the processes that learn together; they are connected.
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
    loss = loss.to(precision.device)
    split = Replicas(model, replicas, precision, span, loss) if replicas > 1 else None
    forward = split or compiled(model, compile_mode)
    synced = _synced(forward) if world.size > 1 else None
    return Learner(
        model=model,
        forward=synced or forward,
        loss=loss,
        optimizer=optimizer,
        scaler=GradScaler(precision.device.type, enabled=precision.needs_scaler),
        precision=precision,
        replicas=split,
        synced=synced,
        graph=StepGraph(precision.device, enabled=cuda_graph),
        span=span,
        clip_norm=clip_norm,
        average=Average(model, ema) if ema else None,
        world=world,
    )


def _synced(forward: Forward) -> DistributedDataParallel:
    """``forward``, whose weights are now rank 0's, and whose backward pass leaves the mean gradient of all ranks.

    Statistics of batch norm are left to ``Learner.settle``: sending them before each step would cost one more message.
    """
    return DistributedDataParallel(cast(nn.Module, forward), broadcast_buffers=False)


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
