"""The five bleeds in their places: each is a signed depth on the grid of a slice, and an attenuation of 55-90 HU.

Sizes follow from a wanted volume by the shape's own formula; the true volume is counted from the mask afterwards.
Source of places and shapes: Osborn's Brain, 2nd edition, chapters 2 (trauma) and 4 (haemorrhage).
"""

import math
from dataclasses import dataclass

import numpy as np

from fastich.labels import SUBTYPES
from fastich.phantom.brain import Brain, MassEffect
from fastich.phantom.fields import Field, Grid, Vector, ellipsoid, overlap, sample_coarsely
from fastich.phantom.head import DOME_CENTER_Z_MM, Head
from fastich.phantom.skull import Shells

MIN_HU, MAX_HU = 55.0, 90.0
_EPIDURAL_PLACES = (
    ("frontal", 38.0, 55.0),
    ("temporal", 92.0, 34.0),
    ("temporal", 96.0, 40.0),
    ("temporal", 90.0, 30.0),
    ("parietal", 112.0, 58.0),
)
"""Bone, azimuth in degrees from the front, head z in mm; most lie under the temporal bone."""
_PARENCHYMAL_PLACES = (
    ((25, 0, 38), 40),
    ((12, 12, 38), 12),
    ((34, -40, 50), 45),
    ((36, 38, 58), 45),
    ((44, 5, 18), 30),
    ((30, 2, 66), 40),
    ((22, 48, -2), 20),
    ((26, 60, 52), 30),
)
"""Centre in head mm and the most that fits there, ml: basal ganglia, thalamus, the lobes, cerebellum."""
EPIDURAL, INTRAPARENCHYMAL, INTRAVENTRICULAR, SUBARACHNOID, SUBDURAL = SUBTYPES


@dataclass(frozen=True, kw_only=True)
class Bleed:
    """One bleed in head coordinates.

    ``center`` is where it sits (on the inner table, or in the brain), ``radius_mm`` its half width there,
    ``height_mm`` how far it reaches inwards; ``radii_mm`` replaces both for a bleed inside the brain.
    """

    subtype: str
    hu: float
    center: Vector
    radius_mm: float = 0.0
    height_mm: float = 0.0
    radii_mm: Vector = (0.0, 0.0, 0.0)
    side: int = 1
    place: str = ""
    wobble_step_mm: float = 1.6


def draw_bleed(rng: np.random.Generator, head: Head, subtype: str) -> Bleed:
    """A random bleed of one subtype; volumes are log-uniform within what the subtype shows (0.2-60 ml)."""
    hu = float(rng.triangular(MIN_HU + 7, 75, MAX_HU - 2))
    side = int(rng.choice((-1, 1)))
    if subtype == EPIDURAL:
        return _epidural(rng, head, hu, side)
    if subtype == SUBDURAL:
        return _subdural(rng, head, hu, side)
    if subtype == SUBARACHNOID:
        return _subarachnoid(rng, min(hu, 82.0), side)
    if subtype == INTRAVENTRICULAR:
        return _intraventricular(rng, hu, side)
    return _intraparenchymal(rng, hu, side)


def _volume_ml(rng: np.random.Generator, low: float, high: float) -> float:
    """Log-uniform, with the small fifth drawn once more so that barely visible bleeds stay a minority."""
    value = math.exp(rng.uniform(math.log(low), math.log(high)))
    return math.exp(rng.uniform(math.log(low), math.log(high))) if value < 2 else value


def _on_table(head: Head, azimuth: float, z_mm: float) -> Vector:
    """A point of the inner table: azimuth 0 = front, 90 = left side, in degrees."""
    up = (z_mm - DOME_CENTER_Z_MM) / (head.height_mm if z_mm > DOME_CENTER_Z_MM else 92.0)
    ring = math.sqrt(max(1 - up * up, 0.05))
    angle = math.radians(azimuth)
    return (head.half_width_mm * ring * math.sin(angle), -head.half_length_mm * ring * math.cos(angle), z_mm)


