"""One study, made in memory: head, bleeds and scanner, slice by slice. Cost: about 20 ms a 512-pixel slice.

Smooth surfaces are computed on half the rows and columns at 512 pixels and doubled; edges are cut at full size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.labels import ANY, NUM_LABELS, SUBTYPES
from fastich.phantom import scanner
from fastich.phantom.bleeds import INTRAPARENCHYMAL, Bleed, depth_of, draw_bleed, mass_effect
from fastich.phantom.brain import Brain, MassEffect, draw_brain
from fastich.phantom.cohort import StudyPlan
from fastich.phantom.fields import Field, Grid, double, inside, mix, overlap
from fastich.phantom.head import Head, draw_head
from fastich.phantom.scanner import Scan
from fastich.phantom.skull import (
    BASE_TOP_MM,
    Shells,
    bounding_box,
    draw_base,
    draw_calvarium,
    draw_scalp,
    head_box,
    shells,
)
from fastich.types import HuArray

VISIBLE_MM2 = 40.0
"""A slice has a label when the mask of that class covers at least this area in it: the equator of a 0.2 ml sphere."""
OEDEMA_HU = 18.0
EDGE_MM = 0.8
"""Width of an edge at full resolution: about the point spread of a soft head kernel."""
Mask = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A head, what bleeds in it, and what that does to the brain."""

    head: Head
    bleeds: tuple[Bleed, ...]
    mass: MassEffect


@dataclass(frozen=True, kw_only=True)
class Study:
    """A finished study.

    ``hu`` int16 [N, H, W]; ``masks`` uint8 [N, H, W] with 1 + the subtype's place in ``labels.SUBTYPES``;
    ``labels`` int8 [N, 6]; ``volumes_ml`` per subtype, from the masks and the true slice spacing.
    """

    plan: StudyPlan
    scan: Scan
    head: Head
    bleeds: tuple[Bleed, ...]
    hu: HuArray
    masks: Mask
    labels: NDArray[np.int8]
    volumes_ml: dict[str, float]

    @property
    def distractors(self) -> tuple[str, ...]:
        """Names of what looks like trouble but is no bleed."""
        present = {
            "pineal calcification": self.head.pineal_calcified,
            "choroid calcification": self.head.choroid_calcified,
            "falx calcification": self.head.falx_calcified,
            "basal ganglia calcification": self.head.basal_calcified,
            "beam hardening": self.scan.hardening_hu > 10,
            "motion": bool(self.scan.motion),
            "metal": self.scan.metal_mm is not None,
            f"partial head ({self.scan.partial})": bool(self.scan.partial),
        }
        return tuple(name for name, there in present.items() if there)


def make_study(plan: StudyPlan, seed: int, size: int) -> Study:
    """Simulate one study; equal arguments give equal bytes. ``size`` is the side of a slice in pixels."""
    head = draw_head(np.random.default_rng([seed, 1, plan.patient]))
    rng = np.random.default_rng([seed, 2, plan.number])
    scan = scanner.draw_scan(rng, plan.number, size)
    bleed_rng = np.random.default_rng([seed, 3, plan.patient])
    bleeds = tuple(draw_bleed(bleed_rng, head, subtype) for subtype in plan.subtypes)
    patient = Patient(head=head, bleeds=bleeds, mass=mass_effect(bleeds))
    table = scanner.draw_table(scan, size)
    count = len(scan.table_z_mm)
    hu = np.empty((count, size, size), np.int16)
    masks = np.empty((count, size, size), np.uint8)
    for number in range(count):
        image, masks[number] = draw_slice(patient, scan, table, number)
        image = _scanned(image, scan, number)
        image += scanner.noise(rng, size, scan.noise_hu)
        hu[number] = np.rint(image, out=image)
    areas_mm2 = count_classes(masks) * scan.pixel_mm**2
    volumes = areas_mm2.T @ scan.thickness_mm / 1000
    return Study(
        plan=plan,
        scan=scan,
        head=head,
        bleeds=bleeds,
        hu=hu,
        masks=masks,
        labels=labels_of(areas_mm2),
        volumes_ml=dict(zip(SUBTYPES, (float(v) for v in volumes), strict=True)),
    )


