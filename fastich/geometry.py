"""Where slices lie in space: order along the slice normal, true spacing, gantry tilt, gaps and doubles. Numpy only.

Slice location, instance number and dz all mislead: with a tilted gantry the distance between planes is dz * cos(tilt),
and using dz inflates volumes by up to 13 %. Source: PS3.3 C.7.6.2.1.1 (position and orientation of the image plane).
"""

import functools
import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastich.types import SliceHeader

SAME_PLACE_MM = 0.01
"""Positions are written with 3 to 7 decimals; no scanner steps by less than 0.1 mm."""
GAP_FRACTION, GAP_MM = 0.10, 0.3
"""A distance is irregular when it differs from the commonest by more than either; and by more than rounding noise."""
ROUNDING_MM = 0.02
SAME_DISTANCE_MM = 0.05
UNIT_TOLERANCE = 0.01
"""Direction cosines are rounded to 4-6 decimals; worse than 1 % is not a pair of orthogonal unit vectors."""
PARALLEL_COSINE = math.cos(math.radians(0.5))
TILT_AGREES_DEG = 1.0

Vector = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesGeometry:
    """Order and spacing of one series.

    Attributes:
        order: indices into the headers given, in slice order (feet to head for axial slices).
        z_mm: place of each slice along the normal, in that order; NaN where the header does not say.
        spacing_mm: commonest distance between neighbours along the normal, doubles left out; None if unknown.
        tilt_deg: angle from the normal to the table axis, signed about the patient's x axis; 0 if unknown.
        distances_mm: the N-1 distances between neighbours along the normal; () where order is by number.
        gaps_mm: the distances that differ from ``spacing_mm``, distinct, in order, to 0.01 mm.
        duplicates: indices into the headers of slices that lie where an earlier one lies.
        problems: one line for each thing that is not as it should be.
    """

    order: tuple[int, ...]
    z_mm: tuple[float, ...]
    spacing_mm: float | None
    tilt_deg: float
    distances_mm: tuple[float, ...]
    gaps_mm: tuple[float, ...]
    duplicates: tuple[int, ...]
    problems: tuple[str, ...]


def slice_normal(orientation: Sequence[float] | None) -> Vector | None:
    """Unit normal of an image plane, pointing to the larger side of its main axis; None for an invalid orientation.

    The sign is fixed so that axial slices run from feet to head whichever way the rows and columns were written. The
    array is read-only: the slices of a series share it.
    """
    return None if orientation is None else _normal(struct.pack("6d", *orientation))


@functools.lru_cache(maxsize=4096)
def _normal(orientation: bytes) -> Vector | None:
    """Kept, for it is asked for three times a slice and is the same all over a series.

    By the bytes of the six float64: equal numbers of other bits (0 and -0) may give a normal of other bits.
    """
    row, column = np.asarray(struct.unpack("3d3d", orientation), dtype=np.float64).reshape(2, 3)
    lengths = (float(row @ row), float(column @ column))
    if not all(abs(length - 1) < UNIT_TOLERANCE for length in lengths) or not abs(float(row @ column)) < UNIT_TOLERANCE:
        return None
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    upward: Vector = normal if normal[int(np.argmax(np.abs(normal)))] > 0 else -normal
    upward.flags.writeable = False
    return upward


def same_direction(one: Vector, other: Vector) -> bool:
    """Tell whether two unit vectors differ by less than half a degree."""
    return float(one @ other) > PARALLEL_COSINE


def order_series(headers: Sequence[SliceHeader]) -> SeriesGeometry:
    """Order the slices of one series along their normal; by instance number, and saying so, where that cannot be done.

    Slices at the same place keep the order of instance number, then path and frame.
    """
    normals = [slice_normal(header.orientation) for header in headers]
    first = next((normal for normal in normals if normal is not None), None)
    lacking = sum(n is None or h.position_mm is None for n, h in zip(normals, headers, strict=True))
    if first is None or lacking:
        return _by_number(headers, f"{lacking} of {len(headers)} slices lack a valid position or orientation")
    if not all(same_direction(first, normal) for normal in normals if normal is not None):
        return _by_number(headers, "slices of different orientation in one series")
    return _by_position(headers, first)


def _number_key(headers: Sequence[SliceHeader], index: int) -> tuple[float, str, int]:
    header = headers[index]
    number = math.inf if header.instance_number is None else float(header.instance_number)
    return number, header.path, header.frame


