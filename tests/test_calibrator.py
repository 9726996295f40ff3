from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from small_dense import SIZE, SmallDense

from fastich.artifact import ONNX_FILE
from fastich.calibration import BIAS, METHODS, NONE, PIECEWISE, SCALE, Calibration, constants, fit
from fastich.models.calibrator import Calibrator
from fastich.models.folding import fold_batch_norm
from fastich.models.onnx_graph import onnx_bytes
from fastich.models.serving import Front, ServingModel, example
from fastich.models.torchscript import load_torchscript, torchscript_bytes
from fastich.parity import synthetic_heads
from fastich.quantize import calibrate, float16_graph, int8_graph
from fastich.serve import openvino_backend
from fastich.windowing import DEFAULT_WINDOWS

TOLERANCE = 1e-6


def overconfident(num_rows: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits three times as large as they should be and shifted, with labels."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(-1.5, 1.5, (num_rows, 6))
    labels = (rng.random(honest.shape) < 1 / (1 + np.exp(-honest))).astype(np.int64)
    return 3 * honest + 1, labels


def mixed() -> Calibration:
    """Isotonic for four labels, Platt for one, nothing for one."""
    isotonic, platt = (fit(*overconfident(), method) for method in ("isotonic", "platt"))
    of_label = (*isotonic.of_label[:4], platt.of_label[4], NONE.of_label[5])
    return Calibration(method="isotonic", of_label=of_label)


def probes(calibration: Calibration) -> np.ndarray:
    """Logits all over the range, at every knot and one float32 step beside it."""
    spread = np.linspace(-30, 30, 4001)
    knots = np.array([x for one in calibration.of_label for x, _ in one.knots], dtype=np.float32)
    beside = [np.nextafter(knots, np.float32(side)) for side in (-np.inf, np.inf)]
    column = np.concatenate([spread.astype(np.float32), knots, *beside])
    return np.stack([np.roll(column, i) for i in range(6)], axis=1)


@pytest.mark.parametrize("calibration", [*(fit(*overconfident(), method) for method in METHODS), mixed()])
def test_module_equals_numpy(calibration: Calibration) -> None:
    logit = probes(calibration)
    with torch.inference_mode():
        found = Calibrator(calibration)(torch.from_numpy(logit)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, calibration.probability(logit), atol=TOLERANCE, rtol=0)


def test_steps_between_neighbouring_float32_logits_stay_steps() -> None:
    low = float(np.float32(2.0))
    high = float(np.nextafter(np.float32(2.0), np.float32(3)))
    one = fit(*overconfident(), "isotonic").of_label[0]
    steep = type(one)(method="isotonic", knots=((low, 0.25), (high, 0.75)))
    calibration = Calibration(method="isotonic", of_label=(steep,) * 6)
    logit = np.repeat(np.array([[-np.inf], [1.0], [low], [high], [5.0], [1e30]]), 6, axis=1).astype(np.float32)
    logit[0] = -3e38
    found = Calibrator(calibration)(torch.from_numpy(logit)).numpy()[:, 0]
    assert found.tolist() == [0.25, 0.25, 0.25, 0.75, 0.75, 0.75]


def graph_of(calibration: Calibration) -> bytes:
    serving = ServingModel(Front(SIZE, DEFAULT_WINDOWS, False), fold_batch_norm(SmallDense()), calibration)
    return onnx_bytes(serving)


@pytest.fixture(scope="module")
def plain() -> bytes:
    return graph_of(NONE)


@pytest.fixture(scope="module", params=["platt", "isotonic", "mixed"])
def made(request: pytest.FixtureRequest) -> tuple[Calibration, bytes]:
    calibration = mixed() if request.param == "mixed" else fit(*overconfident(), request.param)
    return calibration, graph_of(calibration)


def answer(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    hu = np.ascontiguousarray(np.stack(synthetic_heads(12)[:8])[:, ::4, ::4])
    probability, logit = session.run(["probability", "logit"], {"hu": hu})
    return probability, logit


def test_exported_graph_calibrates_and_its_logit_stays_raw(made: tuple[Calibration, bytes], plain: bytes) -> None:
    calibration, content = made
    probability, logit = answer(content)
    np.testing.assert_allclose(probability, calibration.probability(logit), atol=TOLERANCE, rtol=0)
    assert np.abs(probability - NONE.probability(logit)).max() > 0.05
    np.testing.assert_allclose(logit, answer(plain)[1], atol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_variants_in_other_precisions_calibrate_as_well(made: tuple[Calibration, bytes], precision: str) -> None:
    calibration, content = made
    hu = np.stack(synthetic_heads(12)[:8])[:, ::4, ::4]
    variant = int8_graph(content, calibrate(content, [hu])) if precision == "int8" else float16_graph(content)
    probability, logit = answer(variant)
    np.testing.assert_allclose(probability, calibration.probability(logit), atol=TOLERANCE, rtol=0)
    names = {tensor.name for tensor in onnx.load_from_string(variant).graph.initializer}
    kept = {name for name in constants(calibration) if name in (SCALE, BIAS, PIECEWISE)}
    assert {f"calibrator.{name}" for name in kept} <= names


def test_constants_stand_in_the_file_by_name_even_where_nothing_was_calibrated(plain: bytes) -> None:
    tensors = {tensor.name: tensor for tensor in onnx.load_from_string(plain).graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(tensors[f"calibrator.{SCALE}"]), np.ones(6, dtype=np.float32))
    np.testing.assert_array_equal(numpy_helper.to_array(tensors[f"calibrator.{BIAS}"]), np.zeros(6, dtype=np.float32))


def test_torchscript_calibrates_as_well() -> None:
    calibration = mixed()
    serving = ServingModel(Front(SIZE, DEFAULT_WINDOWS, False), fold_batch_norm(SmallDense()), calibration)
    module = load_torchscript(torchscript_bytes(serving, example()))
    hu = torch.from_numpy(np.ascontiguousarray(np.stack(synthetic_heads(12)[:3])[:, ::4, ::4]))
    with torch.inference_mode():
        probability, logit, _, _ = module(hu)
    np.testing.assert_allclose(probability.numpy(), calibration.probability(logit.numpy()), atol=TOLERANCE, rtol=0)


@pytest.mark.skipif(bool(openvino_backend.WHY_NO_OPENVINO), reason="OpenVINO is not installed")
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_openvino_calibrates_as_well(made: tuple[Calibration, bytes], precision: str) -> None:
    calibration, content = made
    hu = np.ascontiguousarray(np.stack(synthetic_heads(12)[:8])[:, ::4, ::4])
    variant = int8_graph(content, calibrate(content, [hu])) if precision == "int8" else content
    probability, logit = openvino_backend.Engine(variant, precision, 1, Path(ONNX_FILE)).run(hu)[:2]
    np.testing.assert_allclose(probability, calibration.probability(logit), atol=1e-4, rtol=0)


def test_rounding_stays_small_with_many_knots() -> None:
    calibration = fit(*overconfident(60_000), "isotonic")
    assert max(len(one.knots) for one in calibration.of_label) > 150
    logit = probes(calibration)
    found = Calibrator(calibration)(torch.from_numpy(logit)).numpy()
    np.testing.assert_allclose(found, calibration.probability(logit), atol=TOLERANCE, rtol=0)
