"""From a class map of the network's square back to the slice that it was made of. Numpy only, for the server too.

A class map is a grid of cells over the square that the slice was centred in (``windowing.resize_area``), so cell (i, j)
covers ``[i * s, (i + 1) * s)`` rows of that square, s = side / cells.
Shapes: H rows, W columns of a slice, h rows, w columns of a map.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


def cells(length: int, side: int, count: int) -> NDArray[np.int64]:
    """The cell of each pixel along one axis, int64 [length]: ``count`` cells over a square of ``side`` pixels."""
    pad = (side - length) // 2
    found: NDArray[np.int64] = ((np.arange(length) + pad + 0.5) * count / side).astype(np.int64)
    return np.minimum(found, count - 1)


def to_slice(map_hw: NDArray[np.floating], shape: tuple[int, int]) -> Floats:
    """The map over the slice, bilinear between the centres of cells and flat beyond the outer ones: [H, W]."""
    side = max(shape)
    rows, columns = (_weights(length, side, count) for length, count in zip(shape, map_hw.shape, strict=True))
    over: Floats = np.asarray(rows @ map_hw.astype(np.float64) @ columns.T, dtype=np.float64)
    return over


def _weights(length: int, side: int, count: int) -> Floats:
    """Bilinear weights [length, count] of the cells for each pixel along one axis."""
    pad = (side - length) // 2
    place = np.clip((np.arange(length) + pad + 0.5) * count / side - 0.5, 0, count - 1)
    return np.asarray(np.maximum(1 - np.abs(place[:, None] - np.arange(count)[None, :]), 0), dtype=np.float64)


def peak(map_HW: Floats, head_HW: Mask) -> tuple[int, int]:
    """Row and column of the largest value of a map in the head; of equals the middle one in reading order.

    Only in the head, where a bleed can be: in the air around it a map may rise too, for a cell's features see the whole
    slice.
    """
    inside = np.where(head_HW, map_HW, -np.inf)
    largest = np.argwhere(inside == inside.max())
    row, column = largest[len(largest) // 2]
    return int(row), int(column)
