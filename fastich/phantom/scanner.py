"""How a head comes to be scanned: gantry tilt, slice positions, pose, noise, artefacts, and the stored values.

Geometry as in the RSNA 2019 files: the table moves along z, the gantry leans by the tilt, so ImagePositionPatient
shifts along z only, ImageOrientationPatient is (1, 0, 0, 0, cos, -sin), and true slices lie dz * cos(tilt) apart.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastich.phantom.fields import Field, Grid, Vector, inside
from fastich.types import HuArray

ENCODING_12, ENCODING_16, ENCODING_WRAPPED = "12-bit unsigned", "16-bit signed", "12-bit wrapped"
PADDING_STORED = -2000
"""Outside the scan circle in 16-bit files: -3024 HU after the rescale (headers of the RSNA 2019 data set)."""
TOP_MM, BOTTOM_MM = 112.0, -34.0
"""Head z from above the vertex to below the foramen magnum."""
MIN_SLICES, MAX_SLICES = 20, 40
WRAPPED_EVERY = 20
"""One study in so many has the 12-bit wrap: dealt, not drawn, so that a small data set has one too."""
NOISE_SIDE = 0.55
"""Weight of each neighbour in the noise at 512 pixels: a correlation of 0.7 from pixel to pixel."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One study's acquisition. Millimetres and degrees; positions in the patient frame (x left, y back, z up)."""

    tilt_deg: float
    table_z_mm: tuple[float, ...]
    table_step_mm: tuple[float, ...]
    """Table travel that belongs to each slice; its true thickness is this times cos(tilt)."""
    pixel_mm: float
    centre_mm: tuple[float, float]
    rotation: NDArray[np.float64]
    """[3, 3], patient to head frame."""
    head_mm: Vector
    """Where the head's origin lies in the patient frame."""
    noise_hu: float
    hardening_hu: float
    motion: tuple[int, ...]
    """Numbers of the slices blurred by motion."""
    metal_mm: Vector | None
    """A clip in head coordinates."""
    partial: str
    encoding: str
    intercept: int
    implicit_vr: bool

    @property
    def thickness_mm(self) -> NDArray[np.float64]:
        """True extent of each slice along its normal, [N]."""
        return np.asarray(self.table_step_mm) * math.cos(math.radians(self.tilt_deg))


def draw_scan(rng: np.random.Generator, number: int, size: int) -> Scan:
    """A random acquisition of study ``number``; every rate below is a choice made to resemble the RSNA 2019 headers."""
    tilt = float(np.round(np.clip(rng.gamma(4.0, 3.6), 3, 28), 1)) if rng.random() < 0.5 else 0.0
    partial = str(rng.choice(["", "short", "off-centre"], p=[0.88, 0.06, 0.06]))
    steps = _table_steps(rng, tilt, partial)
    z_mm = np.concatenate([[0.0], np.cumsum((steps[1:] + steps[:-1]) / 2)])
    start = float(rng.uniform(-420, 220))
    lean = math.radians(tilt * 0.85 + rng.normal(0, 2.5))
    rotation = _rotation(-lean, math.radians(rng.normal(0, 2.5)), math.radians(rng.normal(0, 4)))
    bottom = BOTTOM_MM + float(rng.uniform(-4, 6)) + (float(rng.choice([0, 42])) if partial == "short" else 0)
    shift = (
        (float(rng.uniform(40, 60)) * float(rng.choice([-1, 1])))
        if partial == "off-centre"
        else float(rng.normal(0, 3))
    )
    encoding = ENCODING_12 if rng.random() < 0.2 else ENCODING_16
    if number % WRAPPED_EVERY == WRAPPED_EVERY // 2:
        encoding = ENCODING_WRAPPED
    count = len(steps)
    first = int(rng.integers(2, count - 6))
    moved = tuple(range(first, first + int(rng.integers(2, 5)))) if rng.random() < 0.12 else ()
    metal = (float(rng.choice([-1, 1]) * rng.uniform(12, 40)), float(rng.uniform(-25, 10)), float(rng.uniform(12, 24)))
    return Scan(
        tilt_deg=tilt,
        table_z_mm=tuple(float(np.round(start + z, 6)) for z in z_mm),
        table_step_mm=tuple(float(step) for step in steps),
        pixel_mm=float(np.round(512 / size * (rng.uniform(0.43, 0.482) + 0.0022 * max(tilt - 8, 0)), 6)),
        centre_mm=(float(np.round(rng.normal(0, 2), 3)), float(np.round(rng.uniform(-20, 20), 3))),
        rotation=rotation,
        head_mm=_head_origin(rng, start, float(z_mm[-1]) / 2, bottom, math.radians(tilt), shift),
        noise_hu=float(rng.uniform(2.6, 5.0)),
        hardening_hu=float(rng.uniform(4, 16)),
        motion=moved,
        metal_mm=metal if rng.random() < 0.06 else None,
        partial=partial,
        encoding=encoding,
        intercept=int(rng.choice([0, 1, -1])) if encoding == ENCODING_WRAPPED else -1024,
        implicit_vr=bool(rng.random() < 0.22),
    )


