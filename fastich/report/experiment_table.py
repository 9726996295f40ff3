"""The closing table of ``fastich.experiment``: its goals, and the 2D network's table beside the sequence model's.

Every figure has its 95 % interval by patient. From ``summary.json`` alone, so it can be printed again.
"""

from collections.abc import Callable
from typing import Any

from fastich import intervals
from fastich.classification import RATES
from fastich.labels import LABELS

ANY_LABEL = LABELS[-1]
FOUND = "those that are found"
"""Of ``pointing.SUBJECTS``, which stands on a higher floor."""
ROWS = (*LABELS, "micro avg", "macro avg", "weighted avg")
NOT_JUDGED, ONE_PATIENT = "not judged", f"{intervals.UNDEFINED}: one patient"
SEED_STUDY = {
    "any": {"precision": 0.92, "recall": 0.42},
    "epidural": {"recall": 0.00},
    "subarachnoid": {"recall": 0.12},
    "macro avg": {"f1-score": 0.51},
}
"""What the study that fastich starts from reports of 26 positive slices at 0.5; the rest is not stated."""
LOG_LOSS_GAIN, STUDY_AUC, EPIDURAL_RECALL, LARGEST_ECE = 0.20, 0.98, 0.70, 0.03


def text(summary: dict[str, Any]) -> str:
    """The whole table for a terminal."""
    return "\n".join([*_goals(summary), "", *_side_by_side(summary), "", *_footer(summary)])


def _goals(summary: dict[str, Any]) -> list[str]:
    return _columns(("goal", "wanted", "found", ""), goals(summary))


def goals(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Name, what was wanted, what came out, and whether that is it; intervals beside each figure."""
    study, cnn = summary["study"], summary["cnn"]
    gain, auc = summary["log_loss_gain"], study["studies"]["auc"]["any"]
    recall = _rate(study, "at_thresholds", "epidural", "recall")
    half = _rate(cnn, "at_0.5", "epidural", "recall")
    cross_fitted = study["calibration"]["slices"]["cross_fitted"]
    ece = cross_fitted["ece"]["macro"] if cross_fitted else intervals.estimate(None, undefined=ONE_PATIENT)
    rows = [
        ("study AUC any", f">= {STUDY_AUC}", intervals.text(auc), _met(_holds(auc, lambda value: value >= STUDY_AUC))),
        (
            "slice log loss, lower than 2D by",
            f">= {LOG_LOSS_GAIN:.0%}",
            f"{intervals.text(gain)}: {cnn['log_loss']['value']:.4f} to {study['log_loss']['value']:.4f}",
            _met(_holds(gain, lambda value: value >= LOG_LOSS_GAIN)),
        ),
        (
            "epidural recall at the chosen threshold",
            f"> {EPIDURAL_RECALL}",
            f"{intervals.text(recall)}; 2D at 0.5: {intervals.text(half)}",
            _met(_holds(recall, lambda value: value > EPIDURAL_RECALL)),
        ),
        (
            "cross-fitted ECE, mean over labels",
            f"<= {LARGEST_ECE}",
            intervals.text(ece),
            _met(_holds(ece, lambda value: value <= LARGEST_ECE)),
        ),
    ]
    return [*rows, *_coverage(study["triage"])]


def _coverage(triage: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Mean risks over resamplings of calibration and test patients, beside their bounds."""
    held, rows = triage["coverage"], []
    for name, bound in (("miss_rate", "alpha_miss"), ("alarm_rate", "alpha_alarm")):
        goal = f"triage {name.replace('_', ' ')}, {held['resamples']} resamplings"
        rows.append((goal, f"<= {triage[bound]:g}", held["told"][name], _met(held["bounded"][name])))
    return rows


def _met(is_met: bool | None) -> str:
    """Of a goal; None where there is no figure to judge."""
    return NOT_JUDGED if is_met is None else "met" if is_met else "not met"


def _holds(found: dict[str, Any], goal: Callable[[float], bool]) -> bool | None:
    return None if found["value"] is None else goal(found["value"])


def _rate(measured: dict[str, Any], point: str, row: str, name: str) -> dict[str, Any]:
    """One figure of a classification report as an ``estimate``; undefined without positives."""
    return {"value": measured["reports"][point][row][name], **measured["report_intervals"][point][row][name]}


def _side_by_side(summary: dict[str, Any]) -> list[str]:
    heading = ("slices", "", "seed study at 0.5", "2D at 0.5", "sequence at thresholds", "support")
    lines = []
    for row in ROWS:
        for name in RATES:
            seed = SEED_STUDY.get(row, {}).get(name)
            support = summary["study"]["reports"]["at_thresholds"][row]["support"]
            lines.append(
                (
                    row if name == RATES[0] else "",
                    name,
                    "not stated" if seed is None else f"{seed:.2f}",
                    intervals.text(_rate(summary["cnn"], "at_0.5", row, name)),
                    intervals.text(_rate(summary["study"], "at_thresholds", row, name)),
                    f"{support:.0f}" if name == RATES[0] else "",
                )
            )
    return _columns(heading, lines)


def _footer(summary: dict[str, Any]) -> list[str]:
    study, seconds = summary["study"], summary["seconds"]
    shares = study["triage"]["judged"]
    triage = ", ".join(f"{name.replace('_', ' ')} {intervals.text(shares[name])}" for name in shares)
    return [
        f"held out: {study['num_slices']} slices of {study['num_studies']} studies and {study['num_patients']} "
        "patients never trained on; 95 % intervals by patient",
        f"triage of the held-out studies: {triage}",
        f"triage: {study['triage']['guarantee']}",
        *study["triage"]["outcomes"],
        _pointing(summary["explanation"]["pointing"]),
        f"training: 2D {summary['training']['seconds']:.0f} s at {summary['training']['slices_per_s']['train']:.0f} "
        f"slices/s, sequence model {seconds['train_study']:.0f} s with its embeddings; all {seconds['total']:.0f} s",
    ]


def _pointing(found: dict[str, Any]) -> str:
    """Do the class maps of slices whose bleed is found point at it?"""
    rates = found["labels"][ANY_LABEL][FOUND]
    if rates is None:
        return "class maps: no slice with a bleed was found"
    return (
        f"class maps: of {rates['num_slices']} slices whose bleed is found, in {intervals.text(rates['cell_hit'])} the "
        f"cell of the map's peak touches it; by chance {intervals.text(rates['cell_chance'])}"
    )


def _columns(heading: tuple[str, ...], lines: list[Any]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(heading, *lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (heading, *lines)
    ]
