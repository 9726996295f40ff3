"""model.json: the contract between export and serving, and the only thing that crosses from one tower to the other.

A model folder holds ``model.onnx`` and/or ``model.ts``, variants of model.onnx in other precisions, and, written last,
``model.json``. Loading costs one SHA-256 of every file (30 MB: about 0.1 s). Nothing here needs torch, onnx or ONNX
Runtime.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastich import files
from fastich.errors import ArtifactError
from fastich.labels import LABELS
from fastich.windowing import Window

FORMAT_VERSION = 1
MANIFEST = "model.json"
ONNX_FILE = "model.onnx"
TORCHSCRIPT_FILE = "model.ts"
FLOAT32 = "float32"
"""What model.onnx computes in, and what its thresholds and triage are chosen in."""
PRECISION_FILES = {
    FLOAT32: ONNX_FILE,
    "float16": "model.fp16.onnx",
    "int8": "model.int8.onnx",
    "bfloat16": ONNX_FILE,
}
"""The file of each precision. OpenVINO computes model.onnx in bfloat16 by a setting: no file of its own is needed, and
ONNX Runtime's CPU provider has no bfloat16 convolution that could run one."""
PRECISIONS = tuple(PRECISION_FILES)
INTENDED_USE = "research use only, not a medical device"
NOT_CALIBRATED = {"method": "none"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of the folder: hex SHA-256, size in bytes, and what it is for."""

    sha256: str
    size_bytes: int
    role: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One input or output: a letter in ``shape`` is free and equal wherever it stands."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


INPUT = TensorSpec(name="hu", dtype="int16", shape=("N", "H", "W"))
OUTPUTS = (
    TensorSpec(name="probability", dtype="float32", shape=("N", len(LABELS))),
    TensorSpec(name="logit", dtype="float32", shape=("N", len(LABELS))),
    TensorSpec(name="embedding", dtype="float32", shape=("N", "C")),
    TensorSpec(name="cam", dtype="float32", shape=("N", len(LABELS), "h", "w")),
)
"""The same for every version-1 model: the graph holds preprocessing, calibration and p(any) >= max p(subtype). C is the
backbone's, a number in the file and in model.json (``outputs_of``)."""
IMAGE = "image"
"""Name of the tensor inside model.onnx where preprocessing ends and the network begins: float32 [N, C, S, S]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Probabilities at and above which a label counts as found, in label order, and the rule that chose them."""

    values: tuple[float, ...] = (0.5,) * len(LABELS)
    rule: str = "default 0.5"


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """What model.json says; ``weights_sha256`` tells one trained network from another, ``size`` is in pixels,
    ``embedding_size`` is the width of the embedding.

    ``adjacent`` models see slices s-1, s, s+1 through ``windows[0]``: their input must be one series in slice order.
    ``calibration`` is a document of ``calibration.py``, which the graph computes; ``triage`` one of ``conformal.py``.
    ``study_thresholds`` cut a study's largest slice probability, where no study.onnx decides; None in older folders.
    ``study`` describes study.onnx (``study_contract.StudyPart``); None without one, and in folders older than it.
    """

    windows: tuple[Window, ...]
    size: int
    adjacent: bool
    embedding_size: int
    weights_sha256: str
    dataset_sha256: str
    epoch: int
    config: Mapping[str, Any]
    thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)
    calibration: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(NOT_CALIBRATED))
    study_thresholds: Thresholds | None = None
    triage: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None
    leakage_certificate: Mapping[str, Any] | None = None
    parity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    study: Mapping[str, Any] | None = None
    files: Mapping[str, FileEntry] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def input_order(self) -> str:
        """``series`` where the graph looks at neighbouring slices, else ``any``."""
        return "series" if self.adjacent else "any"

    @property
    def largest_slice_thresholds(self) -> Thresholds:
        """What cuts a study's largest slice: ``study_thresholds``, in older folders those of slices."""
        return self.study_thresholds or self.thresholds


def outputs_of(embedding_size: int) -> tuple[TensorSpec, ...]:
    """``OUTPUTS`` with C filled in."""
    shapes = [tuple(embedding_size if axis == "C" else axis for axis in spec.shape) for spec in OUTPUTS]
    return tuple(dataclasses.replace(spec, shape=shape) for spec, shape in zip(OUTPUTS, shapes, strict=True))


