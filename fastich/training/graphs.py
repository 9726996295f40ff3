"""The whole of a training step as one CUDA graph: one launch instead of some 3,000, for GPUs that outrun the host.

The first steps run as ever, on a stream of their own (kernels are chosen and the optimizer's state is made there); then
one is recorded, not run, and replayed from that step on. It does what the step without a graph does (dropout may draw
other numbers). Inputs are copied into fixed tensors, so all batches must have one shape: training drops the last.

No GPU has run this; tests replay it on the CPU with a stand-in for the recorder.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastich.loaders.streams import SideStream

NUM_BEFORE = 3
"""Steps before the recording. Source: pytorch.org, CUDA semantics, CUDA graphs (its examples warm up three times)."""

Outputs = tuple[Tensor, Tensor]
Work = Callable[[Tensor, Tensor], Outputs]
"""Images and labels to loss and logits; whatever else the step does happens inside."""
Recorder = Callable[[Callable[[], Outputs]], tuple[Outputs, Callable[[], None]]]
"""Takes work, gives the tensors that hold its outputs and what runs it again."""


def record(work: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
    """Record ``work`` into a CUDA graph without running it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # loader threads pin memory meanwhile
        outputs = work()
    return outputs, graph.replay


class StepGraph:
    """Runs a step's work: as it is, or with ``enabled`` from the fourth step on as a graph."""

    def __init__(self, device: torch.device, *, enabled: bool, recorder: Recorder = record) -> None:
        """Nothing is recorded before ``NUM_BEFORE`` steps."""
        self._enabled, self._recorder = enabled, recorder
        self._side = SideStream(device) if enabled else None
        self._num_done = 0
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._outputs: Outputs | None = None
        self._replay: Callable[[], None] = lambda: None

    def run(self, work: Work, images: Tensor, labels: Tensor) -> Outputs:
        """Loss and logits of ``work(images, labels)``; with a graph they are copies that stay as they are."""
        if self._side is None:
            return work(images, labels)
        self._num_done += 1
        if self._num_done <= NUM_BEFORE:
            return self._beside(self._side, work, images, labels)
        if self._inputs is None:
            self._inputs = fixed = (images.clone(), labels.clone())
            self._outputs, self._replay = self._recorder(lambda: work(*fixed))
        assert self._outputs is not None
        for place, value in zip(self._inputs, (images, labels), strict=True):
            assert place.shape == value.shape, f"recorded for {list(place.shape)}, found {list(value.shape)}"
            place.copy_(value)
        self._replay()
        loss, logits = self._outputs
        return loss.clone(), logits.clone()

    @staticmethod
    def _beside(side: SideStream, work: Work, images: Tensor, labels: Tensor) -> Outputs:
        side.follow()
        with side.queued():
            loss, logits = work(images, labels)
        side.hand_over(loss, logits)
        return loss, logits
