"""The only door to ONNX Runtime on the serving side: an exported model, opened once and checked, that scores slices.

Opening costs the SHA-256 of the files, ONNX Runtime's graph optimisation and one slice of air as a self-check (under
a second in all on one core); a slice costs about 40 ms of two cores at 256 px.
"""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fastich.artifact import INPUT, ONNX_FILE, OUTPUTS, Artifact, TensorSpec, read_manifest, read_verified
from fastich.errors import ArtifactError
from fastich.hu import AIR_HU
from fastich.types import HuArray

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CUDA_DRIVER = "libcuda.so.1"
SELF_CHECK_SHAPE = (2, 64, 64)
LOG_ERRORS_ONLY = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What the model says of N slices, float32, labels in the order of ``labels.LABELS``.

    ``probability`` [N, 6] in 0..1, ``logit`` [N, 6], ``embedding`` [N, 1024], ``cam`` [N, 6, h, w] in logits.
    """

    probability: NDArray[np.float32]
    logit: NDArray[np.float32]
    embedding: NDArray[np.float32]
    cam: NDArray[np.float32]


class Session:
    """One opened model. ``run`` may be called from several threads.

    Attributes:
        artifact: what model.json says.
        sha256: of the model.onnx that runs.
        provider: the execution provider that runs, for example ``CPUExecutionProvider``.
    """

    def __init__(self, artifact: Artifact, session: Any, where: Path) -> None:
        self.artifact = artifact
        self.sha256 = artifact.files[ONNX_FILE].sha256
        self.provider: str = session.get_providers()[0]
        self._session = session
        self._where = where

    def run(self, hu: HuArray) -> Scores:
        """Scores of ``hu`` int16 [N, H, W] in HU; in slice order where ``artifact.input_order`` is ``series``.

        Raises:
            ValueError: ``hu`` has another dtype or shape.
            ArtifactError: the model fails or answers with NaN or infinity.
        """
        if hu.dtype != np.int16 or hu.ndim != len(INPUT.shape) or 0 in hu.shape:
            raise ValueError(f"hu: expected int16 [N, H, W], none of them 0, found {hu.dtype} {list(hu.shape)}")
        try:
            found = self._session.run([spec.name for spec in OUTPUTS], {INPUT.name: np.ascontiguousarray(hu)})
        except Exception as error:  # ONNX Runtime's own classes share no base but Exception
            raise ArtifactError(f"{self._where}: the model failed on {list(hu.shape)} slices: {error}") from error
        for spec, value in zip(OUTPUTS, found, strict=True):
            if not np.isfinite(value).all():
                raise ArtifactError(f"{self._where}: expected finite {spec.name}, found NaN or infinity; export again")
        return Scores(**dict(zip((spec.name for spec in OUTPUTS), found, strict=True)))


def open_session(folder: Path, device: str = "cpu") -> Session:
    """The model of ``folder``, ready to score: its files, its inputs and outputs and a slice of air were checked.

    Args:
        folder: what export/to_onnx.py wrote.
        device: ``cpu`` or ``cuda``; what is asked for is what runs, or it is an error.

    Raises:
        ArtifactError: a file is missing, damaged or of another version, CUDA cannot be had, or the self-check failed.
    """
    if device not in PROVIDERS:
        raise ArtifactError(f"device: expected cpu or cuda, found {device!r}")
    artifact = read_manifest(folder)
    content = read_verified(folder, artifact, ONNX_FILE)
    for name in artifact.files:
        if name != ONNX_FILE:
            read_verified(folder, artifact, name)
    path = folder / ONNX_FILE
    session = Session(artifact, _create(content, device, path), path)
    _check_interface(session._session, path)
    session.run(np.full(SELF_CHECK_SHAPE, AIR_HU, dtype=np.int16))
    return session


def _create(content: bytes, device: str, path: Path) -> Any:
    wanted = PROVIDERS[device]
    if device == "cuda":
        _require_driver()
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_physical_cores()
    options.log_severity_level = LOG_ERRORS_ONLY
    providers = [wanted] if device == "cpu" else [wanted, PROVIDERS["cpu"]]
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


def _check_interface(session: Any, path: Path) -> None:
    for kind, specs, found in (
        ("input", (INPUT,), session.get_inputs()),
        ("output", OUTPUTS, session.get_outputs()),
    ):
        expected = [_signature(spec) for spec in specs]
        actual = [f"{item.name} {item.type} rank {len(item.shape)}" for item in found]
        if actual != expected:
            raise ArtifactError(f"{path}: expected {kind} {expected}, found {actual}; export again")


def _signature(spec: TensorSpec) -> str:
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
