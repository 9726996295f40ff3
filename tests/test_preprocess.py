import io

import numpy as np
import pytest
import torch

from fastich import windowing
from fastich.preprocess import Preprocess, resize_area
from fastich.windowing import DEFAULT_WINDOWS, WINDOWS, Window

TOLERANCE_HU = 0.005
TOLERANCE = 1e-3
"""In normalised units: 0.005 HU in the narrowest named window, 40 HU wide."""

SHAPES = [(512, 512, 256), (511, 377, 256), (100, 130, 224), (5, 3, 7), (128, 128, 96), (1, 9, 4), (64, 64, 64)]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1024, 3072, shape).astype(np.int16)


@pytest.mark.parametrize(("height", "width", "size"), SHAPES)
def test_resize_area_equals_numpy(height, width, size):
    hu = noise(2, height, width)
    found = resize_area(torch.from_numpy(hu)[:, None], size)
    assert found.dtype == torch.float32
    assert found.shape == (2, 1, size, size)
    expected = np.stack([windowing.resize_area(one, size) for one in hu])
    np.testing.assert_allclose(found[:, 0].numpy(), expected, atol=TOLERANCE_HU, rtol=0)


def test_integer_factors_are_block_means():
    hu = noise(1, 96, 96)
    means = hu[0].reshape(32, 3, 32, 3).astype(np.float64).mean(axis=(1, 3))
    np.testing.assert_allclose(resize_area(torch.from_numpy(hu)[None], 32)[0, 0], means, atol=TOLERANCE_HU, rtol=0)


def test_area_weights_stay_exact_at_large_awkward_sizes():
    hu = torch.full((1, 1, 1021, 1021), 2345, dtype=torch.int16)
    assert (resize_area(hu, 337) - 2345).abs().max() < TOLERANCE_HU


@pytest.mark.parametrize("windows", [DEFAULT_WINDOWS, tuple(WINDOWS.values()), (Window(35.5, 71),)])
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_preprocess_equals_numpy(windows, dtype):
    hu = noise(3, 90, 77)
    found = Preprocess(48, windows)(torch.from_numpy(hu).to(dtype))
    expected = np.stack([windowing.preprocess(one, 48, windows) for one in hu])
    np.testing.assert_allclose(found.numpy(), expected, atol=TOLERANCE, rtol=0)


def test_adjacent_planes_pass_through_the_first_window():
    hu = noise(2, 3, 60, 60)
    found = Preprocess(24, (WINDOWS["subdural"], WINDOWS["bone"]), adjacent=True)(torch.from_numpy(hu))
    expected = np.stack([windowing.preprocess_adjacent(list(one), 24, WINDOWS["subdural"]) for one in hu])
    np.testing.assert_allclose(found.numpy(), expected, atol=TOLERANCE, rtol=0)


def test_padding_counts_as_air():
    padded, air = np.full((8, 8), 100, np.int16), np.full((8, 8), 100, np.int16)
    padded[0], air[0] = -3024, -1024
    for resize in (windowing.resize_area, lambda hu, size: resize_area(torch.from_numpy(hu)[None, None], size)[0, 0]):
        np.testing.assert_array_equal(resize(padded, 4), resize(air, 4))


def test_preprocess_adds_nothing_to_a_checkpoint():
    assert Preprocess(8).state_dict() == {}
    assert list(Preprocess(8).parameters()) == []


def exported(how: str, module: Preprocess, example: torch.Tensor):
    dynamic = (dict.fromkeys(range(3), torch.export.Dim.DYNAMIC),)
    if how == "trace":
        return torch.jit.trace(module, (example,))
    if how == "script":
        return torch.jit.script(module)
    if how == "export":
        return torch.export.export(module, (example,), dynamic_shapes=dynamic).module()
    session_of = pytest.importorskip("onnxruntime").InferenceSession
    program = torch.onnx.export(
        module, (example,), dynamo=True, opset_version=18, input_names=["hu"], dynamic_shapes=dynamic, verbose=False
    )
    file = io.BytesIO()
    program.save(file)
    session = session_of(file.getvalue(), providers=["CPUExecutionProvider"])
    return lambda hu: torch.from_numpy(session.run(None, {"hu": hu.numpy()})[0])


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["trace", "script", "export", "onnx"])
def test_exports_keep_batch_height_and_width_dynamic(how):
    module = Preprocess(32).eval()
    run = exported(how, module, torch.from_numpy(noise(2, 50, 45)))
    for shape in [(2, 50, 45), (1, 64, 64), (3, 33, 70), (5, 96, 40)]:
        hu = noise(*shape, seed=7)
        expected = np.stack([windowing.preprocess(one, 32) for one in hu])
        np.testing.assert_allclose(run(torch.from_numpy(hu)).numpy(), expected, atol=TOLERANCE, rtol=0)
