"""The door to the CUDA kernels: payloads in device memory to pixels or to the network's input, one launch a batch.

Everything here is an address: this module imports neither torch nor DALI and never copies, allocates or waits. The
caller owns device memory and the stream, and keeps both alive until the stream has passed. What a call costs and what
bounds it stands at the head of kernels/gpu.h; which inputs a kernel refuses it writes into ``status``.

    fused = CudaDecodeWindow(DEFAULT_WINDOWS, 256, dtype=ops.FLOAT16, layout=ops.HWC)
    scratch = torch.empty(fused.scratch_bytes(64, "lbp", 512, 512), dtype=torch.uint8, device="cuda")
    fused(batch, out.data_ptr(), status.data_ptr(), scratch.data_ptr(), scratch.numel(), stream.cuda_stream)

Not run on a GPU: tests run the same kernels on the CPU (tests/cuda_emulator.h) and compile them for each target.
Legend: N slices, H rows, W columns, S output side, C channels.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastich.errors import FastichError, UsageError
from fastich.ops import CHW, FLOAT32, LBP, RAW, Windowing
from fastich.windowing import Window

LIBRARY = Path(__file__).with_name("_kernels_cuda.so")
STATUS_TEXT = {0: "ok", 1: "damaged payload", 2: "bad shape, offset or size"}
"""What ``status`` [N] holds once the stream has passed, in words."""
BAD_ARGUMENT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBatch:
    """N payloads in device memory; every address is a device address of contiguous elements.

    Attributes:
        data: uint8 [data_bytes], the payloads.
        data_bytes: how many bytes may be read.
        offset: int64 [N], first byte of each payload in ``data``.
        size: int64 [N], bytes of each.
        height: int32 [N].
        width: int32 [N].
        num: N, at most 65535.
        codec: ``lbp`` or ``raw``, of all.
        max_height: no slice is higher; one that is gets status 2.
        max_width: no slice is wider.
    """

    data: int
    data_bytes: int
    offset: int
    size: int
    height: int
    width: int
    num: int
    codec: str
    max_height: int
    max_width: int


class _Batch(ctypes.Structure):
    """``FastichCudaBatch`` of kernels/gpu.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("data_bytes", ctypes.c_int64),
        ("offset", ctypes.c_void_p),
        ("size", ctypes.c_void_p),
        ("height", ctypes.c_void_p),
        ("width", ctypes.c_void_p),
        ("num", ctypes.c_int32),
        ("codec", ctypes.c_int32),
        ("max_height", ctypes.c_int32),
        ("max_width", ctypes.c_int32),
    )


@cache
def open_library(path: Path) -> ctypes.CDLL:
    """The library at ``path`` with its signatures set.

    Raises:
        UsageError: it is not built, or does not load.
    """
    if not path.exists():
        raise UsageError(f"{path.name} is not built; run make setup where nvcc is on PATH or FASTICH_NVCC names it")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise UsageError(f"{path.name} does not load ({error}); run make setup to build it again") from error
    pointer, size, text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p
    batch, windowing = ctypes.POINTER(_Batch), ctypes.POINTER(Windowing)
    library.fastich_cuda_backend.restype = text
    library.fastich_cuda_text.restype = text
    library.fastich_cuda_scratch_bytes.restype = size
    library.fastich_cuda_scratch_bytes.argtypes = [batch]
    library.fastich_cuda_decode.argtypes = [batch, pointer, pointer, pointer, size, pointer]
    library.fastich_cuda_decode_window.argtypes = [
        batch, pointer, pointer, windowing, pointer, pointer, pointer, size, pointer,
    ]  # fmt: skip
    return library


def backend(library: Path = LIBRARY) -> str:
    """``cuda-13.0`` (the toolkit that compiled it), ``emulated`` (in tests) or ``absent``: for logs and result rows.

    A library that does not load counts as absent; who needs it is told why by ``open_library``.
    """
    try:
        text: bytes = open_library(library).fastich_cuda_backend()
    except UsageError:
        return "absent"
    return text.decode()


