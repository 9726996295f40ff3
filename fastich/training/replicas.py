"""Data parallelism inside one process, for CPUs: each core takes a part of the batch through the whole network.

DenseNet is some 3,000 small operations a step. Splitting each of them over cores makes the cores wait for each other
3,000 times, and where one core is busy with something else a step takes 20 times as long. Here they meet once a step.
Measured on two cores, 96 px, batch 16, bfloat16: 1.9 times one core; splitting each operation gives 1.5 times.

Weights are shared, gradients are added, batch-norm statistics are averaged; each part normalises over its own slices,
as in DistributedDataParallel. Dropout draws in the order of the parts, so a seed gives one result.
"""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn
from torchvision.ops import StochasticDepth

from fastich.training.accumulation import WHOLE, Part
from fastich.training.losses import Loss
from fastich.training.precision import Precision
from fastich.training.profiling import Span, no_span

FEWEST_SLICES = 4
"""A part of fewer slices has no use for batch statistics; such a batch goes through one replica."""


class Replicas:
    """One network on ``count`` threads; ``model`` keeps the weights, the gradients and the statistics."""

    def __init__(
        self,
        model: nn.Module,
        count: int,
        precision: Precision,
        span: Span = no_span,
        loss: Loss = Loss(),  # noqa: B008 (frozen, without tensors)
    ) -> None:
        """Copy the network's structure, share its weights and start the threads; ``span`` times them."""
        self._precision, self._span, self._loss = precision, span, loss
        self.count = count
        self._models = [model, *(_sharing(model) for _ in range(count - 1))]
        self._pool = ThreadPoolExecutor(count, "fastich-replica", initializer=torch.set_num_threads, initargs=(1,))
        self._passed = [threading.Event() for _ in self._models]
        for number, replica in enumerate(self._models):
            _take_turns(replica, self._passed[number - 1] if number else None, self._passed[number])

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, 6] of ``images``, for evaluation: the same weights and statistics on every thread."""
        parts = images.chunk(len(self._models))
        return torch.cat(list(self._pool.map(self._look, parts)))

    def learn(
        self, images: torch.Tensor, labels: torch.Tensor, part: Part = WHOLE
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and logits [N, 6] of one batch; the gradients of its share in the group's mean loss are left, or added,
        on the model's weights.
        """
        count = len(self._models) if len(images) >= FEWEST_SLICES * len(self._models) else 1
        models, main = self._models[:count], self._models[0]
        statistics = [_statistics(model) for model in models]
        for model in models[1:]:
            model.train(main.training)
        _hand_on(statistics)
        for event in self._passed:
            event.clear()
        for model in models[0 if part.is_first else 1 :]:
            model.zero_grad(set_to_none=True)
        images_parts, labels_parts = images.tensor_split(count), labels.tensor_split(count)
        share = [len(part) / len(images) for part in images_parts]
        work = [
            self._pool.submit(self._backward, *job, part.count)
            for job in zip(range(count), images_parts, labels_parts, share, strict=True)
        ]
        done = [future.result() for future in work]
        _add_gradients(models)
        _average(statistics)
        return torch.stack([loss for loss, _ in done]).sum(), torch.cat([logits for _, logits in done])

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()

    @torch.inference_mode()
    def _look(self, images: torch.Tensor) -> torch.Tensor:
        with self._precision.autocast():
            logits: torch.Tensor = self._models[0](images)
        return logits

    def _backward(
        self, number: int, images: torch.Tensor, labels: torch.Tensor, share: float, num_batches: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        model = self._models[number]
        try:
            with self._span("forward"):
                with self._precision.autocast():
                    logits = model(images)
                loss = self._loss(logits.float(), labels) * share
        finally:
            self._passed[number].set()  # an error here must not leave the next part waiting
        with self._span("backward"):
            (loss / num_batches).backward()  # type: ignore[no-untyped-call]
        return loss.detach(), logits.detach()


def _sharing(model: nn.Module) -> nn.Module:
    """A copy that looks at the very weights of ``model`` but has gradients and batch statistics of its own."""
    made = copy.deepcopy(model)
    for own, shared in zip(made.parameters(), model.parameters(), strict=True):
        own.data = shared.data
    return made


def _statistics(model: nn.Module) -> list[torch.Tensor]:
    """The running means and variances of the batch norms (their step counters are not used by this network)."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def _hand_on(statistics: list[list[torch.Tensor]]) -> None:
    """The first part's statistics to the others; a ConvNeXt has none, and torch takes no empty list."""
    for copied in statistics[1:] if statistics[0] else []:
        torch._foreach_copy_(copied, statistics[0])


def _average(statistics: list[list[torch.Tensor]]) -> None:
    """The mean of all parts' statistics into the first's."""
    for copied in statistics[1:] if statistics[0] else []:
        torch._foreach_add_(statistics[0], copied)
    if statistics[0]:
        torch._foreach_mul_(statistics[0], 1.0 / len(statistics))


def _add_gradients(models: list[nn.Module]) -> None:
    gradients = [[parameter.grad for parameter in model.parameters() if parameter.grad is not None] for model in models]
    for more in gradients[1:]:
        torch._foreach_add_(gradients[0], more)


def _take_turns(model: nn.Module, before: threading.Event | None, passed: threading.Event) -> None:
    """Let the dropout of ``model`` wait for the part before it: all draw from torch's one generator.

    Stochastic depth (EfficientNet, ConvNeXt) draws from the first block on, so there the parts go forward in turn.
    """
    wait: Callable[..., Any] = lambda *_: before.wait() if before and model.training else None  # noqa: E731
    drawing = [module for module in model.modules() if isinstance(module, nn.Dropout | StochasticDepth)]
    for module in drawing:  # all of them: EfficientNet never calls its first one
        module.register_forward_pre_hook(lambda *args: (wait(), None)[1])
    for module in drawing[-1:]:  # none where a network draws nothing
        module.register_forward_hook(lambda *args: passed.set())