def to_document(artifact: Artifact) -> dict[str, Any]:
    """The JSON document of an artifact; equal artifacts give equal bytes (no time stamp)."""
    plain = dataclasses.asdict(artifact)
    return {
        "format_version": FORMAT_VERSION,
        "intended_use": INTENDED_USE,
        "labels": list(LABELS),
        "input": dataclasses.asdict(INPUT) | {"order": artifact.input_order, "unit": "HU"},
        "outputs": [dataclasses.asdict(spec) for spec in outputs_of(artifact.embedding_size)],
        "preprocessing": {
            "windows": [_window(win) for win in artifact.windows],
            "size": artifact.size,
            "adjacent": artifact.adjacent,
        },
        "thresholds": _thresholds(artifact.thresholds),
        "study_thresholds": None if artifact.study_thresholds is None else _thresholds(artifact.study_thresholds),
        "calibration": plain["calibration"],
        "triage": plain["triage"],
        "training": {key: plain[key] for key in ("weights_sha256", "dataset_sha256", "epoch", "config")},
        "leakage_certificate": plain["leakage_certificate"],
        "metrics": plain["metrics"],
        "parity": dict(sorted(plain["parity"].items())),
        "study": plain["study"],
        "files": dict(sorted(plain["files"].items())),
        "versions": plain["versions"],
    }


def _thresholds(chosen: Thresholds) -> dict[str, Any]:
    return {"rule": chosen.rule, "values": dict(zip(LABELS, chosen.values, strict=True))}


def _window(win: Window) -> dict[str, float]:
    return {"center_hu": float(win.center_hu), "width_hu": float(win.width_hu)}


def write_manifest(folder: Path, artifact: Artifact) -> None:
    """Write model.json, whole or not at all; call it after the files it names are in place."""
    files.write_json(folder / MANIFEST, to_document(artifact))