def scratch_bytes(num: int, codec: str, max_height: int, max_width: int, library: Path = LIBRARY) -> int:
    """Bytes of device memory that a call on such a batch needs, on an address that is a multiple of 256.

    Raises:
        UsageError: no such batch is accepted.
    """
    shape = _Batch(num=num, codec=_codec(codec), max_height=max_height, max_width=max_width)
    found = int(open_library(library).fastich_cuda_scratch_bytes(ctypes.byref(shape)))
    if not found:
        raise UsageError(
            f"batch of {num} slices of at most {max_height} x {max_width}: "
            "expected 0 to 65535 slices, sides of 1 to 65535 and at most 67108864 pixels"
        )
    return found


def decode(
    batch: DeviceBatch, pixels: int, status: int, scratch: int, scratch_size: int, stream: int, library: Path = LIBRARY
) -> None:
    """Decode to pixels, uint16 [N, max_height, max_width] at ``pixels``, air (0) beside and below each slice.

    Returns at once; see ``CudaDecodeWindow.__call__`` for the other arguments and what it raises.
    """
    opened = open_library(library)
    _check(opened, opened.fastich_cuda_decode(_struct(batch), pixels, status, scratch, scratch_size, stream))


class CudaDecodeWindow:
    """Payloads to network input on the GPU: ``fastich_cuda_decode_window`` of kernels/gpu.h.

    Tolerance against ``windowing.preprocess`` in normalised units: 1e-4, warped 1e-3; a half-first payload read at half
    its size without a matrix 0.5 HU, the format's one stated exception. A call is thread-safe.
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
        library: Path = LIBRARY,
    ) -> None:
        """Set the windows, side, element type and layout of every output.

        Raises:
            UsageError: the library is not built.
        """
        self.size, self.dtype, self.layout, self.num_windows = size, dtype, layout, len(windows)
        self._struct = Windowing(windows, size, dtype, layout, mean, std)
        self._path, self._library = library, open_library(library)

    def scratch_bytes(self, num: int, codec: str, max_height: int, max_width: int) -> int:
        """As ``scratch_bytes`` of this module, of the library that this object runs."""
        return scratch_bytes(num, codec, max_height, max_width, self._path)

    def __call__(
        self,
        batch: DeviceBatch,
        out: int,
        status: int,
        scratch: int,
        scratch_size: int,
        stream: int,
        *,
        matrix: int = 0,
        intensity: int = 0,
    ) -> None:
        """Put one batch on ``stream`` and return; nothing is copied and nobody waits.

        Args:
            batch: the payloads.
            out: device address of N * S * S * C elements.
            status: of int32 [N]: 0 ok, 1 damaged, 2 bad argument; a slice that is not ok becomes air.
            scratch: of ``scratch_size`` bytes, a multiple of 256.
            scratch_size: at least ``scratch_bytes``.
            stream: CUDA stream handle of the current device; 0 is the default stream.
            matrix: of float32 [N, 6], output to input in pixels (``loaders/augment.py``), or 0.
            intensity: of float32 [N, 2], gain and offset in HU, or 0.

        Raises:
            UsageError: an address, size or enum makes no sense.
            FastichError: CUDA refused the launch; says why.
        """
        found = self._library.fastich_cuda_decode_window(
            _struct(batch), matrix, intensity, ctypes.byref(self._struct), out, status, scratch, scratch_size, stream
        )
        _check(self._library, found)


def _codec(name: str) -> int:
    if name not in ("lbp", "raw"):
        raise UsageError(f"codec {name!r}: expected lbp or raw")
    return LBP if name == "lbp" else RAW


def _struct(batch: DeviceBatch) -> _Batch:
    return _Batch(
        batch.data, batch.data_bytes, batch.offset, batch.size, batch.height, batch.width,
        batch.num, _codec(batch.codec), batch.max_height, batch.max_width,
    )  # fmt: skip


def _check(library: ctypes.CDLL, status: int) -> None:
    if status == BAD_ARGUMENT:
        raise UsageError(f"the CUDA kernels refused a call: {library.fastich_cuda_text(status).decode()}")
    if status:
        raise FastichError(
            f"CUDA: {library.fastich_cuda_text(status).decode()}; does the driver support the toolkit of {backend()}?"
        )
