"""The exponential moving average of the network (``--ema``): validation and the best checkpoint are its.

After each optimiser step t the average moves towards the weights w_t by ``(1 - decay) / (1 - decay ** t)``: the
bias-corrected average, in which the first weights, random or ImageNet's, have no share. Batch norm's statistics are
averaged the same way. Costs a second copy of the network (30 MB) and one pass over both a step.

Source: Kingma and Ba, "Adam", arXiv 1412.6980, section 3 (the correction); Polyak and Juditsky 1992 (the average).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastich.checkpoint import AVERAGE_PREFIX, Checkpoint
from fastich.errors import CheckpointError
from fastich.models.weights import Tensors


class Average:
    """The moving average of every floating point tensor of one network, which must stay where it is in memory."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with a copy of ``model`` as it is, of no weight."""
        self._decay, self.num_updates = decay, 0
        state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
        self._names, self._live = list(state), list(state.values())
        self._average = [value.clone() for value in self._live]
        buffers = {name for name, _ in model.named_buffers()}
        self.statistics = [value for name, value in self._named() if name in buffers]

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        return zip(self._names, self._average, strict=True)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after one more optimiser step; the device is not waited for."""
        self.num_updates += 1
        share = (1 - self._decay) / (1 - self._decay**self.num_updates)
        torch._foreach_lerp_(self._average, self._live, share)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The network is its average inside; afterwards it is bit for bit what it was."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        kept = [value.clone() for value in self._live]
        torch._foreach_copy_(self._live, self._average)
        torch._foreach_copy_(self._average, kept)

    def tensors(self) -> Tensors:
        """Its part of a checkpoint."""
        return {AVERAGE_PREFIX + name: value for name, value in self._named()}

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it holds no average of this network.
        """
        tensors = saved.part(AVERAGE_PREFIX)
        if sorted(tensors) != sorted(self._names):
            raise CheckpointError(
                f"{saved.path}: expected the average of {len(self._names)} tensors, found {len(tensors)}; "
                "the checkpoint is of another network: start a new --out"
            )
        self.num_updates = int(saved.meta["ema_updates"])
        for name, value in self._named():
            value.copy_(tensors[name])
