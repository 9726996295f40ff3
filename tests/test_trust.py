import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from test_report import make_table

from fastich import calibration, conformal
from fastich.conformal_coverage import coverage
from fastich.intervals import estimate
from fastich.labels import LABELS
from fastich.report.calibration_numbers import calibration_numbers, quality, resampled_ece
from fastich.report.choices import HEAD, Rules, Tables, calibrated, choose, logits, triage_score, truth
from fastich.report.results import LOGIT_COLUMNS, PROBABILITY_COLUMNS
from fastich.report.trust import NO_GUARANTEE, apply, trust
from fastich.study_metrics import study_table


def tables(seed: int, num_studies: int = 40) -> Tables:
    slices = make_table(num_studies, seed)
    return Tables(slices=slices, studies=study_table(slices), decision="largest slice")


def test_what_validation_decides_does_not_depend_on_the_judged_split() -> None:
    validation = tables(1)
    choices = choose(validation, Rules())
    assert choices.slices == calibration.fit(logits(validation.slices), truth(validation.slices), "platt")
    assert choices.thresholds["rule"] == "max-f1"
    assert choices.triage == conformal.fit(
        triage_score(validation.studies),
        validation.studies["any"],
        validation.studies["patient_id"],
        alpha_miss=0.1,
        alpha_alarm=0.2,
    )
    assert choices.triage.num_bleed_patients is not None


def test_calibrated_tables_hold_the_probabilities_of_the_calibration() -> None:
    validation, judged = tables(1), tables(2)
    choices = choose(validation, Rules())
    made = apply(choices, judged)
    np.testing.assert_array_equal(
        made.slices[PROBABILITY_COLUMNS], choices.slices.probability(judged.slices[LOGIT_COLUMNS])
    )
    np.testing.assert_array_equal(
        made.studies[PROBABILITY_COLUMNS], choices.studies.probability(judged.studies[LOGIT_COLUMNS])
    )
    pd.testing.assert_frame_equal(judged.slices, tables(2).slices)  # the input is left as it was


def test_a_study_that_is_its_largest_slice_has_that_slices_probability() -> None:
    """What scoring shows of a model folder without study.onnx is what evaluation judged."""
    validation, judged = tables(1), tables(2)
    made = apply(choose(validation, Rules()), judged)
    largest = made.slices.groupby("study_uid", sort=False)[PROBABILITY_COLUMNS].max()
    np.testing.assert_allclose(made.studies[PROBABILITY_COLUMNS], largest, rtol=1e-9)
    headed = choose(Tables(slices=validation.slices, studies=validation.studies, decision=HEAD), Rules())
    assert headed.studies != headed.slices


def test_coverage_counts_a_study_once_where_validation_is_judged() -> None:
    validation = tables(1)
    choices = choose(validation, Rules())
    same = apply(choices, validation)
    found = trust(same, same, choices, num_resamples=10, seed=0)["triage"]["coverage"]
    once = coverage(
        triage_score(same.studies), same.studies["any"], same.studies["patient_id"], alpha_miss=0.1, alpha_alarm=0.2
    )
    assert found == once


def test_triage_looks_at_the_largest_logit_whatever_calibration_does() -> None:
    studies = tables(1).studies
    score = triage_score(studies)
    np.testing.assert_allclose(np.log(score / (1 - score)), studies[LOGIT_COLUMNS].max(axis=1))
    assert (triage_score(calibrated(studies, calibration.fit(logits(studies), truth(studies), "platt"))) == score).all()


@pytest.fixture(scope="module")
def measured() -> dict[str, object]:
    validation, judged = tables(1), tables(2)
    choices = choose(validation, Rules())
    before, found = (apply(choices, one) for one in (validation, judged))
    return trust(before, found, choices, num_resamples=40, seed=0)


def test_every_figure_is_json_and_finite(measured: dict[str, object]) -> None:
    json.dumps(measured, allow_nan=False)
    assert {"studies", "calibration", "triage", "study_any", "report_intervals"} <= set(measured)


def test_the_study_decision_stands_beside_the_rules_over_slices(measured: dict[str, dict]) -> None:  # type: ignore[type-arg]
    studies = measured["studies"]
    assert set(studies["rules"]) == {"largest slice", "top-k mean", "noisy-or"}
    assert studies["num_studies"] == 40
    found = studies["rules"]["largest slice"]["any"]["auc"]
    assert found["low"] <= found["value"] <= found["high"]
    assert studies["auc"]["any"] == measured["study_any"]["auc"]


def test_shares_of_triage_add_up_and_coverage_is_beside_its_bound(measured: dict[str, dict]) -> None:  # type: ignore[type-arg]
    triage = measured["triage"]
    shares = [triage["judged"][name]["value"] for name in ("flag", "clear", "human_first")]
    assert sum(shares) == pytest.approx(1)
    assert triage["coverage"]["resamples"] == 100
    assert (
        triage["coverage"]["miss_rate"]["mean"]
        <= triage["alpha_miss"] + 3 * triage["coverage"]["miss_rate"]["standard_error"]
    )


