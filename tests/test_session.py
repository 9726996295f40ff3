import json
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from toy_model import WEIGHTS, toy_onnx, write_model

from fastich.artifact import MANIFEST, ONNX_FILE
from fastich.errors import ArtifactError
from fastich.serve import session as door
from fastich.serve.session import num_physical_cores, open_session


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path)
    return tmp_path


def test_scores_are_the_graphs_outputs_by_name(folder: Path) -> None:
    hu = np.stack([np.full((5, 7), value, dtype=np.int16) for value in (-20, 0, 50)])
    scores = open_session(folder).run(hu)
    expected = np.array([[-20], [0], [50]]) * np.array([WEIGHTS])
    np.testing.assert_allclose(scores.logit, expected, rtol=1e-5)
    np.testing.assert_allclose(scores.probability, 1 / (1 + np.exp(-expected)), rtol=1e-5)
    assert scores.embedding.shape == (3, 1024)
    assert scores.cam.shape == (3, 6, 1, 1)
    assert {value.dtype for value in (scores.logit, scores.probability, scores.embedding, scores.cam)} == {
        np.dtype(np.float32)
    }


def test_session_says_what_it_runs_and_where(folder: Path) -> None:
    session = open_session(folder)
    assert (session.backend, session.precision, session.provider) == ("onnxruntime", "float32", "CPUExecutionProvider")
    assert session.sha256 == session.artifact.files[ONNX_FILE].sha256


def test_input_that_is_not_contiguous_is_scored_alike(folder: Path) -> None:
    hu = np.arange(2 * 6 * 8, dtype=np.int16).reshape(2, 6, 8)
    session = open_session(folder)
    np.testing.assert_array_equal(session.run(hu[:, ::2, ::-1]).logit, session.run(hu[:, ::2, ::-1].copy()).logit)


@pytest.mark.parametrize(
    ("dtype", "shape"), [("float32", (1, 4, 4)), ("uint16", (1, 4, 4)), ("int16", (4, 4)), ("int16", (0, 4, 4))]
)
def test_input_of_another_kind_is_refused(folder: Path, dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"expected int16 \[N, H, W\], none of them 0, found {dtype}"):
        open_session(folder).run(np.zeros(shape, dtype=dtype))  # type: ignore[arg-type]


def test_embedding_of_another_width_than_the_manifest_says_is_refused(folder: Path) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    document["outputs"][2]["shape"] = ["N", 768]
    (folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"expected an embedding of 768 \(model.json\), found 1024; export again"):
        open_session(folder)


def test_flipped_bit_is_refused_when_opened(folder: Path) -> None:
    content = bytearray((folder / ONNX_FILE).read_bytes())
    content[100] ^= 1
    (folder / ONNX_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match="expected SHA-256"):
        open_session(folder)


def test_the_bytes_that_were_hashed_are_the_bytes_that_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = toy_onnx(scale=100.0)
    checked = door.read_verified

    def swap_after_check(where: Path, artifact: object, name: str) -> bytes:
        content = checked(where, artifact, name)  # type: ignore[arg-type]
        (where / name).write_bytes(other)
        return content

    monkeypatch.setattr(door, "read_verified", swap_after_check)
    logit = open_session(folder).run(np.full((1, 4, 4), 10, dtype=np.int16)).logit
    np.testing.assert_allclose(logit, [np.array(WEIGHTS) * 10], rtol=1e-5)


def test_model_with_nan_weights_is_refused_when_opened(tmp_path: Path) -> None:
    write_model(tmp_path, toy_onnx(scale=float("nan")))
    with pytest.raises(ArtifactError, match="expected finite probability, found NaN"):
        open_session(tmp_path)


def test_infinite_answer_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, toy_onnx(scale=1e37))
    session = open_session_without_self_check(tmp_path)
    with pytest.raises(ArtifactError, match="expected finite logit, found NaN or infinity"):
        session.run(np.full((1, 4, 4), 30_000, dtype=np.int16))


def open_session_without_self_check(folder: Path) -> door.Session:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door.Session, "run", lambda self, hu: None)
        return open_session(folder)


def test_model_with_another_interface_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, toy_onnx(outputs=3))
    with pytest.raises(ArtifactError, match=r"expected output \['probability .*'cam tensor\(float\) rank 4'\], found"):
        open_session(tmp_path)


def test_bytes_that_are_no_model_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path, b"")
    with pytest.raises(ArtifactError, match=r"model\.onnx: ONNX Runtime .* cannot load it"):
        open_session(tmp_path)


def test_cuda_demanded_without_a_driver_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(door, "CUDA_DRIVER", "libno-such-driver.so.1")
    with pytest.raises(ArtifactError, match=r"device cuda: expected an NVIDIA driver, found none .* use --device cpu"):
        open_session(folder, "cuda")


def test_cuda_demanded_from_a_cpu_build_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ArtifactError, match="built without CUDA"):
        open_session(folder, "cuda")


def test_silent_fall_back_to_the_cpu_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = onnxruntime.InferenceSession
    monkeypatch.setattr(door, "_require_driver", lambda: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda content, sess_options, providers: create(content, sess_options, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(ArtifactError, match="device cuda: expected CUDAExecutionProvider, found CPUExecutionProvider"):
        open_session(folder, "cuda")


def test_cuda_is_asked_for_full_float32(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def create(content: bytes, sess_options: object, providers: list[object]) -> None:
        asked.extend(providers)
        raise RuntimeError("no GPU in this test")

    monkeypatch.setattr(door, "_require_driver", lambda: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", create)
    with pytest.raises(ArtifactError, match="cannot load it: no GPU in this test"):
        open_session(folder, "cuda")
    name, options = asked[0]  # type: ignore[misc]
    assert name == "CUDAExecutionProvider"
    assert options["use_tf32"] == "0"


def test_unknown_device_is_an_error(folder: Path) -> None:
    with pytest.raises(ArtifactError, match="device: expected cpu or cuda, found 'tpu'"):
        open_session(folder, "tpu")


def test_threads_share_one_session(folder: Path) -> None:
    session = open_session(folder)
    found: dict[int, float] = {}

    def ask(value: int) -> None:
        found[value] = float(session.run(np.full((2, 16, 16), value, dtype=np.int16)).logit[1, 5])

    threads = [threading.Thread(target=ask, args=(value,)) for value in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == pytest.approx({value: value * WEIGHTS[5] for value in range(8)}, rel=1e-5)


def test_at_least_one_physical_core_is_used() -> None:
    assert num_physical_cores() >= 1