def _by_number(headers: Sequence[SliceHeader], why: str) -> SeriesGeometry:
    order = sorted(range(len(headers)), key=lambda index: _number_key(headers, index))
    return SeriesGeometry(
        order=tuple(order),
        z_mm=(math.nan,) * len(headers),
        spacing_mm=None,
        tilt_deg=_header_tilt(headers),
        distances_mm=(),
        gaps_mm=(),
        duplicates=(),
        problems=(f"{why}: ordered by instance number, distances unknown",),
    )


def _by_position(headers: Sequence[SliceHeader], normal: Vector) -> SeriesGeometry:
    positions = np.asarray([header.position_mm for header in headers], dtype=np.float64)
    z_mm = positions @ normal
    order = sorted(range(len(headers)), key=lambda i: (round(float(z_mm[i]) / SAME_PLACE_MM), _number_key(headers, i)))
    distances = [max(0.0, float(z_mm[b] - z_mm[a])) for a, b in itertools.pairwise(order)]
    steps = [step for step in distances if step > SAME_PLACE_MM]
    spacing = _regular_spacing(steps)
    duplicates = tuple(b for b, step in zip(order[1:], distances, strict=True) if step <= SAME_PLACE_MM)
    gaps = _gaps(steps, spacing)
    measured = _measured_tilt(positions[order[-1]] - positions[order[0]], normal)
    header_tilt = _header_tilt(headers)
    return SeriesGeometry(
        order=tuple(order),
        z_mm=tuple(float(z_mm[i]) for i in order),
        spacing_mm=spacing,
        tilt_deg=header_tilt if measured is None else measured,
        distances_mm=tuple(distances),
        gaps_mm=gaps,
        duplicates=duplicates,
        problems=_problems(normal, duplicates, gaps, measured, header_tilt),
    )


def _regular_spacing(steps: Sequence[float]) -> float | None:
    """The commonest distance: the median of the largest group of equal ones, the smaller of two as large.

    A plain median would name the junction's distance where half of a series is thin and half is thick.
    """
    if not steps:
        return None
    ordered = np.sort(np.asarray(steps, dtype=np.float64))
    first = np.searchsorted(ordered, ordered - SAME_DISTANCE_MM)
    end = np.searchsorted(ordered, ordered + SAME_DISTANCE_MM, side="right")
    commonest = int(np.argmax(end - first))
    return float(np.median(ordered[first[commonest] : end[commonest]]))


def _gaps(steps: Sequence[float], spacing: float | None) -> tuple[float, ...]:
    gaps: list[float] = []
    for step in steps if spacing else ():
        assert spacing is not None
        odd = abs(step - spacing) > max(ROUNDING_MM, min(GAP_FRACTION * spacing, GAP_MM))
        if odd and not any(abs(step - known) <= SAME_DISTANCE_MM for known in gaps):
            gaps.append(round(step, 2))
    return tuple(gaps)


def _measured_tilt(displacement: Vector, normal: Vector) -> float | None:
    """Angle between the normal and the way from the first slice to the last, in degrees; None for a single place."""
    length = float(np.linalg.norm(displacement))
    if length <= SAME_PLACE_MM:
        return None
    axis = displacement / length
    across = np.cross(normal, axis)
    angle = math.degrees(math.atan2(float(np.linalg.norm(across)), float(normal @ axis)))
    return math.copysign(angle, float(across[0])) if angle > 0.01 else 0.0


def _header_tilt(headers: Sequence[SliceHeader]) -> float:
    return next((h.header_tilt_deg for h in headers if h.header_tilt_deg is not None), 0.0)


def _problems(
    normal: Vector, duplicates: tuple[int, ...], gaps: tuple[float, ...], measured: float | None, header_tilt: float
) -> tuple[str, ...]:
    found = []
    plane = ("sagittal", "coronal", "axial")[int(np.argmax(np.abs(normal)))]
    if plane != "axial":
        found.append(f"slices are {plane}, not axial")
    if duplicates:
        found.append(f"{len(duplicates)} slices lie where another one lies")
    if gaps:
        found.append("irregular distances: " + ", ".join(f"{gap:g} mm" for gap in gaps))
    if measured is not None and header_tilt and abs(abs(measured) - abs(header_tilt)) > TILT_AGREES_DEG:
        found.append(f"the header says a tilt of {header_tilt:g} degrees, the positions {measured:.1f}")
    return tuple(found)
