import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastich import conformal
from fastich.conformal import Triage, allowed, coverage, fit, needed, rates, study_score


def studies(count: int, seed: int, prevalence: float = 0.4) -> tuple[np.ndarray, np.ndarray]:
    """p(any) and truth of studies that overlap."""
    rng = np.random.default_rng(seed)
    bleed = (rng.random(count) < prevalence).astype(int)
    return 1 / (1 + np.exp(-(rng.normal(size=count) + 2 * bleed - 1))), bleed


def triage(**changed: object) -> Triage:
    whole = {"alpha_miss": 0.1, "alpha_alarm": 0.1, "num_bleed": 20, "num_without": 20, "clear": 0.2, "flag": 0.8}
    return Triage(**(whole | changed))  # type: ignore[arg-type]


def test_score_of_a_study_is_its_largest_logit_whichever_label_has_it() -> None:
    logit = np.array([[-3, -2, 0.5, -9, -1, 0.25], [-5, -4, -6, -7, -8, -3.5]], dtype=np.float32)
    found = study_score(logit)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, 1 / (1 + np.exp([-0.5, 3.5])))


@pytest.mark.parametrize("alpha", [0.02, 0.05, 0.1, 0.25])
def test_mean_risk_on_new_studies_is_within_its_alpha_and_not_far_below(alpha: float) -> None:
    missed, alarmed = [], []
    for seed in range(400):
        made = fit(*studies(150, seed), alpha_miss=alpha, alpha_alarm=alpha)
        found = rates(made, *studies(200, seed + 10_000))
        missed.append(found["miss_rate"])
        alarmed.append(found["alarm_rate"])
    for rate in (np.array(missed, dtype=float), np.array(alarmed, dtype=float)):
        error = rate.std(ddof=1) / np.sqrt(len(rate))
        assert rate.mean() <= alpha + 3 * error
        assert rate.mean() >= alpha / 3  # a triage that never acts would pass the line above


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_ties_keep_the_bound(alpha: float) -> None:
    missed = []
    for seed in range(300):
        (p, bleed), (p_new, bleed_new) = studies(100, seed), studies(200, seed + 10_000)
        made = fit(np.round(p, 1), bleed, alpha_miss=alpha, alpha_alarm=alpha)
        missed.append(rates(made, np.round(p_new, 1), bleed_new)["miss_rate"])
    assert np.mean(np.array(missed, dtype=float)) <= alpha


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), min_size=1, max_size=60), st.sampled_from([0.05, 0.1, 0.3]))
def test_wrong_calibration_studies_plus_one_are_within_alpha(scores: list[float], alpha: float) -> None:
    made = fit(scores, [1] * len(scores), alpha_miss=alpha, alpha_alarm=alpha)
    if made.clear is None:
        assert len(scores) < needed(alpha)
        return
    wrong = sum(made.decide(p) == "clear" for p in scores)
    assert (wrong + 1) / (len(scores) + 1) <= alpha + 1e-9
    higher = [p for p in scores if p > made.clear]
    if higher:  # the next bolder threshold would break the bound
        assert (sum(p < min(higher) for p in scores) + 1) / (len(scores) + 1) > alpha


@pytest.mark.parametrize(("alpha", "count"), [(0.05, 19), (0.1, 9), (0.03, 33), (0.5, 1), (0.07, 14)])
def test_needed_is_the_first_count_with_a_threshold(alpha: float, count: int) -> None:
    assert needed(alpha) == count == math.ceil(round(1 / alpha, 9)) - 1
    assert (allowed(alpha, count - 1), allowed(alpha, count)) == (-1, 0)


def test_thresholds_are_right_by_hand() -> None:
    bleeds, healthy = np.arange(1, 20) / 20, np.arange(19) / 20  # 19 each: alpha 0.1 allows floor(2.0) - 1 = 1 wrong
    made = fit(np.concatenate([bleeds, healthy]), [1] * 19 + [0] * 19, alpha_miss=0.1, alpha_alarm=0.05)
    assert made.clear == 0.1  # one bleed, 0.05, lies below
    assert made.flag == 0.9  # none of 19 lies above
    assert (made.num_bleed, made.num_without) == (19, 19)


def test_set_too_small_for_alpha_clears_nothing_and_says_what_is_needed() -> None:
    made = fit([0.9] * 18 + [0.1] * 40, [1] * 18 + [0] * 40, alpha_miss=0.05, alpha_alarm=0.05)
    assert made.clear is None
    assert made.flag == 0.1
    assert made.outcomes == ["nothing is cleared: alpha 0.05 needs 19 calibration studies with a bleed, found 18"]
    assert made.decide(0.0) == "human first"
    assert made.decide(0.5) == "flag"


def test_set_without_any_study_of_a_class_flags_nothing() -> None:
    made = fit([0.5] * 30, [1] * 30, alpha_miss=0.05, alpha_alarm=0.02)
    assert made.outcomes == ["nothing is flagged: alpha 0.02 needs 49 calibration studies without a bleed, found 0"]
    assert made.decide(1.0) == "human first"


