import dataclasses
import math
import random
from pathlib import Path

import numpy as np
import pytest

from fastich import geometry
from fastich.dicom import group_studies, read_folder
from fastich.geometry import order_series, slice_normal
from fastich.types import Slice, SliceHeader

HEAD = Path(__file__).parents[2] / "shared" / "data" / "head_ct_tilt"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)


def header(z: float, number: int = 0, orientation: tuple[float, ...] | None = AXIAL, **changes: object) -> SliceHeader:
    made = SliceHeader(
        path=f"{number}.dcm",
        frame=0,
        sop_uid=f"i{number}",
        study_uid="s",
        series_uid="e",
        patient_id="p",
        rows=8,
        columns=8,
        pixel_spacing_mm=(0.5, 0.5),
        position_mm=(-125.0, -110.0, z),
        orientation=orientation,  # type: ignore[arg-type]
        thickness_mm=5.0,
        header_tilt_deg=None,
        instance_number=number,
        transfer_syntax="1.2.840.10008.1.2.1",
        bits_stored=16,
        signed=True,
        encoding="signed16",
        window=None,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def tilted(degrees: float) -> tuple[float, ...]:
    angle = math.radians(degrees)
    return (1.0, 0.0, 0.0, 0.0, math.cos(angle), -math.sin(angle))


def test_regular_series_is_ordered_from_feet_to_head() -> None:
    geometry = order_series([header(z, n) for n, z in enumerate([10.0, 0.0, 5.0])])
    assert geometry.order == (1, 2, 0)
    assert geometry.z_mm == (0.0, 5.0, 10.0)
    assert geometry.distances_mm == (5.0, 5.0)
    assert (geometry.spacing_mm, geometry.tilt_deg) == (5.0, 0.0)
    assert (geometry.gaps_mm, geometry.duplicates, geometry.problems) == ((), (), ())


def test_any_order_of_input_gives_the_same_slices() -> None:
    headers = [header(z, n, tilted(12)) for n, z in enumerate(np.arange(0, 90, 4.2).tolist())]
    shuffled = random.Random(3).sample(headers, len(headers))
    for given in (headers, headers[::-1], shuffled):
        assert [given[i].sop_uid for i in order_series(given).order] == [h.sop_uid for h in headers]


def test_flipped_columns_do_not_reverse_the_order() -> None:
    headers = [header(z, n, (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)) for n, z in enumerate([0.0, 5.0, 10.0])]
    assert order_series(headers).order == (0, 1, 2)


@pytest.mark.parametrize("degrees", [-28.0, -3.5, 18.5])
def test_tilt_is_measured_signed_and_shortens_the_spacing(degrees: float) -> None:
    geometry = order_series([header(5.0 * n, n, tilted(degrees)) for n in range(6)])
    assert geometry.tilt_deg == pytest.approx(degrees, abs=1e-6)
    assert geometry.spacing_mm == pytest.approx(5 * math.cos(math.radians(degrees)))


def test_oblique_slices_stacked_along_their_normal_have_no_tilt() -> None:
    normal = slice_normal(tilted(20.0))
    assert normal is not None
    headers = [header(0, n, tilted(20.0), position_mm=tuple((5.0 * n * normal).tolist())) for n in range(4)]
    geometry = order_series(headers)
    assert geometry.tilt_deg == pytest.approx(0, abs=0.02)
    assert geometry.spacing_mm == pytest.approx(5.0)


def test_header_tilt_stands_in_for_a_single_slice_and_a_disagreement_is_told() -> None:
    assert order_series([header(0.0, header_tilt_deg=-12.5)]).tilt_deg == -12.5
    told = order_series([header(5.0 * n, n, header_tilt_deg=20.0) for n in range(3)])
    assert told.tilt_deg == 0.0
    assert told.problems == ("the header says a tilt of 20 degrees, the positions 0.0",)


def test_gaps_are_distinct_and_in_order() -> None:
    places = [0.0, 4.0, 8.0, 9.08, 13.08, 20.08, 24.08, 28.08, 29.16, 33.16]
    geometry = order_series([header(z, n) for n, z in enumerate(places)])
    assert geometry.spacing_mm == pytest.approx(4.0)
    assert geometry.gaps_mm == (1.08, 7.0)
    assert "irregular distances: 1.08 mm, 7 mm" in geometry.problems


def test_rounded_positions_are_no_gaps() -> None:
    geometry = order_series([header(round(0.6251 * n, 2), n) for n in range(40)])
    assert geometry.gaps_mm == ()


def test_doubled_slices_are_named_and_do_not_disturb_the_spacing() -> None:
    geometry = order_series([header(z, n) for n, z in enumerate([0.0, 5.0, 5.0, 10.0, 5.004])])
    assert geometry.duplicates == (2, 4)
    assert geometry.spacing_mm == pytest.approx(5.0, abs=0.005)
    assert geometry.gaps_mm == ()
    assert len(geometry.distances_mm) == 4
    assert geometry.problems == ("2 slices lie where another one lies",)


def test_coronal_slices_are_ordered_and_told() -> None:
    headers = [header(0, n, CORONAL, position_mm=(0.0, 30.0 - 3 * n, 0.0)) for n in range(4)]
    geometry = order_series(headers)
    assert geometry.order == (3, 2, 1, 0)
    assert geometry.problems == ("slices are coronal, not axial",)


@pytest.mark.parametrize(
    "changes",
    [{"position_mm": None}, {"orientation": None}, {"orientation": (0.0,) * 6}, {"orientation": (1, 0, 0, 1, 0, 0)}],
)
def test_without_a_valid_place_the_instance_number_orders_and_says_so(changes: dict[str, object]) -> None:
    headers = [header(0.0, 7), header(5.0, 3, **changes), header(9.0, 5)]  # type: ignore[arg-type]
    geometry = order_series(headers)
    assert geometry.order == (1, 2, 0)
    assert all(math.isnan(z) for z in geometry.z_mm)
    assert (geometry.spacing_mm, geometry.distances_mm) == (None, ())
    assert "1 of 3 slices lack a valid position or orientation: ordered by instance number" in geometry.problems[0]


def test_mixed_orientations_are_ordered_by_number_and_told() -> None:
    geometry = order_series([header(0.0, 2), header(5.0, 1, CORONAL)])
    assert geometry.order == (1, 0)
    assert "different orientation" in geometry.problems[0]


def test_single_slice_has_no_spacing() -> None:
    geometry = order_series([header(3.0)])
    assert (geometry.order, geometry.z_mm, geometry.distances_mm) == ((0,), (3.0,), ())
    assert geometry.spacing_mm is None


@pytest.mark.skipif(not HEAD.is_dir(), reason="needs ../shared/data/head_ct_tilt")
def test_real_tilted_head_gives_its_tilt_spacing_and_gaps() -> None:
    headers = [found.header for found in read_folder(HEAD) if isinstance(found, Slice)]
    ((series,),) = [study.series for study in group_studies(headers)]
    assert [h.path for h in series.headers] == [f"{n:02}.dcm" for n in range(1, 29)]
    assert series.geometry.tilt_deg == pytest.approx(18.5, abs=0.01)
    assert series.geometry.spacing_mm == pytest.approx(4.0, abs=0.005)
    assert series.geometry.gaps_mm == (1.08, 7.0)


def test_spacing_of_a_half_thin_half_thick_series_is_not_the_junction() -> None:
    z_mm = np.cumsum([0.0] + [2.45] * 19 + [3.68] + [4.91] * 19)
    geometry = order_series([header(z) for z in z_mm])
    assert geometry.spacing_mm == pytest.approx(2.45)
    assert geometry.gaps_mm == (3.68, 4.91)


def test_normal_is_that_of_the_very_bits_whatever_was_asked_before() -> None:
    plus, minus = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, -0.0)
    for first, second in ((plus, minus), (minus, plus)):
        geometry._normal.cache_clear()
        slice_normal(first)
        found = slice_normal(second)
        assert found is not None
        assert np.signbit(found[0]) == (second is minus), "cross product of +0 and -0"
        assert not found.flags.writeable
