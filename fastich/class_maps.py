"""Whether a class map, laid over its slice, points where a mask says. Numpy and scipy.

A map (``class_map_grid``) is coarse: at 256 px 8 x 8 cells, each 32 mm of a 256 mm field. What it can point at is a
region, and pointing is told beside its chance level.
Source of the pointing game: Zhang et al., "Top-down neural attention by excitation backprop", IJCV 126 (2018) 1084; of
the energy: Wang et al., "Score-CAM", CVPRW 2020, section 4.2.
Shapes: H rows, W columns of a slice, h rows, w columns of a map.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, distance_transform_edt, label

from fastich.class_map_grid import Floats, Mask, cells, peak, to_slice
from fastich.types import HuArray

__all__ = ["Floats", "Mask", "Pointing", "cells", "head", "peak", "pointing", "to_slice"]

TISSUE_HU = -200
"""Between fat (about -100) and air (-1000): what is above counts as head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pointing:
    """How one map agrees with the mask of its label on one slice.

    Attributes:
        hit: the map's peak in the head is within the tolerance of the mask; ``chance`` is the share of head that is.
        cell_hit: the cell of the peak touches the mask; ``cell_chance`` is the share of head in cells that do.
        energy: share of the map's positive part, over the head, inside the mask; None where no part is positive.
        mask_share: share of the head inside the mask: the energy of a flat map.
    """

    hit: bool
    chance: float
    cell_hit: bool
    cell_chance: float
    energy: float | None
    mask_share: float


def head(hu: HuArray) -> Mask:
    """The head in a slice [H, W]: the largest piece of tissue and bone, holes filled, without table and holder.

    Where there is no tissue, all of it.
    """
    pieces, count = label(hu > TISSUE_HU)
    if count == 0:
        return np.ones(hu.shape, dtype=np.bool_)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray(binary_fill_holes(pieces == sizes.argmax()), dtype=np.bool_)


def pointing(
    map_hw: NDArray[np.floating], mask_HW: Mask, head_HW: Mask, spacing_mm: tuple[float, float], tolerance_mm: float
) -> Pointing:
    """Judge the map of one label on one slice.

    Args:
        map_hw: class map in logits, as the network gives it.
        mask_HW: where the label is; not empty.
        head_HW: where a peak could lie.
        spacing_mm: distance of rows and of columns.
        tolerance_mm: how far from the mask still counts.
    """
    assert mask_HW.any(), "a slice that carries the label has a mask"
    whole = to_slice(map_hw, (mask_HW.shape[0], mask_HW.shape[1]))
    at = peak(whole, head_HW)
    near = np.asarray(distance_transform_edt(~mask_HW, sampling=spacing_mm)) <= tolerance_mm
    touched = _touched_cells(mask_HW, (map_hw.shape[0], map_hw.shape[1]))
    positive = np.maximum(whole, 0) * head_HW
    return Pointing(
        hit=bool(near[at]),
        chance=_share(near, head_HW),
        cell_hit=bool(touched[at]),
        cell_chance=_share(touched, head_HW),
        energy=float((positive * mask_HW).sum() / positive.sum()) if positive.sum() > 0 else None,
        mask_share=_share(mask_HW, head_HW),
    )


def _touched_cells(mask_HW: Mask, counts: tuple[int, int]) -> Mask:
    """Pixels [H, W] of the cells that the mask touches."""
    side = max(mask_HW.shape)
    rows, columns = (cells(length, side, count) for length, count in zip(mask_HW.shape, counts, strict=True))
    touched = np.zeros(counts, dtype=bool)
    at_row, at_column = np.nonzero(mask_HW)
    touched[rows[at_row], columns[at_column]] = True
    return np.asarray(touched[rows[:, None], columns[None, :]], dtype=np.bool_)


def _share(part: Mask, whole: Mask) -> float:
    return float((part & whole).sum() / whole.sum())
