"""A CUDA stream beside the one that computes, so that copies and decoding overlap with it; on a CPU nothing at all.

Nothing here waits on the host: one stream waits for the other on the device.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class SideStream:
    """Work queued inside ``with side.queued():`` runs beside the current stream until ``hand_over``."""

    def __init__(self, device: torch.device) -> None:
        """Make a stream where ``device`` is a GPU."""
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def handle(self) -> int:
        """The raw ``cudaStream_t``, 0 on a CPU."""
        return int(self._stream.cuda_stream) if self._stream else 0

    def queued(self) -> AbstractContextManager[object]:
        """Queue what is called inside on this stream."""
        return torch.cuda.stream(self._stream) if self._stream else nullcontext()

    def follow(self) -> None:
        """Let this stream wait for all that the current one has been given."""
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def hand_over(self, *tensors: Tensor) -> None:
        """Let the current stream wait for this one, and keep ``tensors``, made here, until it has used them."""
        if self._stream:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for tensor in tensors:
                if tensor.is_cuda:
                    tensor.record_stream(current)
