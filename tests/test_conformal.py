import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastich.conformal import Triage, allowed, fit, needed, study_score
from fastich.conformal_coverage import rates


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
    assert allowed(alpha, count - 1) < 0 <= allowed(alpha, count)


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


BY_PATIENT = {"num_bleed_patients": 12, "num_without_patients": 11}


@pytest.mark.parametrize("made", [triage(), triage(clear=None), triage(flag=None, num_without=3), triage(**BY_PATIENT)])
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


def of_patients(num_patients: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p(any), truth and patient of studies: one in ten patients has twenty, whose scores are high and alike."""
    rng = np.random.default_rng(seed)
    sizes = np.where(rng.random(num_patients) < 0.1, 20, 1)
    patient = np.repeat(np.arange(num_patients), sizes)
    own = np.where(sizes == 20, 4.0, 1.0) + rng.normal(size=num_patients)
    return 1 / (1 + np.exp(-(own[patient] + 0.1 * rng.normal(size=len(patient))))), np.ones(len(patient), int), patient


def test_patients_of_many_studies_count_once_so_the_risk_of_a_new_patient_is_bounded() -> None:
    """The bound holds on average over patients, the unit that is exchangeable, however many studies they have."""
    risks = {"by patient": [], "by study": []}
    for seed in range(400):
        p, bleed, patient = of_patients(40, seed)
        fresh = of_patients(60, seed + 10_000)
        for name, patients in (("by patient", patient), ("by study", None)):
            made = fit(p, bleed, patients, alpha_miss=0.1, alpha_alarm=0.1)
            risks[name].append(rates(made, *fresh)["miss_rate"])
    mean = {name: np.mean(np.array(values, dtype=float)) for name, values in risks.items()}
    assert 0.05 <= mean["by patient"] <= 0.1 + 3 * np.std(risks["by patient"]) / 20
    assert mean["by study"] > 0.2  # the many easy studies of a few patients pay for misses of all the others


def test_a_patients_loss_is_the_share_of_their_studies_by_hand() -> None:
    # Of 9 patients alpha 0.15 lets losses add up to 0.5: the two lowest of a patient's four studies, not the third.
    p = [0.01, 0.02, 0.03, 0.5, *np.linspace(0.6, 0.9, 8)]
    patients = ["a"] * 4 + list("bcdefghi")
    made = fit(p, [1] * 12, patients, alpha_miss=0.15, alpha_alarm=0.15)
    assert made.clear == 0.03
    assert rates(made, p, [1] * 12, patients)["miss_rate"] == pytest.approx(0.5 / 9)
    assert (made.num_bleed, made.num_bleed_patients) == (12, 9)
    assert (made.num_without, made.num_without_patients) == (0, 0)


def test_studies_of_few_patients_are_too_few_however_many_they_are() -> None:
    made = fit([0.9] * 40, [1] * 40, ["a", "b", "c", "d"] * 10, alpha_miss=0.1, alpha_alarm=0.4)
    assert made.outcomes[0] == "nothing is cleared: alpha 0.1 needs 9 calibration patients with a bleed, found 4"
    assert made.decide(0.0) == "human first"


def test_one_study_a_patient_gives_the_thresholds_of_studies() -> None:
    p, bleed = studies(150, 4)
    plain, by_patient = (fit(p, bleed, of, alpha_miss=0.1, alpha_alarm=0.2) for of in (None, np.arange(150)))
    assert (plain.clear, plain.flag) == (by_patient.clear, by_patient.flag)
    assert "one study a patient" in plain.guarantee
    assert "each patient counting once, if new patients are exchangeable" in by_patient.guarantee
    assert all("whole" in made.guarantee for made in (plain, by_patient))


def test_document_from_before_patients_were_counted_is_read_as_one_of_studies() -> None:
    document = {name: value for name, value in triage(**BY_PATIENT).to_document().items() if name not in BY_PATIENT}
    assert Triage.from_document(document) == triage()
    assert BY_PATIENT.keys().isdisjoint(triage().to_document())


def test_patients_that_do_not_fit_the_studies_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a patient for each of 2 studies, found 3"):
        fit([0.1, 0.2], [0, 1], list("abc"), alpha_miss=0.1, alpha_alarm=0.1)
