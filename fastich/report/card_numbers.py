"""The parts of a model card that hold numbers: metrics, operating points, calibration, triage, parity.

Functions of model.json's document; see ``card.py``.
"""

from collections.abc import Iterator
from typing import Any

from fastich.labels import LABELS
from fastich.report.card_parts import (
    NOT_STATED,
    UNDEFINED,
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

PREVALENCES = (0.01, 0.05, 0.10, 0.20)
"""Of a label among what is judged; a site finds its own between or beside them."""


def blocks(document: Document) -> Iterator[tuple[str, Any, Any, Any]]:
    """What was judged, its metrics, its thresholds, its calibration: the network's slices, and the sequence model's."""
    yield "slices, each alone", document.get("metrics"), document.get("thresholds"), document.get("calibration")
    study = document.get("study")
    if study is not None:
        for name, title in (("slices", "slices, sequence model"), ("study", "studies, sequence model")):
            kinds = (look(study, kind, name) for kind in ("metrics", "thresholds", "calibration"))
            metrics, thresholds, calibration = kinds
            yield title, metrics, thresholds, calibration


def metrics_section(document: Document) -> Section:
    """How well it does, each figure with its interval."""
    tables = tuple(_metrics_table(title, metrics) for title, metrics, _, _ in blocks(document) if metrics is not None)
    measured = document.get("metrics")
    interval = look(measured, "intervals")
    sentences = [
        NOT_STATED.capitalize() + "." if not tables else f"Judged on the {said(look(measured, 'split'))} split.",
        f"Challenge log loss: {estimated(look(measured, 'log_loss'), digits=4)}.",
        f"ROC AUC of studies ({said(look(measured, 'study_any', 'rule'))}): "
        f"{estimated(look(measured, 'study_any', 'auc'), look(measured, 'study_any', 'num_positive'))}.",
        f"Intervals: {percent(look(interval, 'level'))}, {said(look(interval, 'num_resamples'))} resamples by "
        f"{said(look(interval, 'unit'))}.",
    ]
    return Section(title="Metrics", sentences=tuple(sentences[: None if tables else 1]), tables=tables)


def _metrics_table(title: str, metrics: Document) -> Table:
    rows = []
    for label in LABELS:
        positive = look(metrics, "num_positive", label)
        numbers = (estimated(look(metrics, kind, label), positive) for kind in ("auc", "average_precision"))
        rows.append((label, said(positive), percent(look(metrics, "prevalence", label)), *numbers))
    columns = ("label", "positives", "prevalence", "ROC AUC", "average precision")
    return Table(caption=title, columns=columns, rows=tuple(rows))


def operating_section(document: Document) -> Section:
    """Where the decisions are cut, what that costs, and what a call is worth where bleeds are rarer or commoner."""
    sentences, tables = [], []
    for title, metrics, thresholds, _ in blocks(document):
        sentences.append(f"{title.capitalize()}: thresholds by the rule {said(look(thresholds, 'rule'))}.")
        tables += [_points_table(title, metrics, thresholds), _worth_table(title, metrics)]
    return Section(title="Operating points", sentences=tuple(sentences), tables=tuple(tables))


def _points_table(title: str, metrics: Any, thresholds: Any) -> Table:
    rows = []
    for label in LABELS:
        positive = look(metrics, "num_positive", label)
        rates = [estimated(look(metrics, rate, label), positive) for rate in ("sensitivity", "specificity")]
        rows.append((label, said(look(thresholds, "values", label)), *rates))
    return Table(caption=title, columns=("label", "threshold", "sensitivity", "specificity"), rows=tuple(rows))


def _worth_table(title: str, metrics: Any) -> Table:
    rows = []
    for label in LABELS:
        sensitivity, specificity = (look(metrics, rate, label, "value") for rate in ("sensitivity", "specificity"))
        rows.append((label, *(_worth(sensitivity, specificity, prevalence) for prevalence in PREVALENCES)))
    columns = ("label", *(f"at {100 * prevalence:g} %" for prevalence in PREVALENCES))
    return Table(caption=f"{title}: PPV / NPV by prevalence", columns=columns, rows=tuple(rows))


def _worth(sensitivity: float | None, specificity: float | None, prevalence: float) -> str:
    if sensitivity is None or specificity is None:
        return NOT_STATED
    return " / ".join(
        UNDEFINED if value is None else f"{value:.3f}" for value in ppv_npv(sensitivity, specificity, prevalence)
    )


def ppv_npv(sensitivity: float, specificity: float, prevalence: float) -> tuple[float | None, float | None]:
    """Positive and negative predictive value; None where nothing is called, or everything.

    Source: Altman and Bland, "Diagnostic tests 2: predictive values", BMJ 309 (1994) 102.
    """
    hit, alarm = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    rest, miss = specificity * (1 - prevalence), (1 - sensitivity) * prevalence
    return (hit / (hit + alarm) if hit + alarm else None), (rest / (rest + miss) if rest + miss else None)


def calibration_section(document: Document) -> Section:
    """What turned logits into probabilities, and for which labels it did not."""
    sentences, tables = [], []
    for title, metrics, _, calibration in blocks(document):
        method = look(calibration, "method")
        words = "none: the network's own sigmoid" if method == "none" else said(method)
        sentences.append(f"{title.capitalize()}: {words}.")
        left_out = look(calibration, "uncalibrated") or {}
        sentences += [f"{title.capitalize()}, {label}: not calibrated, {why}." for label, why in left_out.items()]
        quality = look(metrics, "calibration")
        if quality is not None:
            tables.append(facts(f"{title}: calibration measured", flat(quality)))
    return Section(title="Calibration", sentences=tuple(sentences), tables=tuple(tables))


def triage_section(document: Document) -> Section:
    """Flag, clear, or human first: thresholds, guarantee, alpha and the size of the calibration set."""
    triage = look(document, "study", "triage") or document.get("triage")
    if triage is None:
        return Section(title="Triage", sentences=("Not stated: the model folder has no three-way rule.",))
    words = [look(triage, "guarantee"), *(look(triage, "outcomes") or ())]
    rest = {key: value for key, value in triage.items() if key not in ("guarantee", "outcomes")}
    return Section(
        title="Triage",
        sentences=tuple(said(one) for one in words),
        tables=(facts("three-way rule", flat(rest)),),
    )


def parity_section(document: Document) -> Section:
    """How near the exported files are to the trained network."""
    keys = ("num_slices", "max_abs_probability", "max_abs_logit", "flips_at_thresholds", "input")
    pairs = document.get("parity") or {}
    rows = tuple((pair, *(said(look(found, key)) for key in keys)) for pair, found in pairs.items())
    columns = ("pair", "slices", "largest difference of a probability", "of a logit", "decisions flipped", "input")
    tables = (Table(caption="exported files against the network", columns=columns, rows=rows),) if rows else ()
    return Section(title="Parity", sentences=() if rows else (NOT_STATED.capitalize() + ".",), tables=tables)
