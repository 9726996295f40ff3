"""The serving graph as one ONNX file: self-contained, free N, H and W, nothing of the exporting machine in it.

The dynamo exporter takes 15 s of one core for DenseNet121. One inner tensor has a name of the contract: ``image``, the
network's input after preprocessing. Up to there float32 is a must (bfloat16 holds HU near 1000 in steps of 8), so that
is where engines and tools that compute in another precision cut the graph.
"""

import logging
import warnings
from typing import Any, cast

import onnx
import torch

from fastich.artifact import IMAGE, INPUT, ONNX_FILE, OUTPUTS, has_external_data
from fastich.errors import ArtifactError
from fastich.models.serving import ServingModel, example

OPSET = 18


def onnx_bytes(serving: ServingModel) -> bytes:
    """The graph as one self-contained ONNX file with free N, H and W, checked by ``onnx.checker``.

    Raises:
        ArtifactError: the checker found a fault.
    """
    free = torch.export.Dim.DYNAMIC
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec")  # torch 2.10's own exporter
        logger.setLevel(logging.ERROR)  # it warns about torchvision operators that are not in this graph
        try:
            program = torch.onnx.export(
                serving,
                (example(),),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT.name],
                output_names=[spec.name for spec in OUTPUTS],
                dynamic_shapes={"hu": dict.fromkeys(range(3), free)},
            )
        finally:
            logger.setLevel(level)
    model = cast(Any, program).model_proto
    _name_axes(model.graph)
    _name_image(model.graph)
    _strip(model)
    content: bytes = model.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"{ONNX_FILE}: onnx.checker refused the graph: {error}") from error
    if has_external_data(content):
        raise ArtifactError(f"{ONNX_FILE}: expected one self-contained file, found external data")
    return content


def _name_axes(graph: Any) -> None:
    """Give the free axes the names of the contract, instead of the exporter's s0, s17, ..."""
    for value, spec in [(graph.input[0], INPUT), *zip(graph.output, OUTPUTS, strict=True)]:
        for axis, name in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
            if axis.dim_param and isinstance(name, str):
                axis.dim_param = name


def _name_image(graph: Any) -> None:
    """Call the input of the first convolution ``image``."""
    old = next(node.input[0] for node in graph.node if node.op_type == "Conv")
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [IMAGE if name == old else name for name in names]


def _strip(model: Any) -> None:
    """Remove what only the exporting machine knows: stack traces with paths, and inner shapes with other axis names."""
    for message in (
        model,
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    model.graph.ClearField("value_info")
