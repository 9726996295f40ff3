import numpy as np
import pytest

from fastich.class_maps import cells, head, peak, pointing, to_slice
from fastich.hu import AIR_HU
from fastich.windowing import resize_area

EVERYWHERE = np.ones((64, 64), dtype=bool)


def one_hot(shape: tuple[int, int], at: tuple[int, int], low: float = -1.0) -> np.ndarray:
    made = np.full(shape, low, dtype=np.float32)
    made[at] = 3.0
    return made


def square(rows: slice, columns: slice, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    made = np.zeros(shape, dtype=bool)
    made[rows, columns] = True
    return made


def test_map_is_bilinear_between_cell_centres_and_flat_beyond_them() -> None:
    found = to_slice(np.array([[0.0, 8.0]]).repeat(2, axis=0), (8, 8))
    assert found[3].tolist() == [0, 0, 1, 3, 5, 7, 8, 8]
    np.testing.assert_array_equal(found, found[:1].repeat(8, axis=0))


def test_rows_and_columns_are_not_swapped() -> None:
    found = to_slice(one_hot((4, 4), (0, 3)), (64, 64))
    row, column = peak(found, EVERYWHERE)
    assert row < 16
    assert column >= 48


@pytest.mark.parametrize("shape", [(64, 40), (40, 64), (61, 64), (64, 33)])
@pytest.mark.parametrize("at", [(1, 1), (2, 2), (1, 2)])
def test_map_lies_where_the_network_saw_the_pixels(shape: tuple[int, int], at: tuple[int, int]) -> None:
    """A bright cell of the network's square, made from a slice that is not square, is under the map's peak."""
    spread = to_slice(one_hot((4, 4), at), shape)
    hu = np.where(spread > 2.4, 1000, AIR_HU).astype(np.int16)
    seen = resize_area(hu, 4) > AIR_HU + 50
    assert seen[at]
    assert seen.sum() == 1


def test_cells_of_a_padded_slice_start_inside_the_square() -> None:
    assert cells(4, 8, 4).tolist() == [1, 1, 2, 2]
    assert cells(8, 8, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cells(7, 8, 4).tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_values_of_the_map_are_kept_at_cell_centres() -> None:
    made = np.random.default_rng(0).normal(size=(4, 4))
    found = to_slice(made, (36, 36))  # an odd number of pixels a cell: the middle one is the centre
    np.testing.assert_allclose(found[4::9, 4::9], made)
    assert found.max() == pytest.approx(made.max())


def test_peak_is_looked_for_in_the_head_only() -> None:
    spread = to_slice(one_hot((4, 4), (0, 0)), (64, 64))
    row, column = peak(spread, square(slice(20, 40), slice(20, 40)))
    assert (row, column) == (20, 20)


def test_peak_of_a_plateau_is_its_middle() -> None:
    assert peak(np.ones((5, 5)), np.ones((5, 5), dtype=bool)) == (2, 2)


def test_head_is_the_largest_piece_with_its_holes_filled() -> None:
    hu = np.full((20, 20), -1000, dtype=np.int16)
    hu[2:14, 2:14] = 40
    hu[5:7, 5:7] = -1000  # air in a sinus
    hu[17:19, 2:18] = -100  # a head holder
    np.testing.assert_array_equal(head(hu), square(slice(2, 14), slice(2, 14), (20, 20)))


def test_slice_of_air_has_no_head_to_leave_out() -> None:
    assert head(np.full((4, 4), -1000, dtype=np.int16)).all()


@pytest.mark.parametrize(
    ("columns", "tolerance_mm", "hit"),
    [(slice(22, 28), 0, True), (slice(30, 40), 5, False), (slice(30, 40), 7, True), (slice(50, 60), 7, False)],
)
def test_peak_hits_within_the_tolerance_in_mm(columns: slice, tolerance_mm: float, hit: bool) -> None:
    """The peak of cell (1, 1) of 4 x 4 over 64 pixels lies at (23.5, 23.5); pixels are 1 x 1 mm."""
    mask = square(slice(20, 28), columns)
    found = pointing(one_hot((4, 4), (1, 1)), mask, EVERYWHERE, (1.0, 1.0), tolerance_mm)
    assert found.hit is hit


def test_tolerance_counts_millimetres_not_pixels() -> None:
    mask = square(slice(32, 36), slice(20, 28))
    far = pointing(one_hot((4, 4), (1, 1)), mask, EVERYWHERE, (2.0, 0.5), 10)
    near = pointing(one_hot((4, 4), (1, 1)), mask, EVERYWHERE, (0.5, 2.0), 10)
    assert (far.hit, near.hit) == (False, True)


def test_chance_is_the_share_of_head_that_would_hit() -> None:
    found = pointing(one_hot((4, 4), (0, 0)), square(slice(0, 16), slice(0, 16)), EVERYWHERE, (1.0, 1.0), 0)
    assert (found.chance, found.cell_chance, found.mask_share) == (1 / 16, 1 / 16, 1 / 16)
    wide = pointing(one_hot((4, 4), (0, 0)), square(slice(0, 17), slice(0, 16)), EVERYWHERE, (1.0, 1.0), 0)
    assert wide.cell_chance == 2 / 16
    half = pointing(
        one_hot((4, 4), (0, 0)), square(slice(0, 16), slice(0, 16)), square(slice(0, 16), slice(0, 32)), (1.0, 1.0), 0
    )
    assert half.chance == 1 / 2


def test_cell_of_the_peak_counts_where_the_mask_touches_it() -> None:
    mask = square(slice(31, 33), slice(31, 33))
    for at, hit in (((1, 1), True), ((2, 2), True), ((0, 0), False), ((3, 1), False)):
        assert pointing(one_hot((4, 4), at), mask, EVERYWHERE, (1.0, 1.0), 0).cell_hit is hit


def test_energy_is_the_share_of_the_positive_part_inside_the_mask() -> None:
    flat = np.ones((4, 4), dtype=np.float32)
    mask = square(slice(0, 16), slice(0, 64))
    assert pointing(flat, mask, EVERYWHERE, (1.0, 1.0), 0).energy == pytest.approx(0.25)
    assert pointing(flat, mask, EVERYWHERE, (1.0, 1.0), 0).mask_share == 0.25
    there = pointing(one_hot((4, 4), (0, 1)), mask, EVERYWHERE, (1.0, 1.0), 0).energy
    elsewhere = pointing(one_hot((4, 4), (3, 1)), mask, EVERYWHERE, (1.0, 1.0), 0).energy
    assert there is not None
    assert there > 0.8
    assert elsewhere == 0


def test_energy_of_a_map_without_a_positive_part_is_undefined() -> None:
    assert pointing(-np.ones((4, 4)), square(slice(0, 9), slice(0, 9)), EVERYWHERE, (1.0, 1.0), 0).energy is None
