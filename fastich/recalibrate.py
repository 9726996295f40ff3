"""Fit an exported model to a site: probabilities and thresholds from the site's own outcomes, without retraining.

A table of outcomes is joined with the scores that ``python -m fastich.score --json`` printed, and Platt's scale and
bias are fitted anew on the raw logits of each label that has enough of both classes; the others keep what they have. A
new model folder gets the constants, the thresholds, a model.json that says all of it and its model card. No torch, no
pixels of patients: seconds, most of them for asking every new file whether it says what it should.

Scores must be those of float32, in which thresholds and triage were chosen.

With study.onnx in the folder, what scoring shows is the sequence model's: outcomes of slices recalibrate its slices,
outcomes of studies its studies, each by itself. model.onnx and its variants stay as they are, so that their own
probabilities are neither what scoring shows nor recalibrated. Without study.onnx, model.onnx and its variants are
recalibrated, and outcomes of studies calibrate the study's score, which is its largest slice: a slice's probability is
then that of a study whose largest slice it is. Slices and studies have cuts of their own in that one probability: those
of what the outcomes speak of are chosen again, the others move with it and stand at the raw logits where they stood.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastich import artifact as contract
from fastich import calibration as fitting
from fastich import operating_points, verb
from fastich.artifact import FLOAT32, ONNX_FILE, TORCHSCRIPT_FILE, Artifact, FileEntry, Thresholds
from fastich.calibration import Calibration
from fastich.calibration_graph import with_calibration
from fastich.conformal import Triage
from fastich.errors import ArtifactError, UsageError
from fastich.files import atomic_path
from fastich.labels import LABELS
from fastich.model_card import publish
from fastich.outcomes import join, read_outcomes, read_scores
from fastich.parity import batches_of, check_parity, difference, synthetic_heads
from fastich.recalibrate_study import decision_of, with_study
from fastich.refit import (
    KEEP,
    STORED,
    Decision,
    Refit,
    carried,
    choose_thresholds,
    document,
    outdated,
    refit_labels,
    refit_triage,
)
from fastich.serve.session import OnnxEngine
from fastich.serve.study_session import StudySession, open_study_session
from fastich.study_contract import STUDY_FILE
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
        "decisions, at the same raw logits), or a rule: max-f1, youden, sensitivity:0.95, specificity:0.95",
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
    session = open_study_session(config.model)
    outcomes, scores = read_outcomes(config.outcomes), read_scores(config.scores)
    _require_same_networks(config, old, session, scores)
    was = _decision(old, session, outcomes.unit)
    before = _read(was, config.model)
    joined = join(outcomes, scores, f"{config.outcomes} and {config.scores}")
    refit = refit_labels(
        before, joined, least=config.least, folds=config.folds, seed=config.seed, where=str(config.outcomes)
    )
    triage, triage_note = refit_triage(was.triage, joined, outcomes.unit)
    now = Decision(
        calibration=document(refit, joined, outcomes, was.calibration),
        thresholds=choose_thresholds(was.thresholds, before, refit, joined, config.rule, outcomes),
        triage=triage,
    )
    if session is None:
        new, contents = without_study(config.model, old, outcomes.unit, now, before, refit.calibration)
    else:
        new, contents = with_study(config.model, old, session, outcomes.unit, now, refit.calibration)
    write_folder(config.out, new, contents)
    return {
        "out": str(config.out),
        "unit": outcomes.unit,
        "num_joined": len(joined.labels),
        "num_patients": len(set(joined.patients.tolist())),
        "num_without_score": len(joined.without_score),
        "unchanged": [] if session is None else sorted(set(contents) - {STUDY_FILE}),
        "left_out": sorted(set(old.files) - set(contents)),
        "triage": triage_note,
        "rule": now.thresholds.rule,
        "other_thresholds": None if session else _other_thresholds(new, outcomes.unit),
        "labels": label_rows(before, was.thresholds, refit, now.thresholds),
    }


def _other_thresholds(new: Artifact, unit: str) -> dict[str, Any]:
    """What decides about what the outcomes do not speak of."""
    cuts = new.study_thresholds if unit == "slice" else new.thresholds
    assert cuts is not None  # ``without_study`` gives both
    return {
        "unit": "study" if unit == "slice" else "slice",
        "rule": cuts.rule,
        "values": dict(zip(LABELS, cuts.values, strict=True)),
    }


def _require_known_files(folder: Path, artifact: Artifact) -> None:
    others = sorted(set(artifact.files) - {*contract.PRECISION_FILES.values(), TORCHSCRIPT_FILE, STUDY_FILE})
    if others:
        raise UsageError(
            f"{folder}: only {ONNX_FILE}, its variants and {STUDY_FILE} can be recalibrated, found {', '.join(others)}"
        )


def _require_same_networks(
    config: RecalibrateConfig, artifact: Artifact, session: StudySession | None, scores: dict[str, Any]
) -> None:
    """The scores' raw logits are those of this folder's network and of its sequence model."""
    model = scores["model"]
    pairs = {
        "network": (artifact.weights_sha256, model["weights_sha256"]),
        "sequence model": (
            None if session is None else session.part.weights_sha256,
            model.get("study_weights_sha256", model.get("study_sha256")),  # older scores name the file only: refused
        ),
    }
    for what, (expected, found) in pairs.items():
        if found != expected:
            raise UsageError(
                f"{config.scores}: expected scores of {what} {_short(expected)}, that of {config.model}, "
                f"found {_short(found)}; score with this model"
            )

    precision = model.get("precision")  # every version that printed logits named it
    if precision != FLOAT32:
        way = "with this version" if precision is None else f"without --precision {precision}"
        raise UsageError(
            f"{config.scores}: expected scores in {FLOAT32}, in which the folder's thresholds were chosen, "
            f"found {precision or 'no precision'}; score {way}"
        )


def _short(sha256: str | None) -> str:
    return "none" if sha256 is None else sha256[:12]


def _decision(artifact: Artifact, session: StudySession | None, unit: str) -> Decision:
    """What decides about what the outcomes speak of."""
    if session is not None:
        return decision_of(session.part, unit)
    thresholds = artifact.thresholds if unit == "slice" else artifact.largest_slice_thresholds
    return Decision(calibration=artifact.calibration, thresholds=thresholds, triage=artifact.triage)


def _read(was: Decision, folder: Path) -> Calibration:
    """The calibration of ``was``, whose triage is checked too."""
    try:
        if was.triage is not None:
            Triage.from_document(was.triage)
        return Calibration.from_document(was.calibration)
    except ValueError as error:
        raise ArtifactError(f"{folder / contract.MANIFEST}: damaged, {error}; export again") from error


def without_study(
    folder: Path, old: Artifact, unit: str, now: Decision, before: Calibration, calibration: Calibration
) -> tuple[Artifact, dict[str, bytes]]:
    """The new model.json, but for its files, and every ONNX file with the new constants, checked.

    ``now`` decides about each ``unit``; the calibration was ``before``.

    TorchScript holds its constants in an archive that only torch reads: model.ts is left out.

    Raises:
        ArtifactError: there is no ONNX file, or a new one does not say what it should.
    """
    names = [name for name in sorted(old.files) if name != TORCHSCRIPT_FILE]
    if not names:
        raise ArtifactError(f"{folder}: expected an ONNX file, found {TORCHSCRIPT_FILE} alone; export model.onnx")
    heads = list(batches_of(synthetic_heads(HEADS)))
    if unit == "slice":
        slices, studies = now.thresholds, carried(old.largest_slice_thresholds, before, calibration, "study")
    else:
        slices, studies = carried(old.thresholds, before, calibration, "slice"), now.thresholds
    contents: dict[str, bytes] = {}
    parity = {pair: found for pair, found in old.parity.items() if TORCHSCRIPT_FILE not in pair}
    for name in verb.progress(names, total=len(names), unit="files", title="recalibrate"):
        was = contract.read_verified(folder, old, name)
        contents[name] = with_calibration(was, calibration, where=name)
        parity |= compare(name, was, contents[name], calibration, heads, slices)
    new = dataclasses.replace(
        old,
        thresholds=slices,
        study_thresholds=studies,
        triage=now.triage,
        calibration=now.calibration,
        metrics=outdated(old.metrics),
        parity=parity,
    )
    return new, contents


def write_folder(out: Path, new: Artifact, contents: Mapping[str, bytes]) -> None:
    """The files, then the cards, and model.json last."""
    entries = {
        name: FileEntry(sha256=hashlib.sha256(made).hexdigest(), size_bytes=len(made), role=new.files[name].role)
        for name, made in contents.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, made in contents.items():
        with atomic_path(out / name) as temporary:
            temporary.write_bytes(made)
    publish(out, dataclasses.replace(new, files=entries))


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
    yield f"thresholds of each {report['unit']}: {report['rule']}"
    if report["other_thresholds"]:
        others = report["other_thresholds"]
        cuts = ", ".join(f"{label} {value:.4f}" for label, value in others["values"].items())
        yield f"thresholds of each {others['unit']}, where its logits were cut before: {cuts}"
    if report["unchanged"]:
        yield (
            f"recalibrated: {STUDY_FILE}, its {report['unit']} probabilities; as before: "
            f"{', '.join(report['unchanged'])}, whose own probabilities are not what scoring shows"
        )
    for name in report["left_out"]:
        yield f"left out: {name}, which holds the old calibration; only export can write it"
    yield f"written: {report['out']}"


def _cell(found: dict[str, Any] | None, key: str) -> str:
    return "-" if found is None else f"{found[key]:.4f}"


if __name__ == "__main__":
    verb.run(main)
