"""The CUDA kernels on the CPU: kernels/gpu.cu built over tests/cuda_emulator.h, with numpy arrays as device memory."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastich import ops, ops_cuda
from fastich.ops_cuda import CudaDecodeWindow, DeviceBatch

PROJECT = Path(__file__).resolve().parents[1]
EMULATE = [
    "-std=c++17", "-DFASTICH_EMULATE", "-fno-strict-aliasing", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror",
    "-Wno-unknown-pragmas", "-I", str(PROJECT / "tests"), "-x", "c++",
]  # fmt: skip
ELEMENTS = {ops.FLOAT32: np.float32, ops.FLOAT16: np.float16, ops.BFLOAT16: np.uint16}
GARBAGE = 0xA5


def build_emulated(folder: Path) -> Path:
    """The kernels as a library for the CPU, in ``folder``."""
    library = folder / "_kernels_cuda.so"
    command = [
        shutil.which("g++") or "g++",
        "-O2",
        "-shared",
        "-fPIC",
        *EMULATE,
        str(PROJECT / "kernels" / "gpu.cu"),
        "-o",
        str(library),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return library


@dataclass(frozen=True, slots=True)
class Payloads:
    """N payloads one behind the other, with gaps so that they begin at every alignment."""

    codec: str
    data: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    height: np.ndarray
    width: np.ndarray
    bounds: tuple[int, int]

    def batch(self) -> DeviceBatch:
        return DeviceBatch(
            data=self.data.ctypes.data, data_bytes=self.data.size, offset=self.offset.ctypes.data,
            size=self.size.ctypes.data, height=self.height.ctypes.data, width=self.width.ctypes.data,
            num=len(self.size), codec=self.codec, max_height=self.bounds[0], max_width=self.bounds[1],
        )  # fmt: skip


def lay_out(payloads: list[bytes], shapes: list[tuple[int, int]], codec: str = "lbp") -> Payloads:
    gaps = [b"\xff" * (number % 4 + 1) for number in range(len(payloads))]
    parts = [part for pair in zip(gaps, payloads, strict=True) for part in pair]
    ends = np.cumsum([len(part) for part in parts]).astype(np.int64)
    return Payloads(
        codec,
        np.frombuffer(b"".join(parts) or b"\0", np.uint8).copy(),
        ends[::2].copy(),
        np.asarray([len(payload) for payload in payloads], np.int64),
        np.asarray([shape[0] for shape in shapes], np.int32),
        np.asarray([shape[1] for shape in shapes], np.int32),
        (max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)),
    )


def scratch_for(payloads: Payloads, library: Path) -> np.ndarray:
    """Garbage on a boundary of 256 bytes, of exactly the size that is asked for."""
    needed = ops_cuda.scratch_bytes(len(payloads.size), payloads.codec, *payloads.bounds, library)
    memory = np.full(needed + 256, GARBAGE, np.uint8)
    return memory[-memory.ctypes.data % 256 :][:needed]


def decode(payloads: Payloads, library: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [N, H, W] and status [N]."""
    scratch, status = scratch_for(payloads, library), np.full(len(payloads.size), 77, np.int32)
    pixels = np.full((len(payloads.size), *payloads.bounds), 7, np.uint16)
    ops_cuda.decode(
        payloads.batch(), pixels.ctypes.data, status.ctypes.data, scratch.ctypes.data, scratch.size, 0, library
    )
    return pixels, status


def decode_window(
    fused: CudaDecodeWindow,
    payloads: Payloads,
    library: Path,
    matrix: np.ndarray | None = None,
    intensity: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, C, S, S] or [N, S, S, C] (bfloat16 as its bits) and status [N]."""
    count, size, channels = len(payloads.size), fused.size, fused.num_windows
    shape = (count, channels, size, size) if fused.layout == ops.CHW else (count, size, size, channels)
    out, status = np.full(shape, 7, ELEMENTS[fused.dtype]), np.full(count, 77, np.int32)
    scratch = scratch_for(payloads, library)
    matrix = None if matrix is None else np.ascontiguousarray(matrix, np.float32)
    intensity = None if intensity is None else np.ascontiguousarray(intensity, np.float32)
    fused(
        payloads.batch(), out.ctypes.data, status.ctypes.data, scratch.ctypes.data, scratch.size, 0,
        matrix=0 if matrix is None else matrix.ctypes.data,
        intensity=0 if intensity is None else intensity.ctypes.data,
    )  # fmt: skip
    return out, status
