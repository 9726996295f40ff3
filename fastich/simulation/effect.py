"""What one operating point does to a reading room: minutes saved, minutes it costs others, alarms, with intervals.

Every figure is of pairs: the same study, read by the worklist's order and first come, first read. Intervals draw whole
shifts with replacement, because the studies of one shift wait for each other.
Shapes: S studies of all replications, U shifts, R resamples.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.intervals import Basis, estimate, interval
from fastich.metrics import NO_NEGATIVES, NO_POSITIVES
from fastich.resampling import resample_counts
from fastich.serve.entities import Priority
from fastich.simulation.cases import MINUTE_S, Cases, Floats
from fastich.simulation.reading_room import Staff, first_in_first_out_s, opened_s

QUANTILES = {"median": 0.5, "p95": 0.95}
NO_MISSES = "undefined: no bleed was left in its place"


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """How a score is cut: flagged from ``threshold`` on, raised below those from ``human_first`` on where there is one.

    Both are None where the log states decisions.
    """

    name: str
    threshold: float | None
    human_first: float | None = None

    def priorities(self, cases: Cases) -> NDArray[np.intp]:
        """What each study is raised to [S]."""
        if cases.decision is not None:
            return cases.decision
        assert cases.score is not None
        assert self.threshold is not None
        raised = np.full(len(cases), int(Priority.ROUTINE), dtype=np.intp)
        if self.human_first is not None:
            raised[cases.score >= self.human_first] = Priority.HUMAN_FIRST
        raised[cases.score >= self.threshold] = Priority.FLAGGED
        return raised


@dataclass(frozen=True, kw_only=True)
class Waits:
    """Minutes from arrival to opening of studies, in both orders, and ``busy``, the minutes of reading, each [S]."""

    shift: NDArray[np.intp]
    bleed: NDArray[np.bool_]
    priority: NDArray[np.intp]
    first_come: Floats
    worklist: Floats
    busy: Floats

    @property
    def saved(self) -> Floats:
        """Minutes that a study is opened earlier because of the worklist; negative where it is opened later."""
        return self.first_come - self.worklist

    @property
    def lost(self) -> Floats:
        """Minutes that a study is opened later because of the worklist; negative where it is opened earlier."""
        return self.worklist - self.first_come


def waits_of(cases: Cases, points: Sequence[OperatingPoint], notification_s: float, staff: Staff) -> list[Waits]:
    """What each operating point makes of the same studies, read by the same readers in the same times."""
    first_come = first_in_first_out_s(cases.arrived_s, cases.read_s, staff) - cases.arrived_s
    found = []
    for point in points:
        priority = point.priorities(cases)
        opened = opened_s(cases.arrived_s, cases.read_s, priority, notification_s, staff)
        found.append(
            Waits(
                shift=cases.shift,
                bleed=cases.bleed,
                priority=priority,
                first_come=first_come / MINUTE_S,
                worklist=(opened - cases.arrived_s) / MINUTE_S,
                busy=cases.read_s / MINUTE_S,
            )
        )
    return found


def joined(parts: Sequence[Waits]) -> Waits:
    """The studies of all replications together."""
    return Waits(**{name: np.concatenate([getattr(one, name) for one in parts]) for name in Waits.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class Resampler:
    """Draws whole shifts: ``counts_RU`` says how often each; ``per_shift`` replications stand for one."""

    counts_RU: Floats
    per_shift: int = 1

    @classmethod
    def of(cls, num_shifts: int, num_resamples: int, seed: int, per_shift: int = 1) -> "Resampler":
        """``num_resamples`` draws of ``num_shifts`` shifts."""
        return cls(counts_RU=resample_counts(num_shifts, num_resamples, seed), per_shift=per_shift)

    @property
    def num_shifts(self) -> int:
        """Shifts that are drawn."""
        return int(self.counts_RU.shape[1])

    def distribution(self, values: Floats, shift: NDArray[np.intp], undefined: str) -> dict[str, Any]:
        """``num``, ``largest``, and an estimate of mean, median and p95 of ``values``; None with ``undefined``."""
        order = np.argsort(values, kind="stable")
        value, at = values[order], shift[order]
        point = _moments(value, np.ones(len(value)))
        drawn = np.array([_moments(value, counts[at]) for counts in self.counts_RU])
        found: dict[str, Any] = {"num": len(value), "undefined": None if len(value) else undefined}
        for i, name in enumerate(("mean", *QUANTILES)):
            found[name] = self._estimate(point[i], drawn[:, i], len(np.unique(shift)), undefined)
        return found | {"largest": float(value[-1]) if len(value) else None}

    def per_shift_of(self, happened: NDArray[np.bool_], shift: NDArray[np.intp]) -> dict[str, Any]:
        """An estimate of how often something happened a shift."""
        of_shift = np.bincount(shift[happened], minlength=self.num_shifts) / self.per_shift
        drawn = np.asarray(self.counts_RU @ of_shift / self.num_shifts, dtype=np.float64)
        return self._estimate(float(of_shift.mean()), drawn, self.num_shifts)

    def _estimate(self, value: float, drawn: Floats, num_shifts: int, undefined: str = "") -> dict[str, Any]:
        """Of ``num_shifts`` shifts that hold what is counted."""
        basis = Basis(fewest=num_shifts, every=num_shifts, unit="shift")
        return estimate(value if np.isfinite(value) else None, interval(drawn, basis), undefined=undefined)


def _moments(value: Floats, weight: Floats) -> tuple[float, ...]:
    """Mean and ``QUANTILES`` of ascending ``value`` that count ``weight`` times each; NaN where nothing counts."""
    cumulative = np.cumsum(weight)
    if not len(value) or not cumulative[-1]:
        return (np.nan,) * (1 + len(QUANTILES))
    places = np.searchsorted(cumulative, [part * cumulative[-1] for part in QUANTILES.values()])
    return (float(value @ weight / cumulative[-1]), *value[places].tolist())


def effect(point: OperatingPoint, waits: Waits, resampler: Resampler) -> dict[str, Any]:
    """JSON-ready: what ``point`` does to studies with and without a bleed; minutes."""
    bleed, raised, shift = waits.bleed, waits.priority != Priority.ROUTINE, waits.shift

    def of(values: Floats, chosen: NDArray[np.bool_], undefined: str) -> dict[str, Any]:
        return resampler.distribution(values[chosen], shift[chosen], undefined)

    return {
        "name": point.name,
        "threshold": point.threshold,
        "human_first": point.human_first,
        "sensitivity": _share(raised, bleed),
        "specificity": _share(~raised, ~bleed),
        "ppv": _share(bleed, raised),
        "npv": _share(~bleed, ~raised),
        "alarms_per_shift": resampler.per_shift_of(raised, shift),
        "false_alarms_per_shift": resampler.per_shift_of(raised & ~bleed, shift),
        "bleeds": {
            "saved": of(waits.saved, bleed, NO_POSITIVES),
            "wait_first_come": of(waits.first_come, bleed, NO_POSITIVES),
            "wait_worklist": of(waits.worklist, bleed, NO_POSITIVES),
        },
        "missed_bleeds_delayed": of(waits.lost, bleed & ~raised, NO_MISSES),
        "others_delayed": of(waits.lost, ~bleed, NO_NEGATIVES),
    }


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float | None:
    return float((part & whole).sum() / whole.sum()) if whole.any() else None


def run_all(
    draw: Callable[[int], Cases],
    replications: Iterable[int],
    points: Sequence[OperatingPoint],
    notification_s: float,
    staff: Staff,
) -> list[Waits]:
    """For each operating point the studies of all ``replications``; ``draw`` makes the cases of one."""
    found: list[list[Waits]] = [[] for _ in points]
    for replication in replications:
        for into, waits in zip(found, waits_of(draw(replication), points, notification_s, staff), strict=True):
            into.append(waits)
    return [joined(parts) for parts in found]
