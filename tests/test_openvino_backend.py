import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from small_dense import SIZE, SmallDense, write_folder
from toy_model import WEIGHTS, toy_onnx, write_model

from fastich.artifact import OUTPUTS
from fastich.errors import ArtifactError
from fastich.models.folding import fold_batch_norm
from fastich.models.onnx_graph import onnx_bytes
from fastich.models.serving import Front, ServingModel
from fastich.parity import synthetic_heads
from fastich.serve import openvino_backend as door
from fastich.serve import session as sessions
from fastich.serve.session import Session, open_session
from fastich.types import HuArray
from fastich.windowing import DEFAULT_WINDOWS

needs_openvino = pytest.mark.skipif(bool(door.WHY_NO_OPENVINO), reason="OpenVINO is not installed")
TOLERANCE = 1e-4
"""Two float32 engines add in another order; logits of the small network span several units."""


def heads(count: int) -> HuArray:
    return np.stack(synthetic_heads(16)[:count])[:, ::3, ::3]


@pytest.fixture(scope="module", params=[False, True], ids=["windows", "adjacent"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    windows = DEFAULT_WINDOWS[:1] if request.param else DEFAULT_WINDOWS
    front = Front(SIZE, windows, request.param)
    write_folder(out, onnx_bytes(ServingModel(front, fold_batch_norm(SmallDense()))), adjacent=request.param)
    return out


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Session, Session]:
    if door.WHY_NO_OPENVINO:
        pytest.skip("OpenVINO is not installed")
    return open_session(folder), open_session(folder, backend="openvino")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_openvino_equals_onnx_runtime_for_every_batch(pair: tuple[Session, Session], count: int) -> None:
    by_onnx, by_openvino = (session.run(heads(count)) for session in pair)
    assert by_onnx.logit.std() > 0.1
    for spec in OUTPUTS:
        expected, found = getattr(by_onnx, spec.name), getattr(by_openvino, spec.name)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=1e-3, err_msg=spec.name)


def test_sizes_of_the_input_are_free(pair: tuple[Session, Session]) -> None:
    for shape in ((40, 90), (512, 512), (33, 33)):
        hu = np.random.default_rng(0).integers(-1000, 200, (3, *shape)).astype(np.int16)
        np.testing.assert_allclose(pair[1].run(hu).logit, pair[0].run(hu).logit, atol=TOLERANCE, rtol=1e-3)


def test_session_says_that_openvino_runs(pair: tuple[Session, Session]) -> None:
    assert (pair[1].backend, pair[1].precision) == ("openvino", "float32")
    assert pair[1].provider.startswith("OpenVINO 20")
    assert pair[1].sha256 == pair[0].sha256


def test_answers_stay_what_they_were_when_the_session_runs_again(pair: tuple[Session, Session]) -> None:
    first = pair[1].run(heads(3)).logit
    kept = first.copy()
    pair[1].run(heads(8)[3:])
    np.testing.assert_array_equal(first, kept)


def test_threads_share_one_session(pair: tuple[Session, Session]) -> None:
    session = pair[1]
    expected = {count: session.run(heads(count)).logit for count in range(1, 8)}
    found: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda count=count: found.update({count: session.run(heads(count)).logit}))
        for count in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.keys() == expected.keys()
    for count, logit in expected.items():
        np.testing.assert_allclose(found[count], logit, atol=1e-5)


@needs_openvino
def test_preprocessing_stays_float32_in_bfloat16(tmp_path: Path) -> None:
    if "BF16" not in door.openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bfloat16 instructions")
    front = Front(SIZE, DEFAULT_WINDOWS, False)
    write_folder(tmp_path, onnx_bytes(ServingModel(front, fold_batch_norm(SmallDense()))))
    exact = open_session(tmp_path).run(heads(4)).logit
    near = open_session(tmp_path, backend="openvino", precision="bfloat16").run(heads(4)).logit
    assert 1e-4 < np.abs(near - exact).max() < 0.1 * exact.std()


@needs_openvino
def test_nan_weights_are_refused_when_opened(tmp_path: Path) -> None:
    write_model(tmp_path, toy_onnx(scale=float("nan")))
    with pytest.raises(ArtifactError, match="expected finite probability, found NaN"):
        open_session(tmp_path, backend="openvino")


