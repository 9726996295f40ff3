"""kernels/gpu.cu as it is compiled: clean under the sanitizers, no barrier too few, registers that leave room."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpu_data import EMULATE, PROJECT, decode, decode_window, lay_out

from fastich import ops
from fastich.hu import from_record
from fastich.ops_cuda import CudaDecodeWindow
from fastich.records import codec
from fastich.windowing import DEFAULT_WINDOWS, preprocess

KERNELS = PROJECT / "kernels"
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90")
NAMES = {"open_payloads", "unpack_bands", "carry_bands", "finish_pixels", "window_pixels"}
MAX_REGISTERS = 64
"""A quarter of an SM's 65,536 for a block of 256 threads: four blocks, 32 warps."""
MAX_SHARED_BYTES = 25 * 1024
"""A quarter of the 100 KiB that an SM of an A40 (sm_86) has."""
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")


@needs_compiler
def test_emulated_kernels_are_clean_under_the_sanitizers_on_mutated_payloads(tmp_path):
    """A C++ program mutates payloads at exact-size heap blocks under ASan and UBSan; core.cc tells it the truth."""
    quiet = ["g++", "-O1", "-w", "-I", str(KERNELS), *(flag for flag in EMULATE if not flag.startswith("-W"))]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    core, program = tmp_path / "core.o", tmp_path / "fuzz"
    subprocess.run([*quiet, "-c", str(KERNELS / "core.cc"), "-o", str(core)], check=True)  # tests/test_ops.py fuzzes it
    sources = [str(KERNELS / "gpu.cu"), str(PROJECT / "tests" / "fuzz_gpu.cc"), "-x", "none", str(core)]
    build = [*quiet, *sanitizers, *sources, "-o", str(program)]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    if "cannot find -lasan" in built.stderr or "cannot find -lubsan" in built.stderr:
        pytest.skip("the compiler has no sanitizer runtime")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:2000]
    mutations, accepted = map(int, re.findall(r"\d+", done.stdout))
    assert mutations > 500
    assert 0.2 < accepted / mutations < 0.9


def smooth(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height)
    return (1064 + 40 * np.sin(np.arange(width) / 9) + rng.normal(0, 4, (height, width))).astype(np.uint16)


def with_one_run_too_wide(payload: bytes, runs: int) -> bytes:
    """A width of 17 in the last row, made up for by other runs so that the length still fits."""
    damaged = bytearray(payload)
    missing, damaged[15 + runs] = 17 - damaged[15 + runs], 17
    for place in range(16, 16 + missing):
        damaged[place] -= 1
    return bytes(damaged)


def check(library: Path) -> None:
    """Flat, half-first, wide and damaged slices must decode, and HWC images come out, as the reference says."""
    shapes = [(300, 64), (64, 64), (40, 1100), (1, 3000)]
    slices = [smooth(*shape) for shape in shapes]
    modes = [codec.MODE_FLAT, codec.MODE_HALF_FIRST, codec.MODE_HALF_FIRST, codec.MODE_FLAT]
    packed = [codec.encode_lbp(pixels, mode) for pixels, mode in zip(slices, modes, strict=True)]
    payloads = lay_out([*packed, with_one_run_too_wide(packed[0], 600)], [*shapes, shapes[0]])
    pixels, status = decode(payloads, library)
    assert status.tolist() == [0, 0, 0, 0, 1]
    assert all(np.array_equal(pixels[i, :h, :w], slices[i]) for i, (h, w) in enumerate(shapes))
    truth = np.stack([preprocess(from_record(pixels), 24).transpose(1, 2, 0) for pixels in slices])
    for dtype, tolerance in ((ops.FLOAT32, 1e-4), (ops.FLOAT16, 2e-3)):
        fused = CudaDecodeWindow(DEFAULT_WINDOWS, 24, dtype=dtype, layout=ops.HWC, library=library)
        np.testing.assert_allclose(decode_window(fused, payloads, library)[0][:4], truth, rtol=0, atol=tolerance)


def barriers() -> list[str]:
    """The barriers of the kernels in the order in which the emulator numbers them."""
    order = (KERNELS / name for name in ("gpu_plan.cuh", "gpu_lbp.cuh", "gpu_window.cuh", "gpu.cu"))
    return [line.strip() for file in order for line in file.read_text("utf-8").splitlines() if "__sync" in line]


def right_without(library: Path, barrier: int) -> bool:
    code = "import sys, pathlib, test_kernels_gpu; test_kernels_gpu.check(pathlib.Path(sys.argv[1]))"
    paths = os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "FASTICH_SKIP_BARRIER": str(barrier)}
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, check=False, env=environment)
    return done.returncode == 0


@needs_compiler
def test_every_barrier_is_missed_where_it_is_left_out(emulated_library):
    """The emulator's shuffled order finds a missing barrier: leaving out any one gives wrong results or an end."""
    assert right_without(emulated_library, -1)
    needless = [line for number, line in enumerate(barriers()) if right_without(emulated_library, number)]
    assert not needless


def nvcc() -> str | None:
    """The compiler that setup.py would take."""
    return os.environ.get("FASTICH_NVCC") or shutil.which("nvcc")


def resources(output: str) -> dict[tuple[str, str], dict[str, int]]:
    """What ``ptxas -v`` says of each (target, kernel): registers, spilled bytes, shared bytes."""
    found = {}
    for part in output.split("Compiling entry function '")[1:]:
        target = re.search(r"' for '(\w+)'", part)
        kernel = next((name for name in NAMES if name in part.split("'")[0]), part.split("'")[0])
        warped = "<true>" if "Lb1E" in part.split("'")[0] else ""
        registers, spills = re.search(r"Used (\d+) registers", part), re.findall(r"(\d+) bytes spill", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert target
        assert registers
        found[target[1], kernel + warped] = {
            "registers": int(registers[1]),
            "spilled_bytes": sum(map(int, spills)),
            "shared_bytes": int(shared[1]) if shared else 0,
        }
    return found


@pytest.mark.skipif(not nvcc(), reason="nvcc is neither on PATH nor named by FASTICH_NVCC")
def test_every_kernel_leaves_room_for_four_blocks_and_spills_nothing(tmp_path):
    targets = [f"-gencode=arch=compute_{target[3:]},code={target}" for target in TARGETS]
    command = [nvcc(), "-std=c++17", "-O3", "-Xptxas=-v", "-c", *targets]
    done = subprocess.run(
        [*command, str(KERNELS / "gpu.cu"), "-o", str(tmp_path / "gpu.o")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = resources(done.stdout + done.stderr)
    for (target, kernel), used in sorted(found.items()):
        print(f"{target} {kernel:20} {used['registers']:3} registers, {used['spilled_bytes']} bytes spilled, "
              f"{used['shared_bytes']:6} bytes shared")  # fmt: skip
    assert set(found) == {(target, name) for target in TARGETS for name in (*NAMES, "window_pixels<true>")}
    assert all(used["spilled_bytes"] == 0 for used in found.values())
    assert max(used["registers"] for used in found.values()) <= MAX_REGISTERS
    assert max(used["shared_bytes"] for used in found.values()) <= MAX_SHARED_BYTES
