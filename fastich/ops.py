"""The door to the compiled kernels, with the numpy and torch references behind it where they are not built.

One import serves pack, the reader and the loaders. ``backend()`` says which implementation runs; every log, checkpoint
and result row records it. ``FASTICH_REQUIRE_KERNELS=1`` makes their absence an error. The library is plain C
(kernels/core.h), loaded with ctypes, which lets go of the interpreter lock during a call: threads decode in parallel.
Cost of one 512 x 512 slice on one AVX-512 core: 0.15 ms to decode and window to 256 px, against 8 ms of the reference.
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastich.errors import RecordError
from fastich.records import codec
from fastich.verb import say
from fastich.windowing import Window, imagenet

RAW, LBP = 0, 1
FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2
CHW, HWC = 0, 1
LIBRARY = Path(__file__).with_name("_kernels.so")
DALI_LIBRARY = Path(__file__).with_name("_kernels_dali.so")


class Windowing(ctypes.Structure):
    """``FastichWindowing`` of kernels/core.h; holds the arrays that its pointers name."""

    _fields_ = (
        ("size", ctypes.c_int32),
        ("num_windows", ctypes.c_int32),
        ("low_hu", ctypes.c_void_p),
        ("width_hu", ctypes.c_void_p),
        ("mean", ctypes.c_void_p),
        ("std", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("layout", ctypes.c_int32),
    )

    def __init__(
        self,
        windows: Sequence[Window],
        size: int,
        dtype: int,
        layout: int,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> None:
        """Windows in HU, side in pixels, element type and layout; mean and std of each channel, or ImageNet's."""
        count = len(windows)
        usual_mean, usual_std = imagenet(count)
        self.arrays = [
            np.asarray([window.center_hu - window.width_hu / 2 for window in windows], np.float32),
            np.asarray([window.width_hu for window in windows], np.float32),
            np.asarray(mean or usual_mean, np.float32),
            np.asarray(std or usual_std, np.float32),
        ]
        super().__init__(size, count, *(array.ctypes.data for array in self.arrays), dtype, layout)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The loaded library and the instruction set that it runs on."""

    core: ctypes.CDLL
    cpu: str


def _load() -> Kernels | None:
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        _do_without(f"does not load ({error}); build it again" if LIBRARY.exists() else "is not built")
        return None
    library.fastich_cpu.restype = ctypes.c_char_p
    library.fastich_lbp_bound.restype = ctypes.c_size_t
    pointer, size, u32, i32, real = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_int32, ctypes.c_float
    library.fastich_lbp_bound.argtypes = [u32, u32]
    library.fastich_lbp_encode.argtypes = [pointer, u32, u32, i32, pointer, size, ctypes.POINTER(size)]
    library.fastich_decode.argtypes = [pointer, size, i32, u32, u32, pointer]
    library.fastich_decode_window.argtypes = [
        pointer, size, i32, u32, u32, pointer, real, real, ctypes.POINTER(Windowing), pointer,
    ]  # fmt: skip
    return Kernels(library, library.fastich_cpu().decode())


def _do_without(why: str) -> None:
    """Go on with the references; where the kernels are demanded, stop the program before it does anything."""
    if os.environ.get("FASTICH_REQUIRE_KERNELS") == "1":
        say(f"error: FASTICH_REQUIRE_KERNELS=1, but {LIBRARY.name} {why}; run make setup with a C++ compiler")
        raise SystemExit(2)
    if LIBRARY.exists():
        say(f"fastich: {LIBRARY.name} {why}; the references run instead")


KERNELS = _load()


def backend() -> str:
    """The implementation that runs: ``native-avx512``, ``native-avx2``, ``native-baseline`` or ``reference``."""
    return f"native-{KERNELS.cpu}" if KERNELS else "reference"


def encode(pixels: NDArray[np.uint16], name: str = "lbp") -> bytes:
    """Encode one slice, uint16 [H, W], with the codec ``name`` (``lbp`` or ``raw``); the bytes of ``codec.encode``.

    Raises:
        RecordError: the sides are outside what the format holds, or the codec is unknown.
    """
    height, width = pixels.shape
    bound = KERNELS.core.fastich_lbp_bound(height, width) if KERNELS and name == "lbp" else 0
    if not KERNELS or not bound:
        return codec.encode(pixels, name)
    source = np.ascontiguousarray(pixels)
    out, written = np.empty(bound, np.uint8), ctypes.c_size_t()
    status = KERNELS.core.fastich_lbp_encode(
        source.ctypes.data, height, width, codec.mode_for(source), out.ctypes.data, bound, ctypes.byref(written)
    )
    assert status == 0, f"fastich_lbp_encode gave {status} for {height} x {width}"
    return out[: written.value].tobytes()


def decode(payload: bytes | memoryview, height: int, width: int, name: str = "lbp") -> NDArray[np.uint16]:
    """Decode one payload to uint16 [height, width].

    Raises:
        RecordError: the payload is damaged or its size does not fit.
    """
    if not KERNELS or name not in codec.CODECS or not KERNELS.core.fastich_lbp_bound(height, width):
        return codec.decode(payload, height, width, name)
    data = np.frombuffer(payload, np.uint8)
    out = np.empty((height, width), np.uint16)
    status = KERNELS.core.fastich_decode(
        data.ctypes.data, data.size, LBP if name == "lbp" else RAW, height, width, out.ctypes.data
    )
    return codec.decode(payload, height, width, name) if status else out  # the reference words the error


class DecodeWindow:
    """Payload to network input in one pass, on the native core: see ``fastich_decode_window`` of kernels/core.h.

    Tolerance against ``windowing.preprocess``, in normalised units: 1e-4; with a half-first payload read at half its
    size 0.5 HU, the format's one stated exception. A call is thread-safe.
    """

    def __init__(
        self,
        windows: Sequence[Window],
        size: int,
        *,
        dtype: int = FLOAT32,
        layout: int = CHW,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Set the windows, side, element type and layout of every output; needs the kernels."""
        assert KERNELS, "DecodeWindow needs the native kernels; ask backend() first"
        self.size, self.dtype, self.layout, self.num_windows = size, dtype, layout, len(windows)
        self._struct = Windowing(windows, size, dtype, layout, mean, std)

    def __call__(
        self,
        payload: bytes | memoryview,
        height: int,
        width: int,
        name: str,
        out: int,
        *,
        matrix: NDArray[np.floating] | None = None,
        gain: float = 1.0,
        offset_hu: float = 0.0,
    ) -> None:
        """Write size * size * num_windows elements to the address ``out``.

        Args:
            payload: bytes of one slice.
            height: of the slice.
            width: of the slice.
            name: codec, ``lbp`` or ``raw``.
            out: address of memory that holds them; the caller keeps it alive.
            matrix: affine map [2, 3] from output to input pixels (``loaders/augment.py``), or None.
            gain: of HU, after the area mean.
            offset_hu: added after the gain.

        Raises:
            RecordError: the payload is damaged or its size does not fit.
        """
        assert KERNELS
        data = np.frombuffer(payload, np.uint8)
        flat = None if matrix is None else np.ascontiguousarray(matrix, np.float32)
        status = KERNELS.core.fastich_decode_window(
            data.ctypes.data, data.size, LBP if name == "lbp" else RAW, height, width,
            None if flat is None else flat.ctypes.data, gain, offset_hu, ctypes.byref(self._struct), out,
        )  # fmt: skip
        if status:
            codec.decode(payload, height, width, name)  # words the error
            raise RecordError(f"the native decoder refused a payload of {data.size} bytes for {height} x {width}")
