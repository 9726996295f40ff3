"""Fields on the grid of one slice: soft edges, smooth noise, round cones. What anatomy and bleeds are drawn with.

A shape is a signed depth in mm, positive inside, float32 [H, W]; an edge is the ramp of ``inside`` over one blur width,
so that coarse pixels look like averaged fine ones. Cost: a few dozen array operations a slice, no loops over pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.floating[Any]]
Vector = tuple[float, float, float]

LATTICE = 64
"""Side of the cube of noise that belongs to one head."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Head coordinates of every pixel centre of a slice, mm: x to the left, y to the back, z to the vertex.

    ``blur_mm`` is the width of a soft edge; ``pitch_mm`` the distance of two grid points.
    """

    x: Field
    y: Field
    z: Field
    pitch_mm: float
    blur_mm: float

    def crop(self, rows: slice, columns: slice) -> "Grid":
        """The same grid on a part of the rows and columns."""
        return Grid(
            x=self.x[rows, columns],
            y=self.y[rows, columns],
            z=self.z[rows, columns],
            pitch_mm=self.pitch_mm,
            blur_mm=self.blur_mm,
        )


def inside(depth_mm: Field, blur_mm: float) -> Field:
    """Coverage 0..1 of a shape from its signed depth: a ramp of ``blur_mm`` centred on the edge."""
    out = depth_mm * np.float32(1 / blur_mm)
    out += np.float32(0.5)
    return np.clip(out, 0, 1, out=out)


def mix(image: Field, over: Field | float, coverage: Field) -> None:
    """Paint ``over`` onto ``image`` in place."""
    change = over - image
    change *= coverage
    image += change


def overlap(first: Field, *others: Field | float) -> Field:
    """Signed depth of what lies in all shapes."""
    out = first
    for other in others:
        out = np.minimum(out, other)
    return out


def ellipsoid(x: Field, y: Field, z: Field, center: Vector, radii: Vector) -> Field:
    """Signed depth of an ellipsoid, exact at its surface's middle, roughly scaled elsewhere."""
    scaled = ((x - center[0]) / radii[0]) ** 2
    scaled += ((y - center[1]) / radii[1]) ** 2
    scaled += ((z - center[2]) / radii[2]) ** 2
    np.sqrt(scaled, out=scaled)
    return (1 - scaled) * min(radii)


def round_cone(x: Field, y: Field, z: Field, start: Vector, end: Vector, radii: tuple[float, float]) -> Field:
    """Signed depth of a tube from ``start`` to ``end`` whose radius runs from ``radii[0]`` to ``radii[1]``."""
    along = tuple(e - s for s, e in zip(start, end, strict=True))
    length_2 = sum(a * a for a in along)
    dx, dy, dz = x - start[0], y - start[1], z - start[2]
    t = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / length_2, 0, 1)
    dx -= t * along[0]
    dy -= t * along[1]
    dz -= t * along[2]
    distance = np.sqrt(dx * dx + dy * dy + dz * dz)
    return np.asarray(radii[0] + (radii[1] - radii[0]) * t - distance, dtype=np.float32)


def double(field: Field) -> Field:
    """Twice the rows and columns, linear; grid points are block centres, edges repeat."""
    rows, columns = field.shape
    wide = np.empty((rows, 2 * columns), dtype=np.float32)
    near, far = field * np.float32(0.75), field * np.float32(0.25)
    np.add(near[:, 1:], far[:, :-1], out=wide[:, 2::2])
    np.add(near[:, :-1], far[:, 1:], out=wide[:, 1:-1:2])
    wide[:, 0], wide[:, -1] = field[:, 0], field[:, -1]
    out = np.empty((2 * rows, 2 * columns), dtype=np.float32)
    near, far = wide * np.float32(0.75), wide * np.float32(0.25)
    np.add(near[1:], far[:-1], out=out[2::2])
    np.add(near[:-1], far[1:], out=out[1:-1:2])
    out[0], out[-1] = wide[0], wide[-1]
    return out


def noise_cube(rng: np.random.Generator, sigma: float) -> Field:
    """A cube of smooth noise, mean 0, standard deviation 1, correlation ``sigma`` lattice steps, periodic."""
    white = rng.standard_normal((LATTICE,) * 3, dtype=np.float32)
    band = ndimage.gaussian_filter(white, sigma, mode="wrap", truncate=3) - ndimage.gaussian_filter(
        white, 2 * sigma, mode="wrap", truncate=2
    )
    return np.asarray(band / band.std(), dtype=np.float32)


def sample(cube: Field, x: Field, y: Field, z: Field, step_mm: float) -> Field:
    """The cube at head coordinates, linear between lattice points ``step_mm`` apart, repeated beyond its faces."""
    where = np.stack([x, y, z])
    where *= np.float32(1 / step_mm)
    where += np.float32(LATTICE / 2)
    return np.asarray(
        ndimage.map_coordinates(cube, where, output=np.float32, order=1, mode="grid-wrap", prefilter=False)
    )


def sample_coarsely(cube: Field, grid: Grid, step_mm: float) -> Field:
    """Like ``sample`` on every fourth grid point, linear between: for noise that is smooth over many pixels."""
    part = sample(cube, _every_fourth(grid.x), _every_fourth(grid.y), _every_fourth(grid.z), step_mm)
    return double(double(part))


def _every_fourth(axis: Field) -> Field:
    """Block centres of 4 x 4 grid points (coordinates are affine, so the mean of two middle points is exact)."""
    return np.asarray((axis[1::4, 1::4] + axis[2::4, 2::4]) * np.float32(0.5))
