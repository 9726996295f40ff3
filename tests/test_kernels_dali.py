"""The DALI operator over the native core: one pipeline on the CPU against the numpy truth."""

import numpy as np
import pytest

from fastich import ops, ops_cuda
from fastich.hu import from_record
from fastich.records import codec
from fastich.windowing import DEFAULT_WINDOWS, IMAGENET_MEAN, IMAGENET_STD, preprocess

pytest.importorskip("nvidia.dali")
pytestmark = pytest.mark.skipif(not ops.DALI_LIBRARY.exists(), reason="the DALI operator is not built")


def run(payloads: list[bytes], shape: tuple[int, int], **options: object) -> np.ndarray:
    from nvidia.dali import fn, pipeline_def, plugin_manager

    plugin_manager.load_library(str(ops.DALI_LIBRARY))

    @pipeline_def(batch_size=len(payloads), num_threads=2, device_id=None)
    def graph():
        data = fn.external_source(lambda: [np.frombuffer(p, np.uint8) for p in payloads], ndim=1)
        sides = fn.external_source(lambda: [np.asarray(shape, np.int32)] * len(payloads), ndim=1)
        return fn.fastich.decode_window(
            data,
            sides,
            centers=[window.center_hu for window in DEFAULT_WINDOWS],
            widths=[window.width_hu for window in DEFAULT_WINDOWS],
            mean=list(IMAGENET_MEAN),
            std=list(IMAGENET_STD),
            **options,
        )

    (out,) = graph().run()
    return out.as_array()


def slices(height: int, width: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [(1024 + rng.normal(0, 40, (height, width))).astype(np.uint16) for _ in range(3)]


@pytest.mark.parametrize("name", ["lbp", "raw"])
@pytest.mark.parametrize("layout", ["CHW", "HWC"])
def test_operator_equals_the_numpy_truth(name, layout):
    pixels = slices(64, 80)
    found = run([codec.encode(p, name) for p in pixels], (64, 80), codec=name, size=40, layout=layout)
    truth = np.stack([preprocess(from_record(p), 40) for p in pixels])
    expected = truth if layout == "CHW" else truth.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_operator_names_the_damaged_sample():
    payloads = [codec.encode(p) for p in slices(64, 64)]
    payloads[1] = payloads[1][:-4]
    with pytest.raises(RuntimeError, match="sample 1: damaged payload"):
        run(payloads, (64, 64), codec="lbp", size=32)


def test_operator_refuses_an_unknown_codec():
    with pytest.raises(RuntimeError, match="codec must be lbp or raw"):
        run([codec.encode(p) for p in slices(64, 64)], (64, 64), codec="zip", size=32)


def test_gpu_operator_takes_payloads_on_the_gpu_and_the_rest_from_the_host():
    """Its schema only: no GPU has run it. What it calls is tested on an emulator (tests/test_ops_cuda.py)."""
    from nvidia.dali import backend, plugin_manager

    if not ops_cuda.LIBRARY.exists():
        pytest.skip("the CUDA kernels are not built, so the operator has no GPU half")
    plugin_manager.load_library(str(ops.DALI_LIBRARY))
    assert "fastich__DecodeWindow" in backend.RegisteredGPUOps()
    schema = backend.GetSchema("fastich__DecodeWindow")
    assert [schema.GetInputDevice(index, None, None) for index in range(4)] == [None, "cpu", "cpu", "cpu"]
