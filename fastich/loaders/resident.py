"""The GPU loader over a cache on the GPU: a batch is a few hundred bytes of plan, decoded there on a stream beside
the one that trains.

No GPU has run this; tests run it on CPU tensors with a stand-in that decodes with ``ops.DecodeWindow``.
Per step the host sends the slots, the affine maps and the intensities (40 bytes a slice) and waits for nothing:
offsets, sizes and labels stand on the device, and what the decoder says of each slice is gathered there and looked at
every ``CHECK_EVERY`` batches. The host runs ahead, so the next batch is decoded while the one in use trains.

Shapes: N slices, M slices of the split, S side, C channels, B batch size.
"""

from collections.abc import Iterator
from functools import partial
from typing import Protocol

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

CHECK_EVERY = 20
"""As often as the training loop looks at its losses (``training/loss_watch.py``)."""
PLANNING_THREADS = 1
"""A plan takes 1 ms for 64 augmented slices; a step takes longer."""


class BatchDecoder(Protocol):
    """Decodes a batch of flat payloads on a device, with the windows, side and element type that it was made with.

    Every argument is an address on the device; the call queues its work on ``stream`` and returns at once.
    """

    def scratch_bytes(self, count: int, height: int, width: int) -> int:
        """Bytes of device memory that a call over ``count`` slices needs to work in."""

    def __call__(
        self,
        *,
        count: int,
        data: int,
        offset: int,
        size: int,
        height: int,
        width: int,
        matrices: int | None,
        intensity: int | None,
        out: int,
        status: int,
        scratch: int,
        stream: int,
    ) -> None:
        """Decode ``count`` slices.

        Args:
            count: N.
            data: uint8 [*], the buffer.
            offset: int64 [N], where each payload starts in it.
            size: int64 [N], bytes of each payload.
            height: int32 [N], of each slice.
            width: int32 [N], of each slice.
            matrices: float32 [N, 6], affine maps from output to input pixels, or None.
            intensity: float32 [N, 2], gain and offset in HU, or None.
            out: float32 [N, S, S, C].
            status: int32 [N], set to 0 for each slice that decoded.
            scratch: ``scratch_bytes`` to work in.
            stream: the ``cudaStream_t``.
        """


class Resident:
    """The batches of one split whose cache is on the GPU."""

    def __init__(self, source: Source, cache: Cache, decode: BatchDecoder) -> None:
        """Put offsets, sizes and labels beside the cache."""
        device = cache.data.device
        labels = source.labels[cache.rows].astype(np.float32)
        self._source, self._cache, self._decode, self._device = source, cache, decode, device
        self._offsets, self._sizes, self._labels = (
            torch.from_numpy(values).to(device) for values in (cache.offsets, cache.sizes, labels)
        )
        size = source.config.batch_size
        self._sides = torch.full((size,), cache.side, dtype=torch.int32, device=device)
        self._scratch = torch.empty(
            decode.scratch_bytes(size, cache.side, cache.side), dtype=torch.uint8, device=device
        )
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
                    f"(status {status}), though it was whole when it was read: start again, or use --cache host"
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
            self._decode(
                count=count,
                data=self._cache.data.data_ptr(),
                offset=offset.data_ptr(),
                size=size.data_ptr(),
                height=self._sides.data_ptr(),
                width=self._sides.data_ptr(),
                matrices=None if matrices is None else matrices.data_ptr(),
                intensity=intensity.data_ptr(),
                out=out_NSSC.data_ptr(),
                status=status.data_ptr(),
                scratch=self._scratch.data_ptr(),
                stream=self._side.handle,
            )
            labels = self._labels[slots]
        self._unseen.append((status, todo))
        return out_NSSC.permute(0, 3, 1, 2), labels

    def _sent(self, values: NDArray[np.generic]) -> Tensor:
        """``values`` on the device, through pinned memory where it is a GPU, without waiting."""
        tensor = torch.from_numpy(values)
        return tensor.pin_memory().to(self._device, non_blocking=True) if self._device.type == "cuda" else tensor
