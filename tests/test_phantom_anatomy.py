"""The phantom looks like a head: attenuations where they belong, bleeds in their places, noise that scales."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from fastich.labels import SUBTYPES
from fastich.phantom import scanner
from fastich.phantom.bleeds import MAX_HU, MIN_HU, Bleed, depth_of, draw_bleed, mass_effect
from fastich.phantom.brain import MassEffect, draw_brain
from fastich.phantom.cohort import StudyPlan
from fastich.phantom.fields import Grid, double, ellipsoid, inside, round_cone
from fastich.phantom.head import draw_head
from fastich.phantom.skull import shells
from fastich.phantom.study import Patient, draw_slice, make_study

SIZE = 128


@pytest.fixture(scope="module")
def head():
    return replace(draw_head(np.random.default_rng(4)), falx_calcified=False, basal_calcified=False)


def axial(z_mm: float, count: int = 128, pitch_mm: float = 1.8) -> Grid:
    axis = ((np.arange(count) - (count - 1) / 2) * pitch_mm).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return Grid(x=x, y=y, z=np.full_like(x, z_mm), pitch_mm=pitch_mm, blur_mm=pitch_mm)


def level_scan(seed: int = 0) -> scanner.Scan:
    scan = scanner.draw_scan(np.random.default_rng(seed), 0, SIZE)
    return replace(scan, motion=(), metal_mm=None)


def slices(head, subtypes: tuple[str, ...], seed: int) -> tuple[Patient, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    bleeds = tuple(draw_bleed(rng, head, name) for name in subtypes)
    patient = Patient(head=head, bleeds=bleeds, mass=mass_effect(bleeds))
    scan = level_scan()
    table = scanner.draw_table(scan, SIZE)
    made = [draw_slice(patient, scan, table, i) for i in range(len(scan.table_z_mm))]
    return patient, np.stack([image for image, _ in made]), np.stack([mask for _, mask in made])


@pytest.mark.parametrize("subtype", SUBTYPES)
def test_blood_measures_55_to_90_hu_inside_its_mask(head, subtype):
    patient, image, masks = next(made for made in (slices(head, (subtype,), seed) for seed in range(9)) if big(made[2]))
    assert MIN_HU < patient.bleeds[0].hu < MAX_HU
    core = np.stack([ndimage.binary_erosion(mask > 0) for mask in masks])
    assert np.median(image[core]) == pytest.approx(patient.bleeds[0].hu, abs=1)
    assert ((image[core] >= MIN_HU) & (image[core] <= MAX_HU)).mean() > 0.8


def big(masks: np.ndarray) -> bool:
    return max((mask > 0).sum() for mask in masks) > 60


def test_tissues_measure_what_they_should(head):
    grid = axial(52)
    shell = shells(head, grid)
    brain = draw_brain(head, grid, shell, MassEffect())
    assert np.median(brain.hu[brain.ventricle > 2]) == pytest.approx(head.csf_hu, abs=2)
    deep = (brain.depth > 30) & (brain.ventricle < -6) & (brain.falx > 6)
    assert head.white_hu - 2 < np.median(brain.hu[deep]) < head.grey_hu + 1
    assert head.grey_hu - head.white_hu > 5


def test_skull_has_two_tables_with_marrow_between(head):
    scan, patient = level_scan(), Patient(head=head, bleeds=(), mass=MassEffect())
    fine = replace(scan, pixel_mm=scan.pixel_mm * SIZE / 512)
    number = int(len(scan.table_z_mm) * 0.6)
    image, _ = draw_slice(patient, fine, scanner.draw_table(fine, 512), number)
    row = image[256]
    first, last = np.flatnonzero(row > 300)[[0, -1]]
    wall = row[first : first + 40]
    bone = wall[: int(np.flatnonzero(wall < 200)[5])]
    peaks = [i for i in range(1, len(bone) - 1) if bone[i] >= bone[i - 1] and bone[i] > bone[i + 1] and bone[i] > 900]
    assert len(peaks) >= 2
    assert bone[peaks[0] : peaks[-1]].min() < 0.8 * min(bone[peaks[0]], bone[peaks[-1]])
    assert 120 < (last - first) * fine.pixel_mm < 170


def make_depth(head, bleed: Bleed, z_mm: float):
    grid = axial(z_mm)
    shell = shells(head, grid)
    brain = draw_brain(head, grid, shell, MassEffect())
    return depth_of(bleed, head, grid, shell, brain, (0.0, 1.0, 0.0)), grid, shell, brain


def found(head, subtype: str, count: int = 8):
    """Masks of random bleeds of one subtype at their own level, with what surrounds them."""
    rng = np.random.default_rng(11)
    for _ in range(count):
        bleed = draw_bleed(rng, head, subtype)
        for z_mm in (bleed.center[2] - 6, bleed.center[2], bleed.center[2] + 6):
            depth, grid, shell, brain = make_depth(head, bleed, z_mm)
            if depth is not None and (depth > 0).any():
                yield bleed, depth > 0, grid, shell, brain


def test_epidural_lies_under_one_bone_against_the_skull(head):
    for bleed, mask, grid, shell, _ in found(head, "epidural"):
        assert shell.cavity[mask].min() > -0.5
        assert shell.cavity[mask].min() < 2.5
        assert (np.sign(grid.x[mask]) == bleed.side).mean() > 0.95
        suture_y = -18 + 0.25 * (grid.z[mask] - 60)
        front = grid.y[mask] < suture_y
        assert front.all() if bleed.place == "frontal" else not front.any()


def test_subdural_stays_on_one_side_and_is_thin(head):
    for bleed, mask, _, shell, brain in found(head, "subdural"):
        assert (bleed.side * brain.midline_x[mask] > -1).all()
        if bleed.place == "convexity":
            assert shell.cavity[mask].max() < bleed.height_mm * 1.6 + 1


def test_intraventricular_blood_lies_in_ventricles_and_settles_at_the_back(head):
    for bleed, mask, grid, _, brain in found(head, "intraventricular"):
        assert brain.ventricle[mask].min() > -1.3
        if bleed.place == "level":
            assert grid.y[mask].min() >= bleed.center[1] - 1.8


def test_subarachnoid_blood_lies_in_sulci_and_cisterns(head):
    for _, mask, _, _, brain in found(head, "subarachnoid"):
        assert brain.fluid[mask].min() > -0.8


def test_parenchymal_blood_lies_in_the_brain_outside_the_ventricles(head):
    for _, mask, _, _, brain in found(head, "intraparenchymal"):
        assert brain.depth[mask].min() > 1.4
        assert brain.ventricle[mask].max() < 0


def test_parenchymal_blood_has_a_rim_of_oedema(head):
    bleed = Bleed(
        subtype="intraparenchymal", hu=70.0, center=(34.0, 38.0, 58.0), radii_mm=(13.0, 13.0, 13.0), radius_mm=13.0
    )
    scan, healthy = level_scan(), Patient(head=head, bleeds=(), mass=MassEffect())
    table = scanner.draw_table(scan, SIZE)
    ill = replace(healthy, bleeds=(bleed,))
    masks = [draw_slice(ill, scan, table, i)[1] for i in range(len(scan.table_z_mm))]
    number = int(np.argmax([(mask > 0).sum() for mask in masks]))
    mask = masks[number] > 0
    ring = ndimage.binary_dilation(mask, iterations=3) & ~ndimage.binary_dilation(mask)
    change = draw_slice(ill, scan, table, number)[0] - draw_slice(healthy, scan, table, number)[0]
    assert np.median(change[ring]) < -3


def test_large_bleeds_push_the_midline_away():
    left = Bleed(subtype="subdural", hu=70.0, center=(60.0, 0.0, 55.0), radius_mm=50, height_mm=12, side=1)
    assert mass_effect((left,)).shift_mm < -2
    assert mass_effect((replace(left, side=-1),)).shift_mm > 2
    assert mass_effect((replace(left, height_mm=4.0),)).shift_mm == 0


def test_distractors_are_as_common_in_bleeding_heads_as_in_healthy_ones():
    """Anatomy and acquisition are drawn before, and without a look at, the plan of bleeds."""
    healthy = make_study(StudyPlan(number=1, patient=1, visit=0, subtypes=()), 0, 64)
    ill = make_study(StudyPlan(number=1, patient=1, visit=0, subtypes=("epidural",)), 0, 64)
    assert healthy.distractors == ill.distractors
    assert healthy.scan.table_z_mm == ill.scan.table_z_mm


def test_noise_of_coarse_pixels_is_that_of_averaged_fine_ones():
    fine = scanner.noise(np.random.default_rng(0), 512, 4.0)
    assert fine.std() == pytest.approx(4.0, rel=0.05)
    for size in (256, 128, 64):
        factor = 512 // size
        averaged = fine.reshape(size, factor, size, factor).mean((1, 3)).std()
        assert scanner.noise(np.random.default_rng(1), size, 4.0).std() == pytest.approx(averaged, rel=0.12)


def test_neighbouring_noise_is_correlated_at_full_size():
    fine = scanner.noise(np.random.default_rng(0), 512, 4.0)
    assert np.corrcoef(fine[:, 1:].ravel(), fine[:, :-1].ravel())[0, 1] > 0.4


def test_tilted_slices_lie_along_their_stated_normal():
    scan = replace(level_scan(), tilt_deg=20.0)
    row, column = np.asarray(scanner.orientation(scan)).reshape(2, 3)
    normal = np.cross(row, column)
    step = np.subtract(scanner.position(scan, 1, SIZE), scanner.position(scan, 0, SIZE))
    assert step @ normal == pytest.approx(step[2] * np.cos(np.radians(20)))
    assert step[:2] == pytest.approx([0, 0])


def test_tilt_slice_count_and_spacing_stay_in_range():
    for seed in range(60):
        scan = scanner.draw_scan(np.random.default_rng(seed), 0, 512)
        assert scan.tilt_deg == 0 or 3 <= scan.tilt_deg <= 28
        assert 20 <= len(scan.table_z_mm) <= 40
        assert set(scan.table_step_mm) <= {2.5, 3.0, 3.75, 4.0, 4.5, 5.0}


def test_the_head_lies_in_the_middle_of_the_stack_whatever_the_tilt(head):
    for scan in (scan for scan in map(level_scan, range(12)) if not scan.partial):
        z_mm = np.asarray(scan.table_z_mm)
        middle = scanner.grid(scan, int(np.abs(z_mm - (z_mm[0] + z_mm[-1]) / 2).argmin()), SIZE, 1)
        assert 25 < float(middle.z.mean()) < 60
        assert abs(float(middle.y.mean())) < 20


def test_doubling_keeps_a_plane_exact():
    plane = np.add.outer(np.arange(8.0), 3 * np.arange(12.0)).astype(np.float32)
    big = double(plane)
    assert big.shape == (16, 24)
    assert big[1:-1, 1:-1] == pytest.approx(np.add.outer(np.arange(1, 15) / 2 - 0.25, 1.5 * np.arange(1, 23) - 0.75))


def test_shapes_are_positive_inside():
    x = np.asarray([[0.0, 3.0, 9.0]], np.float32)
    flat = np.zeros_like(x)
    assert (ellipsoid(x, flat, flat, (0, 0, 0), (5, 5, 5)) > 0).tolist() == [[True, True, False]]
    assert round_cone(x, flat, flat, (0, 0, 0), (4, 0, 0), (1, 1)) == pytest.approx(np.asarray([[1.0, 1.0, -4.0]]))
    assert inside(np.asarray([[-1.0, 0.0, 1.0]], np.float32), 1.0).tolist() == [[0.0, 0.5, 1.0]]


def test_beam_hardening_darkens_between_the_petrous_bones_only():
    scan = replace(level_scan(), hardening_hu=12.0)
    added = scanner.artefacts(scan, axial(1.0))
    assert added is not None
    assert added.min() == pytest.approx(-12, abs=0.5)
    assert np.abs(added[:20]).max() < 0.5
    assert scanner.artefacts(scan, axial(60.0)) is None


def test_a_clip_is_denser_than_bone_and_throws_streaks():
    scan = replace(level_scan(), metal_mm=(20.0, 0.0, 60.0))
    added = scanner.artefacts(scan, axial(60.0))
    assert added is not None
    assert added.max() > 3000
    away = np.abs(added[:, :64])
    assert 20 < away.max() < 300


def test_motion_doubles_edges():
    scan = replace(level_scan(), pixel_mm=1.0)
    image = np.zeros((16, 16), np.float32)
    image[8, 8] = 100
    moved = scanner.blur_by_motion(image, scan)
    assert moved.sum() == pytest.approx(100)
    assert np.count_nonzero(moved) == 3


def test_partial_heads_are_cropped_or_short():
    scans = [scanner.draw_scan(np.random.default_rng(seed), 0, 512) for seed in range(200)]
    extent = {kind: [s.table_z_mm[-1] - s.table_z_mm[0] for s in scans if s.partial == kind] for kind in ("", "short")}
    assert np.mean(extent["short"]) < 0.8 * np.mean(extent[""])
    assert all(abs(s.head_mm[0]) >= 40 for s in scans if s.partial == "off-centre")
    assert sum(bool(s.partial) for s in scans) in range(8, 50)


def test_one_study_in_twenty_has_the_12_bit_wrap():
    scans = [scanner.draw_scan(np.random.default_rng(number), number, 512) for number in range(60)]
    wrapped = [scan for scan in scans if scan.encoding == scanner.ENCODING_WRAPPED]
    assert len(wrapped) == 3
    assert {scan.intercept for scan in wrapped} <= {-1, 0, 1}
    assert {scan.encoding for scan in scans} == {scanner.ENCODING_12, scanner.ENCODING_16, scanner.ENCODING_WRAPPED}
