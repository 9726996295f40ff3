"""What may be claimed of a figure: an interval, or the words that say why there is none. One rule for every figure.

Slices of one patient are not independent, so a figure is known as well as the patients in its own denominator allow:
those with a positive for a sensitivity, with a negative for a specificity, with a call for a precision, both kinds for
an AUC, all for a log loss. By their number (of the rarer kind):

- Below 2 nothing is claimed. How patients differ cannot be seen in one; a bootstrap would draw it again and again.
- From 2 on a rate or an AUC of exactly 0 or 1 has the exact interval of ``exact``; a bootstrap would claim certainty.
- From ``FEWEST`` (6) on a bootstrap or DeLong's interval, and a p-value. A percentile interval of n patients lies
  between their smallest and largest value, and all n lie on one side of the median with probability 2 ** (1 - n):
  12.5 % for 4, 6.3 % for 5, 3.1 % for 6. So below 6 it cannot be one of 95 %, and no exact two-sided test of paired
  differences (sign-flip: 2 ** n equally likely signs) can reach 0.05. No p-value is below ``Basis.least_p`` either.
- Below ``FEW`` (20) the interval says how few they are, for it is too narrow: simulated rates and AUCs were inside 82
  to 85 % of the "95 %" intervals of 6 patients, 87 to 89 % of 10, 91 to 94 % of 20, and equal models had p < 0.05 in
  14, 10 and 7 %.
- An interval of no width is never given: that all resamples agree is no certainty.

Source: the sign test, Dixon and Mood, Journal of the American Statistical Association 41 (1946) 557-566; sign flips,
Fisher, The Design of Experiments (1935), section 21. That few groups (five to thirty) make tests reject too often:
Cameron, Gelbach and Miller, Review of Economics and Statistics 90 (2008) 414-427.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
"""Of the intervals: 95 %."""
FEWEST, FEW = 6, 20
NO_INTERVAL = "no interval"
UNDEFINED = "undefined"


@dataclass(frozen=True, kw_only=True, slots=True)
class Basis:
    """What a figure rests on: ``fewest`` units of the rarest kind that it needs, ``every`` unit that it counts.

    ``trials`` are the independent trials of ``exact``; ``None`` where a figure of 0 or 1 has no exact interval.
    ``kind`` names the label of the fewest where a mean over labels rests on them.
    """

    fewest: int
    every: int
    trials: int | None = None
    unit: str = "patient"
    kind: str = ""

    @property
    def least_p(self) -> float:
        """The smallest two-sided p-value that an exact test of paired differences could give."""
        return float(2.0 ** (1 - self.every))

    @property
    def allows_p(self) -> bool:
        """Whether there are enough for a bootstrap or a normal approximation."""
        return self.fewest >= FEWEST

    def lacking(self) -> str:
        """The words where there are too few."""
        if self.fewest < 2:
            return self.about(f"{NO_INTERVAL}: {('no', 'one')[self.fewest]} {self.unit}")
        return self.about(f"{NO_INTERVAL}: {self.fewest} {_plural(self.unit)}, fewer than {FEWEST}")

    def caution(self) -> str | None:
        """The words where there are few, ``None`` where there are enough."""
        return self.about(f"few {_plural(self.unit)}: {self.fewest}") if self.fewest < FEW else None

    def about(self, words: str) -> str:
        """``words``, and of which label."""
        return f"{words} ({self.kind})" if self.kind else words


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """``low`` to ``high`` at ``LEVEL``; both ``None`` where nothing is claimed, and ``note`` says why.

    ``num_undefined`` resamples had no value and were skipped. ``num_units`` is ``Basis.fewest``. ``exact`` is not from
    resampling. ``note`` is otherwise ``None``, or says that the units are few.
    """

    low: float | None = None
    high: float | None = None
    num_undefined: int | None = None
    num_units: int | None = None
    exact: bool = False
    note: str | None = None


def rate_basis(of_row: NDArray[np.intp], whole: NDArray[np.bool_], unit: str = "patient") -> Basis:
    """Of a rate whose denominator are the rows ``whole`` [N]; ``of_row`` [N] numbers their patients."""
    count = len(np.unique(of_row[whole]))
    return Basis(fewest=count, every=count, trials=count, unit=unit)


def area_basis(of_row: NDArray[np.intp], truth: NDArray[np.bool_], unit: str = "patient") -> Basis:
    """Of an AUC between the rows of ``truth`` [N] and the others; ``trials`` are pairs that share no patient."""
    positive, negative, every = (len(np.unique(of_row[rows])) for rows in (truth, ~truth, np.ones_like(truth)))
    fewest = min(positive, negative)
    return Basis(fewest=fewest, every=every, trials=min(fewest, every // 2), unit=unit)


def weakest(of_label: Mapping[str, Basis]) -> Basis:
    """Of a mean over labels, which is known no better than the label with the fewest patients."""
    label, basis = min(of_label.items(), key=lambda item: item[1].fewest)
    return Basis(fewest=basis.fewest, every=basis.every, unit=basis.unit, kind=label)


def exact(is_one: bool, trials: int) -> tuple[float, float]:
    """The interval of a rate, or an AUC, that was 1 (or 0) in each of ``trials`` independent trials.

    For a rate a trial is a patient: if the mean over patients is p, all of n have nothing but hits with probability at
    most p ** n. For an AUC it is a pair of a positive and a negative patient, each in one pair only: if the AUC is p,
    the classes are wholly apart only if all n pairs are in order, with probability at most p ** n. No better bound
    holds for every distribution: where a share 1 - p of the rarer class lies beyond all of the other, the classes are
    apart with just that probability. Hanley and McNeil's and DeLong's variances are 0 there and say nothing.

    Source: Clopper and Pearson, Biometrika 26 (1934) 404-413; the problem for AUCs: Obuchowski and Lieber, Academic
    Radiology 9 (2002) 526-530.
    """
    edge = float(((1 - LEVEL) / 2) ** (1 / trials))
    return (edge, 1.0) if is_one else (0.0, 1 - edge)


def interval(drawn: Floats, basis: Basis) -> Interval:
    """What resamples with the values ``drawn`` [R], NaN where undefined, allow to claim of a figure; see the module."""
    defined = drawn[np.isfinite(drawn)]
    skipped = len(drawn) - len(defined)

    def found(low: float | None, high: float | None, note: str | None, *, is_exact: bool = False) -> Interval:
        return Interval(low=low, high=high, num_undefined=skipped, num_units=basis.fewest, exact=is_exact, note=note)

    if basis.fewest < 2:
        return found(None, None, basis.lacking())
    if not len(defined):
        return found(None, None, f"{NO_INTERVAL}: undefined in every resample")
    low, high = (float(end) for end in np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    if low == high and low in (0.0, 1.0) and basis.trials is not None and basis.trials > 1:
        return found(*exact(low == 1, basis.trials), None, is_exact=True)
    if basis.fewest < FEWEST:
        return found(None, None, basis.lacking())
    if low == high:
        return found(None, None, f"{NO_INTERVAL}: every resample gives the same")
    return found(low, high, basis.caution())


def estimate(value: float | None, found: Interval | None = None, *, undefined: str = UNDEFINED) -> dict[str, Any]:
    """``{"value", "low", "high", "num_undefined", "num_units", "exact", "note"}``, JSON-ready.

    Without a value all are ``None`` but ``note``, which is ``undefined``, the words for that.
    """
    return {"value": value, **asdict(Interval(note=undefined) if value is None else found or Interval())}


def text(found: Mapping[str, Any], digits: int = 3) -> str:
    """An ``estimate`` for people: ``0.978 (0.959 to 0.993)``, and in words why something of it is not there."""
    value, low, high, note = (found.get(key) for key in ("value", "low", "high", "note"))
    if value is None:
        return note or UNDEFINED
    if low is None or high is None:
        return f"{value:.{digits}f} ({note or NO_INTERVAL})"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}" + (f"; {note})" if note else ")")


def _plural(unit: str) -> str:
    return unit[:-1] + "ies" if unit.endswith("y") else unit + "s"