@needs_openvino
def test_toy_scores_are_right(tmp_path: Path) -> None:
    write_model(tmp_path)
    hu = np.stack([np.full((5, 7), value, dtype=np.int16) for value in (-20, 0, 50)])
    logit = open_session(tmp_path, backend="openvino").run(hu).logit
    np.testing.assert_allclose(logit, np.array([[-20], [0], [50]]) * np.array([WEIGHTS]), rtol=1e-5)


@needs_openvino
def test_model_with_another_interface_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, toy_onnx(outputs=3))
    with pytest.raises(ArtifactError, match=r"expected output \['probability .*'cam tensor\(float\) rank 4'\], found"):
        open_session(tmp_path, backend="openvino")


@needs_openvino
def test_bytes_that_are_no_model_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path, b"")
    with pytest.raises(ArtifactError, match=r"model\.onnx: OpenVINO .* cannot load it"):
        open_session(tmp_path, backend="openvino")


@needs_openvino
def test_graph_without_the_named_tensor_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, toy_onnx().replace(b"image", b"imagd"))
    with pytest.raises(ArtifactError, match=r"model\.onnx: expected one tensor image, found 0; export again"):
        open_session(tmp_path, backend="openvino")


@needs_openvino
def test_bfloat16_on_a_cpu_without_it_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "INT8"]

    write_model(tmp_path)
    monkeypatch.setattr(door.openvino, "Core", Core)
    with pytest.raises(ArtifactError, match="precision bfloat16: this CPU has no bfloat16 instructions"):
        open_session(tmp_path, backend="openvino", precision="bfloat16")


def test_openvino_demanded_and_absent_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path)
    monkeypatch.setattr(door, "openvino", None)
    monkeypatch.setattr(door, "WHY_NO_OPENVINO", "No module named 'openvino'")
    with pytest.raises(ArtifactError, match=r"backend openvino: demanded, but it cannot be imported \(No module named"):
        open_session(tmp_path, backend="openvino")


@pytest.mark.parametrize(
    ("device", "precision", "installed", "expected"),
    [
        ("cpu", "float32", True, "onnxruntime"),
        ("cpu", "int8", True, "openvino"),
        ("cpu", "int8", False, "onnxruntime"),
        ("cpu", "bfloat16", True, "openvino"),
        ("cpu", "bfloat16", False, "openvino"),
        ("cuda", "float32", True, "onnxruntime"),
        ("cuda", "float16", True, "onnxruntime"),
    ],
)
def test_auto_takes_what_its_rule_says(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, installed: bool, expected: str
) -> None:
    monkeypatch.setattr(door, "WHY_NO_OPENVINO", "" if installed else "not installed")
    assert sessions.choose_backend("auto", device, precision) == expected


def test_choice_of_auto_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions._announce.cache_clear()
    write_model(tmp_path)
    for _ in range(2):
        assert open_session(tmp_path, backend="auto").backend == "onnxruntime"
    assert capsys.readouterr().err == "backend: onnxruntime on cpu in float32\n"


@pytest.mark.parametrize(
    ("backend", "device", "precision", "message"),
    [
        ("tensorrt", "cpu", "float32", "backend: expected onnxruntime, openvino or auto, found 'tensorrt'"),
        ("auto", "cpu", "int4", "precision: expected float32, float16, int8 or bfloat16, found 'int4'"),
        ("openvino", "cuda", "float32", "backend openvino runs on the cpu only, found device cuda"),
        ("onnxruntime", "cpu", "bfloat16", "precision: expected one of float32, int8 for onnxruntime on cpu"),
        ("auto", "cpu", "float16", "precision: expected one of float32, int8 for onnxruntime on cpu, found float16"),
        ("auto", "cuda", "int8", "precision: expected one of float32, float16 for onnxruntime on cuda, found int8"),
    ],
)
def test_what_does_not_go_together_is_an_error(backend: str, device: str, precision: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        sessions.choose_backend(backend, device, precision)


def test_precision_without_its_file_is_an_error(tmp_path: Path) -> None:
    write_model(tmp_path)
    with pytest.raises(
        ArtifactError, match=r"expected model\.int8\.onnx among its files, found model\.onnx; export it"
    ):
        open_session(tmp_path, precision="int8")


def test_serving_works_where_openvino_is_absent(tmp_path: Path) -> None:
    write_model(tmp_path)
    code = (
        "import sys; sys.modules['openvino'] = None\n"
        "from pathlib import Path; from fastich.serve.session import open_session\n"
        f"print(open_session(Path({str(tmp_path)!r}), backend='auto').backend)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout == "onnxruntime\n", found.stderr
