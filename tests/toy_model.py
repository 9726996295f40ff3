"""A model folder made in milliseconds, for tests of what reads one: its scores are simple sums of the input."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fastich.artifact import IMAGE, ONNX_FILE, Artifact, FileEntry, Thresholds, write_manifest
from fastich.windowing import DEFAULT_WINDOWS

WEIGHTS = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06)
"""Logit of label c is WEIGHTS[c] times the slice's mean HU (of the next minus the previous slice if ``adjacent``)."""


def toy_onnx(*, adjacent: bool = False, scale: float = 1.0, external: bool = False, outputs: int = 4) -> bytes:
    """An ONNX model with the interface of an exported one."""
    nodes = [
        helper.make_node("Cast", ["hu"], ["hu_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["hu_float", "rows_columns"], ["mean"], keepdims=0),
    ]
    value = "mean"
    if adjacent:
        nodes += [
            helper.make_node("Slice", ["mean", "zero", "one"], ["first"]),
            helper.make_node("Slice", ["mean", "minus_one", "huge"], ["last"]),
            helper.make_node("Slice", ["mean", "zero", "minus_one"], ["head"]),
            helper.make_node("Slice", ["mean", "one", "huge"], ["tail"]),
            helper.make_node("Concat", ["first", "head"], ["before"], axis=0),
            helper.make_node("Concat", ["tail", "last"], ["after"], axis=0),
            helper.make_node("Sub", ["after", "before"], ["change"]),
        ]
        value = "change"
    nodes += [
        helper.make_node("Identity", [value], [IMAGE]),  # where OpenVINO may split a batch
        helper.make_node("Unsqueeze", [IMAGE, "one"], ["column"]),
        helper.make_node("Mul", ["column", "weights"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
        helper.make_node("Mul", ["column", "ones_1024"], ["embedding"]),
        helper.make_node("Unsqueeze", ["logit", "two_three"], ["cam"]),
    ]
    constants = {
        "rows_columns": np.array([1, 2]),
        "zero": np.array([0]),
        "one": np.array([1]),
        "minus_one": np.array([-1]),
        "huge": np.array([2**40]),
        "two_three": np.array([2, 3]),
        "weights": np.array([WEIGHTS], dtype=np.float32) * np.float32(scale),
        "ones_1024": np.ones((1, 1024), dtype=np.float32),
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    if external:
        for tensor in tensors[-1:]:
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="weights.bin")
    shapes = {"probability": ["N", 6], "logit": ["N", 6], "embedding": ["N", 1024], "cam": ["N", 6, 1, 1]}
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    hu = helper.make_tensor_value_info("hu", TensorProto.INT16, ["N", "H", "W"])
    graph = helper.make_graph(nodes, "toy", [hu], made[:outputs], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert external or onnx.checker.check_model(model, full_check=True) is None
    content: bytes = model.SerializeToString()
    return content


def write_model(
    folder: Path, content: bytes | None = None, *, adjacent: bool = False, threshold: float = 0.5
) -> Artifact:
    """Write ``content`` (by default a toy model) as an exported model folder."""
    content = toy_onnx(adjacent=adjacent) if content is None else content
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ONNX_FILE).write_bytes(content)
    entry = FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content), role="toy")
    artifact = Artifact(
        windows=DEFAULT_WINDOWS[:1] if adjacent else DEFAULT_WINDOWS,
        size=64,
        adjacent=adjacent,
        embedding_size=1024,
        weights_sha256="ab" * 32,
        dataset_sha256="cd" * 32,
        epoch=3,
        config={"size": 64},
        thresholds=Thresholds(values=(threshold,) * 6, rule="made for a test"),
        files={ONNX_FILE: entry},
    )
    write_manifest(folder, artifact)
    return artifact
