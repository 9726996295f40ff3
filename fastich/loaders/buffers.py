"""Memory for batches that is used again: a fresh batch of 25 MB costs 6,000 page faults, as long as decoding it.

A batch's memory comes back when its last tensor is gone, wherever that was; nobody has to give it back.
(Huge pages cost more than they saved: bench/LOG.md.)
"""

import math
import threading
import weakref

import numpy as np
import torch
from numpy.typing import NDArray

MOST_FREE = 8
"""Free blocks that are kept: more than the batches a loader has in the air; a consumer that hoards makes new ones."""


class Buffers:
    """Blocks of float32 for batches of one size, shared by the threads that fill them."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.float32]] = []
        self._lock = threading.RLock()  # a finalizer may run while this very thread holds it

    def take(self, shape: tuple[int, ...]) -> torch.Tensor:
        """An uninitialised float32 tensor of ``shape``; its memory returns here once nothing refers to it."""
        count = math.prod(shape)
        with self._lock:
            fits = [number for number, block in enumerate(self._free) if len(block) >= count]
            block = self._free.pop(fits[0]) if fits else None
        if block is None:
            block = np.empty(count, np.float32)
        view = block[:count].reshape(shape)  # an array of its own: what from_numpy holds on to
        weakref.finalize(view, self._give_back, block).atexit = False
        return torch.from_numpy(view)

    def _give_back(self, block: NDArray[np.float32]) -> None:
        with self._lock:
            if len(self._free) < MOST_FREE:
                self._free.append(block)
