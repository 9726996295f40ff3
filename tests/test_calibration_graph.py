import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from small_dense import SIZE, SmallDense
from toy_model import toy_onnx

from fastich.calibration import NONE, PIECEWISE, Calibration, LabelCalibration
from fastich.calibration_graph import with_calibration
from fastich.errors import ArtifactError
from fastich.models.folding import fold_batch_norm
from fastich.models.onnx_graph import onnx_bytes
from fastich.models.serving import Front, ServingModel
from fastich.parity import synthetic_heads
from fastich.quantize import float16_graph
from fastich.windowing import DEFAULT_WINDOWS

PLATT = Calibration(
    method="platt", of_label=tuple(LabelCalibration(method="platt", scale=0.3 + 0.1 * i, bias=1.0) for i in range(6))
)
SHORT = LabelCalibration(method="isotonic", knots=((-2.0, 0.1), (1.0, 0.6)))
LONG = LabelCalibration(method="isotonic", knots=((-3.0, 0.0), (-1.0, 0.2), (0.0, 0.3), (2.0, 0.9)))
ISOTONIC = Calibration(method="isotonic", of_label=(SHORT, LONG, *(SHORT,) * 4))
MIXED = Calibration(method="platt", of_label=(SHORT, PLATT.of_label[1], *(SHORT,) * 4))


@functools.cache
def graph_of(calibration: Calibration, zero_head: bool = False) -> bytes:
    network = SmallDense()
    if zero_head:
        torch.nn.init.zeros_(network.head[-1].bias)
    return onnx_bytes(ServingModel(Front(SIZE, DEFAULT_WINDOWS, False), fold_batch_norm(network), calibration))


@functools.cache
def answer(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    hu = np.ascontiguousarray(np.stack(synthetic_heads(12)[:8])[:, ::4, ::4])
    probability, logit = session.run(["probability", "logit"], {"hu": hu})
    return probability, logit


@pytest.mark.parametrize(
    ("before", "after"), [(NONE, PLATT), (PLATT, NONE), (ISOTONIC, PLATT), (ISOTONIC, MIXED), (ISOTONIC, NONE)]
)
def test_graph_computes_the_new_calibration_and_the_old_logits(before: Calibration, after: Calibration) -> None:
    probability, logit = answer(with_calibration(graph_of(before), after))
    np.testing.assert_array_equal(logit, answer(graph_of(before))[1])
    np.testing.assert_allclose(probability, after.probability(logit), atol=1e-6, rtol=0)
    assert np.abs(probability - answer(graph_of(before))[0]).max() > 0.01


def test_constants_that_equal_a_weight_of_the_network_are_not_shared_with_it() -> None:
    content = graph_of(NONE, zero_head=True)
    probability, logit = answer(with_calibration(content, PLATT))
    np.testing.assert_array_equal(logit, answer(content)[1])
    np.testing.assert_allclose(probability, PLATT.probability(logit), atol=1e-6, rtol=0)


def test_what_was_put_in_place_can_be_taken_back_byte_for_byte() -> None:
    again = with_calibration(with_calibration(graph_of(NONE), PLATT), NONE)
    assert again == with_calibration(graph_of(NONE), NONE)


def test_variant_of_a_recalibrated_graph_equals_the_recalibrated_variant() -> None:
    first = with_calibration(float16_graph(graph_of(NONE)), PLATT)
    second = float16_graph(with_calibration(graph_of(NONE), PLATT))
    np.testing.assert_array_equal(answer(first)[0], answer(second)[0])


def test_graph_of_an_older_export_is_refused_by_name() -> None:
    with pytest.raises(
        ArtifactError,
        match=r"old\.onnx: expected constants calibrator\.calibration_scale, calibrator\.calibration_bias, found",
    ):
        with_calibration(toy_onnx(), PLATT, where="old.onnx")


def test_knots_need_a_graph_with_knots() -> None:
    with pytest.raises(ArtifactError, match=rf"expected constants calibrator\.{PIECEWISE}, found none"):
        with_calibration(graph_of(NONE), ISOTONIC)


def test_nothing_but_constants_changes() -> None:
    before, after = (
        onnx.load_from_string(one).graph for one in (graph_of(NONE), with_calibration(graph_of(NONE), PLATT))
    )
    assert [node.SerializeToString() for node in before.node] == [node.SerializeToString() for node in after.node]
    changed = [
        old.name
        for old, new in zip(before.initializer, after.initializer, strict=True)
        if old.SerializeToString() != new.SerializeToString()
    ]
    assert sorted(changed) == ["calibrator.calibration_bias", "calibrator.calibration_scale"]