def _table_steps(rng: np.random.Generator, tilt_deg: float, partial: str) -> NDArray[np.float64]:
    """Table travel per slice, from below upwards: one thickness, or a thin base under a thick vertex."""
    reach = (TOP_MM - BOTTOM_MM) * (0.62 if partial == "short" else 1.0) / math.cos(math.radians(tilt_deg))
    if rng.random() < 0.18:
        thin = float(rng.choice([2.5, 3.0]))
        num_thin = math.ceil(50 / thin)
        steps = [thin] * num_thin + [5.0] * max(math.ceil((reach - 50) / 5.0), 4)
    else:
        step = float(rng.choice([5.0, 5.0, 5.0, 5.0, 4.5, 4.0, 3.75]))
        steps = [step] * math.ceil(reach / step)
    steps = steps[:MAX_SLICES] + [steps[-1]] * max(MIN_SLICES - len(steps), 0)
    return np.asarray(steps)


def _head_origin(
    rng: np.random.Generator, start_mm: float, half_mm: float, bottom_mm: float, tilt: float, x_mm: float
) -> Vector:
    """The head's origin, such that the first slice cuts the head at z = ``bottom_mm`` and the middle one is centred."""
    sin, cos, jitter = math.sin(tilt), math.cos(tilt), float(rng.normal(5, 3))
    above = -bottom_mm * cos + half_mm * sin**2 - jitter * sin * cos
    return (x_mm, (above - half_mm) * sin / cos + jitter, start_mm + above)


