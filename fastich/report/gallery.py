"""Which slices and studies a reader should see: the surest finds, the worst misses, the worst false alarms.

Numbers hide what a model does; eighteen pictures do not. At most one slice of a study in each group, so that one bad
study does not fill a row. Choosing costs a sort; a picture costs a read and a resize.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pandas as pd
from matplotlib.image import imsave
from numpy.typing import NDArray

from fastich.labels import ANY, LABELS, SUBTYPES
from fastich.report.figures import StudyStrip
from fastich.types import HuArray
from fastich.windowing import WINDOWS, resize_area, window

PICTURE_SIZE = 256
GREY_LEVELS = 128
"""Noise below half a display level is not worth its bytes: 128 greys look alike and compress a third better."""
TISSUE_HU = -200
"""Between fat (about -100) and air (-1000)."""
MIN_TISSUE = 0.02
"""Share of a line that must be tissue: noise and thin supports are less."""
HEAD_MARGIN = 0.03
GROUPS = ("hit", "miss", "alarm")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One slice of the gallery: its group (of ``GROUPS``), row of the index, ids, truth, probabilities and picture."""

    group: str
    label: str
    row: int
    sop_uid: str
    study_uid: str
    truth: tuple[str, ...]
    probability: dict[str, float]
    png: bytes


def choose_rows(
    predictions: pd.DataFrame, thresholds: NDArray[np.float64], per_group: int = 6
) -> list[tuple[str, str, int]]:
    """``(group, label, position)`` of the slices to show; position counts rows of ``predictions``.

    Hits: for each label the surest slice that has it and is called for it, then further ones of ``any``. Misses:
    slices with a bleed whose p(any) is below the threshold, lowest first. Alarms: slices without one whose p(any)
    reaches it, highest first.
    """
    any_score, any_truth = predictions["p_any"].to_numpy(), predictions["any"].to_numpy() == 1
    called = any_score >= thresholds[ANY]
    hits: list[tuple[str, int]] = []
    for label in (*SUBTYPES, "any"):
        score = predictions[f"p_{label}"].to_numpy()
        wanted = (predictions[label].to_numpy() == 1) & called & (score >= thresholds[LABELS.index(label)])
        seen = [position for _, position in hits]
        wanted &= ~predictions["study_uid"].isin(predictions["study_uid"].iloc[seen]).to_numpy()
        room = per_group - len(hits) if label == "any" else 1
        hits += [(label, at) for at in _top(predictions, wanted, -score, room)]
    misses = _top(predictions, any_truth & ~called, any_score, per_group)
    alarms = _top(predictions, ~any_truth & called, -any_score, per_group)
    groups = [("hit", label, at) for label, at in hits]
    return groups + [("miss", "any", at) for at in misses] + [("alarm", "any", at) for at in alarms]


def _top(predictions: pd.DataFrame, wanted: NDArray[np.bool_], key: NDArray[np.float64], count: int) -> list[int]:
    """Positions of the wanted rows with the smallest key, one a study, at most ``count``."""
    order = [int(at) for at in np.argsort(key, kind="stable") if wanted[at]]
    first = predictions["study_uid"].iloc[order].reset_index(drop=True).drop_duplicates().index[: max(count, 0)]
    return [order[at] for at in first]


def build_cases(
    predictions: pd.DataFrame, thresholds: NDArray[np.float64], read_hu: Callable[[int], HuArray], per_group: int = 6
) -> list[Case]:
    """The gallery of ``predictions`` (see ``results``); ``read_hu`` gives int16 HU [H, W] of a row of the index."""
    cases = []
    for group, label, at in choose_rows(predictions, thresholds, per_group):
        line = predictions.iloc[at]
        cases.append(
            Case(
                group=group,
                label=label,
                row=int(line["row"]),
                sop_uid=str(line["sop_uid"]),
                study_uid=str(line["study_uid"]),
                truth=tuple(name for name in LABELS if line[name] == 1),
                probability={name: float(line[f"p_{name}"]) for name in LABELS},
                png=slice_png(read_hu(int(line["row"]))),
            )
        )
    return cases


def slice_png(hu: HuArray, size: int = PICTURE_SIZE) -> bytes:
    """The head of a slice [H, W] through the brain window as a grey PNG of ``size`` x ``size`` pixels."""
    grey = window(resize_area(crop_to_head(hu), size), WINDOWS["brain"])
    buffer = BytesIO()
    imsave(buffer, np.rint(grey * (GREY_LEVELS - 1)) / (GREY_LEVELS - 1), cmap="gray", vmin=0, vmax=1, format="png")
    return buffer.getvalue()


def crop_to_head(hu: HuArray) -> HuArray:
    """Cut the air around the tissue of a slice [H, W] away, but for a margin; the whole slice if it holds no tissue."""
    tissue = hu > TISSUE_HU
    spans = []
    for axis, length in ((1, hu.shape[0]), (0, hu.shape[1])):
        used = np.flatnonzero(tissue.mean(axis=axis) > MIN_TISSUE)
        if not len(used):
            return hu
        margin = int(HEAD_MARGIN * length)
        spans.append(slice(max(int(used[0]) - margin, 0), int(used[-1]) + 1 + margin))
    return hu[spans[0], spans[1]]


def choose_studies(predictions: pd.DataFrame, count: int = 6) -> list[StudyStrip]:
    """Of the studies with a bleed the surest, the least sure and some between; of those without, both ends."""
    studies = predictions.groupby("study_uid", sort=False).agg(score=("p_any", "max"), truth=("any", "max"))
    bleeding = studies[studies["truth"] == 1].sort_values("score", ascending=False, kind="stable")
    clear = studies[studies["truth"] == 0].sort_values("score", ascending=False, kind="stable")
    names = _spread(list(bleeding.index), count - 2), _spread(list(clear.index), 2)
    strips = []
    for group, found in zip(("bleed", "no bleed"), names, strict=True):
        for uid in found:
            part = predictions[predictions["study_uid"] == uid]
            title = f"{group}, highest p {part['p_any'].max():.2f}"
            truth = part["any"].to_numpy() == 1
            strips.append(
                StudyStrip(title=title, study_uid=str(uid), probability=part["p_any"].to_numpy(), truth=truth)
            )
    return strips


def _spread(items: Sequence[str], count: int) -> list[str]:
    """At most ``count`` items, evenly spread from the first to the last."""
    if not items:
        return []
    return [items[at] for at in dict.fromkeys(np.linspace(0, len(items) - 1, count).round().astype(int))]
