"""Other calibration constants in an exported ONNX file: found by name, put in place, nothing else touched. No torch.

Works on model.onnx and its variants alike, whose tails are the same (``models/calibrator.py``). Under a second.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from fastich.artifact import ONNX_FILE
from fastich.calibration import PIECEWISE, Calibration, constants
from fastich.errors import ArtifactError
from fastich.quantize import finished

PREFIX = "calibrator."
"""What the exporter puts before the constants' names in model.onnx: the module that holds them."""


def with_calibration(
    content: bytes, calibration: Calibration, *, prefix: str = PREFIX, where: str = ONNX_FILE
) -> bytes:
    """The graph of ``content`` with the constants of ``calibration``; ``where`` names the file in the message.

    Raises:
        ArtifactError: the graph has no such constants, which means an older export, or isotonic labels for one without.
    """
    model = onnx.load_from_string(content)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    wanted = constants(calibration)
    missing = [prefix + name for name in wanted if prefix + name not in tensors]
    if missing:
        raise ArtifactError(f"{where}: expected constants {', '.join(missing)}, found none; export it again")
    if PIECEWISE not in wanted and prefix + PIECEWISE in tensors:
        old = numpy_helper.to_array(tensors[prefix + PIECEWISE])
        wanted[PIECEWISE] = np.zeros_like(old)  # the tables stay, and no label looks at them
    for name, value in wanted.items():
        tensors[prefix + name].CopyFrom(numpy_helper.from_array(value, prefix + name))
    return finished(model)
