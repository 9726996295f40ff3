"""The native loader over a cache: the same pass of the compiled core, but the bytes are in RAM and already small.

Plain, a half-first record gives the very image that ``native.py`` gives. Augmented, the affine map runs on the plane
of the network's side and not on the native slice (bilinear there, air outside): the image differs from warping
natively and averaging then by what half a native pixel of blur does, 2 HU on smooth tissue (tests), more at a skull's
edge. See ``plane_matrix`` for the map.
Shapes: N slices, S output side, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastich import ops
from fastich.loaders.augment import draw
from fastich.loaders.cache import Cache
from fastich.loaders.config import Batch
from fastich.loaders.cpu import finished_batch
from fastich.loaders.order import Int64Array, Step
from fastich.loaders.source import Source, ahead

HALF_HU = 0.5
"""What a half plane lacks to the block mean, on average."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is to be decoded for one step.

    Attributes:
        step: rows and positions.
        slots: int64 [N], of the cache.
        matrices: float32 [N, 6], affine maps from output to input pixels of the plane, or None.
        intensity: float32 [N, 2]: gain, and what is added after it in HU, the half plane's 0.5 included.
    """

    step: Step
    slots: Int64Array
    matrices: NDArray[np.float32] | None
    intensity: NDArray[np.float32]


def plan(source: Source, cache: Cache, epoch: int, step: Step) -> Plan:
    """The plan of ``step`` of ``epoch``; random changes are the ones that every loader makes."""
    slots, count = cache.slots(step.rows), len(step.rows)
    lacking_hu = HALF_HU * cache.half[slots]
    if not source.config.augment:
        intensity = np.column_stack([np.ones(count), lacking_hu]).astype(np.float32)
        return Plan(step=step, slots=slots, matrices=None, intensity=intensity)
    changes = draw(source.config.seed, epoch, step.positions)
    maps = np.empty((count, 6), np.float32)
    for item, row in enumerate(step.rows):
        shape = source.reader.shape(int(row))
        maps[item] = plane_matrix(changes.matrix(item, *shape), *shape, cache.side).ravel()
    intensity = np.column_stack([changes.gain, changes.offset_hu + changes.gain * lacking_hu]).astype(np.float32)
    return Plan(step=step, slots=slots, matrices=maps, intensity=intensity)


def plane_matrix(matrix: NDArray[np.float64], height: int, width: int, side: int) -> NDArray[np.float64]:
    """The map [2, 3] on a plane of ``side`` that does what ``matrix`` does on the native slice [height, width].

    Pixel centres stand at +0.5, so a native point x lies at ``c = (x + p) s`` of the plane, with ``s = side / square``
    and ``p`` the air before the slice in its square. From ``x' = T x + t`` follows ``c' = T c + s (t + p - T p)``.
    (In the plane's air a map may show what the native slice's border would have cut off.)
    """
    square = max(height, width)
    before = np.array([(square - width) // 2, (square - height) // 2])
    turn = matrix[:, :2]
    return np.column_stack([turn, side / square * (matrix[:, 2] + before - turn @ before)])


def batches(source: Source, cache: Cache, epoch: int, start: int) -> Iterator[Batch]:
    """The batches of ``epoch`` from number ``start`` on; pinned where the config's device is ``cuda``."""
    config = source.config
    fused = ops.DecodeWindow(config.windows, config.size, layout=ops.HWC)

    def make(step: Step) -> Batch:
        todo = plan(source, cache, epoch, step)
        images_NSSC = source.empty_images(len(step.rows))
        for item, slot in enumerate(todo.slots):
            matrix = None if todo.matrices is None else todo.matrices[item]
            gain, offset_hu = todo.intensity[item].tolist()
            fused(
                cache.payload(int(slot)), cache.side, cache.side, "lbp", images_NSSC[item].data_ptr(),
                matrix=matrix, gain=gain, offset_hu=offset_hu,
            )  # fmt: skip
        return finished_batch(source, step, images_NSSC.permute(0, 3, 1, 2), pin=config.device == "cuda")

    return ahead(make, source.order.steps(epoch, start), config.threads)
