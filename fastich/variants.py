"""A variant of model.onnx in another precision: made from it, compared with it on records, written beside it. No torch.

Each engine that will run the variant is asked, on the test split: largest differences, flipped decisions, and the
change of AUC of each label. int8 is calibrated on the val split. bfloat16 has no file: it is model.onnx, computed so by
OpenVINO, and what is written is the comparison. Cost: model.onnx and the variant run on every compared slice (40 ms and
13 to 40 ms of two cores each at 256 px: four minutes for 2,000 slices).
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich import artifact as contract
from fastich.artifact import ONNX_FILE, PRECISION_FILES, Artifact, FileEntry, Thresholds
from fastich.errors import ArtifactError, RecordError, UsageError
from fastich.files import atomic_path
from fastich.labels import LABELS
from fastich.metrics import roc_auc
from fastich.model_card import publish
from fastich.parity import PARITY_BATCH, Answer, Runner, batches_of, difference
from fastich.quantize import calibrate, float16_graph, int8_graph
from fastich.records.reader import RecordReader
from fastich.serve import openvino_backend
from fastich.serve.session import Engine, OnnxEngine, num_physical_cores
from fastich.types import HuArray
from fastich.verb import say

AUC_LIMIT = 0.002
"""A label's AUC should change by no more; over it the report says so."""
HARD_AUC_ANY_LIMIT = 0.01
HARD_FLIPS_LIMIT = 0.01
"""Over these (change of AUC `any`; fraction of decisions flipped at the thresholds) nothing is written. A constant
shift of the logits leaves AUC as it is: only the flips tell it."""
ROLES = {
    "int8": "model.onnx with an int8 network (QDQ) for CPUs",
    "float16": "model.onnx with a float16 network for CUDA",
}
ADJACENT = 3
"""Slices of a batch for a model that looks at neighbours: before, itself, after."""


@dataclass(frozen=True, kw_only=True)
class VariantConfig:
    """What to make, and what to calibrate and compare it on."""

    precision: str
    records: Path
    calibration_slices: int
    variant_slices: int


def write_variant(out: Path, artifact: Artifact, config: VariantConfig) -> Artifact:
    """Write the variant's file (bfloat16: none) and the comparison into model.json of ``out``.

    Args:
        out: folder that holds model.onnx.
        artifact: what model.json is to say, the variant aside.
        config: what to make.

    Raises:
        UsageError: the records lack a split, or a file of the variant's name is somebody else's.
        ArtifactError: model.onnx is damaged, an engine is missing, or the variant changes scores too much.
    """
    name = PRECISION_FILES[config.precision]
    if name not in artifact.files and (out / name).exists():
        raise UsageError(f"{out / name} exists, but {contract.MANIFEST} does not name it: remove it")
    content = contract.read_verified(out, artifact, ONNX_FILE)
    with RecordReader(config.records) as reader:
        made = make(content, artifact, reader, config)
        report = measure(content, made, artifact, reader, config)
    check(report)
    parity = {**artifact.parity, **report}
    if name == ONNX_FILE:
        finished = dataclasses.replace(artifact, parity=parity)
    else:
        entry = FileEntry(sha256=hashlib.sha256(made).hexdigest(), size_bytes=len(made), role=ROLES[config.precision])
        finished = dataclasses.replace(artifact, parity=parity, files={**artifact.files, name: entry})
        others = {key: value for key, value in artifact.files.items() if key != name}
        contract.write_manifest(out, dataclasses.replace(artifact, files=others))  # a kill now leaves a whole folder
        with atomic_path(out / name) as temporary:
            temporary.write_bytes(made)
    publish(out, finished)
    return finished


def make(content: bytes, artifact: Artifact, reader: RecordReader, config: VariantConfig) -> bytes:
    """The bytes of the variant; int8 looks at the val split for it."""
    if config.precision == "bfloat16":
        return content
    if config.precision == "float16":
        return float16_graph(content)
    rows = evenly(reader, "val", config.calibration_slices, "int8 is calibrated on it")
    return int8_graph(content, calibrate(content, batches(reader, rows, adjacent=artifact.adjacent)))


def measure(
    content: bytes, made: bytes, artifact: Artifact, reader: RecordReader, config: VariantConfig
) -> dict[str, dict[str, Any]]:
    """How far each engine's variant is from model.onnx by ONNX Runtime, on the test split."""
    rows = evenly(reader, "test", config.variant_slices, "a variant is compared on it")
    labels = reader.labels()[rows]
    runners = {ONNX_FILE: runner(OnnxEngine(content, "cpu", Path(ONNX_FILE)))}
    made_by = engines(made, config.precision)
    runners |= {key: runner(engine) for key, engine in made_by.items()}
    answers = ask(runners, batches(reader, rows, adjacent=artifact.adjacent), adjacent=artifact.adjacent)
    reference = answers.pop(ONNX_FILE)
    said = {
        "input": f"test split of records {reader.dataset_sha256[:12]}",
        "reference_sha256": artifact.files[ONNX_FILE].sha256,
    }
    return {
        f"{key} vs {ONNX_FILE}": compare(reference, answer, labels, artifact.thresholds, key)
        | {"engine": made_by[key].provider, **said}
        for key, answer in answers.items()
    }


