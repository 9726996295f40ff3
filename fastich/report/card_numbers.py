"""The parts of a model card that hold numbers: metrics, operating points, calibration, triage, parity.

Functions of model.json's document; see ``card.py``. What is judged comes in blocks: the network's slices and, where
there is a sequence model, its slices and its studies, each with its metrics, thresholds and calibration.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fastich.intervals import UNDEFINED
from fastich.labels import LABELS
from fastich.metrics import NO_NEGATIVES
from fastich.operating_points import PREVALENCES
from fastich.predictive_values import ppv_npv
from fastich.report.card_parts import (
    NOT_STATED,
    Document,
    Section,
    Table,
    estimated,
    facts,
    flat,
    look,
    percent,
    said,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One kind of answer; each part is None where model.json has none."""

    title: str
    metrics: Any
    thresholds: Any
    calibration: Any
    quality: Any


def blocks(document: Document) -> Iterator[Block]:
    """Every kind of answer of the model folder that has thresholds of its own."""
    metrics = document.get("metrics")
    yield Block(
        title="slices, each alone",
        metrics=metrics,
        thresholds=document.get("thresholds"),
        calibration=document.get("calibration"),
        quality=look(metrics, "calibration", "slices"),
    )
    study = document.get("study")
    if study is None:
        return
    measured = look(study, "metrics")
    for title, found, key, name in (
        ("slices, sequence model", measured, "slices", "slices"),
        ("studies, sequence model", look(measured, "studies"), "study", "studies"),
    ):
        yield Block(
            title=title,
            metrics=found,
            thresholds=look(study, "thresholds", key),
            calibration=look(study, "calibration", key),
            quality=look(measured, "calibration", name),
        )


def metrics_section(document: Document) -> Section:
    """How well it does, each figure with its interval."""
    judged = [block for block in blocks(document) if block.metrics is not None]
    if not judged:
        return Section(title="Metrics", sentences=(NOT_STATED.capitalize() + ".",))
    overall = document.get("metrics") or look(document, "study", "metrics")
    level, count, unit = (look(overall, "intervals", key) for key in ("level", "num_resamples", "unit"))
    sentences = [
        f"Judged on the {said(look(overall, 'split'))} split. "
        f"Intervals: {percent(level)}, {said(count)} resamples by {said(unit)}."
    ]
    for block in judged:
        loss = estimated(look(block.metrics, "log_loss"), digits=4)
        sentences.append(f"Challenge log loss, {block.title}: {loss}.")
    tables = [_metrics_table(block.title, block.metrics) for block in judged]
    for metrics in (document.get("metrics"), look(document, "study", "metrics")):
        studies = look(metrics, "studies")
        if look(studies, "rules") is not None:
            tables += [_rules_table(studies), _reach_table(studies)]
    return Section(title="Metrics", sentences=tuple(sentences), tables=tuple(tables))


def _metrics_table(title: str, metrics: Document) -> Table:
    rows = []
    for label in LABELS:
        positive = look(metrics, "num_positive", label)
        numbers = (estimated(look(metrics, kind, label), positive) for kind in ("auc", "average_precision"))
        rows.append((label, said(positive), percent(look(metrics, "prevalence", label)), *numbers))
    columns = ("label", "positives", "prevalence", "ROC AUC", "average precision")
    return Table(caption=title, columns=columns, rows=tuple(rows))


def _rules_table(studies: Document) -> Table:
    """ROC AUC of studies by each way to decide about one."""
    rows = tuple(
        (rule, *(estimated(look(found, label, "auc"), look(studies, "num_positive", label)) for label in LABELS))
        for rule, found in studies["rules"].items()
    )
    caption = f"ROC AUC of studies by rule ({said(look(studies, 'decision'))} decides)"
    return Table(caption=caption, columns=("rule", *LABELS), rows=rows)


def _reach_table(studies: Document) -> Table:
    """Of the rule that decides: sensitivity where specificity is held, and the reverse."""
    decides = look(studies, "rules", said(look(studies, "decision")))
    kinds = {
        f"{told.replace('_', ' ')} {target}": (told, target)
        for told in ("sensitivity_at_specificity", "specificity_at_sensitivity")
        for target in (look(decides, LABELS[-1], told) or {})
    }
    rows = tuple(
        (
            label,
            *(estimated(look(decides, label, *keys), look(studies, "num_positive", label)) for keys in kinds.values()),
        )
        for label in LABELS
    )
    return Table(caption="studies: one rate where the other is held", columns=("label", *kinds), rows=rows)


def subgroups_section(document: Document) -> Section:
    """The figures of ``any`` in each subgroup, of slices and of studies."""
    found = look(document, "study", "metrics", "subgroups") or look(document, "metrics", "subgroups")
    if not found:
        return Section(title="Subgroups", sentences=(NOT_STATED.capitalize() + ".",))
    counts = ("num_slices", "num_studies", "num_patients")
    rates = ("auc", "sensitivity", "specificity", "study_auc", "study_sensitivity", "study_specificity")
    rows = tuple(
        (
            f"{row['factor']}: {row['group']}",
            *(said(look(row, count)) for count in counts),
            *(_of_row(row, rate) for rate in rates),
        )
        for row in found
    )
    columns = ("subgroup", "slices", "studies", "patients", *(rate.replace("_", " ") for rate in rates))
    return Section(title="Subgroups", tables=(Table(caption="any, by subgroup", columns=columns, rows=rows),))


