"""Three-way triage of studies with a guarantee that holds for any network: clear, flag, or human first.

Split conformal risk control on studies of known truth: p(any) below ``clear`` is cleared, above ``flag`` flagged, and
what lies between, or at a threshold, goes to a human first. That p(any) is ``study_score``, the network's own and not
a calibrated one: the guarantee wants a score that was not fitted on the studies that it is calibrated with.

Each threshold is the boldest one whose risk on a new study is at most its alpha, by the exact finite-sample formula:
with n studies of the class, at most ``floor(alpha * (n + 1)) - 1`` of them may be on the wrong side. Where n is too
small for even none to be wrong, nothing is cleared (or flagged), and the document says how many studies are needed.
Numpy only; microseconds.

Source: Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal risk control", ICLR 2024 (arXiv:2208.02814), theorem 1
with losses 1{cleared} of studies with a bleed and 1{flagged} of studies without: B = 1.
Shapes: S studies, K labels.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

FLAG, CLEAR, HUMAN_FIRST = "flag", "clear", "human first"
ASSUMPTION = "if new studies are exchangeable with the calibration studies of their class (same site, same mix)"
SCORE = "sigmoid of a study's largest raw logit"
"""``study_score`` in words, for documents."""
ROUNDING = 1e-9
"""``alpha * (n + 1)`` may fall short of a whole number by float64's rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Triage:
    """Two thresholds on a study's p(any), ``None`` where the calibration set is too small for the alpha.

    ``alpha_miss`` bounds P(cleared | bleed), ``alpha_alarm`` P(flagged | no bleed); ``num_bleed`` and ``num_without``
    count the calibration studies of each class.
    """

    alpha_miss: float
    alpha_alarm: float
    num_bleed: int
    num_without: int
    clear: float | None
    flag: float | None

    def __post_init__(self) -> None:
        """Refuse what is no risk and no probability."""
        _check_alpha(self.alpha_miss, self.alpha_alarm)
        for name, value in (("clear", self.clear), ("flag", self.flag)):
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"triage: expected {name} from 0 to 1, found {value}")

    def decide(self, p_any: float) -> str:
        """``"flag"``, ``"clear"`` or ``"human first"`` for a study; where both thresholds would act, a human does.

        Raises:
            ValueError: ``p_any`` is no probability.
        """
        if not 0 <= p_any <= 1:
            raise ValueError(f"triage: expected a probability from 0 to 1, found {p_any}")
        clears = self.clear is not None and p_any < self.clear
        flags = self.flag is not None and p_any > self.flag
        if clears == flags:
            return HUMAN_FIRST
        return CLEAR if clears else FLAG

    @property
    def guarantee(self) -> str:
        """What holds, in one sentence."""
        return (
            f"On average over calibration sets, at most {self.alpha_miss:g} of studies with a bleed are cleared and at "
            f"most {self.alpha_alarm:g} of studies without one are flagged, {ASSUMPTION}."
        )

    @property
    def outcomes(self) -> list[str]:
        """Why nothing is cleared, or nothing flagged; empty where both thresholds exist."""
        sides = (
            (self.clear, "cleared", "with", self.alpha_miss, self.num_bleed),
            (self.flag, "flagged", "without", self.alpha_alarm, self.num_without),
        )
        return [
            f"nothing is {done}: alpha {alpha:g} needs {needed(alpha)} calibration studies {kind} a bleed, "
            f"found {count}"
            for threshold, done, kind, alpha, count in sides
            if threshold is None
        ]

    def to_document(self) -> dict[str, Any]:
        """JSON values that ``from_document`` takes back exactly, with guarantee and outcomes in words beside them."""
        return {"method": "split conformal risk control", **asdict(self)} | {
            "guarantee": self.guarantee,
            "outcomes": self.outcomes,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Triage":
        """The triage that ``to_document`` wrote.

        Raises:
            ValueError: the document holds none.
        """
        try:
            return cls(**{name: document[name] for name in cls.__dataclass_fields__})
        except (KeyError, TypeError) as error:
            what = f"{type(error).__name__} {error}"
            raise ValueError(f"triage: expected alphas, counts and two thresholds, found {what}") from error


def study_score(logit_SK: NDArray[np.floating]) -> Floats:
    """What triage decides on, float64 [S]: the sigmoid of each study's largest logit, ``any`` and subtypes alike."""
    return np.asarray(1 / (1 + np.exp(-logit_SK.astype(np.float64).max(axis=1))), dtype=np.float64)


def _check_alpha(*alphas: float) -> None:
    for alpha in alphas:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: expected above 0 and below 1, found {alpha}")


def needed(alpha: float) -> int:
    """The fewest calibration studies of a class with which a threshold for ``alpha`` exists."""
    return math.ceil(1 / alpha - ROUNDING) - 1


def allowed(alpha: float, count: int) -> int:
    """How many of ``count`` calibration studies may be on the wrong side; -1 where none is too many still.

    From ``(wrong + 1) / (count + 1) <= alpha``.
    """
    return math.floor(alpha * (count + 1) + ROUNDING) - 1


def fit(p_any_S: ArrayLike, bleed_S: ArrayLike, *, alpha_miss: float, alpha_alarm: float) -> Triage:
    """Thresholds from calibration studies that neither training nor calibration of the probabilities has seen.

    Args:
        p_any_S: each study's p(any) [S].
        bleed_S: whether it holds a bleed [S], 0 or 1.
        alpha_miss: bound of P(cleared | bleed).
        alpha_alarm: bound of P(flagged | no bleed).

    Raises:
        ValueError: an alpha, a probability or a shape makes no sense.
    """
    _check_alpha(alpha_miss, alpha_alarm)
    p, bleed = _checked(p_any_S, bleed_S)
    with_bleed, without = np.sort(p[bleed]), np.sort(p[~bleed])[::-1]
    return Triage(
        alpha_miss=alpha_miss,
        alpha_alarm=alpha_alarm,
        num_bleed=len(with_bleed),
        num_without=len(without),
        clear=_at(with_bleed, allowed(alpha_miss, len(with_bleed))),
        flag=_at(without, allowed(alpha_alarm, len(without))),
    )


def _at(ordered: Floats, wrong: int) -> float | None:
    """The score that ``wrong`` studies may lie strictly beyond."""
    return float(ordered[wrong]) if wrong >= 0 else None


def _checked(p_any_S: ArrayLike, bleed_S: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    p, bleed = np.asarray(p_any_S, dtype=np.float64), np.asarray(bleed_S)
    if p.ndim != 1 or p.shape != bleed.shape:
        raise ValueError(f"triage: expected two [S], found {p.shape} and {bleed.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("triage: expected probabilities from 0 to 1, found others")
    if not np.isin(bleed, (0, 1)).all():
        raise ValueError("triage: expected a truth of 0 or 1 for every study, found others")
    return p, bleed.astype(bool)


def rates(triage: Triage, p_any_S: ArrayLike, bleed_S: ArrayLike) -> dict[str, float | None]:
    """What ``triage`` does to studies: ``miss_rate``, ``alarm_rate``, and the share of each decision.

    ``None`` where no study has (or lacks) a bleed.
    """
    p, bleed = _checked(p_any_S, bleed_S)
    said = np.array([triage.decide(value) for value in p.tolist()], dtype=object)
    shares = {name.replace(" ", "_"): _mean(said == name) for name in (FLAG, CLEAR, HUMAN_FIRST)}
    return {"miss_rate": _mean(said[bleed] == CLEAR), "alarm_rate": _mean(said[~bleed] == FLAG), **shares}


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def coverage(
    p_any_S: ArrayLike,
    bleed_S: ArrayLike,
    patients_S: ArrayLike,
    *,
    alpha_miss: float,
    alpha_alarm: float,
    resamples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Does the bound hold? Half of the patients calibrate, the other half are judged, ``resamples`` times over.

    Returns JSON values: ``resamples``, the alphas, and for ``miss_rate``, ``alarm_rate``, ``flag``, ``clear`` and
    ``human_first`` each ``mean``, ``standard_error`` (over resamples; ``None`` for fewer than two) and
    ``num_undefined`` (no study of the class among those judged); ``bounded`` says whether each mean is within its
    alpha, ``too_small`` in how many resamples nothing could be cleared, or flagged.

    Raises:
        ValueError: there are fewer than two patients, or as ``fit``.
    """
    p, bleed = _checked(p_any_S, bleed_S)
    names, patient_S = np.unique(np.asarray(patients_S).astype(str), return_inverse=True)
    if len(names) < 2 or len(patient_S) != len(p):
        raise ValueError(f"coverage: expected a patient for each study and 2 or more, found {len(names)} patients")
    rng = np.random.default_rng([seed, len(names)])
    found: list[dict[str, float | None]] = []
    too_small = {CLEAR: 0, FLAG: 0}
    for _ in range(resamples):
        calibrates = np.isin(patient_S, rng.permutation(len(names))[: len(names) // 2])
        triage = fit(p[calibrates], bleed[calibrates], alpha_miss=alpha_miss, alpha_alarm=alpha_alarm)
        found.append(rates(triage, p[~calibrates], bleed[~calibrates]))
        too_small[CLEAR] += triage.clear is None
        too_small[FLAG] += triage.flag is None
    summary = {name: _summary([one[name] for one in found]) for name in found[0]}
    bounds = {"miss_rate": alpha_miss, "alarm_rate": alpha_alarm}
    bounded = {
        name: None if summary[name]["mean"] is None else summary[name]["mean"] <= alpha
        for name, alpha in bounds.items()
    }
    alphas = {"alpha_miss": alpha_miss, "alpha_alarm": alpha_alarm}
    return {"resamples": resamples, **alphas, **summary, "bounded": bounded, "too_small": too_small}


def _summary(values: list[float | None]) -> dict[str, Any]:
    defined = [value for value in values if value is not None]
    error = float(np.std(defined, ddof=1) / np.sqrt(len(defined))) if len(defined) > 1 else None
    return {"mean": _mean(defined), "standard_error": error, "num_undefined": len(values) - len(defined)}
