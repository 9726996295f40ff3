"""The CUDA kernels, run on the CPU by an emulator, against the numpy truth."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_data import Payloads, decode, decode_window, lay_out, scratch_for
from hypothesis import given, settings
from hypothesis import strategies as st

from fastich import ops, ops_cuda
from fastich.errors import FastichError, RecordError, UsageError
from fastich.hu import from_record
from fastich.loaders import augment, cpu
from fastich.ops_cuda import CudaDecodeWindow
from fastich.preprocess import Preprocess, resize_area
from fastich.records import codec
from fastich.windowing import DEFAULT_WINDOWS, WINDOWS, area_matrix, preprocess

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="g++ builds the emulated kernels")
SHAPES = [(1, 1), (1, 33), (33, 1), (2, 2), (7, 31), (16, 32), (17, 64), (40, 1100), (66, 100), (70, 70), (512, 512)]
MODES = [codec.MODE_FLAT, codec.MODE_HALF_FIRST]


@pytest.fixture(scope="module")
def library(emulated_library):
    return emulated_library


def images(height: int, width: int) -> list[np.ndarray]:
    """A smooth slice, noise of all 16 bits, and the largest residuals there are."""
    rng = np.random.default_rng(height * 1000 + width)
    smooth = 1064 + 40 * np.sin(np.arange(width) / 9)[None] + 30 * np.cos(np.arange(height) / 7)[:, None]
    return [
        (smooth + rng.normal(0, 4, (height, width))).astype(np.uint16),
        rng.integers(0, 65536, (height, width)).astype(np.uint16),
        (np.indices((height, width)).sum(axis=0) % 2 * 65535).astype(np.uint16),
    ]


def modes_of(height: int, width: int) -> list[int]:
    return MODES if height % 2 == 0 and width % 2 == 0 else MODES[:1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decoded_pixels_are_those_of_the_reference(library, shape):
    slices = images(*shape)[: 1 if shape == (512, 512) else 3]
    for mode in modes_of(*shape):
        payloads = lay_out([codec.encode_lbp(pixels, mode) for pixels in slices], [shape] * len(slices))
        found, status = decode(payloads, library)
        assert status.tolist() == [0] * len(slices)
        assert np.array_equal(found, slices)
    found, status = decode(lay_out([codec.encode(p, "raw") for p in slices], [shape] * len(slices), "raw"), library)
    assert status.tolist() == [0] * len(slices)
    assert np.array_equal(found, slices)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 80), st.integers(1, 80)), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_any_mixture_of_shapes_comes_back_with_air_around(library, shapes, seed):
    rng = np.random.default_rng(seed)
    slices = [rng.integers(0, 1 << rng.integers(0, 17), shape).astype(np.uint16) for shape in shapes]
    packed = [codec.encode_lbp(pixels, int(rng.choice(modes_of(*pixels.shape)))) for pixels in slices]
    found, status = decode(lay_out(packed, shapes), library)
    assert not status.any()
    for pixels, (height, width), plane in zip(slices, shapes, found, strict=True):
        assert np.array_equal(plane[:height, :width], pixels)
        assert not plane[height:].any()
        assert not plane[:, width:].any()


@pytest.mark.parametrize("mode", MODES, ids=["flat", "half-first"])
def test_a_mutated_payload_is_refused_by_both_or_read_alike_by_both(library, mode):
    rng = np.random.default_rng(mode)
    whole = codec.encode_lbp(images(64, 96)[0], mode)
    mutants = []
    for _ in range(250):
        payload = bytearray(whole)
        for _ in range(rng.integers(0, 4)):
            payload[rng.integers(0, rng.choice([20, 250, len(payload)]))] = rng.integers(0, 256)
        mutants.append(bytes(payload[: rng.integers(0, len(payload) + 1)] if rng.random() < 0.3 else payload))
    found, status = decode(lay_out(mutants, [(64, 96)] * len(mutants)), library)
    assert 50 < np.count_nonzero(status) < 230
    for payload, pixels, refused in zip(mutants, found, status, strict=True):
        try:
            assert np.array_equal(pixels, codec.decode(payload, 64, 96, "lbp"))
            assert refused == 0
        except RecordError:
            assert refused == 1
            assert not pixels.any()


def test_a_slice_with_a_bad_shape_or_place_is_named_and_its_neighbours_are_whole(library):
    slices = [images(20, 20)[0]] * 9
    payloads = lay_out([codec.encode(pixels) for pixels in slices], [(20, 20)] * 9)
    payloads.height[1], payloads.height[2], payloads.width[3] = 0, -5, 21
    payloads.offset[4], payloads.offset[5], payloads.size[6] = -1, payloads.data.size, -7
    payloads.size[7] = 2**62
    found, status = decode(payloads, library)
    assert status.tolist() == [0, 2, 2, 2, 2, 2, 2, 2, 0]
    assert np.array_equal(found[[0, 8]], [slices[0]] * 2)
    assert not found[1:8].any()


def test_a_raw_payload_of_another_length_is_damaged(library):
    whole = codec.encode(images(8, 6)[1], "raw")
    _, status = decode(lay_out([whole, whole[:-1], whole + b"\0", b""], [(8, 6)] * 4, "raw"), library)
    assert status.tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize("name", ["lbp", "raw"])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 64, 32), (64, 64, 64), (64, 64, 48), (60, 100, 37), (100, 60, 128), (1, 5, 3), (90, 90, 30), (200, 33, 7)],
)
def test_windowed_images_equal_the_numpy_truth(library, height, width, size, name):
    smooth, noise, _ = images(height, width)
    slices = [smooth, noise >> 2]  # as far as int16 HU go
    payloads = lay_out([codec.encode(pixels, name) for pixels in slices], [(height, width)] * 2, name)
    found, status = decode_window(CudaDecodeWindow(DEFAULT_WINDOWS, size, library=library), payloads, library)
    assert not status.any()
    truth = np.stack([preprocess(from_record(pixels), size) for pixels in slices])
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [256, 224, 512])
def test_a_half_first_slice_of_usual_size_equals_the_numpy_truth(library, size):
    pixels = images(512, 512)[0]
    fused = CudaDecodeWindow(DEFAULT_WINDOWS, size, library=library)
    found, _ = decode_window(fused, lay_out([codec.encode(pixels)], [(512, 512)]), library)
    half_hu = 0.5 / 80 / 0.224  # the brain window is the narrowest; only the half plane may differ
    tolerance = half_hu + 1e-4 if size == 256 else 1e-4
    np.testing.assert_allclose(found[0], preprocess(from_record(pixels), size), rtol=0, atol=tolerance)


def test_the_half_plane_is_the_floor_of_the_mean_and_a_half(library):
    pixels = images(64, 64)[0]
    payload = codec.encode_lbp(pixels, codec.MODE_HALF_FIRST)
    found, _ = decode_window(
        CudaDecodeWindow([WINDOWS["brain"]], 32, mean=[0.0], std=[1.0], library=library),
        lay_out([payload], [(64, 64)]),
        library,
    )
    mean = from_record(pixels).astype(np.float32).reshape(32, 2, 32, 2).mean(axis=(1, 3))
    low = np.clip((mean - 0.5) / 80, 0, 1)
    assert np.all(found[0, 0] >= low - 1e-6)
    assert np.all(found[0, 0] <= np.clip((mean + 0.5) / 80, 0, 1) + 1e-6)
    assert np.ptp(found[0, 0] * 160 - np.round(found[0, 0] * 160)) < 1e-4  # halves of a unit of 1/80
    assert found.std() > 0.1


@pytest.mark.parametrize("count", [1, 3, 16])
def test_layouts_and_element_types_hold_the_same_numbers(library, count):
    payloads = lay_out([codec.encode(images(64, 80)[0]), codec.encode(images(40, 33)[0])], [(64, 80), (40, 33)])
    windows = (DEFAULT_WINDOWS * 6)[:count]

    def run(**options: int) -> np.ndarray:
        return decode_window(CudaDecodeWindow(windows, 21, library=library, **options), payloads, library)[0]

    truth = run()
    assert np.array_equal(run(layout=ops.HWC).transpose(0, 3, 1, 2), truth)
    assert np.array_equal(run(dtype=ops.FLOAT16), truth.astype(np.float16))
    assert np.array_equal(run(dtype=ops.FLOAT16, layout=ops.HWC).transpose(0, 3, 1, 2), truth.astype(np.float16))
    bfloat16 = run(dtype=ops.BFLOAT16).astype(np.uint32) << 16
    np.testing.assert_allclose(bfloat16.view(np.float32), truth, rtol=2**-8)


@pytest.mark.parametrize(("height", "width", "size"), [(96, 96, 48), (70, 100, 33), (50, 40, 64)])
def test_augmented_images_equal_the_torch_loader(library, height, width, size):
    slices = images(height, width)[:1] * 4
    changes = augment.draw(5, 1, np.arange(4))
    maps = np.stack([changes.matrix(item, height, width) for item in range(4)])
    hu = torch.from_numpy(np.stack([from_record(pixels) for pixels in slices])[:, None])
    small = cpu.change_intensity(resize_area(cpu.warp(hu, maps), size), changes, list(range(4)))
    truth = Preprocess(size, DEFAULT_WINDOWS, False).to_channels(small).numpy()
    for mode in modes_of(height, width):
        payloads = lay_out([codec.encode_lbp(pixels, mode) for pixels in slices], [(height, width)] * 4)
        found, status = decode_window(
            CudaDecodeWindow(DEFAULT_WINDOWS, size, library=library),
            payloads,
            library,
            matrix=maps.reshape(4, 6),
            intensity=np.stack([changes.gain, changes.offset_hu], axis=1),
        )
        assert not status.any()
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-3)


def air(size: int) -> np.ndarray:
    return preprocess(np.full((1, 1), -1024, np.int16), size)


@pytest.mark.parametrize("far", [1e9, -1e9, np.inf, np.nan, 64.6, -64.6])
def test_a_warp_to_nowhere_is_air(library, far):
    payloads = lay_out([codec.encode(images(64, 64)[0])] * 2, [(64, 64)] * 2)
    fused = CudaDecodeWindow(DEFAULT_WINDOWS, 8, library=library)
    matrix = np.array([[1, 0, far, 0, 1, 0], [1, 0, 0, 0, 1, far]])
    found, status = decode_window(fused, payloads, library, matrix=matrix)
    assert not status.any()
    np.testing.assert_allclose(found, [air(8)] * 2, atol=1e-5)


def test_a_damaged_slice_is_air_whatever_its_intensity(library):
    whole = codec.encode(images(64, 64)[0])
    fused = CudaDecodeWindow(DEFAULT_WINDOWS, 32, library=library)
    payloads = lay_out([whole, whole[:-4], whole], [(64, 64)] * 3)
    found, status = decode_window(fused, payloads, library, intensity=np.array([[1, 0], [3, 5000], [1, 0]]))
    assert status.tolist() == [0, 1, 0]
    np.testing.assert_allclose(found[1], air(32), atol=1e-5)
    np.testing.assert_allclose(found[2], preprocess(from_record(images(64, 64)[0]), 32), atol=1e-4)


def test_the_weights_of_a_span_are_those_of_the_reference(library):
    """One bright row and column at a time, through every window-free weight that a 13 x 9 slice has at side 7."""
    for index in range(9):
        pixels = np.full((13, 9), 1024, np.uint16)
        pixels[:, index] += 1000
        fused = CudaDecodeWindow([WINDOWS["bone"]], 7, mean=[0.0], std=[1.0], library=library)
        found, _ = decode_window(fused, lay_out([codec.encode(pixels)], [(13, 9)]), library)
        above_air = 1024 * area_matrix(9, 13, 7).sum(axis=1) + 1000 * area_matrix(9, 13, 7)[:, index]
        expected = np.clip((above_air - 1024 - -800) / 2800, 0, 1)
        np.testing.assert_allclose(found[0, 0], np.broadcast_to(expected, (7, 7)), atol=1e-5)


def call(fused: CudaDecodeWindow, payloads: Payloads, **change: int) -> None:
    out, status, scratch = np.zeros(3 * 64, np.float32), np.zeros(1, np.int32), scratch_for(payloads, fused._path)
    given = {"out": out.ctypes.data, "status": status.ctypes.data, "scratch": scratch.ctypes.data}
    fused(payloads.batch(), **{**given, "scratch_size": scratch.size, "stream": 0, **change})


@pytest.mark.parametrize(
    "change", [{"out": 0}, {"status": 0}, {"scratch": 0}, {"scratch": 256 * 9 + 4}, {"scratch_size": 99}]
)
def test_a_call_that_makes_no_sense_is_refused_before_anything_runs(library, change):
    fused = CudaDecodeWindow(DEFAULT_WINDOWS, 8, library=library)
    payloads = lay_out([codec.encode(images(8, 8)[0])], [(8, 8)])
    call(fused, payloads)
    with pytest.raises(UsageError, match="the CUDA kernels refused a call: an argument makes no sense"):
        call(fused, payloads, **change)


@pytest.mark.parametrize("bad", [{"size": 0}, {"size": 65536}, {"dtype": 3}, {"layout": 2}, {"std": [1.0, 0.0, 1.0]}])
def test_a_windowing_that_makes_no_sense_is_refused(library, bad):
    payloads = lay_out([codec.encode(images(8, 8)[0])], [(8, 8)])
    options = {"size": 8, **bad}
    with pytest.raises(UsageError, match="the CUDA kernels refused a call"):
        call(CudaDecodeWindow(DEFAULT_WINDOWS, library=library, **options), payloads)


def test_scratch_is_refused_for_batches_that_the_kernels_refuse(library):
    fused = CudaDecodeWindow(DEFAULT_WINDOWS, 256, library=library)
    assert fused.scratch_bytes(64, "lbp", 512, 512) < 64 * 1.1 * 512 * 512 * 2
    assert fused.scratch_bytes(64, "raw", 512, 512) < 64 * 256
    for num, height, width in ((-1, 8, 8), (65536, 8, 8), (1, 0, 8), (1, 65536, 1), (1, 65535, 65535)):
        with pytest.raises(UsageError, match="expected 0 to 65535 slices"):
            fused.scratch_bytes(num, "lbp", height, width)
    with pytest.raises(UsageError, match="codec 'zip': expected lbp or raw"):
        fused.scratch_bytes(1, "zip", 8, 8)


def test_a_batch_of_none_is_no_work(library):
    payloads = lay_out([codec.encode(images(8, 8)[0])], [(8, 8)])
    empty = Payloads(
        "lbp", payloads.data, *(getattr(payloads, n)[:0] for n in ("offset", "size", "height", "width")), (8, 8)
    )
    pixels, status = decode(empty, library)
    assert pixels.shape == (0, 8, 8)
    assert status.size == 0


def test_a_library_that_is_not_built_says_how_to_build_it(tmp_path):
    absent = tmp_path / "_kernels_cuda.so"
    assert ops_cuda.backend(absent) == "absent"
    with pytest.raises(UsageError, match=r"_kernels_cuda.so is not built; run make setup where nvcc is on PATH"):
        CudaDecodeWindow(DEFAULT_WINDOWS, 8, library=absent)


def test_a_library_that_does_not_load_is_absent_to_logs_and_an_error_to_who_needs_it(tmp_path):
    damaged = tmp_path / "_kernels_cuda.so"
    damaged.write_bytes(b"no library")
    assert ops_cuda.backend(damaged) == "absent"
    with pytest.raises(UsageError, match=r"_kernels_cuda.so does not load \(.*\); run make setup to build it again"):
        CudaDecodeWindow(DEFAULT_WINDOWS, 8, library=damaged)


@pytest.mark.skipif(not ops_cuda.LIBRARY.exists(), reason="the CUDA kernels are not built")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: addresses of host memory would be faults")
def test_the_real_library_says_that_there_is_no_driver():
    assert ops_cuda.backend().startswith("cuda-")
    payloads = lay_out([codec.encode(images(8, 8)[0])], [(8, 8)])
    with pytest.raises(FastichError, match=r"CUDA: .*driver"):
        call(CudaDecodeWindow(DEFAULT_WINDOWS, 8), payloads)


def test_the_emulated_library_says_what_it_is(library):
    assert ops_cuda.backend(library) == "emulated"
    assert isinstance(library, Path)
