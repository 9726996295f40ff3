"""Everything outside the brain: scalp, calvarium with its two tables, skull base, orbits, sinuses, ears, table.

The calvarium is an egg-shaped dome; the skull base is a height ``floor`` over the (x, y) plane with an anterior, two
middle and a posterior fossa and the petrous ridges. What lies under the floor is drawn from ellipsoids.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastich.phantom.fields import Field, Grid, Vector, ellipsoid, inside, mix, round_cone, sample_coarsely
from fastich.phantom.head import DOME_CENTER_Z_MM, Head

AIR_HU, FAT_HU, SKIN_HU, MUSCLE_HU = -1000.0, -95.0, 45.0, 50.0
CORTICAL_HU, DIPLOE_HU, PETROUS_HU = 1550.0, 650.0, 1500.0
BASE_TOP_MM = 34.0
"""No part of the skull base reaches higher than this in head z."""

_MUSCLES: tuple[tuple[Vector, Vector], ...] = (
    ((60, -34, -34), (8, 19, 28)),
    ((34, -20, -22), (14, 9, 14)),
    ((64, -24, 2), (7, 24, 26)),
    ((14, 72, -36), (13, 15, 26)),
    ((40, 62, -38), (14, 17, 28)),
    ((63, 38, -36), (9, 15, 26)),
    ((12, 2, -38), (10, 9, 30)),
    ((30, 6, -44), (9, 8, 26)),
    ((54, 12, -36), (9, 13, 18)),
    ((0, -14, -44), (16, 13, 28)),
    ((24, 40, -30), (10, 12, 9)),
)


@dataclass(frozen=True, kw_only=True)
class Shells:
    """Signed depths in mm, positive inside, float32 [H, W]."""

    dome: Field
    """Below the inner table of the calvarium."""
    skull: Field
    """Below the outer table."""
    skin: Field
    """Below the skin."""
    cavity: Field
    """Inside the cranial cavity: under the dome and above the skull base."""
    floor: Field
    """Head z of the skull base; far below where the slice is above it."""
    radius: Field
    """0 in the middle of the dome, 1 at the inner table."""
    wobble: Field
    """Smooth noise, standard deviation about 1."""


def shells(head: Head, grid: Grid) -> Shells:
    """The nested surfaces of a head on the grid of one slice."""
    dome, radius = _dome(head, grid)
    wobble = sample_coarsely(head.smooth, grid, 3.4)
    back = np.clip(grid.y / head.half_length_mm, 0, 1)
    thickness = head.skull_mm * (0.95 + 0.07 * wobble) + 5 * np.exp(
        -((grid.x / 12) ** 2) - ((grid.z - 18) / 14) ** 2
    ) * (back**4)
    thickness += 1.5 * back * np.clip((45 - grid.z) / 40, 0, 1)
    skull = dome + np.maximum(thickness, 3)
    skin = skull + head.scalp_mm * (1 + 0.05 * wobble)
    low = float(grid.z.min()) < BASE_TOP_MM
    floor = _floor(grid) + 0.8 * wobble if low else np.full_like(dome, -500)
    cavity = np.minimum(dome, (grid.z - floor) * 0.75) if low else dome
    if low:
        skin = np.maximum(skin, _face_outline(head, grid))
    return Shells(dome=dome, skull=skull, skin=skin, cavity=cavity, floor=floor, radius=radius, wobble=wobble)


def _dome(head: Head, grid: Grid) -> tuple[Field, Field]:
    v = grid.y * (1 / head.half_length_mm)
    half_width = head.half_width_mm * (1 + 0.085 * v - 0.05 * v * v)
    u = (grid.x + head.asymmetry_mm * v) / half_width
    up = grid.z - DOME_CENTER_Z_MM
    w = np.where(up > 0, up / head.height_mm, up / 92.0)
    uu, vv, ww = u * u, v * v, w * w
    radius = np.sqrt(uu + vv - 0.28 * uu * vv + ww) + 1e-3
    slope = np.sqrt(uu / head.half_width_mm**2 + vv / head.half_length_mm**2 + ww / head.height_mm**2) + 1e-4
    depth = (1 - radius) * radius / slope
    return np.asarray(depth, np.float32), np.asarray(radius, np.float32)


def _floor(grid: Grid) -> Field:
    """Head z (mm) of the upper side of the skull base."""
    ax = np.abs(grid.x)
    front = 0.5 - 0.5 * np.tanh((grid.y + 27 + 0.12 * ax) / 3.5)
    rear = 0.5 + 0.5 * np.tanh((grid.y - 9 - 0.36 * ax) / 4)
    orbit_roof = 27 - 12 * np.exp(-((ax / 11) ** 2)) - 0.010 * (grid.y + 56) ** 2 - 0.012 * (ax - 32) ** 2
    middle = -9 + 3 * np.exp(-((ax / 12) ** 2)) + 0.013 * (ax - 37) ** 2 + 0.012 * (grid.y + 8) ** 2
    bowl = -34 + 26 * ((ax / 52) ** 2 + ((grid.y - 40) / 42) ** 2)
    out = front * orbit_roof + (1 - front - rear) * middle + rear * bowl
    ridge = (grid.y - 8 - 0.42 * (ax - 12)) / 7.5
    out += np.exp(-(ridge**2)) * (14 + 6 * (ax / 60) - np.clip(out, -40, 8)) * np.clip((ax - 6) / 10, 0, 1) * 0.85
    return np.asarray(out, np.float32)


def _face_outline(head: Head, grid: Grid) -> Field:
    """Skin of the face, neck, nose and ears, which hang below the dome."""
    ax = np.abs(grid.x)
    wide = head.half_width_mm
    face = ellipsoid(ax, grid.y, grid.z, (0, -28, -30), (wide * 1.0, 70, 62))
    neck = ellipsoid(ax, grid.y, grid.z, (0, 30, -60), (wide * 0.98, 62, 90))
    nose = ellipsoid(ax, grid.y, grid.z, (0, -95, -18), (10, 14, 24))
    ear = ellipsoid(ax, grid.y - 0.5 * (ax - 76), grid.z, (wide + 12, 20, -4), (4, 15, 26))
    return np.maximum(np.maximum(face, neck), np.maximum(nose, ear))


def head_box(head: Head, grid: Grid, step: int = 4) -> tuple[slice, slice] | None:
    """Rows and columns of the grid that the head can touch, seen on every fourth of them; None where there is none."""
    sparse = grid.crop(slice(None, None, step), slice(None, None, step))
    near = _dome(head, sparse)[0] + (head.skull_mm + head.scalp_mm + 9)
    if float(sparse.z.min()) < BASE_TOP_MM:
        near = np.maximum(near, _face_outline(head, sparse) + 3)
    return bounding_box(near > -step * grid.pitch_mm, step, grid.x.shape)


def bounding_box(where: NDArray[np.bool_], step: int, limit: tuple[int, ...]) -> tuple[slice, slice] | None:
    """Smallest box around the true points, each ``step`` pixels wide, on bounds that are multiples of four."""
    found = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    if found[0].size == 0:
        return None
    low = [int(axis[0]) * step // 4 * 4 for axis in found]
    high = [min(-(-(int(axis[-1]) + 1) * step // 4) * 4, end) for axis, end in zip(found, limit, strict=True)]
    return slice(low[0], high[0]), slice(low[1], high[1])


def draw_scalp(head: Head, grid: Grid, shell: Shells) -> Field:
    """HU of skin, fat and muscle over the calvarium."""
    scalp = FAT_HU + (SKIN_HU - FAT_HU) * inside(2.2 - shell.skin, 1.5)
    temporal = np.clip((38 - grid.z) / 12, 0, 1) * inside(np.abs(grid.x) - 42, 6) * inside(16 - np.abs(grid.y + 12), 14)
    muscle = inside(shell.skull + 3.5, 1.5) * temporal + 0.75 * inside(shell.skull + 1.5, 1.2)
    scalp += (MUSCLE_HU - scalp) * np.clip(muscle, 0, 1)
    return scalp


def draw_calvarium(head: Head, grid: Grid, shell: Shells) -> Field:
    """HU of the skull: two dense tables, marrow between, air in the frontal sinus."""
    tables = np.minimum(shell.skull, -shell.dome)
    bone = CORTICAL_HU + (DIPLOE_HU + 150 * shell.wobble - CORTICAL_HU) * inside(tables - 1.7, 1.6)
    if float(grid.z.min()) < 40:
        sinus = ellipsoid(np.abs(grid.x), grid.y, grid.z, (9, -head.half_length_mm - 3, 22), (13, 6, 12)) + shell.wobble
        mix(bone, AIR_HU, inside(np.minimum(sinus, np.minimum(tables - 1.2, np.abs(grid.x) - 0.8)), 1.0))
    return bone


def draw_base(grid: Grid, shell: Shells) -> Field:
    """HU of what lies under the skull base: bone, orbits, sinuses, ear, muscles of face and neck."""
    ax, y, z, blur = np.abs(grid.x), grid.y, grid.z, grid.blur_mm
    image = 0.6 * FAT_HU + 10 * shell.wobble
    muscle = np.minimum(6 * shell.wobble - 3, shell.skin - 12)
    for center, radii in _MUSCLES:
        if abs(float(z.mean()) - center[2]) < radii[2] + 8:
            np.maximum(muscle, ellipsoid(ax, y, z, center, radii) + 2.2, out=muscle)
    mix(image, MUSCLE_HU, inside(muscle + 0.8 * shell.wobble, 1.2))
    mix(image, FAT_HU, inside(7 - shell.skin, 3))
    mix(image, SKIN_HU, inside(2.2 - shell.skin, 1.5))
    _draw_bones(image, ax, y, z, shell, blur)
    _draw_sinuses(image, ax, y, z, shell, blur)
    _draw_orbits(image, ax, y, z, blur)
    return image


def _draw_bones(image: Field, ax: Field, y: Field, z: Field, shell: Shells, blur: float) -> None:
    thick = (
        2.2
        + 9 * np.exp(-(((y - 8 - 0.42 * (ax - 12)) / 10) ** 2))
        + 7 * np.exp(-((ax / 15) ** 2) - ((y + 5) / 22) ** 2)
    )
    under = thick - (shell.floor - z)
    mix(image, 950 + 250 * shell.wobble, inside(np.minimum(under * 0.8, shell.skull), blur))
    petrous = round_cone(ax, y, z, (16, 8, 2), (58, 27, 2), (5.5, 10))
    mix(image, PETROUS_HU, inside(petrous, blur))
    shell_bone = np.minimum(np.minimum(shell.skull, 1.5 - shell.dome), z + 14 - 14 * np.tanh((-y - 15) / 8))
    mix(image, 1250.0, inside(shell_bone, blur))
    clivus = round_cone(ax, y, z, (0, -2, 6), (0, 8, -26), (8, 7))
    mix(image, 800.0, inside(clivus, blur))
    zygoma = round_cone(ax, y, z, (46, -66, -14), (65, -30, -10), (5, 2.5))
    mix(image, 1300.0, inside(zygoma, blur))
    jaw = ellipsoid(ax, y, z, (52, -6, -26), (8, 5, 13))
    mix(image, 1100.0, inside(jaw, blur))
    cord = ellipsoid(ax, y, z, (0, 30, -40), (16, 15, 60))
    mix(image, 900.0, inside(np.minimum(np.minimum(cord + 5, -cord), -22 - z), blur))
    mix(image, 30.0, inside(np.minimum(cord, -24 - z), blur))


def _draw_sinuses(image: Field, ax: Field, y: Field, z: Field, shell: Shells, blur: float) -> None:
    sphenoid = ellipsoid(ax, y, z, (7, -20, -2), (7, 11, 8))
    ethmoid = ellipsoid(ax, y, z, (6, -58, -4), (6.5, 22, 14))
    maxillary = ellipsoid(ax - 0.3 * (y + 56), y, z, (30, -56, -32), (14, 17, 16)) + 1.2 * shell.wobble
    nasal = ellipsoid(ax, y, z, (7, -62, -36), (7.5, 30, 20))
    air = np.maximum(np.maximum(sphenoid, ethmoid), np.maximum(maxillary, nasal))
    mix(image, 500.0, inside(air + 1.8, blur))
    mix(image, AIR_HU, inside(air, blur))
    septa = np.cos(y * (2 * np.pi / 9) + shell.wobble * 2) - 0.8
    mix(image, 250.0, inside(np.minimum(septa * 3, ethmoid), blur))
    mastoid = ellipsoid(ax, y, z, (56, 32, -8), (8, 13, 17))
    cells = np.cos(ax * 1.25 + 3 * shell.wobble) * np.cos(y * 0.95 + 0.4 * ax) * np.cos(z * 0.9 - 0.3 * y) + 0.15
    mix(image, -650.0, inside(np.minimum(mastoid, cells * 2.2), blur * 1.5))
    throat = ellipsoid(ax, y, z, (0, -24, -40), (11, 9, 24))
    mix(image, AIR_HU, inside(throat, blur))
    canal = round_cone(ax, y, z, (50, 8, -4), (86, 12, -6), (3.2, 4))
    mix(image, AIR_HU, inside(canal, blur))


def _draw_orbits(image: Field, ax: Field, y: Field, z: Field, blur: float) -> None:
    cone = ellipsoid(ax - 0.35 * (y + 70), y, z, (32, -64, 4), (18, 34, 17))
    mix(image, 900.0, inside(np.minimum(cone + 2.2, -80 - 2 * y), blur))
    mix(image, FAT_HU, inside(cone, blur))
    nerve = round_cone(ax, y, z, (31, -62, 3), (10, -26, 8), (2.4, 2.2))
    lateral = round_cone(ax, y, z, (44, -70, 3), (18, -34, 6), (1.9, 1.6))
    medial = round_cone(ax, y, z, (18.5, -72, 3), (13, -36, 6), (1.9, 1.6))
    mix(image, 45.0, inside(np.maximum(nerve, np.maximum(lateral, medial)), blur))
    globe = ellipsoid(ax, y, z, (32, -75, 2), (12, 12, 12))
    mix(image, 50.0, inside(globe + 0.8, blur))
    mix(image, 12.0, inside(globe - 0.6, blur))
    lens = ellipsoid(ax, y, z, (32, -84, 2), (4.5, 2.2, 4.5))
    mix(image, 75.0, inside(lens, blur))
