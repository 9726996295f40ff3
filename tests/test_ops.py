"""The native core against the numpy reference: the same bytes, the same pixels, and no byte read outside a payload."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastich import ops
from fastich.errors import RecordError
from fastich.hu import from_record
from fastich.records import codec
from fastich.windowing import DEFAULT_WINDOWS, IMAGENET_MEAN, IMAGENET_STD, preprocess

PROJECT = Path(__file__).resolve().parents[1]
native = pytest.mark.skipif(not ops.KERNELS, reason="the native kernels are not built")
SHAPES = [(1, 1), (1, 33), (33, 1), (2, 2), (7, 31), (8, 32), (64, 64), (66, 100), (512, 512), (512, 640)]


def images(height: int, width: int) -> list[np.ndarray]:
    rng = np.random.default_rng(height * 1000 + width)
    smooth = 1024 + 40 * np.sin(np.arange(width) / 9)[None] + 30 * np.cos(np.arange(height) / 7)[:, None]
    return [
        rng.integers(0, 65536, (height, width)).astype(np.uint16),
        (smooth + rng.normal(0, 4, (height, width))).astype(np.uint16),
        np.full((height, width), 65535, np.uint16),
        (np.indices((height, width)).sum(axis=0) % 2 * 65535).astype(np.uint16),
    ]


@native
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_bytes_are_those_of_the_reference(shape):
    for pixels in images(*shape):
        payload = ops.encode(pixels)
        assert payload == codec.encode(pixels)
        assert np.array_equal(ops.decode(payload, *shape), pixels)


@native
@pytest.mark.parametrize("shape", [(2, 2), (64, 64), (66, 100), (512, 512)], ids=str)
def test_native_reads_half_first_payloads_of_the_reference(shape):
    for pixels in images(*shape):
        payload = codec.encode_lbp(pixels, codec.MODE_HALF_FIRST)
        assert np.array_equal(codec.decode(payload, *shape, "lbp"), pixels)
        assert np.array_equal(ops.decode(payload, *shape), pixels)


@native
@settings(max_examples=200, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1), st.integers(0, 16))
def test_any_slice_comes_back(height, width, seed, bits):
    pixels = np.random.default_rng(seed).integers(0, 1 << bits, (height, width)).astype(np.uint16)
    payload = ops.encode(pixels)
    assert payload == codec.encode(pixels)
    assert np.array_equal(ops.decode(payload, height, width), pixels)


@native
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_payload_is_refused_by_both_or_read_alike_by_both(data):
    pixels = images(64, 64)[1]
    mode = data.draw(st.sampled_from([codec.MODE_FLAT, codec.MODE_HALF_FIRST]))
    payload = bytearray(codec.encode_lbp(pixels, mode))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    payload = payload[: data.draw(st.integers(0, len(payload)) | st.just(len(payload)))]
    try:
        expected = codec.decode(bytes(payload), 64, 64, "lbp")
    except RecordError as refused:
        with pytest.raises(RecordError) as also:
            ops.decode(bytes(payload), 64, 64)
        assert str(also.value) == str(refused)  # noqa: PT017
    else:
        assert np.array_equal(ops.decode(bytes(payload), 64, 64), expected)


def windowed(payload: bytes, height: int, width: int, size: int, name: str = "lbp", **options: int) -> np.ndarray:
    layout = options.get("layout", ops.CHW)
    dtype = {ops.FLOAT32: np.float32, ops.FLOAT16: np.float16, ops.BFLOAT16: np.uint16}[
        options.get("dtype", ops.FLOAT32)
    ]
    out = np.full((3, size, size) if layout == ops.CHW else (size, size, 3), 7, dtype)
    ops.DecodeWindow(DEFAULT_WINDOWS, size, **options)(payload, height, width, name, out.ctypes.data)
    return out


@native
@pytest.mark.parametrize("name", ["lbp", "raw"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 64, 32), (64, 64, 64), (64, 64, 48), (60, 100, 37), (100, 60, 128), (512, 512, 128), (1, 5, 3)],
)
def test_fused_pass_equals_the_numpy_truth(height, width, size, name):
    pixels = images(height, width)[1]
    truth = preprocess(from_record(pixels), size)
    found = windowed(codec.encode(pixels, name), height, width, size, name)
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-4)


@native
def test_layouts_and_element_types_hold_the_same_numbers():
    payload = codec.encode(images(64, 64)[1])
    truth = windowed(payload, 64, 64, 32)
    assert np.array_equal(windowed(payload, 64, 64, 32, layout=ops.HWC).transpose(2, 0, 1), truth)
    assert np.array_equal(windowed(payload, 64, 64, 32, dtype=ops.FLOAT16), truth.astype(np.float16))
    bfloat16 = windowed(payload, 64, 64, 32, dtype=ops.BFLOAT16).astype(np.uint32) << 16
    np.testing.assert_allclose(bfloat16.view(np.float32), truth, rtol=2**-8)


@native
def test_a_warp_to_nowhere_is_air():
    payload = codec.encode(images(64, 64)[1])
    out = np.empty((3, 8, 8), np.float32)
    fused = ops.DecodeWindow(DEFAULT_WINDOWS, 8)
    for far in (1e9, -1e9, np.inf, np.nan):
        fused(payload, 64, 64, "lbp", out.ctypes.data, matrix=np.array([[1, 0, far], [0, 1, 0]]))
        expected = [-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
        np.testing.assert_allclose(out[:, 0, 0], expected, rtol=1e-5)


@native
def test_fused_pass_words_damage_as_the_reference_does():
    payload = codec.encode(images(64, 64)[1])
    with pytest.raises(RecordError, match="its widths ask for exactly"):
        windowed(payload[:-4], 64, 64, 32)
    with pytest.raises(RecordError, match="expected 32 x 64"):
        windowed(payload, 32, 64, 32)


@native
@pytest.mark.parametrize("cpu", ["avx512", "avx2", "baseline"])
def test_every_instruction_set_gives_the_same_bits(cpu):
    code = (
        "import hashlib, itertools, numpy as np\n"
        "from fastich import ops; from fastich.windowing import DEFAULT_WINDOWS\n"
        "rng = np.random.default_rng(0); h = hashlib.sha256()\n"
        "for shape in ((64, 64), (66, 100), (512, 512)):\n"
        "    p = (1024 + rng.normal(0, 30, shape)).astype(np.uint16); b = ops.encode(p); h.update(b)\n"
        "    h.update(ops.decode(b, *shape).tobytes())\n"
        "    turn = np.array([[1.02, 0.1, -3.3], [-0.1, 0.98, 4.7]])\n"
        "    for size, layout, dtype, matrix in itertools.product(\n"
        "        (32, 33, 256), (ops.CHW, ops.HWC), (ops.FLOAT32, ops.FLOAT16, ops.BFLOAT16), (None, turn)\n"
        "    ):\n"
        "        o = np.zeros(3 * size * size, np.uint16 if dtype else np.float32)\n"
        "        fused = ops.DecodeWindow(DEFAULT_WINDOWS, size, layout=layout, dtype=dtype)\n"
        "        fused(b, *shape, 'lbp', o.ctypes.data, matrix=matrix, gain=1.03, offset_hu=-2.0)\n"
        "        h.update(o.tobytes())\n"
        "print(ops.backend(), h.hexdigest())"
    )
    found = {}
    for wish in (cpu, "baseline"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "FASTICH_CPU": wish},
        )
        found[wish] = done.stdout.split()
    if found[cpu][0] != f"native-{cpu}":
        pytest.skip(f"this CPU has no {cpu}")
    assert found[cpu][1] == found["baseline"][1]


def test_demanding_kernels_that_are_not_built_is_an_error(tmp_path):
    code = "import fastich, pathlib, sys; fastich.__path__.insert(0, sys.argv[1]); import fastich.ops"
    shutil.copy(PROJECT / "fastich" / "ops.py", tmp_path / "ops.py")
    for content, why in ((None, "is not built"), (b"no library", "does not load")):
        if content:
            (tmp_path / "_kernels.so").write_bytes(content)
        done = {
            wish: subprocess.run(
                [sys.executable, "-c", code, str(tmp_path)],
                capture_output=True, text=True, check=False, env={**os.environ, "FASTICH_REQUIRE_KERNELS": wish},
            )
            for wish in ("1", "")
        }  # fmt: skip
        assert done["1"].returncode == 2
        assert done["1"].stderr.startswith(f"error: FASTICH_REQUIRE_KERNELS=1, but _kernels.so {why}")
        assert len(done["1"].stderr.splitlines()) == 1
        assert done[""].returncode == 0
        assert ("the references run instead" in done[""].stderr) == bool(content)


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_core_is_clean_under_the_sanitizers_on_mutated_payloads(tmp_path):
    """A C++ program mutates payloads of both modes 20,000 times, at exact-size heap blocks, under ASan and UBSan."""
    program = tmp_path / "fuzz"
    build = [
        "g++", "-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-w",
        "-DFASTICH_KEPT_BYTES=0", "-I", str(PROJECT / "kernels"),
        str(PROJECT / "kernels" / "core.cc"), str(PROJECT / "tests" / "fuzz_core.cc"),
        "-o", str(program),
    ]  # fmt: skip
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    if "cannot find -lasan" in built.stderr or "cannot find -lubsan" in built.stderr:
        pytest.skip("the compiler has no sanitizer runtime")
    assert built.returncode == 0, built.stderr
    for cpu in ("avx512", "avx2", "baseline"):
        done = subprocess.run(
            [str(program)], capture_output=True, text=True, check=False, env={**os.environ, "FASTICH_CPU": cpu}
        )
        assert done.returncode == 0, done.stderr[:2000]
        assert "20000 mutations" in done.stdout


@native
def test_sizes_that_make_no_sense_are_refused_not_computed():
    assert ops.KERNELS is not None
    library = ops.KERNELS.core
    for height, width in ((0, 5), (70000, 1), (65535, 65535)):
        assert library.fastich_lbp_bound(height, width) == 0
    out, written = (ctypes.c_uint8 * 8)(), ctypes.c_size_t()
    pixels = (ctypes.c_uint16 * 4)()
    assert library.fastich_lbp_encode(pixels, 2, 2, 0, out, 8, ctypes.byref(written)) == 2
    assert library.fastich_lbp_encode(pixels, 2, 2, 9, out, 8, ctypes.byref(written)) == 2
