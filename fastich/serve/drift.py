"""Does what arrives still look like what the model was made for? Histograms per week of scores and of how was scanned.

Pure functions over final results (``Store.score_history``). The reference is the first weeks of the site itself:
model.json holds no histograms of the training data, and the page says so. What moved is told by the population
stability index, sum((p - q) ln(p / q)) over bins, less what chance alone makes of it: (B - 1) (1/n + 1/m) for n
studies against m in B bins, which at 50 a week is more than the custom's limits (below 0.1 steady, above 0.25 moved).
Source: Siddiqi, "Credit risk scorecards", Wiley 2006, chapter 10; of chance: Yurdakul, "Statistical properties of
population stability index", dissertation, Western Michigan University, 2018.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastich.serve.entities import Score

WEEK_S = 7 * 86_400.0
EPOCH_MONDAY_S = 4 * 86_400.0
"""1970-01-05, a Monday: weeks are counted from it, in UTC."""
REFERENCE_WEEKS = 4
SHOWN_WEEKS = 12
FEWEST = 20
"""Studies below which an index is noise and is not told."""
SMOOTHING = 0.5
"""Added to every count, so that an empty bin does not make the index infinite (Jeffreys)."""
STEADY, MOVED = 0.1, 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One thing that is watched: name, title, unit, and the edges of its bins; what lies outside joins the outer ones.

    ``keys`` is where a result's document holds it: a number, or for each bin the fraction of a study that lies in it.
    """

    name: str
    title: str
    unit: str
    edges: tuple[float, ...]
    keys: tuple[str, ...]


MEASURES = (
    Measure(
        name="score",
        title="p(any) of the study",
        unit="",
        edges=(0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0),
        keys=("probability", "any"),
    ),
    Measure(
        name="hu",
        title="HU between fat and blood",
        unit="HU",
        edges=tuple(float(edge) for edge in range(-100, 101, 10)),
        keys=("protocol", "hu_fractions"),
    ),
    Measure(
        name="kvp",
        title="tube voltage",
        unit="kV",
        edges=(65.0, 75.0, 85.0, 95.0, 105.0, 115.0, 125.0, 135.0, 145.0),
        keys=("protocol", "kvp"),
    ),
    Measure(
        name="thickness",
        title="slice thickness",
        unit="mm",
        edges=(0.0, 0.7, 1.1, 1.6, 2.1, 2.6, 3.1, 4.1, 5.1, 6.1, 8.1),
        keys=("protocol", "thickness_mm"),
    ),
    Measure(
        name="slices",
        title="slices of the study",
        unit="",
        edges=(0.0, 10.0, 20.0, 25.0, 30.0, 35.0, 40.0, 50.0, 60.0, 100.0, 200.0, 400.0),
        keys=("num_slices",),
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Week:
    """One week's studies in the bins of a measure, and its index against the reference; None where it is not told."""

    starts_at: float
    counts: tuple[float, ...]
    index: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """A measure over weeks, oldest first; ``reference`` counts the first ``num_reference`` weeks with studies."""

    measure: Measure
    weeks: tuple[Week, ...]
    reference: tuple[float, ...]
    num_reference: int


def week_of(at: float) -> float:
    """When the week of a time began: Monday, 00:00 UTC, seconds since the epoch."""
    return math.floor((at - EPOCH_MONDAY_S) / WEEK_S) * WEEK_S + EPOCH_MONDAY_S


def drifts(scores: Iterable[Score]) -> list[Drift]:
    """Every measure of ``MEASURES`` over the weeks of final results; one result a study counts, the last."""
    last = {score.study_uid: score for score in scores if score.outcome.document is not None}
    by_week: dict[float, list[Mapping[str, Any]]] = defaultdict(list)
    for score in last.values():
        by_week[week_of(score.created_at)].append(score.outcome.document or {})
    return [_drift(measure, by_week) for measure in MEASURES]


def _drift(measure: Measure, by_week: Mapping[float, Sequence[Mapping[str, Any]]]) -> Drift:
    counted = {at: counts(measure, documents) for at, documents in sorted(by_week.items())}
    told = [found for found in counted.values() if sum(found)][:REFERENCE_WEEKS]
    reference = tuple(map(sum, zip(*told, strict=True))) if told else (0.0,) * (len(measure.edges) - 1)
    weeks = [Week(starts_at=at, counts=found, index=stability(found, reference)) for at, found in counted.items()]
    return Drift(measure=measure, weeks=tuple(weeks[-SHOWN_WEEKS:]), reference=reference, num_reference=len(told))


def counts(measure: Measure, documents: Iterable[Mapping[str, Any]]) -> tuple[float, ...]:
    """How many documents fall into each bin; those that do not say are left out."""
    num_bins = len(measure.edges) - 1
    found = [0.0] * num_bins
    for document in documents:
        value = _look(document, measure.keys)
        if _is_number(value):
            found[sum(value >= edge for edge in measure.edges[1:-1])] += 1
        elif isinstance(value, list) and len(value) == num_bins and all(map(_is_number, value)):
            found = [count + fraction for count, fraction in zip(found, value, strict=True)]
    return tuple(found)


def _look(document: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, Mapping) else None
    return document


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def stability(found: Sequence[float], reference: Sequence[float]) -> float | None:
    """The population stability index less chance's part, not below 0; None with fewer than ``FEWEST`` on a side."""
    if round(min(sum(found), sum(reference))) < FEWEST:
        return None
    total, size = sum(found), len(found)
    p_B = [(count + SMOOTHING) / (total + SMOOTHING * size) for count in found]
    q_B = [(count + SMOOTHING) / (sum(reference) + SMOOTHING * size) for count in reference]
    index = sum((p - q) * math.log(p / q) for p, q in zip(p_B, q_B, strict=True))
    num_used = sum(count + other > 0 for count, other in zip(found, reference, strict=True))
    return max(0.0, index - (num_used - 1) * (1 / total + 1 / sum(reference)))


def in_words(index: float | None) -> str:
    """``steady``, ``somewhat moved``, ``moved``, or why nothing is said."""
    if index is None:
        return f"fewer than {FEWEST} studies"
    if index < STEADY:
        return "steady"
    return "somewhat moved" if index < MOVED else "moved"