def test_calibration_is_better_than_raw_logits_that_are_too_sure() -> None:
    validation, judged = tables(1, 80), tables(2, 80)
    for table in (validation.slices, validation.studies, judged.slices, judged.studies):
        table[LOGIT_COLUMNS] = table[LOGIT_COLUMNS] * 4 + 3
    choices = choose(validation, Rules())
    before, found = (apply(choices, one) for one in (validation, judged))
    ece = trust(before, found, choices, num_resamples=20, seed=0)["calibration"]["slices"]
    assert ece["judged"]["calibrated"]["ece"]["any"]["value"] < ece["judged"]["raw"]["ece"]["any"]["value"] / 2
    assert ece["cross_fitted"]["ece"]["any"]["value"] < ece["judged"]["raw"]["ece"]["any"]["value"] / 2


def test_resampled_ece_of_everyone_once_is_the_ece() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(300)
    real = rng.random(300) < p**2
    of_slice = np.arange(300) // 10
    found = resampled_ece(real, p, of_slice, np.ones((1, 30)))
    assert found[0] == pytest.approx(calibration.expected_calibration_error(real, p))


def test_labels_without_positives_do_not_count_in_the_mean() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 6)) < 0.3).astype(np.int8)
    labels[:, 0] = 0
    p = np.full((200, 6), 0.3)
    patients = np.repeat([f"p{i}" for i in range(20)], 10)
    found = quality(labels, p, patients, num_resamples=20, seed=0)["ece"]
    assert found["macro"]["value"] == pytest.approx(np.mean([found[label]["value"] for label in LABELS[1:]]))
    none = quality(np.zeros((200, 6), np.int8), p, patients, num_resamples=20, seed=0)
    assert none["ece"]["macro"] == estimate(None, undefined="undefined: no positives")


def test_each_patient_counts_once_in_what_triage_did_to_the_judged_studies() -> None:
    validation, judged = tables(1), tables(2)
    choices = choose(validation, Rules())
    bleeding = judged.studies["any"] == 1
    one = judged.studies[bleeding].index[triage_score(judged.studies[bleeding]).argmin()]
    low = judged.studies.loc[[one] * 30].assign(study_uid=[f"again{i}" for i in range(30)])
    more = Tables(
        slices=judged.slices, studies=pd.concat([judged.studies, low], ignore_index=True), decision=judged.decision
    )
    clear = float(triage_score(low)[0]) + 1e-9
    bold = dataclasses.replace(choices, triage=dataclasses.replace(choices.triage, clear=clear, flag=None))
    for found in (judged, more):
        did = trust(validation, apply(bold, found), bold, num_resamples=10, seed=0)["triage"]["judged"]
        assert did["miss_rate"]["value"] == pytest.approx(1 / bleeding.sum())  # one patient of them, however often seen


def test_nothing_is_claimed_of_an_ensembles_coverage_and_the_report_says_so() -> None:
    """Validation is of single networks, the judged split of their mean: pooled they say nothing of either."""
    validation, judged = tables(1), tables(2)
    choices = choose(validation, Rules())
    before, found = (apply(choices, one) for one in (validation, judged))
    both = [trust(before, found, choices, num_resamples=10, seed=0, is_ensemble=one) for one in (False, True)]
    single, ensemble = (one["triage"] for one in both)
    assert single["guarantee"] == choices.triage.guarantee
    assert (ensemble["guarantee"], ensemble["coverage"]) == (NO_GUARANTEE, None)
    assert ensemble["judged"] == single["judged"]  # what was seen is still told


def test_coverage_of_few_calibration_studies_is_not_called_met() -> None:
    validation, judged = tables(1, 4), tables(2, 3)
    choices = choose(validation, Rules(alpha_miss=0.05))
    before, found = (apply(choices, one) for one in (validation, judged))
    held = trust(before, found, choices, num_resamples=10, seed=0)["triage"]["coverage"]
    assert held["bounded"]["miss_rate"] is None
    assert "alpha 0.05 needs 19 calibrating patients with a bleed" in held["told"]["miss_rate"]


def test_labels_that_cross_fitting_cannot_calibrate_are_named() -> None:
    validation, judged = tables(1), tables(2)
    first = (
        validation.slices["patient_id"]
        == validation.slices.loc[validation.slices["epidural"] == 1, "patient_id"].iloc[0]
    )
    validation.slices.loc[~first, "epidural"] = 0
    choices = choose(validation, Rules())
    assert "epidural" not in choices.slices.uncalibrated
    numbers = calibration_numbers(validation.slices, judged.slices, choices.slices, num_resamples=10, seed=0)
    assert numbers["cross_fitted"]["folds"] == 5
    said = numbers["cross_fitted"]["unfitted"]["epidural"]
    assert said == "not calibrated in 1 of 5 folds, undefined: no positives"
