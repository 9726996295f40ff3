import numpy as np
import pytest
import torch

from fastich.loaders.augment import GRID, Augmentation, draw
from fastich.loaders.cpu import warp


def only(**changes) -> Augmentation:
    """One slice on which nothing is done but ``changes``."""
    zeros = dict.fromkeys(("rotation_deg", "shift_x", "shift_y", "offset_hu"), 0.0)
    values = {"flip": False, "scale": 1.0, "gain": 1.0} | zeros | changes
    return Augmentation(**{name: np.array([value]) for name, value in values.items()})


def moved(image: np.ndarray, **changes) -> np.ndarray:
    maps = only(**changes).matrix(0, *image.shape)[None]
    return warp(torch.from_numpy(image.astype(np.int16))[None, None], maps)[0, 0].numpy()


IMAGE = np.random.default_rng(0).integers(-1024, 3000, (40, 40))


def test_draws_depend_on_the_position_not_on_the_batch():
    whole = draw(3, 1, np.arange(50))
    part = draw(3, 1, np.array([48, 7, 21]))
    for name in Augmentation.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(whole, name)[[48, 7, 21]], getattr(part, name))
    assert not np.array_equal(whole.scale, draw(3, 2, np.arange(50)).scale)
    assert not np.array_equal(whole.scale, draw(4, 1, np.arange(50)).scale)


def test_draws_stay_in_their_ranges_and_fill_them():
    many = draw(0, 0, np.arange(5000))
    ranges = {
        "rotation_deg": (-10, 10),
        "scale": (0.9, 1.1),
        "shift_x": (-0.05, 0.05),
        "shift_y": (-0.05, 0.05),
        "gain": (0.95, 1.05),
        "offset_hu": (-5, 5),
    }
    for name, (low, high) in ranges.items():
        values, margin = getattr(many, name), (high - low) / 100
        assert low <= values.min() < low + margin, name
        assert high - margin < values.max() <= high, name
    assert 0.45 < many.flip.mean() < 0.55


def test_doing_nothing_changes_nothing():
    np.testing.assert_allclose(moved(IMAGE), IMAGE, atol=0.1)


def test_flip_mirrors_left_and_right():
    np.testing.assert_allclose(moved(IMAGE, flip=True), IMAGE[:, ::-1], atol=0.1)


def test_shift_moves_right_and_down_and_lets_air_in():
    found = moved(IMAGE, shift_x=2 / 40, shift_y=1 / 40)
    np.testing.assert_allclose(found[1:, 2:], IMAGE[:-1, :-2], atol=3)
    np.testing.assert_allclose(found[:, :2], -1024, atol=3)
    np.testing.assert_allclose(found[0], -1024, atol=3)


def test_quarter_turn_keeps_the_centre():
    np.testing.assert_allclose(moved(IMAGE, rotation_deg=90.0), np.rot90(IMAGE, -1), atol=0.1)


def test_scale_enlarges_about_the_centre():
    square = np.full((40, 40), -1024)
    square[15:25, 15:25] = 100
    found = moved(square, scale=1.6) > -462
    assert found.sum() == 256
    assert np.argwhere(found).mean(axis=0) == pytest.approx([19.5, 19.5], abs=0.1)


def test_maps_lie_on_the_grid_that_float32_adds_exactly():
    drawn = draw(0, 0, np.arange(20))
    for item in range(20):
        steps = drawn.matrix(item, 512, 400) / GRID
        assert np.array_equal(steps, np.round(steps))
