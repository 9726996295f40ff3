"""What happens in a reading room: when studies come, which hold a bleed, what the tool says, how long each takes.

All randomness is drawn here, before any order of reading is tried, so that every order meets the very same studies and
reading times (common random numbers: differences are of the orders, not of the draws). Milliseconds.
Shapes: S studies in order of arrival.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastich.simulation.scores import ScoreModel

Floats = NDArray[np.float64]
HOUR_S, MINUTE_S = 3600.0, 60.0
HOURS_A_DAY = 24


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The studies of one replication, each array [S].

    ``arrived_s`` ascends, seconds since the midnight before the first study. ``shift`` numbers the shift that a study
    came in. ``score`` is what thresholds cut; ``decision`` the priority that the log states, where it does: one of the
    two is None. ``read_s`` is how long a reader is busy with a study.
    """

    arrived_s: Floats
    shift: NDArray[np.intp]
    bleed: NDArray[np.bool_]
    score: Floats | None
    decision: NDArray[np.intp] | None
    read_s: Floats

    def __len__(self) -> int:
        """Number of studies."""
        return len(self.arrived_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How long a study keeps a reader: log-normal, and interruptions that come while it is read."""

    mean_s: float
    variation: float
    interruptions_per_hour: float = 0.0
    interruption_s: float = 0.0

    def draw(self, count: int, rng: np.random.Generator) -> Floats:
        """Seconds [count]; the coefficient of variation is that of the reading alone."""
        sigma = math.sqrt(math.log1p(self.variation**2))
        return self.mean_s * rng.lognormal(-(sigma**2) / 2, sigma, count)

    def interrupted(self, read_s: Floats, rng: np.random.Generator) -> Floats:
        """``read_s`` with its interruptions: a Poisson number while reading, each of exponential length."""
        number = rng.poisson(self.interruptions_per_hour * read_s / HOUR_S)
        return np.asarray(read_s + self.interruption_s * rng.standard_gamma(number), dtype=np.float64)

    @property
    def busy_s(self) -> float:
        """The mean time that a study keeps a reader."""
        return self.mean_s * (1 + self.interruptions_per_hour * self.interruption_s / HOUR_S)


def by_hour(values: Sequence[float], time_s: float) -> float:
    """The value of the hour of the day at ``time_s``; ``values`` holds one for all hours, or 24."""
    return values[int(time_s // HOUR_S) % HOURS_A_DAY % len(values)]


def poisson_arrivals(
    rate_per_hour: Sequence[float], start_s: float, length_s: float, rng: np.random.Generator
) -> Floats:
    """Ascending arrival times within ``start_s`` and ``start_s + length_s`` at the rate of each hour of the day.

    Source: thinning, Lewis and Shedler, Naval Research Logistics Quarterly 26, 1979.
    """
    highest = max(rate_per_hour)
    count = rng.poisson(highest * length_s / HOUR_S)
    times = start_s + np.sort(rng.uniform(0, length_s, count))
    rate = np.array([by_hour(rate_per_hour, time) for time in times.tolist()])
    return np.asarray(times[rng.uniform(0, highest, count) < rate], dtype=np.float64)


def draw_poisson(
    *,
    rate_per_hour: Sequence[float],
    start_s: float,
    length_s: float,
    prevalence: float,
    scores: ScoreModel,
    reading: Reading,
    shift: int,
    rng: np.random.Generator,
) -> Cases:
    """One shift of random arrivals, which holds ``prevalence`` of bleeds on average."""
    arrived = poisson_arrivals(rate_per_hour, start_s, length_s, rng)
    bleed = rng.random(len(arrived)) < prevalence
    return Cases(
        arrived_s=arrived,
        shift=np.full(len(arrived), shift, dtype=np.intp),
        bleed=bleed,
        score=scores.draw(bleed, rng),
        decision=None,
        read_s=reading.interrupted(reading.draw(len(arrived), rng), rng),
    )