def read_manifest(folder: Path) -> Artifact:
    """What ``folder``/model.json says, without looking at the files that it names.

    Raises:
        ArtifactError: the folder or model.json is missing, is not JSON, is of a newer version or lacks a field.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: expected a model folder, found none; export one with export/to_onnx.py")
    if not path.is_file():
        raise ArtifactError(f"{path}: missing, the export did not finish or this is no model folder; export again")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: expected JSON, found {error}; export again") from error
    _check_version(path, document)
    try:
        return _from_document(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: damaged, {type(error).__name__} {error}; export again") from error


def _check_version(path: Path, document: Any) -> None:
    found = document.get("format_version") if isinstance(document, dict) else None
    if type(found) is not int or found < 1:
        raise ArtifactError(f"{path}: expected format_version {FORMAT_VERSION}, found {found!r}; export again")
    if found > FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: expected format_version up to {FORMAT_VERSION}, found {found}, a newer one; update fastich"
        )


def _from_document(document: dict[str, Any]) -> Artifact:
    if tuple(document["labels"]) != LABELS:
        raise ValueError(f"labels: expected {list(LABELS)}, found {document['labels']}")
    preprocessing, training = document["preprocessing"], document["training"]
    artifact = Artifact(
        windows=tuple(Window(float(win["center_hu"]), float(win["width_hu"])) for win in preprocessing["windows"]),
        size=int(preprocessing["size"]),
        adjacent=bool(preprocessing["adjacent"]),
        embedding_size=_embedding_size(document["outputs"]),
        weights_sha256=str(training["weights_sha256"]),
        dataset_sha256=str(training["dataset_sha256"]),
        epoch=int(training["epoch"]),
        config=training["config"],
        thresholds=_parsed(document["thresholds"]),
        study_thresholds=_parsed(document["study_thresholds"]) if document.get("study_thresholds") else None,
        calibration=document["calibration"],
        triage=document.get("triage"),  # model.json of before there was one has none
        metrics=document["metrics"],
        leakage_certificate=document["leakage_certificate"],
        parity=document["parity"],
        study=document.get("study"),
        files={name: _file_entry(name, entry) for name, entry in document["files"].items()},
        versions=document["versions"],
    )
    if document["input"]["order"] != artifact.input_order:
        raise ValueError(f"input order: expected {artifact.input_order!r}, found {document['input']['order']!r}")
    return artifact


def _embedding_size(outputs: list[dict[str, Any]]) -> int:
    """The width that the outputs state.

    Raises:
        ValueError: they are not those of the contract.
    """
    stated = {str(spec["name"]): spec["shape"] for spec in outputs}
    size = int(stated["embedding"][1])
    if stated != {spec.name: list(spec.shape) for spec in outputs_of(size)}:
        raise ValueError(f"outputs: expected those of this version, found {stated}")
    return size


def _parsed(document: Mapping[str, Any]) -> Thresholds:
    return parse_thresholds(document["values"], str(document["rule"]))


def parse_thresholds(values: Mapping[str, Any], rule: str) -> Thresholds:
    """Thresholds from a table label -> probability.

    Raises:
        ValueError: a label is missing or a value lies outside [0, 1].
    """
    missing = [label for label in LABELS if label not in values]
    if missing:
        raise ValueError(f"thresholds: expected one for each label, found none for {', '.join(missing)}")
    chosen = tuple(float(values[label]) for label in LABELS)
    if not all(0 <= value <= 1 for value in chosen):
        raise ValueError(f"thresholds: expected 0 to 1, found {chosen}")
    return Thresholds(values=chosen, rule=rule)


def _file_entry(name: str, entry: dict[str, Any]) -> FileEntry:
    if Path(name).name != name or name in {"", ".", ".."}:
        raise ValueError(f"files: expected a plain file name, found {name!r}")
    return FileEntry(sha256=str(entry["sha256"]), size_bytes=int(entry["size_bytes"]), role=str(entry["role"]))


def load_artifact(folder: Path) -> Artifact:
    """What model.json says, after every file that it names was checked against its size and SHA-256.

    Raises:
        ArtifactError: as ``read_manifest`` and ``read_verified``, or no file is named.
    """
    artifact = read_manifest(folder)
    if not artifact.files:
        raise ArtifactError(f"{folder / MANIFEST}: expected at least one model file, found none; export again")
    for name in artifact.files:
        read_verified(folder, artifact, name)
    return artifact


def read_verified(folder: Path, artifact: Artifact, name: str) -> bytes:
    """The bytes of one file of the folder, checked as they are returned: what was hashed is what is used.

    Raises:
        ArtifactError: the file is not named or missing, its size or SHA-256 differs, or it points to external data.
    """
    path = folder / name
    if name not in artifact.files:
        named = ", ".join(sorted(artifact.files)) or "none"
        raise ArtifactError(f"{folder / MANIFEST}: expected {name} among its files, found {named}; export it")
    entry = artifact.files[name]
    if not path.is_file():
        raise ArtifactError(f"{path}: missing although model.json names it; export again or copy the whole folder")
    found_bytes = path.stat().st_size
    if found_bytes != entry.size_bytes:
        raise ArtifactError(f"{path}: expected {entry.size_bytes} bytes, found {found_bytes}; copy or export it again")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != entry.sha256:
        raise ArtifactError(f"{path}: expected SHA-256 {entry.sha256}, found {found}; copy or export it again")
    if name.endswith(".onnx") and has_external_data(content, str(path)):
        raise ArtifactError(f"{path}: expected one self-contained file, found external data; export again")
    return content


_TENSOR_PATHS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
"""Field numbers that lead from an ONNX ModelProto to TensorProto.external_data. Source: onnx/onnx.proto3."""


def has_external_data(content: bytes, where: str = ONNX_FILE) -> bool:
    """Tell whether any tensor of a serialized ONNX model says that its values lie in another file.

    Raises:
        ArtifactError: ``content`` is no well-formed protocol buffer; ``where`` names it in the message.
    """
    waiting: list[tuple[str, memoryview]] = [("model", memoryview(content))]
    try:
        while waiting:
            kind, message = waiting.pop()
            for number, value in _length_delimited(message):
                inner = _TENSOR_PATHS[kind].get(number)
                if inner == "external":
                    return True
                if inner:
                    waiting.append((inner, value))
    except (IndexError, ValueError) as error:
        raise ArtifactError(f"{where}: expected an ONNX model, found damaged bytes ({error}); export again") from error
    return False


def _length_delimited(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Fields of wire type 2 as (number, bytes). Source: protobuf.dev/programming-guides/encoding."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        if tag & 7 == 0:
            _, position = _varint(message, position)
            continue
        if tag & 7 not in (1, 2, 5):
            raise ValueError(f"wire type {tag & 7} at byte {position}")
        size, position = _varint(message, position) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], position)
        if position + size > end:
            raise ValueError(f"a field ends past byte {end}")
        if tag & 7 == 2:
            yield tag >> 3, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number is longer than 10 bytes at byte {position}")
