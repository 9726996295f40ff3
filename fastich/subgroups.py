"""Where is the model worse? Its figures for ``any`` by encoding, tilt, slice spacing, number of bleeds, bleed volume.

A good mean hides a bad scanner or a missed small bleed, so each group gets its own line, with the numbers that stand
behind it and intervals by patient. A study belongs to one group of each factor as a whole. Groups are small and many:
read them as places to look, not as findings. About 0.1 s a group of 1,000 slices.

Tables as in ``fastich/study_metrics.py``; ``index`` is that of the records.
"""

import html
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import metrics
from fastich.errors import RecordError
from fastich.intervals import estimate, interval, text
from fastich.labels import SUBTYPES
from fastich.resampling import Resampling

TILT_DEG = 1.0
"""A gantry that is not tilted says 0; less than this changes the spacing by 0.015 %."""
SPACING_MM = (2.0, 4.0, 6.0)
"""Cuts between thin series, 2.5 and 3 mm, the usual 5 mm, and thicker slices."""
VOLUME_ML = (1.0, 5.0, 20.0)
MOST_BLEEDS = 3
UNKNOWN_GROUP, ALL = "unknown", "all"
VOLUME_COLUMNS = [f"{subtype}_ml" for subtype in SUBTYPES]
FIGURES = ("auc", "sensitivity", "specificity")
COUNTS = {
    "num_slices": "slices",
    "num_positive_slices": "with a bleed",
    "num_studies": "studies",
    "num_positive_studies": "with a bleed",
    "num_patients": "patients",
}


