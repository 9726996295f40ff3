"""What a simulation can be told: the flags of ``python -m fastich.simulate``, checked once."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastich.errors import UsageError
from fastich.simulation.cases import HOURS_A_DAY, MINUTE_S, Reading
from fastich.simulation.plot import SUFFIXES
from fastich.verb import option

DEFAULT_RATES = (0.95, 0.9)
"""Sensitivity and specificity where nothing else says; a cleared triage device reports 0.962 and 0.948 (K221240)."""


def read_hours(text: str) -> tuple[float, ...]:
    """``6`` or 24 numbers with commas between them.

    Raises:
        ValueError: it is neither.
    """
    values = tuple(float(part) for part in text.split(","))
    if len(values) not in (1, HOURS_A_DAY):
        raise ValueError(f"expected one number or {HOURS_A_DAY}, found {len(values)}")
    return values


def read_counts(text: str) -> tuple[int, ...]:
    """``2`` or 24 whole numbers with commas between them.

    Raises:
        ValueError: it is neither.
    """
    values = read_hours(text)
    if any(value != int(value) for value in values):
        raise ValueError("expected whole numbers")
    return tuple(int(value) for value in values)


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """One simulation."""

    log: Path | None = option(
        None,
        "CSV of arrivals: arrived_at (ISO, or s after midnight), and any of bleed, p_any or decision, read_minutes",
    )
    rate_per_hour: tuple[float, ...] = option(
        (6.0,), "random arrivals an hour: one number, or 24 with commas, midnight first", read=read_hours
    )
    prevalence: float = option(0.1, "share of studies with a bleed, where the log does not say")
    model: Path | None = option(None, "model folder whose model.json gives sensitivity and specificity of studies")
    evaluation: Path | None = option(None, "evaluation folder whose study scores are drawn again")
    sensitivity: float | None = option(None, f"of studies, where nothing else says ({DEFAULT_RATES[0]})")
    specificity: float | None = option(None, f"of studies, where nothing else says ({DEFAULT_RATES[1]})")
    threshold: float | None = option(None, "p(any) from which a study is flagged (default: the evaluation's own)")
    human_first: float | None = option(None, "p(any) from which a study is raised as human first (default: none is)")
    readers: tuple[int, ...] = option(
        (1,), "readers on duty: one number, or 24 with commas, midnight first", read=read_counts
    )
    read_minutes: float = option(8.0, "mean time to read a study, minutes, where the log does not say")
    read_variation: float = option(0.6, "its standard deviation over its mean (log-normal)")
    interruptions_per_hour: float = option(0.0, "interruptions an hour of reading")
    interruption_minutes: float = option(3.0, "mean length of an interruption, minutes")
    notification_s: float = option(10.0, "from arrival until a study is raised, seconds; measure it: /metrics")
    shift_start: float = option(8.0, "hour of the day at which a shift starts")
    shift_hours: float = option(8.0, "length of a shift, hours")
    replications: int = option(200, "random shifts; of a log, how often what it does not say is drawn")
    bootstrap: int = option(1000, "resamples of the shifts, for the intervals")
    seed: int = option(0, "seed of everything that is drawn")
    plot: Path | None = option(None, "picture to write, .png or .svg")

    def __post_init__(self) -> None:
        """Refuse what has no meaning, and what contradicts itself."""
        for name, least in (("prevalence", 0), ("read_variation", 0), ("interruptions_per_hour", 0),
                            ("interruption_minutes", 0), ("notification_s", 0)):  # fmt: skip
            if not least <= getattr(self, name) < np.inf:
                raise UsageError(f"{_flag(name)} must be >= {least}, found {getattr(self, name):g}")
        for name in ("read_minutes", "shift_hours", "replications", "bootstrap"):
            if not 0 < getattr(self, name) < np.inf:
                raise UsageError(f"{_flag(name)} must be > 0, found {getattr(self, name):g}")
        if self.prevalence > 1:
            raise UsageError(f"--prevalence must be <= 1, found {self.prevalence:g}")
        if not 0 <= self.shift_start < HOURS_A_DAY:
            raise UsageError(f"--shift-start must be from 0 to {HOURS_A_DAY}, found {self.shift_start:g}")
        if min(self.rate_per_hour) < 0 or not 0 < max(self.rate_per_hour) < np.inf:
            raise UsageError("--rate-per-hour must not be negative, and above 0 at some hour")
        if min(self.readers) < 0 or max(self.readers) == 0:
            raise UsageError("--readers must not be negative, and at least 1 at some hour")
        self._check_sources()

    def _check_sources(self) -> None:
        rates = "--sensitivity, --specificity" if (self.sensitivity, self.specificity) != (None, None) else None
        given = [name for name in (self.model and "--model", self.evaluation and "--evaluation", rates) if name]
        if len(given) > 1:
            raise UsageError(f"expected one source of scores, found {' and '.join(given)}; leave one out")
        if self.human_first is not None and self.threshold is not None and self.human_first > self.threshold:
            raise UsageError("--human-first must not be above --threshold")
        if self.plot is not None and self.plot.suffix not in SUFFIXES:
            raise UsageError(f"--plot: expected a name that ends in {' or '.join(SUFFIXES)}, found {self.plot}")

    @property
    def reading(self) -> Reading:
        """The reader model in seconds."""
        return Reading(
            mean_s=self.read_minutes * MINUTE_S,
            variation=self.read_variation,
            interruptions_per_hour=self.interruptions_per_hour,
            interruption_s=self.interruption_minutes * MINUTE_S,
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
