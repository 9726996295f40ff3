"""What a model says of studies with and without a bleed: measured scores drawn again, or two normal curves.

Two normal curves of equal spread are the least that gives every operating point when only one is known: its sensitivity
and specificity fix their distance (d'), and so the whole ROC. An assumption, which the report states; an evaluation's
own scores need none. Standard library and numpy.
Source: Green and Swets, "Signal Detection Theory and Psychophysics", 1966.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich.artifact import read_manifest
from fastich.errors import ArtifactError, CheckpointError, UsageError
from fastich.labels import ANY, LABELS
from fastich.report.folder import STUDIES_FILE, STUDY_THRESHOLDS_FILE

Floats = NDArray[np.float64]
NORMAL = NormalDist()
ANY_LABEL = LABELS[ANY]


class ScoreModel(Protocol):
    """Draws scores and knows where to cut them."""

    @property
    def threshold(self) -> float:
        """At and above it a study is flagged."""

    @property
    def origin(self) -> str:
        """Where it comes from, and what it assumes, in words."""

    def draw(self, bleed_S: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
        """A score for each study [S]."""

    def threshold_at(self, alarm_rate: float) -> float:
        """The lowest threshold that flags at most ``alarm_rate`` of the studies without a bleed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoNormals:
    """Scores N(0, 1) without a bleed and N(d', 1) with one, cut where sensitivity and specificity are as given."""

    sensitivity: float
    specificity: float
    origin: str

    def __post_init__(self) -> None:
        """Refuse rates that no pair of normal curves has."""
        for name, value in (("sensitivity", self.sensitivity), ("specificity", self.specificity)):
            if not 0 < value < 1:
                raise UsageError(f"{name}: expected more than 0 and less than 1, found {value:g}")

    @property
    def separation(self) -> float:
        """d', the distance of the two curves in standard deviations."""
        return NORMAL.inv_cdf(self.sensitivity) + NORMAL.inv_cdf(self.specificity)

    @property
    def threshold(self) -> float:
        """At and above it a study is flagged."""
        return NORMAL.inv_cdf(self.specificity)

    def draw(self, bleed_S: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
        """A score for each study [S]."""
        return np.asarray(rng.standard_normal(len(bleed_S)) + self.separation * bleed_S, dtype=np.float64)

    def threshold_at(self, alarm_rate: float) -> float:
        """The lowest threshold that flags at most ``alarm_rate`` of the studies without a bleed."""
        return NORMAL.inv_cdf(1 - alarm_rate)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """p(any) of judged studies, drawn again within each class, so that the local prevalence may be another."""

    with_bleed: Floats
    without: Floats
    threshold: float
    origin: str

    def draw(self, bleed_S: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
        """A score for each study [S]."""
        drawn = [rng.choice(scores, len(bleed_S)) for scores in (self.with_bleed, self.without)]
        return np.where(bleed_S, *drawn)

    def threshold_at(self, alarm_rate: float) -> float:
        """The lowest threshold that flags at most ``alarm_rate`` of the studies without a bleed."""
        highest_first = np.sort(self.without)[::-1]
        allowed = int(alarm_rate * len(highest_first) + 1e-9)  # 0.1 * 30 is not quite 3 in float64
        return float(np.nextafter(highest_first[allowed], np.inf)) if allowed < len(highest_first) else 0.0


def of_evaluation(folder: Path, threshold: float | None) -> Measured:
    """The study scores of an evaluation folder, cut at ``threshold`` or where its own rule does.

    Raises:
        CheckpointError: the folder is not one, or holds one class only.
    """
    path = folder
    try:
        path = folder / STUDIES_FILE
        table = pd.read_parquet(path, columns=[ANY_LABEL, f"p_{ANY_LABEL}"])
        path = folder / STUDY_THRESHOLDS_FILE
        own = float(json.loads(path.read_text(encoding="utf-8"))["thresholds"][ANY_LABEL])
    except (OSError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__} {error}"
        raise CheckpointError(f"{path}: expected what fastich.evaluate writes, found {what}; evaluate again") from error
    bleed, scores = table[ANY_LABEL].to_numpy() == 1, table[f"p_{ANY_LABEL}"].to_numpy(np.float64)
    if bleed.all() or not bleed.any():
        raise CheckpointError(
            f"{folder / STUDIES_FILE}: expected studies with and without a bleed, found {int(bleed.sum())} of "
            f"{len(bleed)} with one; evaluate a split that has both"
        )
    cut = own if threshold is None else threshold
    counts = f"{int(bleed.sum())} studies with and {int((~bleed).sum())} without a bleed"
    return Measured(
        with_bleed=scores[bleed],
        without=scores[~bleed],
        threshold=cut,
        origin=f"{counts} of {folder.name}, cut at {cut:.4g}",
    )


def of_model(folder: Path) -> TwoNormals:
    """Two normal curves through the operating point of studies that model.json reports.

    Raises:
        ArtifactError: model.json has none.
    """
    metrics = read_manifest(folder).metrics or {}
    rates = []
    for name in ("sensitivity", "specificity"):
        try:
            rates.append(float(metrics["studies"][name][ANY_LABEL]["value"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{folder}: expected the {name} of studies in model.json's metrics, found none; export with the "
                "evaluation of this version, or give --sensitivity and --specificity"
            ) from error
    return of_rates(*_inside(rates[0], rates[1], folder), f"model.json of {folder.name}")


def _inside(sensitivity: float, specificity: float, folder: Path) -> tuple[float, float]:
    for name, value in (("sensitivity", sensitivity), ("specificity", specificity)):
        if not 0 < value < 1:
            raise ArtifactError(
                f"{folder}: its {name} of studies is {value:g}, through which no normal curves go; give --evaluation, "
                "or rates of your own"
            )
    return sensitivity, specificity


def of_rates(sensitivity: float, specificity: float, source: str) -> TwoNormals:
    """Two normal curves through one operating point."""
    return TwoNormals(
        sensitivity=sensitivity,
        specificity=specificity,
        origin=f"two normal curves of equal spread through sensitivity {sensitivity:.4g} and specificity "
        f"{specificity:.4g} ({source})",
    )
