"""One person's head: the numbers that make two phantoms differ, drawn once a patient and shared by all their studies.

Coordinates are millimetres in the head's own frame: x to the left, y to the back, z to the vertex; z = 0 is the
orbitomeatal plane. Sizes are those of an adult (inner table about 134 x 168 mm, vertex 106 mm above the plane).
"""

from dataclasses import dataclass

import numpy as np

from fastich.phantom.fields import Field, noise_cube

DOME_CENTER_Z_MM = 28.0


@dataclass(frozen=True, kw_only=True)
class Head:
    """Anatomy of one patient; lengths in mm, attenuation in HU."""

    half_width_mm: float
    half_length_mm: float
    height_mm: float
    skull_mm: float
    scalp_mm: float
    asymmetry_mm: float
    atrophy: float
    """0 a young full brain, 1 wide sulci and ventricles."""
    ventricle_scale: float
    grey_hu: float
    white_hu: float
    csf_hu: float
    pineal_calcified: bool
    choroid_calcified: bool
    falx_calcified: bool
    basal_calcified: bool
    cortex: Field
    """Noise whose zero surface is the course of the sulci."""
    smooth: Field
    """Noise for everything that is merely irregular."""


def draw_head(rng: np.random.Generator) -> Head:
    """A random adult."""
    atrophy = float(rng.beta(1.4, 1.8))
    scale = float(rng.normal(1.0, 0.035))
    return Head(
        half_width_mm=66.5 * scale * float(rng.normal(1, 0.02)),
        half_length_mm=83.0 * scale * float(rng.normal(1, 0.02)),
        height_mm=77.0 * scale,
        skull_mm=float(np.clip(rng.normal(6.5, 1.1), 4.5, 9.5)),
        scalp_mm=float(np.clip(rng.normal(6.0, 1.2), 4.0, 9.0)),
        asymmetry_mm=float(rng.normal(0, 1.0)),
        atrophy=atrophy,
        ventricle_scale=0.75 + 0.7 * atrophy + float(rng.normal(0, 0.06)),
        grey_hu=float(rng.normal(37.0, 0.8)),
        white_hu=float(rng.normal(28.0, 0.8)),
        csf_hu=float(rng.normal(5.5, 1.2)),
        pineal_calcified=bool(rng.random() < 0.55),
        choroid_calcified=bool(rng.random() < 0.45),
        falx_calcified=bool(rng.random() < 0.2),
        basal_calcified=bool(rng.random() < 0.08),
        cortex=noise_cube(rng, 2.2),
        smooth=noise_cube(rng, 3.0),
    )
