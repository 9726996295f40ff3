import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fastich.serve import render
from fastich.windowing import WINDOWS, Window

BRAIN = WINDOWS["brain"]


def opened(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return np.asarray(image)


def test_grey_runs_from_the_lower_to_the_upper_edge_of_the_window() -> None:
    hu = np.array([[-1000, 0, 20], [40, 80, 3000]], dtype=np.int16)
    assert render.grey(hu, BRAIN).tolist() == [[0, 0, 64], [128, 255, 255]]


def test_flat_map_colours_nothing() -> None:
    hu = np.arange(64, dtype=np.int16).reshape(8, 8)
    found = render.overlay(hu, np.full((2, 2), -3.0), BRAIN)
    np.testing.assert_array_equal(found, np.repeat(render.grey(hu, BRAIN)[..., None], 3, axis=-1))


def test_overlay_is_strongest_where_the_map_is() -> None:
    cam = np.zeros((4, 4))
    cam[0, 3] = 5
    found = render.overlay(np.full((64, 48), 40, dtype=np.int16), cam, BRAIN).astype(int)
    colourful = found.max(axis=-1) - found.min(axis=-1)
    assert colourful[2, 46] > 60
    assert colourful[40, 5] == 0
    assert found.shape == (64, 48, 3)


def test_overlay_leaves_the_tissue_visible() -> None:
    hu = np.array([[0, 80], [80, 0]], dtype=np.int16)
    found = render.overlay(hu, np.array([[1.0, 1.0], [1.0, 0.0]]), BRAIN).astype(int)
    assert (found[0, 1] - found[0, 0]).min() == pytest.approx(255 * (1 - render.STRONGEST_ALPHA), abs=1)


def test_lightness_rises_with_the_share() -> None:
    lightness = render.colours(np.linspace(0, 1, 101)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1), (64, 33, 3)])
def test_png_is_read_back_exactly(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(opened(render.png(image)), image)


def test_equal_images_give_equal_bytes() -> None:
    image = render.grey(np.arange(100, dtype=np.int16).reshape(10, 10), Window(50, 100))
    assert render.png(image) == render.png(image.copy())


def test_rendering_loads_neither_scipy_nor_pillow() -> None:
    code = "import sys, fastich.serve.render; print([m for m in ('scipy', 'PIL', 'matplotlib') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