def _epidural(rng: np.random.Generator, head: Head, hu: float, side: int) -> Bleed:
    """Under one bone (frontal, temporal, parietal), a lens half as high as wide: volume = pi/2 * radius^2 * height."""
    place, azimuth, z_mm = _EPIDURAL_PLACES[int(rng.integers(len(_EPIDURAL_PLACES)))]
    ratio = float(rng.uniform(0.42, 0.6))
    volume = _volume_ml(rng, 1.5, 45)
    radius = (volume * 1000 / (math.pi / 2 * ratio)) ** (1 / 3)
    center = _on_table(head, side * (azimuth + float(rng.uniform(-6, 6))), z_mm + float(rng.uniform(-6, 6)))
    return Bleed(
        subtype=EPIDURAL, hu=hu, center=center, radius_mm=radius, height_mm=ratio * radius, side=side, place=place
    )


def _subdural(rng: np.random.Generator, head: Head, hu: float, side: int) -> Bleed:
    """Over one convexity (or along the falx), long and thin: volume = 2.1 * radius^2 * height, at most about 60 ml."""
    if rng.random() < 0.2:
        center = (0.0, float(rng.uniform(-30, 50)), float(rng.uniform(60, 80)))
        height, radius = float(rng.uniform(3.5, 6.5)), float(rng.uniform(28, 45))
        return Bleed(
            subtype=SUBDURAL, hu=hu, center=center, radius_mm=radius, height_mm=height, side=side, place="falx"
        )
    center = _on_table(head, side * float(rng.uniform(70, 110)), float(rng.uniform(48, 68)))
    small = rng.random() < 0.15
    height = float(rng.uniform(3.5, 5) if small else rng.uniform(5.5, 13))
    widest = math.sqrt(60_000 / (2.1 * height))
    radius = float(rng.uniform(22, 32) if small else rng.uniform(36, max(widest, 44)))
    return Bleed(
        subtype=SUBDURAL, hu=hu, center=center, radius_mm=radius, height_mm=height, side=side, place="convexity"
    )


def _subarachnoid(rng: np.random.Generator, hu: float, side: int) -> Bleed:
    if rng.random() < 0.5:
        middle = (side * float(rng.uniform(0, 12)), -8.0, 18.0)
        reach = (float(rng.uniform(32, 54)), float(rng.uniform(28, 46)), float(rng.uniform(14, 24)))
        return Bleed(subtype=SUBARACHNOID, hu=hu, center=middle, radii_mm=reach, side=side, place="cisterns")
    angle = float(rng.uniform(-1.9, 1.9))
    center = (side * (38 + 10 * math.cos(angle)), 52 * math.sin(angle), float(rng.uniform(48, 80)))
    radii = (float(rng.uniform(22, 34)), float(rng.uniform(24, 42)), float(rng.uniform(12, 24)))
    return Bleed(subtype=SUBARACHNOID, hu=hu, center=center, radii_mm=radii, side=side, place="sulci")


def _intraventricular(rng: np.random.Generator, hu: float, side: int) -> Bleed:
    place = ("level", "level", "level", "cast", "third")[int(rng.integers(5))]
    return Bleed(
        subtype=INTRAVENTRICULAR, hu=hu, center=(0.0, float(rng.uniform(38, 52)), 42.0), side=side, place=place
    )


def _intraparenchymal(rng: np.random.Generator, hu: float, side: int) -> Bleed:
    """An uneven ellipsoid in deep nuclei, a lobe or the cerebellum."""
    place, most = _PARENCHYMAL_PLACES[int(rng.integers(len(_PARENCHYMAL_PLACES)))]
    volume = _volume_ml(rng, 0.4, most)
    shape = rng.uniform(0.78, 1.28, 3)
    size = (volume * 1000 / (4 / 3 * math.pi) / float(shape.prod())) ** (1 / 3)
    x, y, z = (float(middle + rng.normal(0, spread)) for middle, spread in zip(place, (3, 4, 3), strict=True))
    radii = (size * float(shape[0]), size * float(shape[1]), size * float(shape[2]))
    return Bleed(subtype=INTRAPARENCHYMAL, hu=hu, center=(side * x, y, z), radii_mm=radii, radius_mm=size, side=side)