def _rotation(pitch: float, roll: float, yaw: float) -> NDArray[np.float64]:
    """Patient frame to head frame, radians."""
    cp, sp, cr, sr, cy, sy = (f(a) for a in (pitch, roll, yaw) for f in (math.cos, math.sin))
    about_x = np.asarray([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.asarray([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    about_z = np.asarray([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return np.asarray((about_x @ about_y @ about_z).T)


def orientation(scan: Scan) -> tuple[float, ...]:
    """ImageOrientationPatient: rows run to the left, columns to the back and down by the tilt."""
    tilt = math.radians(scan.tilt_deg)
    return (1.0, 0.0, 0.0, 0.0, math.cos(tilt), -math.sin(tilt))


def position(scan: Scan, number: int, size: int) -> Vector:
    """ImagePositionPatient (mm) of slice ``number``: the centre of the first pixel."""
    half = (size - 1) / 2 * scan.pixel_mm
    _, _, _, _, cos, minus_sin = orientation(scan)
    middle_z = scan.table_z_mm[number]
    return (scan.centre_mm[0] - half, scan.centre_mm[1] - half * cos, middle_z - half * minus_sin)


def down(scan: Scan) -> Vector:
    """Gravity in head coordinates: the patient lies on the back."""
    x, y, z = scan.rotation @ np.asarray([0.0, 1.0, 0.0])
    return (float(x), float(y), float(z))


def grid(scan: Scan, number: int, size: int, factor: int) -> Grid:
    """Head coordinates of the centres of blocks of ``factor`` x ``factor`` pixels of slice ``number``."""
    first = np.asarray(position(scan, number, size)) - np.asarray([*scan.centre_mm, 0.0]) - np.asarray(scan.head_mm)
    axes = np.asarray(orientation(scan)).reshape(2, 3) * scan.pixel_mm
    origin, along_row, along_column = (scan.rotation @ v for v in (first, axes[0], axes[1]))
    steps = (np.arange(size // factor) + 0.5) * factor - 0.5
    planes = [
        ((origin[i] + steps * along_row[i])[None, :] + (steps * along_column[i])[:, None]).astype(np.float32)
        for i in range(3)
    ]
    pitch = scan.pixel_mm * factor
    return Grid(x=planes[0], y=planes[1], z=planes[2], pitch_mm=pitch, blur_mm=max(scan.pixel_mm, 0.8))


def artefacts(scan: Scan, coarse: Grid) -> Field | None:
    """What beam hardening between the petrous bones and the streaks of a clip add to a slice, HU; None for nothing."""
    low, high = float(coarse.z.min()), float(coarse.z.max())
    out: Field | None = None
    if low < 16 and high > -18:
        middle = (coarse.z - 1) / 9, (coarse.y - 12 - 0.1 * coarse.x) / 7, (coarse.x / 38) ** 2
        out = -scan.hardening_hu * np.exp(-(middle[0] ** 2) - middle[1] ** 2 - middle[2] ** 2)
    if scan.metal_mm is not None and low - 7 < scan.metal_mm[2] < high + 7:
        streaks = _streaks(scan.metal_mm, coarse)
        out = streaks if out is None else out + streaks
    return out


def _streaks(clip: Vector, coarse: Grid) -> Field:
    dx, dy, dz = coarse.x - clip[0], coarse.y - clip[1], coarse.z - clip[2]
    radius = np.sqrt(dx * dx + dy * dy)
    near = np.clip(1 - np.abs(dz) / 7, 0, 1)
    star = 260 * near * np.exp(-radius / 35) * np.cos(np.arctan2(dy, dx) * 9 + 0.7) * (radius > 3)
    metal = 4200 * inside(3.0 - np.sqrt(radius * radius + (0.6 * dz) ** 2), coarse.blur_mm)
    return np.asarray(star + metal, np.float32)


def blur_by_motion(image: Field, scan: Scan) -> Field:
    """A slice in which the head moved by 2.5 mm while it was scanned."""
    pixels = max(round(2.5 / scan.pixel_mm), 1)
    out: Field = 0.5 * image + 0.3 * np.roll(image, pixels, axis=0) + 0.2 * np.roll(image, -pixels, axis=1)
    return out


def draw_table(scan: Scan, size: int) -> Field:
    """A slice without a patient: air, and the headrest's shell and foam. The same for all slices of a study."""
    axis = ((np.arange(size) - (size - 1) / 2) * scan.pixel_mm).astype(np.float32)
    curve = axis[:, None] + 0.0035 * axis[None, :] ** 2 - np.float32(scan.head_mm[1] + 110)
    blur = max(scan.pixel_mm, 1.0)
    shell = inside(1.2 - np.abs(curve), blur) + 0.8 * inside(1.0 - np.abs(curve - 9), blur)
    return np.asarray(-1000 + 820 * shell + 60 * inside(np.minimum(curve, 9 - curve), blur), np.float32)


def noise(rng: np.random.Generator, size: int, std_hu: float) -> Field:
    """Correlated quantum noise [size, size]; coarse pixels get what the mean of a block of 512-pixel ones has left.

    White noise is smoothed by (side, 1, side) along both axes. ``left`` is the variance of the mean of ``factor``
    neighbours, from the autocovariance at lags 0, 1 and 2, as a share of one pixel's; two axes make it a ratio of std.
    """
    factor = max(512 / size, 1.0)
    side = NOISE_SIDE / (1 + 2.5 * (factor - 1))
    lags = 1 + 2 * NOISE_SIDE**2, 2 * NOISE_SIDE, NOISE_SIDE**2
    left = (lags[0] + 2 * (1 - 1 / factor) * lags[1] + 2 * max(1 - 2 / factor, 0) * lags[2]) / (factor * lags[0])
    white = rng.standard_normal((size, size), dtype=np.float32)
    white *= np.float32(std_hu * left / (1 + 2 * side * side))
    out = white.copy()
    for before, after in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        shifted = out * np.float32(side)
        out[after] += shifted[before]
        out[before] += shifted[after]
    return out


def stored_values(hu: HuArray, scan: Scan) -> NDArray[np.uint16] | NDArray[np.int16]:
    """HU [H, W] to what the file holds; ``fastich.hu`` gives the HU back within what 12 bits can say."""
    if scan.encoding == ENCODING_16:
        out = np.clip(hu, -2048, 31743) + np.int16(1024)
        out[_outside_circle(hu.shape[0])] = PADDING_STORED
        return out
    if scan.encoding == ENCODING_12:
        return (np.clip(hu, -1024, 3071) + np.int16(1024)).astype(np.uint16)
    return np.asarray(np.clip(hu, -1000, 3095) % 4096, np.uint16)


def _outside_circle(size: int) -> NDArray[np.bool_]:
    axis = np.arange(size) - (size - 1) / 2
    return np.asarray(axis[None, :] ** 2 + axis[:, None] ** 2 > (size / 2) ** 2)