def subgroup_table(
    predictions: pd.DataFrame,
    studies: pd.DataFrame,
    index: pd.DataFrame,
    thresholds: Mapping[str, float],
    truth: pd.DataFrame | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
    study_thresholds: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """One line a group: ``factor``, ``group``, counts, and of slices and (``study_...``) studies AUC, sensitivity and
    specificity of ``any``, each with ``_low`` and ``_high``, ``None`` where undefined or without an interval, and
    ``_note``, which says why.

    Args:
        predictions: slice table; its ``row`` numbers rows of ``index``.
        studies: study table of the same studies.
        index: encoding, tilt_deg and slice_spacing_mm of each row of the records.
        thresholds: by label, of the slices.
        truth: volumes by study, as ``read_truth`` gives them; without it there are no lines by volume.
        num_resamples: of the patients, for the intervals.
        seed: of the resampling.
        study_thresholds: by label, of the studies; those of the slices where a study scores as its largest slice.

    Raises:
        RecordError: ``truth`` lacks a study.
    """
    at = {"slices": thresholds["any"], "studies": (study_thresholds or thresholds)["any"]}
    lines = []
    for factor, group, uids in _groups(predictions, studies, index, truth):
        slices, whole = (table[table["study_uid"].isin(uids)] for table in (predictions, studies))
        lines.append({"factor": factor, "group": group, **_line(slices, whole, at, (num_resamples, seed))})
    return pd.DataFrame(lines, dtype=object)


def read_truth(path: Path) -> pd.DataFrame:
    """Volumes in ml by study: ``study_uid`` and ``<subtype>_ml`` for each subtype, such as a phantom's truth.csv.

    Raises:
        RecordError: it is missing, no CSV, or lacks a column.
    """
    try:
        return pd.read_csv(path, dtype={"study_uid": str})[["study_uid", *VOLUME_COLUMNS]]
    except (OSError, KeyError, ValueError) as error:
        wanted = ", ".join(("study_uid", *VOLUME_COLUMNS))
        raise RecordError(f"{path}: expected a CSV with {wanted}, found {type(error).__name__} {error}") from error


def _groups(
    predictions: pd.DataFrame, studies: pd.DataFrame, index: pd.DataFrame, truth: pd.DataFrame | None
) -> list[tuple[str, str, set[str]]]:
    """Factor, group and the studies in it, in the order of the lines; empty groups are left out."""
    rows = index.loc[predictions["row"], ["study_uid", "encoding", "tilt_deg", "slice_spacing_mm"]]
    by_study = rows.groupby("study_uid")
    median = by_study[["tilt_deg", "slice_spacing_mm"]].median()
    bleeds = studies.set_index("study_uid")[list(SUBTYPES)].sum(axis=1)
    factors = {
        "encoding": by_study["encoding"].first().replace("", UNKNOWN_GROUP),
        "gantry tilt": median["tilt_deg"].abs().map(_tilt),
        "slice spacing": median["slice_spacing_mm"].map(lambda mm: _band(mm, SPACING_MM, "mm")),
        "bleeds in the study": bleeds.map(
            lambda count: f"{MOST_BLEEDS} or more" if count >= MOST_BLEEDS else f"{count:g}"
        ),
    }
    if truth is not None:
        factors["bleed volume"] = _volumes(studies, truth)
    found = [(ALL, ALL, set(studies["study_uid"]))]
    for factor, group_of in factors.items():
        for group in sorted(group_of.unique(), key=_order(factor)):
            found.append((factor, group, set(group_of.index[group_of == group])))
    return found


def _order(factor: str) -> Callable[[str], tuple[int, str]]:
    """Bands from the smallest up, what is not known last; encodings by name."""
    bands = {
        "slice spacing": [_band(mm, SPACING_MM, "mm") for mm in (0.0, *SPACING_MM)],
        "bleed volume": ["none", *(_band(ml, VOLUME_ML, "ml") for ml in (0.0, *VOLUME_ML))],
    }.get(factor, [])
    return lambda group: (bands.index(group) if group in bands else len(bands) + (group == UNKNOWN_GROUP), group)


def _tilt(degrees: float) -> str:
    if not np.isfinite(degrees):
        return UNKNOWN_GROUP
    return f"none (< {TILT_DEG:g} degree)" if degrees < TILT_DEG else f"tilted (>= {TILT_DEG:g} degree)"


def _band(value: float, cuts: tuple[float, ...], unit: str) -> str:
    """``< 1 ml``, ``1 to < 5 ml``, ..., ``>= 20 ml``."""
    if not np.isfinite(value):
        return UNKNOWN_GROUP
    place = int(np.searchsorted(cuts, value, side="right"))
    if place == 0:
        return f"< {cuts[0]:g} {unit}"
    return f">= {cuts[-1]:g} {unit}" if place == len(cuts) else f"{cuts[place - 1]:g} to < {cuts[place]:g} {unit}"


def _volumes(studies: pd.DataFrame, truth: pd.DataFrame) -> "pd.Series[str]":
    total_ml = truth.set_index("study_uid")[VOLUME_COLUMNS].sum(axis=1).reindex(studies["study_uid"])
    if total_ml.isna().any():
        lacking = str(total_ml.index[total_ml.isna()][0])
        raise RecordError(
            f"truth: expected a volume of each of {len(total_ml)} studies, found none of {lacking}; "
            "give the truth table of these records"
        )
    return total_ml.map(lambda ml: "none" if ml == 0 else _band(ml, VOLUME_ML, "ml"))


def _line(
    slices: pd.DataFrame, studies: pd.DataFrame, thresholds: Mapping[str, float], draw: tuple[int, int]
) -> dict[str, Any]:
    """Counts and figures of one group; ``draw`` is the number of resamples and the seed."""
    return {
        "num_slices": len(slices),
        "num_positive_slices": int(slices["any"].sum()),
        "num_studies": len(studies),
        "num_positive_studies": int(studies["any"].sum()),
        "num_patients": int(studies["patient_id"].nunique()),
        **_figures(slices, thresholds["slices"], draw, ""),
        **_figures(studies, thresholds["studies"], draw, "study_"),
    }


def _figures(
    table: pd.DataFrame, threshold: float, draw: tuple[int, int], prefix: str
) -> dict[str, float | str | None]:
    """AUC, sensitivity and specificity of ``any``, each with the ends of its interval and the note beside it."""
    real, score = table["any"].to_numpy() == 1, table["p_any"].to_numpy(np.float64)
    said = score >= threshold
    resampling = Resampling.of(table["patient_id"], num_resamples=draw[0], seed=draw[1])
    hits, spared = real & said, ~real & ~said
    areas, _ = resampling.auc_and_ap(real, score)
    found = {
        "auc": (metrics.binary_auc(real, score), interval(areas, resampling.area_basis(real))),
        "sensitivity": (_share(hits, real), resampling.rate(hits, real)),
        "specificity": (_share(spared, ~real), resampling.rate(spared, ~real)),
    }
    out: dict[str, float | str | None] = {}
    for name, (value, span) in found.items():
        told = estimate(value, span, undefined=metrics.why_undefined(real))
        out |= {prefix + name: value} | {f"{prefix}{name}_{key}": told[key] for key in ("low", "high", "note")}
    return out


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float | None:
    return float(part.sum() / whole.sum()) if whole.any() else None


def cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The table as text: a heading, and each line's cells, ``0.978 (0.959 to 0.993)`` or why there is no figure."""
    heading = ["", "group", *COUNTS.values()]
    heading += [f"{what}{'AUC' if name == 'auc' else name}" for what in ("", "study ") for name in FIGURES]
    lines = [
        [
            line["factor"],
            line["group"],
            *(f"{line[count]:,}" for count in COUNTS),
            *(_cell(line, name) for name in FIGURES),
            *(_cell(line, f"study_{name}") for name in FIGURES),
        ]
        for line in table.to_dict("records")
    ]
    return heading, lines


def _cell(line: Mapping[Any, Any], name: str) -> str:
    return text({"value": line[name], **{key: line[f"{name}_{key}"] for key in ("low", "high", "note")}})


def to_text(table: pd.DataFrame) -> str:
    """The table for a terminal, columns aligned."""
    heading, lines = cells(table)
    widths = [max(map(len, column)) for column in zip(heading, *lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [heading, *lines]
    )


def to_html(table: pd.DataFrame) -> str:
    """The table as one HTML ``<table>``, every cell escaped."""
    heading, lines = cells(table)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heading)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>\n" for line in lines)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
