"""An exported model, opened once and checked, that scores slices; and the serving side's only door to ONNX Runtime.

Opening costs the SHA-256 of the files, the engine's graph optimisation and one slice of air as a self-check (under a
second in all on one core; OpenVINO 1 to 6 s). A slice at 256 px costs about 40 ms of two cores with ONNX Runtime in
float32, 13 ms with OpenVINO in int8.
"""

import ctypes
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fastich.artifact import (
    FLOAT32,
    INPUT,
    OUTPUTS,
    PRECISION_FILES,
    PRECISIONS,
    Artifact,
    TensorSpec,
    read_manifest,
    read_verified,
)
from fastich.errors import ArtifactError
from fastich.hu import AIR_HU
from fastich.serve import openvino_backend
from fastich.types import HuArray
from fastich.verb import say

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CUDA_DRIVER = "libcuda.so.1"
SELF_CHECK_SHAPE = (2, 64, 64)
LOG_ERRORS_ONLY = 3
BACKENDS = ("onnxruntime", "openvino")
OFFERED = {
    ("onnxruntime", "cpu"): ("float32", "int8"),
    ("onnxruntime", "cuda"): ("float32", "float16"),
    ("openvino", "cpu"): ("float32", "bfloat16", "int8"),
}
"""What runs where. Left out: float16 on CPUs (slower than float32 there), int8 QDQ on CUDA (wants TensorRT), bfloat16
in ONNX Runtime (its CPU provider has no such convolution)."""
CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
"""TF32 would move HU by up to 1. The default search, EXHAUSTIVE, tries every algorithm again for each new batch size.
Not run on a GPU. CUDA graphs are out of reach: they want fixed shapes and no node on the CPU, where the free H and W of
the input are computed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What the model says of N slices, float32, labels in the order of ``labels.LABELS``.

    ``probability`` [N, 6] in 0..1, ``logit`` [N, 6], ``embedding`` [N, C], ``cam`` [N, 6, h, w] in logits.
    """

    probability: NDArray[np.float32]
    logit: NDArray[np.float32]
    embedding: NDArray[np.float32]
    cam: NDArray[np.float32]


class Engine(Protocol):
    """What runs a graph: ONNX Runtime (below) or OpenVINO. ``run`` may be called from several threads."""

    provider: str
    inputs: list[str]
    outputs: list[str]

    def run(self, hu: HuArray) -> Sequence[NDArray[np.float32]]:
        """The outputs of ``hu`` int16 [N, H, W] in the order of ``artifact.OUTPUTS``."""


class Session:
    """One opened model. ``run`` may be called from several threads.

    Attributes:
        artifact: what model.json says.
        sha256: of the file that runs.
        backend: ``onnxruntime`` or ``openvino``.
        precision: ``float32``, ``float16``, ``bfloat16`` or ``int8``.
        provider: what runs in it, for example ``CPUExecutionProvider``.
    """

    def __init__(self, artifact: Artifact, engine: Engine, where: Path, *, backend: str, precision: str) -> None:
        self.artifact = artifact
        self.sha256 = artifact.files[where.name].sha256
        self.backend, self.precision = backend, precision
        self.provider = engine.provider
        self._engine = engine
        self._where = where

    def run(self, hu: HuArray) -> Scores:
        """Scores of ``hu`` int16 [N, H, W] in HU; in slice order where ``artifact.input_order`` is ``series``.

        Raises:
            ValueError: ``hu`` has another dtype or shape.
            ArtifactError: the model fails, answers with NaN or infinity, or its embedding has another width.
        """
        if hu.dtype != np.int16 or hu.ndim != len(INPUT.shape) or 0 in hu.shape:
            raise ValueError(f"hu: expected int16 [N, H, W], none of them 0, found {hu.dtype} {list(hu.shape)}")
        try:
            found = self._engine.run(np.ascontiguousarray(hu))
        except Exception as error:  # the engines' own classes share no base but Exception
            raise ArtifactError(f"{self._where}: the model failed on {list(hu.shape)} slices: {error}") from error
        for spec, value in zip(OUTPUTS, found, strict=True):
            if not np.isfinite(value).all():
                raise ArtifactError(f"{self._where}: expected finite {spec.name}, found NaN or infinity; export again")
        scores = Scores(**dict(zip((spec.name for spec in OUTPUTS), found, strict=True)))
        width = scores.embedding.shape[1]
        if width != self.artifact.embedding_size:
            raise ArtifactError(
                f"{self._where}: expected an embedding of {self.artifact.embedding_size} (model.json), found {width}; "
                "export again"
            )
        return scores


def open_session(
    folder: Path, device: str = "cpu", *, backend: str = "onnxruntime", precision: str = FLOAT32
) -> Session:
    """The model of ``folder``, ready to score: its files, its inputs and outputs and a slice of air were checked.

    What is asked for is what runs, or it is an error.

    Args:
        folder: what export/to_onnx.py wrote.
        device: ``cpu`` or ``cuda``.
        backend: ``onnxruntime``, ``openvino``, or ``auto`` (see ``choose_backend``), which says once what it took.
        precision: one of ``artifact.PRECISIONS``; ``int8`` and ``float16`` need their file in the folder.

    Raises:
        ArtifactError: a file is missing, damaged or of another version, the backend or CUDA cannot be had, or the
            self-check failed.
    """
    chosen = choose_backend(backend, device, precision)
    if backend == "auto":
        _announce(chosen, device, precision)
    artifact = read_manifest(folder)
    path = folder / PRECISION_FILES[precision]
    content = read_verified(folder, artifact, path.name)
    for name in artifact.files:
        if name != path.name:
            read_verified(folder, artifact, name)
    engine: Engine
    if chosen == "openvino":
        engine = openvino_backend.Engine(content, precision, num_physical_cores(), path)
    else:
        engine = OnnxEngine(content, device, path)
    check_interface(path, "input", (INPUT,), engine.inputs)
    check_interface(path, "output", OUTPUTS, engine.outputs)
    session = Session(artifact, engine, path, backend=chosen, precision=precision)
    session.run(np.full(SELF_CHECK_SHAPE, AIR_HU, dtype=np.int16))
    return session