def mass_effect(bleeds: tuple[Bleed, ...]) -> MassEffect:
    """Midline shift and closed sulci that bleeds outside or inside the brain cause."""
    push = 0.0
    for bleed in bleeds:
        if bleed.subtype in (EPIDURAL, SUBDURAL) and bleed.place != "falx":
            push -= bleed.side * max(bleed.height_mm - 5, 0) * 0.45
        if bleed.subtype == INTRAPARENCHYMAL:
            push -= bleed.side * max(bleed.radius_mm - 12, 0) * 0.4
    side = 0 if abs(push) < 1.0 else (-1 if push > 0 else 1)
    return MassEffect(shift_mm=float(np.clip(push, -9, 9)), effaced_side=side)


def depth_of(bleed: Bleed, head: Head, grid: Grid, shell: Shells, brain: Brain, down: Vector) -> Field | None:
    """Signed depth (mm, positive inside) of a bleed on one slice; None where the slice cannot touch it.

    ``down`` is the direction of gravity in head coordinates: blood in the ventricles settles there.
    """
    if _misses(bleed, grid):
        return None
    if bleed.subtype == EPIDURAL:
        return _epidural_depth(bleed, grid, shell)
    if bleed.subtype == SUBDURAL:
        return _subdural_depth(bleed, grid, shell, brain)
    if bleed.subtype == INTRAVENTRICULAR:
        return _ventricular_depth(bleed, grid, brain, down)
    wobble = sample_coarsely(head.smooth, grid, bleed.wobble_step_mm)
    if bleed.subtype == SUBARACHNOID:
        region = ellipsoid(grid.x, grid.y, grid.z, bleed.center, bleed.radii_mm) + 3.5 * wobble
        return overlap(brain.fluid + 0.7, region, shell.cavity - 0.3)
    uneven = ellipsoid(grid.x, grid.y, grid.z, bleed.center, bleed.radii_mm) + 0.13 * bleed.radius_mm * wobble
    return overlap(uneven, brain.depth - 1.5, -brain.ventricle - 0.5)


def _misses(bleed: Bleed, grid: Grid) -> bool:
    if bleed.subtype == INTRAVENTRICULAR:
        return float(grid.z.min()) > 75 or float(grid.z.max()) < -15
    reach = max(bleed.radius_mm, bleed.radii_mm[2]) * 1.3 + 4
    return float(grid.z.min()) > bleed.center[2] + reach or float(grid.z.max()) < bleed.center[2] - reach


def _distance_2(bleed: Bleed, grid: Grid) -> Field:
    cx, cy, cz = bleed.center
    return np.asarray((grid.x - cx) ** 2 + (grid.y - cy) ** 2 + (grid.z - cz) ** 2, np.float32)


def _epidural_depth(bleed: Bleed, grid: Grid, shell: Shells) -> Field:
    """A lens on the inner table that stops at the coronal and the lambdoid suture."""
    lens = bleed.height_mm * (1 - _distance_2(bleed, grid) / bleed.radius_mm**2)
    behind_coronal = grid.y + 18 - 0.25 * (grid.z - 60)
    bone = -behind_coronal if bleed.place == "frontal" else overlap(behind_coronal, 66 - grid.y)
    return overlap(shell.cavity + 0.4, lens * (1 + 0.04 * shell.wobble) - shell.cavity, bone)


def _subdural_depth(bleed: Bleed, grid: Grid, shell: Shells, brain: Brain) -> Field:
    near = _distance_2(bleed, grid) / bleed.radius_mm**2
    crescent = bleed.height_mm * (1 - near * near) * (1 + 0.12 * shell.wobble)
    own_side = bleed.side * brain.midline_x
    if bleed.place == "falx":
        return overlap(crescent - brain.falx, own_side + 0.3, shell.cavity)
    return overlap(crescent - shell.cavity, shell.cavity + 0.3, own_side - 2)


def _ventricular_depth(bleed: Bleed, grid: Grid, brain: Brain, down: Vector) -> Field:
    if bleed.place == "third":
        return overlap(brain.ventricle + 1.2, 9 - np.abs(brain.midline_x), 46 - grid.z)
    if bleed.place == "cast":
        return overlap(brain.ventricle + 0.8, bleed.side * brain.midline_x)
    fallen = grid.x * down[0] + grid.y * down[1] + grid.z * down[2]
    level = bleed.center[1] * down[1] + bleed.center[2] * down[2]
    return overlap(brain.ventricle + 0.4, fallen - level)
