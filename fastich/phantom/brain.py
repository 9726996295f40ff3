"""What lies in the cranial cavity: grey and white matter, ventricles, sulci, cisterns, falx, tentorium.

Sulci are the zero surface of a smooth noise stretched towards the middle of the head, so that they cut in from the
surface as real ones do; grey matter follows every surface that faces fluid.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fastich.phantom.fields import Field, Grid, ellipsoid, inside, mix, round_cone, sample
from fastich.phantom.head import DOME_CENTER_Z_MM, Head
from fastich.phantom.skull import Shells

DURA_HU, SINUS_HU, STEM_HU, CEREBELLUM_HU, CALCIUM_HU = 44.0, 50.0, 31.0, 34.0, 260.0
NOWHERE_MM = -99.0

_VENTRICLE_PATH: tuple[tuple[tuple[float, float, float], float], ...] = (
    ((13.5, -39, 37), 3.0),
    ((9, -24, 45), 4.6),
    ((7, -6, 52), 4.8),
    ((9.5, 10, 57), 5.2),
    ((15, 25, 54), 6.0),
    ((24, 37, 46), 7.6),
    ((25, 53, 41), 4.4),
    ((21, 67, 39), 2.2),
)
_TEMPORAL_PATH: tuple[tuple[tuple[float, float, float], float], ...] = (
    ((25, 35, 42), 6.0),
    ((33, 24, 26), 3.2),
    ((34, 8, 15), 2.4),
    ((30, -3, 12), 2.0),
)
_SYLVIAN_PATH: tuple[tuple[float, float], ...] = ((72, -24), (50, -17), (41, -9), (39.5, 12), (47, 27), (60, 34))


@dataclass(frozen=True, kw_only=True)
class Brain:
    """Signed depths in mm, positive inside, float32 [H, W], and the picture they make."""

    hu: Field
    ventricle: Field
    fluid: Field
    """Sulci, fissures and cisterns; the thin rim under the skull is not among them."""
    cistern: Field
    depth: Field
    """Below the surface of the brain."""
    falx: Field
    """Distance from the falx (mm, from 0), large where there is none."""
    above_tentorium: Field
    midline_x: Field
    """x of the brain before a mass pushed it, mm."""


@dataclass(frozen=True, kw_only=True)
class MassEffect:
    """How a bleed moves the brain: shift of the midline (mm, towards +x if positive) and sulci closed on one side."""

    shift_mm: float = 0.0
    effaced_side: int = 0


def draw_brain(head: Head, grid: Grid, shell: Shells, mass: MassEffect) -> Brain:
    """The brain of ``head`` on one grid, with every structure's depth that bleeds need."""
    x = grid.x - mass.shift_mm * np.clip(1 - shell.radius**2, 0, 1)
    ax = np.abs(x + 0.9 * shell.wobble)
    tentorium = _tentorium(grid, ax)
    rim = np.minimum(shell.dome - (1.0 + 2.2 * head.atrophy), shell.cavity - 0.4)
    sulci = _sulci(head, grid, shell, x, rim, mass)
    midline = _midline_reach(grid)
    fissure = np.minimum(0.9 + 1.2 * head.atrophy + 0.5 * shell.wobble - np.abs(x), midline)
    fissure = np.minimum(fissure, tentorium)
    cistern = np.maximum(_cisterns(head, grid, ax, shell.wobble), _sylvian(head, grid, ax))
    cistern = np.maximum(cistern, fissure)
    sulci = np.where(tentorium > 0, sulci, -6)
    fluid = np.minimum(np.maximum(sulci, cistern), shell.cavity)
    ventricle = np.minimum(_ventricles(head, grid, x, ax), shell.cavity - 6)
    hu = _tissue(head, grid, shell, ax, tentorium, np.maximum(fluid, -rim))
    mix(hu, head.csf_hu, inside(np.maximum(fluid, -rim), grid.blur_mm + 0.5))
    mix(hu, head.csf_hu, inside(ventricle, grid.blur_mm + 0.5))
    falx = np.where(np.minimum(midline, tentorium) > 1.5, np.abs(x), np.float32(-NOWHERE_MM))
    _dura(hu, grid, shell, x, falx, tentorium)
    _calcium(hu, head, grid, x, ax)
    return Brain(
        hu=hu,
        ventricle=ventricle,
        fluid=fluid,
        cistern=np.minimum(cistern, shell.cavity),
        depth=rim,
        falx=falx,
        above_tentorium=tentorium,
        midline_x=x,
    )


def _midline_reach(grid: Grid) -> Field:
    """Positive where the hemispheres are apart: outside callosum, thalami and brain stem."""
    core = np.sqrt(((grid.y - 4) / 40) ** 2 + ((grid.z - 34) / 27) ** 2)
    return np.asarray((core - 1) * 27, np.float32)