def choose_backend(asked: str, device: str, precision: str) -> str:
    """``onnxruntime`` or ``openvino``.

    The rule of ``auto``: OpenVINO on the CPU for bfloat16, which nothing else offers, and for int8 where it is
    installed (1.5 to 2 times ONNX Runtime's slices/s); ONNX Runtime for the rest (in float32 the two are equally fast).

    Raises:
        ArtifactError: there is no such backend, device or precision, or the three do not go together.
    """
    choices: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("device", device, tuple(PROVIDERS)),
        ("backend", asked, (*BACKENDS, "auto")),
        ("precision", precision, PRECISIONS),
    )
    for name, value, known in choices:
        if value not in known:
            raise ArtifactError(f"{name}: expected {', '.join(known[:-1])} or {known[-1]}, found {value!r}")
    chosen = asked
    if asked == "auto":
        wins = precision == "bfloat16" or (precision == "int8" and not openvino_backend.WHY_NO_OPENVINO)
        chosen = "openvino" if device == "cpu" and wins else "onnxruntime"
    if (chosen, device) not in OFFERED:
        raise ArtifactError(f"backend {chosen} runs on the cpu only, found device {device}; use --backend onnxruntime")
    if precision not in OFFERED[chosen, device]:
        offered = ", ".join(OFFERED[chosen, device])
        raise ArtifactError(f"precision: expected one of {offered} for {chosen} on {device}, found {precision}")
    return chosen


@functools.cache
def _announce(backend: str, device: str, precision: str) -> None:
    why = openvino_backend.WHY_NO_OPENVINO if precision == "int8" and backend == "onnxruntime" else ""
    say(f"backend: {backend} on {device} in {precision}" + (f" (no OpenVINO: {why})" if why else ""))


class OnnxEngine:
    """One ONNX Runtime session."""

    def __init__(self, content: bytes, device: str, path: Path) -> None:
        self._session = open_onnx(content, device, path)
        self.provider: str = self._session.get_providers()[0]
        self.inputs = [signature(item) for item in self._session.get_inputs()]
        self.outputs = [signature(item) for item in self._session.get_outputs()]

    def run(self, hu: HuArray) -> Sequence[NDArray[np.float32]]:
        """The outputs of ``hu`` int16 [N, H, W] in the order of ``artifact.OUTPUTS``."""
        found: Sequence[NDArray[np.float32]] = self._session.run([spec.name for spec in OUTPUTS], {INPUT.name: hu})
        return found


def open_onnx(content: bytes, device: str, path: Path) -> Any:
    """An ONNX Runtime session of ``content`` on ``device``, or an error; ``path`` names the file in messages.

    Raises:
        ArtifactError: ONNX Runtime cannot load it, or CUDA cannot be had.
    """
    wanted = PROVIDERS[device]
    if device == "cuda":
        _require_driver()
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_physical_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a thread that spins starves the decoder
    options.log_severity_level = LOG_ERRORS_ONLY
    cpu = PROVIDERS["cpu"]
    providers = [cpu] if device == "cpu" else [(wanted, CUDA_OPTIONS), cpu]
    try:
        session = onnxruntime.InferenceSession(content, sess_options=options, providers=providers)
    except Exception as error:  # ONNX Runtime's own classes share no base but Exception
        raise ArtifactError(f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}") from error
    if session.get_providers()[0] != wanted:
        raise ArtifactError(
            f"device cuda: expected {wanted}, found {', '.join(session.get_providers())}; "
            "install onnxruntime-gpu with its CUDA and cuDNN libraries, or use --device cpu"
        )
    return session


def _require_driver() -> None:
    if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise ArtifactError(
            "device cuda: this ONNX Runtime was built without CUDA; install onnxruntime-gpu, or use --device cpu"
        )
    try:
        ctypes.CDLL(CUDA_DRIVER)
    except OSError as error:
        raise ArtifactError(
            f"device cuda: expected an NVIDIA driver, found none ({error}); install it, or use --device cpu"
        ) from error


def check_interface(path: Path, kind: str, specs: Sequence[TensorSpec], found: Sequence[str]) -> None:
    """Refuse a graph whose inputs or outputs are not those of the contract, by name, type and rank.

    Raises:
        ArtifactError: they are not.
    """
    expected = [_expected(spec) for spec in specs]
    if found != expected:
        raise ArtifactError(f"{path}: expected {kind} {expected}, found {found}; export again")


def signature(item: Any) -> str:
    """Name, type and rank of an input or output of an ONNX Runtime session."""
    return f"{item.name} {item.type} rank {len(item.shape)}"


def _expected(spec: TensorSpec) -> str:
    onnx_type = {"int16": "tensor(int16)", "float32": "tensor(float)"}[spec.dtype]
    return f"{spec.name} {onnx_type} rank {len(spec.shape)}"


def num_physical_cores() -> int:
    """Physical cores that this process may use; a second hardware thread of a core adds nothing to convolutions."""
    allowed = os.sched_getaffinity(0)
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text().strip() if path.is_file() else str(cpu))
    return max(1, len(siblings))
