"""The GPU loader over a cache on the GPU: a batch is a few hundred bytes of plan, decoded there on a stream beside
the one that trains.

No GPU has run this; tests run it on CPU tensors with the CUDA kernels under their emulator (tests/cuda_emulator.h).
Per step the host sends the slots, the affine maps and the intensities (40 bytes a slice) and waits for nothing:
offsets, sizes and labels stand on the device, and what the decoder says of each slice is gathered there and looked at
every ``CHECK_EVERY`` batches. The host runs ahead, so the next batch is decoded while the one in use trains.

Shapes: N slices, M slices of the split, S side, C channels, B batch size.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastich.errors import RecordError
from fastich.loaders.cache import Cache
from fastich.loaders.cached import Plan, plan
from fastich.loaders.config import Batch
from fastich.loaders.source import Source, ahead
from fastich.loaders.streams import SideStream
from fastich.ops_cuda import STATUS_TEXT, CudaDecodeWindow, DeviceBatch

CHECK_EVERY = 20
"""As often as the training loop looks at its losses (``training/loss_watch.py``)."""
SCRATCH_ALIGNMENT = 256
"""Of the address of scratch memory (``ops_cuda.scratch_bytes``)."""
PLANNING_THREADS = 1
"""A plan takes 1 ms for 64 augmented slices; a step takes longer."""


class Resident:
    """The batches of one split whose cache is on the GPU."""

    def __init__(self, source: Source, cache: Cache, decode: CudaDecodeWindow) -> None:
        """Put offsets, sizes and labels beside the cache."""
        device = cache.data.device
        labels = source.labels[cache.rows].astype(np.float32)
        self._source, self._cache, self._decode, self._device = source, cache, decode, device
        self._offsets, self._sizes, self._labels = (
            torch.from_numpy(values).to(device) for values in (cache.offsets, cache.sizes, labels)
        )
        size = source.config.batch_size
        self._sides = torch.full((size,), cache.side, dtype=torch.int32, device=device)
        scratch_bytes = decode.scratch_bytes(size, "lbp", cache.side, cache.side)
        room = torch.empty(scratch_bytes + SCRATCH_ALIGNMENT, dtype=torch.uint8, device=device)
        self._scratch = room[-room.data_ptr() % SCRATCH_ALIGNMENT :][:scratch_bytes]
        self._side = SideStream(device)
        self._unseen: list[tuple[Tensor, Plan]] = []

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of ``epoch`` from number ``start`` on, images and labels on the device.

        Raises:
            RecordError: a payload did not decode; said at most ``CHECK_EVERY`` batches after it came out.
        """
        self._side.follow()  # the buffers above were filled on the current stream
        steps = self._source.order.steps(epoch, start)
        for todo in ahead(partial(plan, self._source, self._cache, epoch), steps, PLANNING_THREADS):
            images_NCSS, labels = self._queue(todo)
            self._side.hand_over(images_NCSS, labels)
            yield Batch(images=images_NCSS, labels=labels, rows=torch.from_numpy(todo.step.rows))
            if len(self._unseen) >= CHECK_EVERY:
                self.check()
        self.check()

    def check(self) -> None:
        """Look at what the decoder said of the batches since the last look: one wait for the device.

        Raises:
            RecordError: a payload did not decode; names the record's file and byte offset.
        """
        if not self._unseen:
            return
        statuses = torch.cat([status for status, _ in self._unseen]).tolist()
        rows = np.concatenate([todo.step.rows for _, todo in self._unseen])
        self._unseen.clear()
        for row, status in zip(rows, statuses, strict=True):
            if status:
                raise RecordError(
                    f"{self._source.reader.place(int(row))}: row {row}: its copy in the cache does not decode "
                    f"({STATUS_TEXT[status]}), though it was whole when it was read: start again, or use --cache host"
                )

    def _queue(self, todo: Plan) -> tuple[Tensor, Tensor]:
        """Images [N, C, S, S] and labels [N, 6] of a plan, queued on the side stream."""
        count, config = len(todo.slots), self._source.config
        with self._side.queued():
            slots, intensity = self._sent(todo.slots), self._sent(todo.intensity)
            matrices = None if todo.matrices is None else self._sent(todo.matrices)
            offset, size = self._offsets[slots], self._sizes[slots]
            status = torch.empty(count, dtype=torch.int32, device=self._device)
            out_NSSC = torch.empty((count, config.size, config.size, config.num_channels), device=self._device)
            batch = DeviceBatch(
                data=self._cache.data.data_ptr(),
                data_bytes=self._cache.size_bytes,
                offset=offset.data_ptr(),
                size=size.data_ptr(),
                height=self._sides.data_ptr(),
                width=self._sides.data_ptr(),
                num=count,
                codec="lbp",
                max_height=self._cache.side,
                max_width=self._cache.side,
            )
            self._decode(
                batch,
                out_NSSC.data_ptr(),
                status.data_ptr(),
                self._scratch.data_ptr(),
                self._scratch.numel(),
                self._side.handle,
                matrix=0 if matrices is None else matrices.data_ptr(),
                intensity=intensity.data_ptr(),
            )
            labels = self._labels[slots]
        self._unseen.append((status, todo))
        return out_NSSC.permute(0, 3, 1, 2), labels

    def _sent(self, values: NDArray[np.generic]) -> Tensor:
        """``values`` on the device, through pinned memory where it is a GPU, without waiting."""
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor
