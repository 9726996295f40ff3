"""Variants of an exported ONNX graph in another precision: int8 for CPUs, float16 for CUDA. Graph surgery, no torch.

Preprocessing (up to the tensor ``image``) and head (from the tensor ``features`` on: pooling, logits, class maps) stay
float32 in both; inputs and outputs keep their types. int8 is static QDQ: activations uint8 with one scale a tensor,
weights int8 with one scale an output channel. What is quantised was chosen by measurement (bench/LOG.md): every
convolution but the first, its input and, where it feeds a concatenation, its output. Cost: calibration runs the
float32 graph once over its slices (40 ms of two cores each at 256 px); the surgery itself takes a second.

Source of the QDQ arithmetic: onnx.ai/onnx/operators QuantizeLinear, DequantizeLinear.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fastich.artifact import IMAGE, INPUT, ONNX_FILE
from fastich.errors import ArtifactError
from fastich.types import HuArray

EMBEDDING = "embedding"
WEIGHT_LEVELS, ACTIVATION_LEVELS = 127, 255
Ranges = Mapping[str, tuple[float, float]]
"""Tensor -> smallest and largest value seen, 0 included."""


def float16_graph(content: bytes) -> bytes:
    """The graph whose network, from ``image`` to ``features``, computes in float16.

    Raises:
        ArtifactError: the graph was not made by this export.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    features = features_of(graph)
    inside = network_nodes(graph, features)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    halved = {name for node in inside for name in node.input if is_float(constants.get(name))}
    graph.initializer.extend(
        numpy_helper.from_array(numpy_helper.to_array(constants[name]).astype(np.float16), f"{name}/float16")
        for name in sorted(halved)
    )
    for node in inside:
        node.input[:] = [f"{name}/float16" if name in halved or name == IMAGE else name for name in node.input]
        node.output[:] = [f"{name}/float16" if name == features else name for name in node.output]
    casts = [
        helper.make_node("Cast", [IMAGE], [f"{IMAGE}/float16"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", [f"{features}/float16"], [features], to=TensorProto.FLOAT),
    ]
    replace_nodes(graph, [*graph.node, *casts])
    return finished(model)


def int8_graph(content: bytes, ranges: Ranges) -> bytes:
    """The graph with QDQ pairs around its convolutions; ``ranges`` of at least ``quantized_tensors(content)``.

    Raises:
        ArtifactError: the graph was not made by this export.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inside = network_nodes(graph, features_of(graph))
    chosen = {node.output[0] for node in quantized_convolutions(inside)}
    pairs = {name: f"{name}/dequantized" for name in _quantized_tensors(inside)}
    nodes: list[Any] = []
    for name in pairs:
        nodes += _activation_pair(graph, name, ranges[name])
    for node in graph.node:
        if node.output[0] in chosen:
            nodes += _weights(graph, node, constants[node.input[1]])
            node.input[0] = pairs[node.input[0]]
        elif node.op_type == "Concat":
            node.input[:] = [pairs.get(name, name) for name in node.input]
        nodes += _multiply_and_add(graph, node, constants) if is_multiply_add(node) else [node]
    replace_nodes(graph, nodes)
    return finished(model)


def calibrate(content: bytes, batches: Iterable[HuArray]) -> Ranges:
    """Ranges of the tensors that int8 quantises, over ``batches`` int16 [n, H, W] (at least one).

    Plain extremes: means of extremes over batches cut off what tells a bleed, and moved logits ten times as much.
    """
    model = onnx.load_from_string(content)
    names = quantized_tensors(content)
    outputs = [f"{name}/{kind}" for name in names for kind in ("ReduceMin", "ReduceMax")]
    for output in outputs:
        name, kind = output.rsplit("/", 1)
        model.graph.node.append(helper.make_node(kind, [name], [output], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found_B2T = np.array([session.run(outputs, {INPUT.name: batch}) for batch in batches], dtype=np.float64)
    low, high = found_B2T[:, 0::2].min(axis=0), found_B2T[:, 1::2].max(axis=0)
    return {name: (min(0.0, low[i]), max(0.0, high[i])) for i, name in enumerate(names)}


def quantized_tensors(content: bytes) -> list[str]:
    """Names of the activations that int8 quantises, in the order of the graph."""
    graph = onnx.load_from_string(content).graph
    return _quantized_tensors(network_nodes(graph, features_of(graph)))


def _quantized_tensors(inside: list[Any]) -> list[str]:
    concatenated = {name for node in inside if node.op_type == "Concat" for name in node.input}
    names: dict[str, None] = {}
    for node in quantized_convolutions(inside):
        names[node.input[0]] = None
        if node.output[0] in concatenated:
            names[node.output[0]] = None
    return list(names)


def quantized_convolutions(inside: list[Any]) -> list[Any]:
    """All but the first, whose 3 channels hold the windows: quantised, it alone moved logits by 0.4 instead of 0.1."""
    return [node for node in inside if node.op_type == "Conv" and not is_multiply_add(node)][1:]


def is_multiply_add(node: Any) -> bool:
    """Tell whether ``node`` is the folded batch normalisation of ``models.folding``: 1 x 1, a group a channel."""
    if node.op_type != "Conv":
        return False
    found = {item.name: item for item in node.attribute}
    return found["group"].i > 1 and list(found["kernel_shape"].ints) == [1, 1]


def is_float(tensor: Any) -> bool:
    """Tell whether an initializer (None: there is none) is float32."""
    return tensor is not None and tensor.data_type == TensorProto.FLOAT


def features_of(graph: Any) -> str:
    """Name of the network's last feature maps, which the output ``embedding`` is pooled from."""
    for node in graph.node:
        if EMBEDDING in node.output and any(IMAGE in other.input for other in graph.node):
            return str(node.input[0])
    raise ArtifactError(
        f"{ONNX_FILE}: expected a graph with tensors {IMAGE} and {EMBEDDING}, found none; export it again"
    )


def network_nodes(graph: Any, features: str) -> list[Any]:
    """The nodes between ``image`` and ``features``, in the order of the graph."""
    reached, inside = {IMAGE}, []
    for node in graph.node:
        if features in reached:
            break
        if reached & set(node.input):
            reached.update(node.output)
            inside.append(node)
    return inside


def _activation_pair(graph: Any, name: str, extremes: tuple[float, float]) -> Iterator[Any]:
    low, high = extremes
    scale = (high - low) / ACTIVATION_LEVELS or 1.0
    zero = np.uint8(round(-low / scale))
    parameters = _constants(graph, name, np.float32(scale), zero)
    yield helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}/quantized"])
    yield helper.make_node("DequantizeLinear", [f"{name}/quantized", *parameters], [f"{name}/dequantized"])


def _weights(graph: Any, node: Any, weight: NDArray[np.float32]) -> Iterator[Any]:
    """Replace a convolution's weights by int8, symmetric, one scale an output channel; the bias stays float32."""
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scale = np.where(largest > 0, largest / WEIGHT_LEVELS, 1).astype(np.float32)
    whole = np.rint(weight / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
    name = f"{node.output[0]}/weight"
    parameters = _constants(graph, name, scale, np.zeros(len(weight), dtype=np.int8))
    graph.initializer.append(numpy_helper.from_array(whole, name))
    node.input[1] = f"{name}/dequantized"
    yield helper.make_node("DequantizeLinear", [name, *parameters], [node.input[1]], axis=0)


def _constants(graph: Any, name: str, scale: Any, zero: Any) -> list[str]:
    graph.initializer.append(numpy_helper.from_array(np.asarray(scale), f"{name}/scale"))
    graph.initializer.append(numpy_helper.from_array(np.asarray(zero), f"{name}/zero"))
    return [f"{name}/scale", f"{name}/zero"]


def _multiply_and_add(graph: Any, node: Any, constants: Mapping[str, NDArray[np.float32]]) -> list[Any]:
    """A folded batch normalisation as Mul and Add, which OpenVINO fuses with the quantisation behind it (+15 %)."""
    output = node.output[0]
    for part, name in zip(("scale", "shift"), node.input[1:], strict=True):
        graph.initializer.append(numpy_helper.from_array(constants[name].reshape(-1, 1, 1), f"{output}/{part}"))
    return [
        helper.make_node("Mul", [node.input[0], f"{output}/scale"], [f"{output}/scaled"]),
        helper.make_node("Add", [f"{output}/scaled", f"{output}/shift"], [output]),
    ]


def replace_nodes(graph: Any, nodes: list[Any]) -> None:
    """Make ``nodes`` those of ``graph``, each behind what it reads; initializers that none of them reads go."""
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    ready = {tensor.name for tensor in kept} | {value.name for value in graph.input} | {""}
    waiting, ordered = list(nodes), []
    while waiting:
        behind = []
        for node in waiting:
            if ready.issuperset(node.input):
                ready.update(node.output)
                ordered.append(node)
            else:
                behind.append(node)
        assert len(behind) < len(waiting), f"{behind[0].op_type} reads what no node makes"
        waiting = behind
    for field, values in ((graph.node, ordered), (graph.initializer, kept)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)


def finished(model: Any) -> bytes:
    """The bytes of ``model``, checked; equal models give equal bytes.

    Raises:
        ArtifactError: the checker found a fault.
    """
    content: bytes = model.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"onnx.checker refused the graph: {error}") from error
    return content