def engines(made: bytes, precision: str) -> dict[str, Engine]:
    """The engines that will run the variant and that are installed here, by the name that the report gives them."""
    name = PRECISION_FILES[precision]
    found: dict[str, Engine] = {}
    if precision != "bfloat16":
        found[f"{name} (onnxruntime)"] = OnnxEngine(made, "cpu", Path(name))
    if precision == "bfloat16" or (precision == "int8" and not openvino_backend.WHY_NO_OPENVINO):
        key = f"{name} (openvino {precision})"
        found[key] = openvino_backend.Engine(made, precision, num_physical_cores(), Path(name))
    return found


def runner(engine: Engine) -> Runner:
    """The engine's first two outputs, probability and logit."""

    def answer(hu: HuArray) -> Answer:
        probability, logit = engine.run(hu)[:2]
        return probability, logit

    return answer


def evenly(reader: RecordReader, split: str, count: int, why: str) -> NDArray[np.int64]:
    """At most ``count`` rows of ``split``, evenly spread.

    Raises:
        UsageError: the split is empty.
    """
    rows = reader.rows(split)
    if len(rows) == 0:
        raise UsageError(f"{reader.folder}: expected slices in the {split} split ({why}), found none; pack with more")
    chosen: NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
    return chosen


def batches(reader: RecordReader, rows: NDArray[np.int64], *, adjacent: bool) -> Iterator[HuArray]:
    """Slices int16 [n, H, W] of ``rows`` in order; where ``adjacent``, one with its two neighbours at a time."""
    if adjacent:
        for row in rows.tolist():
            before, after = reader.neighbours(row)
            planes = [reader.hu(one) for one in (before, row, after)]
            if len({hu.shape for hu in planes}) > 1:
                raise RecordError(
                    f"{reader.folder}: slices beside row {row} are of another size than it, {planes[1].shape}; "
                    "leave the series out"
                )
            yield np.stack(planes)
    else:
        for start in range(0, len(rows), PARITY_BATCH):
            yield from batches_of([reader.hu(int(row)) for row in rows[start : start + PARITY_BATCH]])


def ask(runners: Mapping[str, Runner], hu: Iterator[HuArray], *, adjacent: bool) -> dict[str, Answer]:
    """Probability and logit [N, 6] by each runner; of a slice with its neighbours, its own answer."""
    parts: dict[str, list[Answer]] = {name: [] for name in runners}
    for batch in hu:
        for name, answer in runners.items():
            parts[name].append(answer(batch))
    kept = slice(1, None, ADJACENT) if adjacent else slice(None)
    return {
        name: (np.concatenate([p for p, _ in found])[kept], np.concatenate([logit for _, logit in found])[kept])
        for name, found in parts.items()
    }


def compare(
    reference: Answer, variant: Answer, labels: NDArray[np.int8], thresholds: Thresholds, name: str
) -> dict[str, Any]:
    """``parity.difference``, and ``auc_change`` of each label: null where the slices hold no positive or no negative.

    Raises:
        ArtifactError: the variant answers with NaN or infinity.
    """
    if not all(np.isfinite(part).all() for part in variant):
        raise ArtifactError(f"parity {name}: expected finite scores, found NaN or infinity; nothing was written")
    before, after = roc_auc(labels, reference[0]), roc_auc(labels, variant[0])
    change = {label: _minus(after[label], before[label]) for label in LABELS}
    return difference(reference, variant, thresholds) | {
        "auc": {label: before[label] for label in LABELS},
        "auc_change": change,
        "num_positive": dict(zip(LABELS, (labels == 1).sum(axis=0).tolist(), strict=True)),
        "auc_limit": AUC_LIMIT,
        "within_auc_limit": all(abs(value) <= AUC_LIMIT for value in change.values() if value is not None),
    }


def _minus(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def check(report: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a variant over a hard limit, and say which is over ``AUC_LIMIT``.

    Raises:
        ArtifactError: AUC `any` or too many decisions change.
    """
    for pair, found in report.items():
        where = f"parity {pair}"
        change, decisions = found["auc_change"]["any"], found["num_slices"] * len(LABELS)
        if change is not None and abs(change) > HARD_AUC_ANY_LIMIT:
            raise ArtifactError(
                f"{where}: expected a change of AUC any up to {HARD_AUC_ANY_LIMIT:g}, found {change:+.4f} "
                f"on {found['num_slices']} slices; nothing was written"
            )
        if found["flips_at_thresholds"] > HARD_FLIPS_LIMIT * decisions:
            raise ArtifactError(
                f"{where}: expected up to {HARD_FLIPS_LIMIT:.0%} of {decisions} decisions flipped, "
                f"found {found['flips_at_thresholds']}; nothing was written"
            )
        if not found["within_auc_limit"]:
            say(f"warning: {where}: an AUC changes by more than {AUC_LIMIT:g}; see auc_change in model.json")
