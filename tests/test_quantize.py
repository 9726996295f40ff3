from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from small_dense import SIZE, SmallDense
from toy_model import toy_onnx

from fastich.artifact import IMAGE, ONNX_FILE, OUTPUTS
from fastich.errors import ArtifactError
from fastich.models.folding import fold_batch_norm
from fastich.models.onnx_graph import onnx_bytes
from fastich.models.serving import Front, ServingModel
from fastich.parity import synthetic_heads
from fastich.quantize import calibrate, float16_graph, int8_graph, is_multiply_add, quantized_tensors
from fastich.types import HuArray
from fastich.windowing import DEFAULT_WINDOWS

LAYERS = 4
"""Of the small network: each has one 1 x 1 and one 3 x 3 convolution; a transition and the first one come on top."""


@pytest.fixture(scope="module")
def content() -> bytes:
    return onnx_bytes(ServingModel(Front(SIZE, DEFAULT_WINDOWS, False), fold_batch_norm(SmallDense())))


@pytest.fixture(scope="module")
def hu() -> HuArray:
    return np.stack(synthetic_heads(12)[:8])[:, ::4, ::4]


@pytest.fixture(scope="module")
def int8(content: bytes, hu: HuArray) -> bytes:
    return int8_graph(content, calibrate(content, [hu]))


def run(content: bytes, hu: HuArray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in OUTPUTS]
    return dict(zip(names, session.run(names, {"hu": np.ascontiguousarray(hu)}), strict=True))


def test_int8_is_near_float32_and_not_equal(content: bytes, int8: bytes, hu: HuArray) -> None:
    before, after = run(content, hu), run(int8, hu)
    spread = before["logit"].std()
    difference = np.abs(after["logit"] - before["logit"]).max()
    assert 0 < difference < 0.15 * spread


def test_int8_keeps_the_interface(content: bytes, int8: bytes) -> None:
    def interface(model: bytes) -> list[str]:
        graph = onnx.load_from_string(model).graph
        return [value.SerializeToString().hex() for value in (*graph.input, *graph.output)]

    assert interface(int8) == interface(content)


def test_int8_quantises_all_convolutions_but_the_first_with_one_scale_an_output_channel(int8: bytes) -> None:
    graph = onnx.load_from_string(int8).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    first, *rest = [node for node in graph.node if node.op_type == "Conv"]
    assert first.input[0] == IMAGE
    assert constants[first.input[1]].dtype == np.float32
    assert len(rest) == 2 * LAYERS + 1
    for node in rest:
        weight, scale, _ = (constants[name] for name in made_by[node.input[1]].input)
        assert weight.dtype == np.int8
        assert np.abs(weight).max() == 127
        assert scale.shape == (len(weight),)
        zero = constants[made_by[node.input[0]].input[2]]
        assert zero.dtype == np.uint8


def test_int8_writes_folded_norms_as_multiply_and_add(content: bytes, int8: bytes) -> None:
    grouped = 1 + LAYERS + 1
    before, after = (Counter(node.op_type for node in onnx.load_from_string(one).graph.node) for one in (content, int8))
    assert after["Mul"] - before["Mul"] == grouped
    assert before["Conv"] - after["Conv"] == grouped


@pytest.mark.parametrize(("group", "side", "expected"), [(8, 1, True), (8, 3, False), (1, 1, False)])
def test_grouped_convolution_of_a_backbone_is_no_folded_norm(group: int, side: int, expected: bool) -> None:
    """ResNeXt groups its 3 x 3 convolutions, EfficientNet and ConvNeXt have one group a channel of 3 to 7 pixels."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group, kernel_shape=[side, side])
    assert is_multiply_add(node) == expected


def test_int8_leaves_preprocessing_and_head_as_they_are(content: bytes, int8: bytes) -> None:
    def outside(model: bytes) -> list[str]:
        kinds = ("MatMul", "Gemm", "Sigmoid", "ReduceMean", "Clip", "Reshape")
        return [
            node.SerializeToString().hex() for node in onnx.load_from_string(model).graph.node if node.op_type in kinds
        ]

    assert outside(int8) == outside(content)


def test_int8_file_is_smaller_and_equal_input_gives_equal_bytes(content: bytes, int8: bytes, hu: HuArray) -> None:
    assert len(int8) < len(content)
    assert int8_graph(content, calibrate(content, [hu])) == int8


def test_calibration_spans_all_batches_and_zero(content: bytes, hu: HuArray) -> None:
    both, one, other = (calibrate(content, batches) for batches in ([hu[:4], hu[4:]], [hu[:4]], [hu[4:]]))
    assert list(both) == quantized_tensors(content)
    for name, (low, high) in both.items():
        assert low <= 0 <= high
        assert low == pytest.approx(min(one[name][0], other[name][0]))
        assert high == pytest.approx(max(one[name][1], other[name][1]))
    assert any(one[name] != other[name] for name in both)


def test_channel_of_zeros_is_quantised_without_dividing_by_zero(content: bytes, hu: HuArray) -> None:
    model = onnx.load_from_string(content)
    last = [node for node in model.graph.node if node.op_type == "Conv" and len(node.input) == 2][-1]
    for tensor in model.graph.initializer:
        if tensor.name == last.input[1]:
            values = numpy_helper.to_array(tensor).copy()
            values[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    changed = model.SerializeToString()
    assert np.isfinite(run(int8_graph(changed, calibrate(changed, [hu])), hu)["logit"]).all()


def test_float16_network_between_float32_preprocessing_and_head(content: bytes, hu: HuArray) -> None:
    half = float16_graph(content)
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(half)).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    convolutions = [node.output[0] for node in graph.node if node.op_type == "Conv"]
    assert {kinds[name] for name in convolutions} == {onnx.TensorProto.FLOAT16}
    assert kinds[IMAGE] == onnx.TensorProto.FLOAT
    assert Counter(node.op_type for node in graph.node)["Cast"] == 2 + sum(
        node.op_type == "Cast" for node in onnx.load_from_string(content).graph.node
    )
    before, after = run(content, hu), run(half, hu)
    assert after["logit"].dtype == np.float32
    assert 0 < np.abs(after["logit"] - before["logit"]).max() < 0.02 * before["logit"].std()
    assert len(half) < len(content)


@pytest.mark.parametrize("make", [float16_graph, quantized_tensors])
def test_graph_of_an_older_export_is_refused(make: object) -> None:
    old = onnx.load_from_string(toy_onnx())
    for node in old.graph.node:
        node.input[:] = ["other" if name == IMAGE else name for name in node.input]
        node.output[:] = ["other" if name == IMAGE else name for name in node.output]
    with pytest.raises(ArtifactError, match=rf"{ONNX_FILE}: expected a graph with tensors image and embedding, found"):
        make(old.SerializeToString())  # type: ignore[operator]
