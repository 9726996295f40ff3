"""Other calibration constants in an exported ONNX file: found by name, put in place, nothing else touched. No torch.

Works on model.onnx and its variants alike, whose tails are the same (``models/calibrator.py``). Under a second.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from fastich.artifact import ONNX_FILE
from fastich.calibration import BIAS, PIECEWISE, SCALE, Calibration, constants
from fastich.errors import ArtifactError
from fastich.quantize import finished

PREFIX = "calibrator."
"""What the exporter puts before the constants' names in model.onnx: the module that holds them."""


def with_calibration(
    content: bytes, calibration: Calibration, *, prefix: str = PREFIX, where: str = ONNX_FILE
) -> bytes:
    """The graph of ``content`` with scale and bias of ``calibration``; ``where`` names the file in the message.

    An isotonic label keeps the knots that it was exported with: exporters fold their tables into others.

    Raises:
        ArtifactError: the graph has no such constants, which means an older export, or isotonic labels for one without.
    """
    model = onnx.load_from_string(content)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    piecewise = np.array([bool(one.knots) for one in calibration.of_label])
    found = constants(calibration)
    wanted = {SCALE: found[SCALE], BIAS: found[BIAS]}
    if piecewise.any() or prefix + PIECEWISE in tensors:
        wanted[PIECEWISE] = piecewise
    missing = [prefix + name for name in wanted if prefix + name not in tensors]
    if missing:
        raise ArtifactError(f"{where}: expected constants {', '.join(missing)}, found none; export it again")
    for name, value in wanted.items():
        tensors[prefix + name].CopyFrom(numpy_helper.from_array(value, prefix + name))
    return finished(model)
