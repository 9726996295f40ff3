"""Three-way triage of studies with a guarantee that holds for any network: clear, flag, or human first.

Split conformal risk control on studies of known truth: p(any) below ``clear`` is cleared, above ``flag`` flagged, and
what lies between, or at a threshold, goes to a human first. That p(any) is ``study_score``, the network's own and not
a calibrated one: the guarantee wants a score that was not fitted on the studies that it is calibrated with.

Patients are exchangeable, several studies of one patient are not independent. So each patient counts once: the loss is
the share of a patient's studies of the class that is on the wrong side. Each threshold is the boldest one whose risk on
a new patient is at most its alpha, by the exact finite-sample formula: over n patients the losses may add up to
``alpha * (n + 1) - 1``. Where n is too small for even none to be wrong, nothing is cleared (or flagged), and the
document says how many patients are needed. Numpy only; microseconds.

Source: Angelopoulos, Bates, Fisch, Lei and Schuster, "Conformal risk control", ICLR 2024 (arXiv:2208.02814), theorem 1
with a patient's share of cleared studies among those with a bleed, and of flagged ones among those without: B = 1.
Shapes: S studies, K labels.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastich import resampling

Floats = NDArray[np.float64]

FLAG, CLEAR, HUMAN_FIRST = "flag", "clear", "human first"
BY_PATIENT = (
    "each patient counting once, if new patients are exchangeable with the calibration patients (same site, same mix) "
    "and their studies are whole"
)
BY_STUDY = (
    "if new studies are exchangeable with the calibration studies of their class (same site, same mix, one study a "
    "patient) and are whole"
)
SCORE = "sigmoid of a study's largest raw logit"
"""``study_score`` in words, for documents."""
ROUNDING = 1e-9
"""``alpha * (n + 1)`` may fall short of a whole number by float64's rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Triage:
    """Two thresholds on a study's p(any), ``None`` where the calibration set is too small for the alpha.

    ``alpha_miss`` bounds P(cleared | bleed), ``alpha_alarm`` P(flagged | no bleed); ``num_bleed`` and ``num_without``
    count the calibration studies of each class, ``num_bleed_patients`` and ``num_without_patients`` their patients,
    None where each study was taken for a patient of its own.
    """

    alpha_miss: float
    alpha_alarm: float
    num_bleed: int
    num_without: int
    clear: float | None
    flag: float | None
    num_bleed_patients: int | None = None
    num_without_patients: int | None = None

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
    def is_by_patient(self) -> bool:
        """Whether each calibration patient counted once, however many studies there were of them."""
        return self.num_bleed_patients is not None

    @property
    def guarantee(self) -> str:
        """What holds, in one sentence."""
        return (
            f"On average over calibration sets, at most {self.alpha_miss:g} of studies with a bleed are cleared and at "
            f"most {self.alpha_alarm:g} of studies without one are flagged, "
            f"{BY_PATIENT if self.is_by_patient else BY_STUDY}."
        )

    @property
    def outcomes(self) -> list[str]:
        """Why nothing is cleared, or nothing flagged; empty where both thresholds exist."""
        unit, counts = "studies", (self.num_bleed, self.num_without)
        if self.is_by_patient:
            unit, counts = "patients", (self.num_bleed_patients or 0, self.num_without_patients or 0)
        sides = (
            (self.clear, "cleared", "with", self.alpha_miss, counts[0]),
            (self.flag, "flagged", "without", self.alpha_alarm, counts[1]),
        )
        return [
            f"nothing is {done}: alpha {alpha:g} needs {needed(alpha)} calibration {unit} {kind} a bleed, found {count}"
            for threshold, done, kind, alpha, count in sides
            if threshold is None
        ]

    def to_document(self) -> dict[str, Any]:
        """JSON values that ``from_document`` takes back exactly, with guarantee and outcomes in words beside them."""
        fields = {name: value for name, value in asdict(self).items() if name not in OPTIONAL or value is not None}
        return {"method": "split conformal risk control", **fields} | {
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
            required = [name for name in cls.__dataclass_fields__ if name not in OPTIONAL]
            optional = {name: document[name] for name in OPTIONAL if name in document}
            return cls(**{name: document[name] for name in required}, **optional)
        except (KeyError, TypeError) as error:
            what = f"{type(error).__name__} {error}"
            raise ValueError(f"triage: expected alphas, counts and two thresholds, found {what}") from error


OPTIONAL = ("num_bleed_patients", "num_without_patients")
"""Fields that documents from before patients were counted lack."""


def study_score(logit_SK: NDArray[np.floating]) -> Floats:
    """What triage decides on, float64 [S]: the sigmoid of each study's largest logit, ``any`` and subtypes alike."""
    return np.asarray(1 / (1 + np.exp(-logit_SK.astype(np.float64).max(axis=1))), dtype=np.float64)


def _check_alpha(*alphas: float) -> None:
    for alpha in alphas:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: expected above 0 and below 1, found {alpha}")


def needed(alpha: float) -> int:
    """The fewest calibration patients of a class with which a threshold for ``alpha`` exists."""
    return math.ceil(1 / alpha - ROUNDING) - 1


def allowed(alpha: float, count: float) -> float:
    """What the losses of ``count`` calibration patients may add up to; below 0 where not even none may be wrong.

    From ``(losses + 1) / (count + 1) <= alpha``.
    """
    return alpha * (count + 1) - 1 + ROUNDING


def fit(
    p_any_S: ArrayLike,
    bleed_S: ArrayLike,
    patients_S: ArrayLike | None = None,
    *,
    alpha_miss: float,
    alpha_alarm: float,
) -> Triage:
    """Thresholds from calibration studies that neither training nor calibration of the probabilities has seen.

    Args:
        p_any_S: each study's p(any) [S].
        bleed_S: whether it holds a bleed [S], 0 or 1.
        patients_S: whose study it is [S]; None: each is of a patient of its own.
        alpha_miss: bound of P(cleared | bleed).
        alpha_alarm: bound of P(flagged | no bleed).

    Raises:
        ValueError: an alpha, a probability or a shape makes no sense.
    """
    _check_alpha(alpha_miss, alpha_alarm)
    p, bleed = checked(p_any_S, bleed_S)
    patient = patient_numbers(patients_S, len(p))
    counted = {}
    if patients_S is not None:
        counted = dict(zip(OPTIONAL, (len(np.unique(patient[rows])) for rows in (bleed, ~bleed)), strict=True))
    highest = _boldest(-p[~bleed], patient[~bleed], alpha_alarm)
    return Triage(
        alpha_miss=alpha_miss,
        alpha_alarm=alpha_alarm,
        num_bleed=int(bleed.sum()),
        num_without=int((~bleed).sum()),
        clear=_boldest(p[bleed], patient[bleed], alpha_miss),
        flag=None if highest is None else -highest,
        **counted,
    )


def _boldest(score_S: Floats, patient_S: NDArray[np.intp], alpha: float) -> float | None:
    """The largest score that studies may lie strictly below; None where no patient may have any there."""
    order = np.argsort(score_S, kind="stable")
    share = shares(patient_S)[order]
    below = np.cumsum(share) - share
    kept = score_S[order][below <= allowed(alpha, float(share.sum()))]
    return float(kept[-1]) if len(kept) else None


def shares(patient_S: NDArray[np.intp]) -> Floats:
    """The weight of each study, float64 [S]: those of one patient add up to 1."""
    return np.asarray(1 / np.bincount(patient_S)[patient_S], dtype=np.float64)


def patient_numbers(patients_S: ArrayLike | None, count: int) -> NDArray[np.intp]:
    """The number of each study's patient [S]; without ``patients_S`` each study is of a patient of its own.

    Raises:
        ValueError: there are more or fewer than ``count`` studies.
    """
    if patients_S is None:
        return np.arange(count)
    number, _ = resampling.patient_numbers(patients_S)
    if len(number) != count:
        raise ValueError(f"triage: expected a patient for each of {count} studies, found {len(number)}")
    return number


def checked(p_any_S: ArrayLike, bleed_S: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    """Both as arrays [S]; anything that has no meaning is a ``ValueError``."""
    p, bleed = np.asarray(p_any_S, dtype=np.float64), np.asarray(bleed_S)
    if p.ndim != 1 or p.shape != bleed.shape:
        raise ValueError(f"triage: expected two [S], found {p.shape} and {bleed.shape}")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("triage: expected probabilities from 0 to 1, found others")
    if not np.isin(bleed, (0, 1)).all():
        raise ValueError("triage: expected a truth of 0 or 1 for every study, found others")
    return p, bleed.astype(bool)