def _tentorium(grid: Grid, ax: Field) -> Field:
    """Signed distance from the tentorium: positive above it, and everywhere in front of the posterior fossa."""
    height = 52 - 0.72 * ax - 0.018 * (grid.y - 42) ** 2
    front = 0.36 * ax + 9 - grid.y
    return np.asarray(np.maximum((grid.z - height) * 0.8, front), np.float32)


def _sulci(head: Head, grid: Grid, shell: Shells, x: Field, rim: Field, mass: MassEffect) -> Field:
    dz = grid.z - DOME_CENTER_Z_MM
    distance = np.maximum(np.sqrt(x * x + grid.y * grid.y + dz * dz), 45)
    stretch = 0.22 + 56 / distance
    noise = sample(head.cortex, x * stretch, grid.y * stretch, dz * stretch, 2.15)
    down, across = np.gradient(noise, np.float32(grid.pitch_mm))
    slope = np.sqrt(down * down + across * across) + 0.035
    width = (0.55 + 1.5 * head.atrophy) * (1 - rim / (15 + 9 * head.atrophy)) * (1 + 0.35 * shell.wobble)
    if mass.effaced_side:
        width -= 1.2 * inside(mass.effaced_side * x, 20)
    return np.asarray(width - np.abs(noise) / slope - 0.35 * np.maximum(rim - 20, 0), np.float32)


def _sylvian(head: Head, grid: Grid, ax: Field) -> Field:
    level = 1 - ((grid.z - 30) / 19) ** 2
    if float(level.max()) < 0:
        return np.full_like(ax, NOWHERE_MM)
    flat = np.zeros_like(ax)
    out = np.full_like(ax, NOWHERE_MM)
    for (x0, y0), (x1, y1) in pairwise(_SYLVIAN_PATH):
        np.maximum(out, round_cone(ax, grid.y, flat, (x0, y0, 0), (x1, y1, 0), (0, 0)), out=out)
    return np.asarray(out + (1.0 + 2.0 * head.atrophy) * level, np.float32)


def _cisterns(head: Head, grid: Grid, ax: Field, wobble: Field) -> Field:
    y, z = grid.y, grid.z
    out = np.full_like(ax, NOWHERE_MM)
    low, high = float(z.min()), float(z.max())
    if low > 40 or high < -32:
        return out
    wide = 0.6 + 0.8 * head.atrophy
    if low < 24 and high > 6:
        angle = np.arctan2(y + 3, ax + 1e-3)
        star = 10.5 + wide * 2 + 1.8 * wobble + 3.4 * np.cos(5 * angle + 1.57) - np.sqrt(ax * ax + (y + 3) ** 2)
        out = np.maximum(out, np.minimum(star * 0.7, (9 - np.abs(z - 15)) * 0.8))
    midbrain = np.sqrt((ax / 15.5) ** 2 + ((y - 17) / 14.5) ** 2 + ((z - 22) / 30) ** 2)
    ring = np.minimum((0.7 + wide) * (1 + 0.8 * wobble) - np.abs(midbrain - 1) * 15, 9 - np.abs(z - 23))
    ring = np.minimum(ring, (y - 8) * 0.4)
    quadrigeminal = ellipsoid(ax, y, z, (0, 35, 27), (10, 5, 7))
    pons = np.sqrt((ax / 16.5) ** 2 + ((y - 13) / 12.5) ** 2)
    prepontine = np.minimum(np.minimum(1.2 + wide - np.abs(pons - 1) * 13, 14 - np.abs(z - 2)), (15 - y) * 0.5)
    angle_cistern = ellipsoid(ax, y, z, (20, 17, 0), (7, 4, 8))
    medulla = np.sqrt(ax * ax + (y - 20) ** 2)
    spinal = np.minimum(3.0 - np.abs(medulla - 11), -12 - z)
    magna = ellipsoid(ax, y, z, (0, 64, -16), (15 + 6 * head.atrophy, 7, 10))
    for part in (ring, quadrigeminal, prepontine, angle_cistern, spinal, magna):
        np.maximum(out, part, out=out)
    return np.asarray(out, np.float32)