def _scanned(image: Field, scan: Scan, number: int) -> Field:
    size = image.shape[0]
    added = scanner.artefacts(scan, scanner.grid(scan, number, size, _factor(size)))
    if added is not None:
        image += double(added) if _factor(size) == 2 else added
    return scanner.blur_by_motion(image, scan) if number in scan.motion else image


def _factor(size: int) -> int:
    """How many pixels a point of the computing grid stands for, along each axis."""
    return 2 if size > 256 else 1


def count_classes(masks: Mask) -> NDArray[np.int64]:
    """Pixels of each class in each slice, [N, 5], from label maps [N, H, W]."""
    return np.stack([np.bincount(mask.ravel(), minlength=len(SUBTYPES) + 1)[1:] for mask in masks])


def labels_of(areas_mm2: NDArray[np.floating[Any]]) -> NDArray[np.int8]:
    """Labels [N, 6] from areas [N, 5]: a class counts from ``VISIBLE_MM2`` on, ``any`` is the OR."""
    out = np.zeros((len(areas_mm2), NUM_LABELS), np.int8)
    out[:, :ANY] = areas_mm2 >= VISIBLE_MM2
    out[:, ANY] = out[:, :ANY].max(axis=1)
    return out


def draw_slice(patient: Patient, scan: Scan, table: Field, number: int) -> tuple[Field, Mask]:
    """HU of one slice before artefacts and noise [H, W], and its label map [H, W]. ``table`` is the empty scanner."""
    size = table.shape[0]
    image, mask = table.copy(), np.zeros((size, size), np.uint8)
    grid = scanner.grid(scan, number, size, _factor(size))
    box = head_box(patient.head, grid)
    if box is not None:
        part = grid.crop(*box)
        big = _scaled(box, _factor(size))
        _draw_head(patient, scan, part, image[big], mask[big], double if _factor(size) == 2 else np.array)
    return image, mask


def _draw_head(
    patient: Patient, scan: Scan, grid: Grid, image: Field, mask: Mask, grow: Callable[[Field], Field]
) -> None:
    """Paint the head on the part of a slice that it touches; ``grow`` takes a field from the grid to pixels."""
    head, blur = patient.head, max(scan.pixel_mm, EDGE_MM)
    shell = shells(head, grid)
    tissue = grow(draw_scalp(head, grid, shell))
    mix(tissue, grow(draw_calvarium(head, grid, shell)), inside(grow(shell.skull), blur))
    if float(grid.z.min()) < BASE_TOP_MM:
        mix(tissue, grow(draw_base(grid, shell)), grow(inside(shell.floor - grid.z, 1.0)))
    box = bounding_box(shell.cavity > -2, 1, grid.x.shape)
    if box is not None:
        part, inner = grid.crop(*box), Shells(**{name: field[box] for name, field in vars(shell).items()})
        big = _scaled(box, image.shape[0] // grid.x.shape[0])
        brain = draw_brain(head, part, inner, patient.mass)
        layers = _bleed_layers(patient, scan, part, inner, brain)
        mix(tissue[big], grow(brain.hu), inside(grow(inner.cavity), blur))
        for bleed, depth in layers:
            full = grow(depth)
            mix(tissue[big], bleed.hu, inside(full, blur))
            mask[big][full > 0] = 1 + SUBTYPES.index(bleed.subtype)
    mix(image, tissue, inside(grow(shell.skin), blur))


def _bleed_layers(patient: Patient, scan: Scan, part: Grid, shell: Shells, brain: Brain) -> list[tuple[Bleed, Field]]:
    """Depths of the bleeds that this slice meets, inner ones first; oedema is painted into the brain on the way."""
    layers = []
    for bleed in sorted(patient.bleeds, key=lambda bleed: bleed.height_mm > 0):
        depth = depth_of(bleed, patient.head, part, shell, brain, scanner.down(scan))
        if depth is None or float(depth.max()) <= -12:
            continue
        if bleed.subtype == INTRAPARENCHYMAL:
            rim = overlap(depth + 3 + 0.3 * bleed.radius_mm, brain.depth - 2, -brain.ventricle - 1)
            mix(brain.hu, OEDEMA_HU, 0.9 * inside(rim, 4.0))
        layers.append((bleed, depth))
    return layers


def _scaled(box: tuple[slice, slice], factor: int) -> tuple[slice, slice]:
    rows, columns = (slice(part.start * factor, part.stop * factor) for part in box)
    return rows, columns