@pytest.mark.parametrize(
    ("p", "said"), [(0.1, "clear"), (0.2, "human first"), (0.5, "human first"), (0.8, "human first"), (0.81, "flag")]
)
def test_decisions_and_ties_with_a_threshold(p: float, said: str) -> None:
    assert triage().decide(p) == said


@pytest.mark.parametrize(("p", "said"), [(0.1, "clear"), (0.5, "human first"), (0.9, "flag")])
def test_crossing_thresholds_leave_what_both_claim_to_a_human(p: float, said: str) -> None:
    assert triage(clear=0.7, flag=0.3).decide(p) == said


@pytest.mark.parametrize("made", [triage(), triage(clear=None), triage(flag=None, num_without=3)])
def test_document_round_trip_is_exact_and_states_the_guarantee(made: Triage) -> None:
    document = json.loads(json.dumps(made.to_document(), allow_nan=False))
    assert Triage.from_document(document) == made
    assert "at most 0.1 of studies with a bleed are cleared" in document["guarantee"]
    assert "exchangeable" in document["guarantee"]
    assert document["outcomes"] == made.outcomes


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"clear": 1.5}, "expected clear from 0 to 1, found 1.5"), ({"alpha_miss": 0}, "alpha: expected above 0 and")],
)
def test_triage_that_makes_no_sense_is_refused(changed: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        triage(**changed)


@pytest.mark.parametrize("document", [{}, {"alpha_miss": 0.1}, {"method": "none"}])
def test_document_that_holds_none_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="triage: expected alphas, counts and two thresholds, found KeyError"):
        Triage.from_document(document)


@pytest.mark.parametrize(
    ("p", "bleed", "message"),
    [
        ([0.5, 0.6], [1], r"expected two \[S\]"),
        ([0.5, 1.6], [1, 0], "expected probabilities from 0 to 1"),
        ([0.5, math.nan], [1, 0], "expected probabilities from 0 to 1"),
        ([0.5, 0.6], [1, -1], "expected a truth of 0 or 1"),
    ],
)
def test_studies_that_make_no_sense_are_refused(p: list[float], bleed: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(p, bleed, alpha_miss=0.1, alpha_alarm=0.1)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_score_that_is_no_probability_is_never_decided(p: float) -> None:
    with pytest.raises(ValueError, match="expected a probability from 0 to 1"):
        triage().decide(p)


def test_coverage_over_patients_is_within_the_bound() -> None:
    p, bleed = studies(160, 3)
    found = coverage(p, bleed, np.arange(160) // 2, alpha_miss=0.1, alpha_alarm=0.1)
    assert found["resamples"] == 100
    assert found["bounded"] == {"miss_rate": True, "alarm_rate": True}
    for name in ("miss_rate", "alarm_rate"):
        assert 0.01 < found[name]["mean"] <= 0.1
        assert found[name]["standard_error"] > 0
    shares = [found[name]["mean"] for name in ("flag", "clear", "human_first")]
    assert sum(shares) == pytest.approx(1)
    assert found["too_small"] == {"clear": 0, "flag": 0}
    json.dumps(found, allow_nan=False)


def test_coverage_never_splits_a_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    p, bleed = studies(40, 1)
    patients = np.arange(40) // 4
    seen: list[set[float]] = []
    honest = conformal.fit

    def watched(p_any: np.ndarray, truth: np.ndarray, **alphas: float) -> Triage:
        seen.append(set(p_any.tolist()))
        return honest(p_any, truth, **alphas)

    monkeypatch.setattr(conformal, "fit", watched)
    coverage(p, bleed, patients, alpha_miss=0.2, alpha_alarm=0.2, resamples=5)
    for calibrates in seen:
        halves = {int(patient): {value in calibrates for value in p[patients == patient]} for patient in set(patients)}
        assert all(len(one) == 1 for one in halves.values())
        assert sum(one == {True} for one in halves.values()) == 5


def test_coverage_counts_resamples_that_are_too_small() -> None:
    p, bleed = studies(20, 0)
    found = coverage(p, bleed, np.arange(20), alpha_miss=0.01, alpha_alarm=0.01, resamples=7)
    assert found["too_small"] == {"clear": 7, "flag": 7}
    assert found["miss_rate"]["mean"] == 0
    assert found["human_first"]["mean"] == 1


def test_coverage_without_any_bleed_is_undefined() -> None:
    found = coverage([0.1, 0.2, 0.3, 0.4], [0] * 4, list("abcd"), alpha_miss=0.4, alpha_alarm=0.4, resamples=3)
    assert found["miss_rate"] == {"mean": None, "standard_error": None, "num_undefined": 3}
    assert found["bounded"]["miss_rate"] is None


def test_coverage_of_one_patient_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a patient for each study and 2 or more, found 1 patients"):
        coverage([0.1, 0.2], [0, 1], ["a", "a"], alpha_miss=0.1, alpha_alarm=0.1)
