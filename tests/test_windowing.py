import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastich import windowing
from fastich.windowing import WINDOWS, Window


def random_hu(height: int, width: int, seed: int = 0) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-1024, 3000, (height, width)).astype(np.int16)


def test_integer_factors_are_plain_block_means() -> None:
    hu = random_hu(64, 64)
    blocks = hu.reshape(16, 4, 16, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(windowing.resize_area(hu, 16), blocks, atol=1e-3)


def test_same_size_changes_nothing() -> None:
    hu = random_hu(32, 32)
    np.testing.assert_allclose(windowing.resize_area(hu, 32), hu, atol=1e-3)


@settings(max_examples=50)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_the_mean_is_kept_whatever_the_size(height: int, width: int, size: int) -> None:
    hu = random_hu(height, width)
    square = max(height, width)
    total = (hu.astype(np.float64) + 1024).sum() / square**2
    assert windowing.resize_area(hu, size).mean() + 1024 == pytest.approx(total, rel=1e-4, abs=1e-2)


def test_an_oblong_image_is_centred_in_air() -> None:
    out = windowing.resize_area(np.full((4, 8), 100, dtype=np.int16), 8)
    assert (out[:2] == -1024).all()
    np.testing.assert_allclose(out[2:6], 100, atol=1e-3)
    assert (out[6:] == -1024).all()


def test_padding_counts_as_air() -> None:
    padded = np.array([[-3024, 100], [-2000, 100]], dtype=np.int16)
    assert windowing.resize_area(padded, 1)[0, 0] == pytest.approx((-1024 + 100) / 2)


def test_brain_window_hits_its_corners() -> None:
    values = np.array([[-10, 0, 40, 80, 90]], dtype=np.int16)
    assert windowing.window(values, WINDOWS["brain"]).tolist() == [[0, 0, 0.5, 1, 1]]


def test_windows_parse_by_name_and_by_numbers() -> None:
    assert windowing.parse_windows("brain, 600/2800") == (WINDOWS["brain"], Window(600, 2800))


@pytest.mark.parametrize("text", ["liver", "40/80/2", "40/x", ""])
def test_unknown_windows_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="expected one of brain"):
        windowing.parse_windows(text)


@pytest.mark.parametrize("width", [0, -1, float("nan")])
def test_a_window_without_width_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="width must be > 0"):
        Window(40, width)


def test_preprocess_is_resize_window_normalise() -> None:
    hu = np.full((8, 8), 40, dtype=np.int16)
    out = windowing.preprocess(hu, 4)
    assert out.shape == (3, 4, 4)
    expected = [(0.5 - 0.485) / 0.229, ((40 + 20) / 200 - 0.456) / 0.224, ((40 + 800) / 2800 - 0.406) / 0.225]
    np.testing.assert_allclose(out[:, 0, 0], expected, rtol=1e-5)


def test_adjacent_slices_become_the_three_channels() -> None:
    slices = [np.full((4, 4), value, dtype=np.int16) for value in (0, 40, 80)]
    out = windowing.preprocess_adjacent(slices, 4, WINDOWS["brain"])
    np.testing.assert_allclose(out[:, 0, 0] * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406], [0, 0.5, 1], atol=1e-6)
