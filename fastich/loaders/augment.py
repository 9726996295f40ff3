"""Random changes of a slice, drawn here once for both backends: flip, rotation, scale, shift, gain and offset.

Order of use, part of the definition: the affine map at native resolution (bilinear, air outside), the area mean,
the intensity ``HU * gain + offset``, the windows. The three planes of adjacent mode share one draw. From a cache the
area mean comes first and the map runs at the network's resolution (``cached.py``).
The ranges are mild: a head stays a head, and blood (50-90 HU) stays inside the brain window.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastich.loaders.order import Int64Array

AUGMENT_STREAM = 1
"""Third word of the random seed; see ``order.ORDER_STREAM``."""
NUM_DRAWS = 7
MAX_ROTATION_DEG = 10.0
SCALE_RANGE = (0.9, 1.1)
MAX_SHIFT = 0.05
"""Of the image's side, along each axis."""
GAIN_RANGE = (0.95, 1.05)
MAX_OFFSET_HU = 5.0

GRID = 2.0**-12
"""Step of a map's entries. DALI adds them up along a row in float32, which is exact on this grid for images up to
2048 pixels a side; without it the far end of a row of 512 drifts by 0.003 pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What is done to each of N slices: arrays [N]; shifts are fractions of the image's width and height."""

    flip: NDArray[np.bool_]
    rotation_deg: NDArray[np.float64]
    scale: NDArray[np.float64]
    shift_x: NDArray[np.float64]
    shift_y: NDArray[np.float64]
    gain: NDArray[np.float32]
    offset_hu: NDArray[np.float32]

    def matrix(self, item: int, height: int, width: int) -> NDArray[np.float64]:
        """The affine map [2, 3] of slice ``item``: where in the input, (x, y) in pixels, an output point comes from.

        Coordinates are continuous with pixel centres at +0.5, so (0, 0) is the image's corner. Seen from input to
        output the image is mirrored left-right, scaled and rotated about its centre, then shifted. Every entry is a
        multiple of ``GRID``.
        """
        angle = np.deg2rad(self.rotation_deg[item])
        cos, sin = np.cos(angle) / self.scale[item], np.sin(angle) / self.scale[item]
        turn = np.round(np.array([[cos, sin], [-sin, cos]]) / GRID) * GRID
        if self.flip[item]:
            turn[0] = -turn[0]
        center = np.array([width / 2, height / 2])
        shift = np.array([self.shift_x[item] * width, self.shift_y[item] * height])
        return np.column_stack([turn, np.round((center - turn @ (center + shift)) / GRID) * GRID])


def draw(seed: int, epoch: int, positions: Int64Array) -> Augmentation:
    """The changes of the slices at ``positions`` [N] of an epoch: a pure function of (seed, epoch, position)."""
    first = int(positions.min())
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch, AUGMENT_STREAM]))
    bits.advance(first * NUM_DRAWS)  # one 64-bit word a draw
    table = np.random.Generator(bits).random((int(positions.max()) - first + 1, NUM_DRAWS))
    uniform = table[positions - first].T
    return Augmentation(
        flip=uniform[0] < 0.5,
        rotation_deg=_between(uniform[1], -MAX_ROTATION_DEG, MAX_ROTATION_DEG),
        scale=_between(uniform[2], *SCALE_RANGE),
        shift_x=_between(uniform[3], -MAX_SHIFT, MAX_SHIFT),
        shift_y=_between(uniform[4], -MAX_SHIFT, MAX_SHIFT),
        gain=_between(uniform[5], *GAIN_RANGE).astype(np.float32),
        offset_hu=_between(uniform[6], -MAX_OFFSET_HU, MAX_OFFSET_HU).astype(np.float32),
    )


def _between(uniform: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    return low + uniform * (high - low)
