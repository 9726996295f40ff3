"""The door to the compiled kernels, with the numpy reference behind it where they are not built.

One import serves pack and the loaders; ``backend()`` says which implementation runs and is recorded in every log,
checkpoint and result row. No kernel is built yet: everything runs on the reference.
"""

import numpy as np
from numpy.typing import NDArray

from fastich.records import codec


def backend() -> str:
    """The implementation that runs: ``reference`` (numpy)."""
    return "reference"


def encode(pixels: NDArray[np.uint16], name: str = "lbp") -> bytes:
    """Encode one slice, uint16 [H, W], with the codec ``name`` (``lbp`` or ``raw``)."""
    return codec.encode(pixels, name)


def decode(payload: bytes | memoryview, height: int, width: int, name: str = "lbp") -> NDArray[np.uint16]:
    """Decode one payload to uint16 [height, width].

    Raises:
        RecordError: the payload is damaged or its size does not fit.
    """
    return codec.decode(payload, height, width, name)