def _ventricles(head: Head, grid: Grid, x: Field, ax: Field) -> Field:
    out = np.full_like(ax, NOWHERE_MM)
    low, high = float(grid.z.min()), float(grid.z.max())
    scale = head.ventricle_scale
    if low > 72 or high < -14:
        return out
    flat = grid.y, grid.z
    for path in (_VENTRICLE_PATH, _TEMPORAL_PATH):
        for (start, r0), (end, r1) in pairwise(path):
            if min(start[2], end[2]) - 12 < high and max(start[2], end[2]) + 12 > low:
                np.maximum(out, round_cone(ax, *flat, start, end, (r0 * scale, r1 * scale)), out=out)
    septum = np.abs(x) - 1.0
    out = np.minimum(out, septum)
    if low < 48 and high > 18:
        third = np.minimum(0.9 + 2.2 * scale * head.atrophy + 0.6 - np.abs(x), 13 - np.abs(grid.y - 4))
        np.maximum(out, np.minimum(third, 11 - np.abs(grid.z - 32)), out=out)
    if low < 24:
        fourth = np.minimum(
            (7.5 - ax) * 0.8 + (grid.y - 36) * 0.15, (7.0 * scale - np.abs(grid.y - 34 - 0.035 * ax * ax))
        )
        np.maximum(out, np.minimum(fourth, 11 - np.abs(grid.z - 3)), out=out)
    return np.asarray(out, np.float32)


def _tissue(head: Head, grid: Grid, shell: Shells, ax: Field, tentorium: Field, facing: Field) -> Field:
    y, z, blur = grid.y, grid.z, grid.blur_mm
    ribbon = inside(facing + 3.6 + 0.5 * shell.wobble, 1.6 + blur)
    hu = head.white_hu + (head.grey_hu - head.white_hu) * ribbon
    low, high = float(z.min()), float(z.max())
    if low < 58 and high > 14:
        caudate = round_cone(ax, y, z, (14, -24, 39), (16, 6, 54), (5.5, 3.0))
        lentiform = ellipsoid(ax - 0.32 * (y + 2), y, z, (25, -2, 36), (7.0, 19, 13))
        thalamus = ellipsoid(ax - 0.35 * (y - 12), y, z, (11.5, 12, 38), (8.5, 14, 12))
        nuclei = np.maximum(np.maximum(caudate, lentiform), thalamus)
        mix(hu, head.grey_hu - 0.5, inside(nuclei, 1.5 + blur))
        insula = np.minimum(4.0 - np.abs(ax - 38 - 0.02 * y), 17 - np.abs(y))
        mix(hu, head.grey_hu, inside(np.minimum(insula, 15 - np.abs(z - 32)), 1.5 + blur))
    if low < 46:
        folia = np.cos(np.sqrt(ax * ax * 0.8 + (y - 34) ** 2) * 1.35 + 1.5 * shell.wobble)
        cerebellum = CEREBELLUM_HU + 1.5 * folia - 3.5 * inside(ellipsoid(ax, y, z, (20, 42, -4), (15, 13, 13)), 6)
        mix(hu, cerebellum, inside(-tentorium, blur))
        stem = np.minimum(14 - np.sqrt(ax * ax + (y - 14 - 0.1 * np.maximum(-z, 0)) ** 2), 34 - z)
        mix(hu, STEM_HU, inside(stem, 2.0))
    hu += 0.8 * shell.wobble
    return np.asarray(hu, np.float32)


def _dura(hu: Field, grid: Grid, shell: Shells, x: Field, falx: Field, tentorium: Field) -> None:
    blur = grid.blur_mm
    mix(hu, DURA_HU, inside(0.75 - falx, blur))
    edge = np.minimum(0.9 - np.abs(tentorium), np.minimum(grid.y - 16, 60 - grid.z))
    notch = np.sqrt((x / 19) ** 2 + ((grid.y - 15) / 22) ** 2) - 1
    mix(hu, DURA_HU, inside(np.minimum(edge, notch * 10), blur))
    sagittal = 3.4 - np.sqrt(0.8 * x * x + (shell.dome - 1.0) ** 2)
    mix(hu, SINUS_HU, inside(np.minimum(sagittal, np.maximum(grid.y - 10, grid.z - 88)), blur))
    transverse = 3.2 - np.sqrt(tentorium**2 + (shell.dome - 1.5) ** 2)
    mix(hu, SINUS_HU, inside(np.minimum(transverse, grid.y - 32), blur))
    mix(hu, DURA_HU, inside(0.7 - np.abs(shell.cavity), blur))


def _calcium(hu: Field, head: Head, grid: Grid, x: Field, ax: Field) -> None:
    y, z, blur = grid.y, grid.z, grid.blur_mm
    if head.pineal_calcified:
        mix(hu, CALCIUM_HU, inside(ellipsoid(x, y, z, (0.4, 29, 33), (2.4, 3.2, 3.5)), blur))
    if head.choroid_calcified:
        mix(hu, CALCIUM_HU - 60, inside(ellipsoid(ax, y, z, (22, 36, 46), (2.6, 4.2, 4.5)), blur))
    if head.falx_calcified:
        mix(hu, 420.0, inside(ellipsoid(x, y, z, (0.5, -48, 62), (1.4, 9, 7)), blur))
    if head.basal_calcified:
        mix(hu, 130.0, inside(ellipsoid(ax, y, z, (20, -2, 35), (3.0, 6, 4)), blur))
