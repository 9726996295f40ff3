"""Fit an exported model to a site: probabilities and thresholds from the site's own outcomes, without retraining.

A table of outcomes is joined with the scores that ``python -m fastich.score --json`` printed, and Platt's scale and
bias are fitted anew on the raw logits of each label that has enough of both classes; the others keep what they have. A
new model folder gets the constants, the thresholds and a model.json that says all of it. No torch, no pixels of
patients: seconds, most of them for asking every new file whether it says what it should.

Outcomes of studies calibrate the study's score, which is its largest slice: a slice's probability is then that of a
study whose largest slice it is.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastich import artifact as contract
from fastich import calibration as fitting
from fastich import operating_points, verb
from fastich.artifact import ONNX_FILE, TORCHSCRIPT_FILE, Artifact, FileEntry, Thresholds
from fastich.calibration import Calibration
from fastich.calibration_graph import with_calibration
from fastich.conformal import Triage
from fastich.errors import ArtifactError, UsageError
from fastich.files import atomic_path
from fastich.labels import LABELS
from fastich.outcomes import join, read_outcomes, read_scores
from fastich.parity import batches_of, check_parity, difference, synthetic_heads
from fastich.refit import KEEP, STORED, Refit, choose_thresholds, document, refit_labels, refit_triage
from fastich.serve.session import OnnxEngine
from fastich.types import HuArray
from fastich.verb import option, required

HEADS = 4
"""Slices that every new file is asked about: preprocessing and network are the old ones, only the end is new."""


@dataclass(frozen=True, kw_only=True)
class RecalibrateConfig:
    """One recalibration."""

    model: Path = required("model folder to start from; it is left as it is")
    outcomes: Path = required("CSV: sop_uid or study_uid, and any of the six labels as 1, 0 or blank (unknown)")
    scores: Path = required("what python -m fastich.score --json printed for these slices with this model")
    out: Path = required("model folder to write")
    rule: str = option(
        STORED,
        "thresholds of the labels fitted anew: stored (chosen again by the model's own rule), keep (the same "
        "probabilities), or a rule: max-f1, youden, sensitivity:0.95, specificity:0.95",
    )
    least: int = option(20, "positives, and negatives, that a label needs to be fitted anew (ten a constant)")
    folds: int = option(fitting.FOLDS, "parts of the patients for the cross-fitted figures")
    seed: int = option(0, "seed of the folds")

    def __post_init__(self) -> None:
        """Refuse a rule that does not exist and counts that mean nothing."""
        if self.rule not in (STORED, KEEP):
            operating_points.parse_rule(self.rule)
        for name, least in (("least", 1), ("folds", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be >= {least}, found {getattr(self, name)}")


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("recalibrate", __doc__)
    verb.add_config_flags(made, RecalibrateConfig)
    made.add_argument("--json", action="store_true", help="print the figures as JSON instead of the table")
    args = made.parse_args(argv)
    config = verb.config_from_args(args, RecalibrateConfig)
    report = recalibrate(config)
    print(json.dumps(report, indent=2, allow_nan=False) if args.json else "\n".join(table(report)))
    return 0


def recalibrate(config: RecalibrateConfig) -> dict[str, Any]:
    """Write the new model folder and return what ``--json`` prints.

    Raises:
        UsageError: ``config.out`` is in use, or the scores are another model's.
        LabelError: the outcomes are malformed or contradict themselves.
        FastichError: outcomes and scores share nothing, or no label can be fitted anew.
        ArtifactError: the model folder is damaged, of an older version, or a new file does not say what it should.
    """
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise UsageError(f"{config.out}: expected a folder that is new or empty, found it in use; choose another --out")
    old = contract.load_artifact(config.model)
    _require_known_files(config.model, old)
    before, was = _read(old, config.model)
    outcomes, scores = read_outcomes(config.outcomes), read_scores(config.scores)
    _require_same_network(config, old, scores)
    joined = join(outcomes, scores, f"{config.outcomes} and {config.scores}")
    refit = refit_labels(
        before, joined, least=config.least, folds=config.folds, seed=config.seed, where=str(config.outcomes)
    )
    thresholds = choose_thresholds(old.thresholds, refit, joined, config.rule, outcomes)
    triage, triage_note = refit_triage(was, refit.calibration, joined, outcomes.unit)
    new = dataclasses.replace(
        old,
        thresholds=thresholds,
        triage=triage,
        calibration=document(refit, joined, outcomes, old.calibration),
        metrics=None if old.metrics is None else {**old.metrics, "measured_with": "the calibration before this one"},
    )
    left_out = write_folder(config, new, refit.calibration)
    return {
        "out": str(config.out),
        "unit": outcomes.unit,
        "num_joined": len(joined.labels),
        "num_patients": len(set(joined.patients.tolist())),
        "num_without_score": len(joined.without_score),
        "left_out": left_out,
        "triage": triage_note,
        "labels": label_rows(before, old.thresholds, refit, thresholds),
    }


def _read(artifact: Artifact, folder: Path) -> tuple[Calibration, Triage | None]:
    try:
        triage = None if artifact.triage is None else Triage.from_document(artifact.triage)
        return Calibration.from_document(artifact.calibration), triage
    except ValueError as error:
        raise ArtifactError(f"{folder / contract.MANIFEST}: damaged, {error}; export again") from error


def _require_known_files(folder: Path, artifact: Artifact) -> None:
    others = sorted(set(artifact.files) - {*contract.PRECISION_FILES.values(), TORCHSCRIPT_FILE})
    if others:
        raise UsageError(f"{folder}: only {ONNX_FILE} and its variants can be recalibrated, found {', '.join(others)}")


def _require_same_network(config: RecalibrateConfig, artifact: Artifact, scores: dict[str, Any]) -> None:
    found = scores["model"]["weights_sha256"]
    if found != artifact.weights_sha256:
        raise UsageError(
            f"{config.scores}: expected scores of network {artifact.weights_sha256[:12]}, that of {config.model}, "
            f"found {found[:12]}; score with this model"
        )


def write_folder(config: RecalibrateConfig, new: Artifact, calibration: Calibration) -> list[str]:
    """Every ONNX file with the new constants, checked before anything is written, then model.json; what was left out.

    TorchScript holds its constants in an archive that only torch reads: model.ts is left out.
    """
    names = [name for name in sorted(new.files) if name != TORCHSCRIPT_FILE]
    if not names:
        raise ArtifactError(f"{config.model}: expected an ONNX file, found {TORCHSCRIPT_FILE} alone; export model.onnx")
    heads = list(batches_of(synthetic_heads(HEADS)))
    contents: dict[str, bytes] = {}
    parity = {pair: found for pair, found in new.parity.items() if TORCHSCRIPT_FILE not in pair}
    for name in verb.progress(names, total=len(names), unit="files", title="recalibrate"):
        was = contract.read_verified(config.model, new, name)
        contents[name] = with_calibration(was, calibration, where=name)
        parity |= compare(name, was, contents[name], calibration, heads, new.thresholds)
    entries = {
        name: FileEntry(sha256=hashlib.sha256(made).hexdigest(), size_bytes=len(made), role=new.files[name].role)
        for name, made in contents.items()
    }
    config.out.mkdir(parents=True, exist_ok=True)
    for name, made in contents.items():
        with atomic_path(config.out / name) as temporary:
            temporary.write_bytes(made)
    contract.write_manifest(config.out, dataclasses.replace(new, files=entries, parity=parity))
    return sorted(set(new.files) - set(names))


def compare(
    name: str, was: bytes, made: bytes, calibration: Calibration, heads: list[HuArray], thresholds: Thresholds
) -> dict[str, Any]:
    """Parity of the new file's probabilities with numpy's, from the old file's logits.

    Raises:
        ArtifactError: they differ: the file is not what it should be.
    """
    engines = [OnnxEngine(content, "cpu", Path(name)) for content in (was, made)]
    (_, logit_old), (p_new, logit_new) = (
        (np.concatenate(part) for part in zip(*(engine.run(hu)[:2] for hu in heads), strict=True)) for engine in engines
    )
    wanted = calibration.probability(logit_old).astype(np.float32)
    found = difference((wanted, logit_old), (p_new, logit_new), thresholds) | {"input": "synthetic heads"}
    report = {f"{name} recalibrated vs numpy": found}
    check_parity(report)
    return report


def label_rows(before: Calibration, old: Thresholds, refit: Refit, new: Thresholds) -> dict[str, dict[str, Any]]:
    """Per label what happened: ``kept`` (why) or None, constants and thresholds before and after, figures."""
    return {
        label: {
            "kept": refit.kept.get(label),
            "scale": refit.calibration.of_label[i].scale,
            "bias": refit.calibration.of_label[i].bias,
            "method_before": before.of_label[i].method,
            "threshold_before": old.values[i],
            "threshold": new.values[i],
            **refit.quality[label],
        }
        for i, label in enumerate(LABELS)
    }


def table(report: dict[str, Any]) -> Iterator[str]:
    """The report for a terminal: a line a label, then what was joined, left out and written."""
    yield f"{'label':18}{'pos.':>6}{'neg.':>7}{'ECE':>8} -> {'after':6}{'Brier':>8} -> {'after':6}{'threshold':>11}"
    for label, row in report["labels"].items():
        cells = "".join(f"{_cell(row['before'], key):>8} -> {_cell(row['after'], key):6}" for key in ("ece", "brier"))
        note = f"  keeps its calibration: {row['kept']}" if row["kept"] is not None else ""
        yield f"{label:18}{row['num_positive']:>6}{row['num_negative']:>7}{cells}{row['threshold']:>11.4f}{note}"
    yield (
        f"{report['num_joined']} outcomes by {report['unit']}, {report['num_patients']} patients; "
        f"{report['num_without_score']} outcomes without a score; after: cross-fitted by patient"
    )
    yield f"triage: {report['triage']}"
    for name in report["left_out"]:
        yield f"left out: {name}, which holds the old calibration; only export can write it"
    yield f"written: {report['out']}"


def _cell(found: dict[str, Any] | None, key: str) -> str:
    return "-" if found is None else f"{found[key]:.4f}"


if __name__ == "__main__":
    verb.run(main)