def _of_row(row: Document, rate: str) -> str:
    """One rate of a flat row with its interval."""
    if rate not in row:
        return NOT_STATED
    numbers = {"value": row[rate], **{end: look(row, f"{rate}_{end}") for end in ("low", "high", "note")}}
    unit = "studies" if rate.startswith("study_") else "slices"
    positive, every = look(row, f"num_positive_{unit}"), look(row, f"num_{unit}")
    if numbers["value"] is None and positive and positive == every:
        return NO_NEGATIVES
    return estimated(numbers, positive)


def operating_section(document: Document) -> Section:
    """Where the decisions are cut, what that costs, and what a call is worth where bleeds are rarer or commoner."""
    sentences, tables = [], []
    for block in blocks(document):
        sentences.append(f"{block.title.capitalize()}: thresholds by the rule {said(look(block.thresholds, 'rule'))}.")
        tables.append(_points_table(block))
        if block.metrics is not None:
            tables.append(_worth_table(block))
    return Section(title="Operating points", sentences=tuple(sentences), tables=tuple(tables))


def _points_table(block: Block) -> Table:
    rows = []
    for label in LABELS:
        positive = look(block.metrics, "num_positive", label)
        rates = [estimated(look(block.metrics, rate, label), positive) for rate in ("sensitivity", "specificity")]
        rows.append((label, said(look(block.thresholds, "values", label)), *rates))
    return Table(caption=block.title, columns=("label", "threshold", "sensitivity", "specificity"), rows=tuple(rows))


def _worth_table(block: Block) -> Table:
    rows = tuple((label, *(_worth(block.metrics, label, prevalence) for prevalence in PREVALENCES)) for label in LABELS)
    columns = ("label", *(f"at {100 * prevalence:g} %" for prevalence in PREVALENCES))
    return Table(caption=f"{block.title}: PPV / NPV by prevalence", columns=columns, rows=rows)


def _worth(metrics: Any, label: str, prevalence: float) -> str:
    sensitivity, specificity = (look(metrics, rate, label) for rate in ("sensitivity", "specificity"))
    if sensitivity is None or specificity is None:
        return NOT_STATED
    values = ppv_npv(look(sensitivity, "value"), look(specificity, "value"), prevalence)
    return " / ".join(UNDEFINED if value is None else f"{value:.3f}" for value in values)


def calibration_section(document: Document) -> Section:
    """What turned logits into probabilities, for which labels it did not, and how far from frequencies they are."""
    sentences, tables = [], []
    for block in blocks(document):
        method = look(block.calibration, "method")
        words = "none: the network's own sigmoid" if method == "none" else said(method)
        sentences.append(f"{block.title.capitalize()}: {words}.")
        left_out = look(block.calibration, "uncalibrated") or {}
        sentences += [f"{block.title.capitalize()}, {label}: not calibrated, {why}." for label, why in left_out.items()]
        if block.quality is not None:
            tables.append(_quality_table(block))
    return Section(title="Calibration", sentences=tuple(sentences), tables=tuple(tables))


def _quality_table(block: Block) -> Table:
    """Expected calibration error and Brier score, raw and calibrated on what was judged, and cross-fitted before."""
    places = {
        "ECE raw": ("judged", "raw", "ece"),
        "ECE calibrated": ("judged", "calibrated", "ece"),
        "ECE cross-fitted on validation": ("cross_fitted", "ece"),
        "Brier raw": ("judged", "raw", "brier"),
        "Brier calibrated": ("judged", "calibrated", "brier"),
    }
    rows = tuple(
        (label, *(estimated(look(block.quality, *keys, label)) for keys in places.values()))
        for label in (*LABELS, "macro")
    )
    return Table(caption=f"{block.title}: calibration", columns=("label", *places), rows=rows)


def triage_section(document: Document) -> Section:
    """Flag, clear, or human first: thresholds, guarantee, alpha, the calibration set's size, and what it did."""
    sentences, tables = [], []
    for title, part in (("studies, largest slice", document), ("studies, sequence model", document.get("study"))):
        triage = look(part, "triage")
        if triage is None:
            continue
        words = [look(triage, "guarantee"), *(look(triage, "outcomes") or ())]
        sentences += [f"{title.capitalize()}: {said(one)}" for one in words]
        rest = {key: value for key, value in triage.items() if key not in ("guarantee", "outcomes", "dataset_sha256")}
        tables.append(facts(f"{title}: three-way rule", flat(rest)))
        judged = look(part, "metrics", "triage", "judged")
        if judged is not None:
            rows = tuple((name, estimated(found)) for name, found in judged.items())
            tables.append(Table(caption=f"{title}: what it did", columns=("share", "value"), rows=rows))
        told = look(part, "metrics", "triage", "coverage", "told") or {}
        sentences += [f"{title.capitalize()}, {name} over resamplings: {said(words)}." for name, words in told.items()]
    if not tables:
        sentences.append("Not stated: the model folder has no three-way rule.")
    return Section(title="Triage", sentences=tuple(sentences), tables=tuple(tables))


def parity_section(document: Document) -> Section:
    """How near the exported files are to the trained network."""
    keys = ("num_slices", "max_abs_probability", "max_abs_logit", "flips_at_thresholds", "input")
    pairs = document.get("parity") or {}
    rows = tuple((pair, *(said(look(found, key)) for key in keys)) for pair, found in pairs.items())
    columns = ("pair", "slices", "largest difference of a probability", "of a logit", "decisions flipped", "input")
    tables = (Table(caption="exported files against the network", columns=columns, rows=rows),) if rows else ()
    return Section(title="Parity", sentences=() if rows else (NOT_STATED.capitalize() + ".",), tables=tables)
