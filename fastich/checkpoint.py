"""One training state in one safetensors file, and the way back from a run folder to its network.

``last.safetensors`` holds all that is needed to go on as if nothing had happened (90 MB: weights, Adam's two moments,
random generators, the partial epoch); ``best.safetensors`` the network only (28 MB). safetensors cannot run code when
it is loaded. Both are replaced whole (written aside, fsynced, renamed), so a kill leaves the previous one.

Tensor names: ``model.*``, ``ema.*``, ``optimizer.<moment>.*``, ``rng.*``, ``partial.*``. The header is one JSON text.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from fastich.errors import CheckpointError
from fastich.files import atomic_path
from fastich.models.classifier import DEFAULT_BACKBONE, Classifier, build_model
from fastich.models.weights import MODEL_PREFIX, Tensors, load_exactly, present_name
from fastich.windowing import Window

FORMAT_VERSION = 1
HEADER_KEY = "fastich"
FOLDER = "checkpoints"
BEST = f"{FOLDER}/best.safetensors"
LAST = f"{FOLDER}/last.safetensors"
AVERAGE_PREFIX = "ema."
"""Of the moving average in the last checkpoint, where a run keeps one; in the best one the network is that average."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint file holds: ``meta`` (JSON values) and ``tensors`` on the CPU, by full name."""

    path: Path
    meta: dict[str, Any]
    tensors: Tensors

    def part(self, prefix: str) -> Tensors:
        """The tensors whose names start with ``prefix``, without it."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A trained network and what it was trained with.

    Attributes:
        model: on the CPU, float32, channels_last, in eval mode.
        config: the resolved training config, as in ``config.json``.
        dataset_sha256: identity of the records it was trained on.
        epoch: number of the epoch whose weights these are, from 0.
        size: side of the network's input, pixels.
        windows: three windows, or one if ``adjacent``.
        adjacent: the channels are slices s-1, s, s+1 through ``windows[0]``.
        meta: everything else in the checkpoint's header.
    """

    run: Path
    model: Classifier
    config: dict[str, Any]
    dataset_sha256: str
    epoch: int
    size: int
    windows: tuple[Window, ...]
    adjacent: bool
    meta: dict[str, Any]


def save(path: Path, meta: dict[str, Any], tensors: Tensors) -> None:
    """Write a checkpoint, whole or not at all; tensors are brought to the CPU as they are named.

    Raises:
        OSError: the disk is full or cannot be written; what was there before is intact.
    """
    on_cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    checked = {"format_version": FORMAT_VERSION, "tensors_sha256": tensors_sha256(on_cpu), **meta}
    header = {HEADER_KEY: json.dumps(checked, allow_nan=False)}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = serialise(on_cpu, metadata=header)  # in memory first: save_file would leave mode 0600
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged, not ours, or of another format version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = _parse_header(path, file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint; train first, or name another run folder") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: damaged or not a safetensors file ({error}); use the other checkpoint or train again"
        ) from error
    found, expected = tensors_sha256(tensors), str(meta.pop("tensors_sha256", None))
    if found != expected:
        raise CheckpointError(
            f"{path}: damaged: its tensors have SHA-256 {found[:12]}, its header says {expected[:12]}; "
            "use the other checkpoint or train again"
        )
    return Checkpoint(path=path, meta=meta, tensors={present_name(key): value for key, value in tensors.items()})


def read_meta(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, without reading its tensors.

    Raises:
        CheckpointError: it is missing, not ours, or of another format version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _parse_header(path, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: missing or not a safetensors file ({error}); train first, or name another run folder"
        ) from error


def tensors_sha256(tensors: Tensors) -> str:
    """Hex SHA-256 of the names and bytes of CPU tensors, in order of their names (0.1 s for the network)."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(tensors[key].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_sha256(model: torch.nn.Module) -> str:
    """Identity of a network: hex SHA-256 over names and little-endian bytes of its tensors."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _parse_header(path: Path, header: dict[str, str]) -> dict[str, Any]:
    if HEADER_KEY not in header:
        raise CheckpointError(f"{path}: not a fastich checkpoint: its header has no {HEADER_KEY!r} entry")
    try:
        meta: dict[str, Any] = dict(json.loads(header[HEADER_KEY]))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged: its header is not JSON ({error})") from error
    if meta.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected checkpoint format {FORMAT_VERSION}, found {meta.get('format_version')}; "
            "use the fastich version that wrote it"
        )
    return meta


def model_tensors(model: torch.nn.Module) -> Tensors:
    """The network's part of a checkpoint."""
    return {MODEL_PREFIX + key: value for key, value in model.state_dict().items()}


def restore_model(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Load the network's part into ``model``.

    Raises:
        CheckpointError: names or shapes differ.
    """
    load_exactly(model, checkpoint.part(MODEL_PREFIX), source=str(checkpoint.path))


def optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimizer's part of a checkpoint, named after the parameters: ``optimizer.exp_avg.features...``."""
    return {
        f"optimizer.{moment}.{name}": value
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state[parameter].items()
    }


def restore_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Load the optimizer's part; each moment gets the device and memory layout of its parameter."""
    parameters = dict(model.named_parameters())
    for key, value in checkpoint.part("optimizer.").items():
        moment, name = key.split(".", 1)
        if name not in parameters:
            raise CheckpointError(f"{checkpoint.path}: optimizer state for an unknown parameter {name}")
        parameter = parameters[name]
        whole = value.shape == parameter.shape and moment != "step"
        optimizer.state[parameter][moment] = (
            torch.empty_like(parameter).copy_(value) if whole else _step_tensor(value, optimizer, parameter)
        )


def _step_tensor(value: torch.Tensor, optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> torch.Tensor:
    """Adam counts its steps on the CPU, the fused kernel on the parameter's device."""
    return value.clone().to(parameter.device if optimizer.defaults.get("fused") else "cpu")


def load_run(run: Path, which: str = "best") -> LoadedRun:
    """The network of a run folder, in eval mode, with its config.

    Args:
        run: what ``python -m fastich.train --out`` wrote.
        which: ``best`` (lowest validation loss) or ``last``.

    Raises:
        CheckpointError: the folder or checkpoint is missing, damaged or of another version.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder; expected the --out folder of python -m fastich.train")
    checkpoint = load(run / {"best": BEST, "last": LAST}[which])
    model = build_model(checkpoint.meta["config"].get("backbone", DEFAULT_BACKBONE), weights="none")
    judged = checkpoint.part(MODEL_PREFIX) | checkpoint.part(AVERAGE_PREFIX)  # the average, where there is one
    load_exactly(model, judged, source=str(checkpoint.path))
    inputs = checkpoint.meta["input"]
    return LoadedRun(
        run=run,
        model=model.eval(),
        config=checkpoint.meta["config"],
        dataset_sha256=checkpoint.meta["dataset_sha256"],
        epoch=checkpoint.meta["epoch"],
        size=inputs["size"],
        windows=tuple(Window(**window) for window in inputs["windows"]),
        adjacent=inputs["adjacent"],
        meta=checkpoint.meta,
    )
