import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LogisticRegression

from fastich.calibration import (
    METHODS,
    NONE,
    Calibration,
    LabelCalibration,
    before_and_after,
    brier,
    constants,
    cross_fitted,
    expected_calibration_error,
    fit,
    group_folds,
    reliability,
)
from fastich.calibration_fit import logistic_regression, smoothed_targets
from fastich.labels import ANY, LABELS

FITTED = METHODS[1:]


def honest(num_rows: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose sigmoid is the probability that the label is 1."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(-1, 2, (num_rows, 6))
    return logit, (rng.random(logit.shape) < 1 / (1 + np.exp(-logit))).astype(np.int64)


labelled = st.integers(2, 30).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, (n, 6), elements=st.floats(-40, 40, width=32)),
        arrays(np.int64, (n, 6), elements=st.integers(-1, 1)),
    )
)


@given(labelled, st.sampled_from(METHODS))
def test_every_fit_is_a_rising_map_into_zero_to_one(case: tuple[np.ndarray, np.ndarray], method: str) -> None:
    calibration = fit(*case, method)
    logit = np.repeat(np.sort(np.concatenate([np.linspace(-60, 60, 50), *case[0].T]))[:, None], 6, axis=1)
    probability = calibration.probability(logit)
    assert probability.dtype == np.float64
    assert (probability >= 0).all()
    assert (probability <= 1).all()
    assert (np.diff(probability, axis=0) >= 0).all()


@given(labelled, st.sampled_from(METHODS))
def test_document_round_trip_is_exact(case: tuple[np.ndarray, np.ndarray], method: str) -> None:
    calibration = fit(*case, method)
    again = Calibration.from_document(json.loads(json.dumps(calibration.to_document(), allow_nan=False)))
    assert again == calibration
    np.testing.assert_array_equal(again.probability(case[0]), calibration.probability(case[0]))


@given(labelled, st.sampled_from(FITTED))
def test_constants_are_what_float32_holds(case: tuple[np.ndarray, np.ndarray], method: str) -> None:
    for one in fit(*case, method).of_label:
        for value in (one.scale, one.bias, *np.ravel(one.knots)):
            assert float(np.float32(value)) == value


@given(labelled, st.sampled_from(("temperature", "platt")))
def test_sigmoid_fits_keep_the_ranking(case: tuple[np.ndarray, np.ndarray], method: str) -> None:
    for one in fit(*case, method).of_label:
        assert one.scale > 0


@pytest.mark.parametrize(("method", "tolerance"), [("temperature", 0.02), ("platt", 0.02), ("isotonic", 0.06)])
def test_fit_on_calibrated_logits_is_nearly_the_identity(method: str, tolerance: float) -> None:
    calibration = fit(*honest(), method)
    between = np.repeat(np.linspace(-4, 3, 50)[:, None], 6, axis=1)
    np.testing.assert_allclose(calibration.probability(between), NONE.probability(between), atol=tolerance)


@pytest.mark.parametrize("method", FITTED)
def test_overconfident_logits_are_put_right(method: str) -> None:
    logit, labels = honest()
    shifted = logit if method == "temperature" else logit + 0.5
    calibration = fit(3 * shifted, labels, method)
    fresh, truth = honest(seed=1)
    fresh_logit = 3 * (fresh if method == "temperature" else fresh + 0.5)
    for i in range(ANY):  # any is raised to the largest of five unrelated labels here
        before = expected_calibration_error(truth[:, i], NONE.probability(fresh_logit)[:, i])
        assert before > 0.05
        assert expected_calibration_error(truth[:, i], calibration.probability(fresh_logit)[:, i]) < 0.02


def test_platt_and_temperature_recover_what_was_done_to_the_logits() -> None:
    logit, labels = honest()
    platt = fit((logit - 1) * 2, labels, "platt").of_label
    assert [one.scale for one in platt] == pytest.approx([0.5] * 6, rel=0.05)
    assert [one.bias for one in platt] == pytest.approx([1.0] * 6, rel=0.08)
    temperature = fit(logit * 4, labels, "temperature").of_label
    assert [one.scale for one in temperature] == pytest.approx([0.25] * 6, rel=0.05)
    assert {one.bias for one in temperature} == {0.0}


def test_newton_equals_scikit_learn_on_hard_targets() -> None:
    logit, labels = honest(500)
    design = np.stack([logit[:, 0], np.ones(500)], axis=1)
    wanted = LogisticRegression(C=np.inf, tol=1e-10).fit(logit[:, :1], labels[:, 0])
    found = logistic_regression(design, labels[:, 0].astype(float))
    assert found == pytest.approx([wanted.coef_[0, 0], wanted.intercept_[0]], abs=1e-4)


def test_separable_and_few_positives_stay_finite_by_platts_targets() -> None:
    assert smoothed_targets(2, 8) == (3 / 4, 1 / 10)
    logit = np.repeat(np.concatenate([np.full(98, -5.0), [4.0, 5.0]])[:, None], 6, axis=1)
    labels = (logit > 0).astype(int)
    highest = {method: fit(logit, labels, method).probability(logit).max() for method in FITTED}
    assert highest["isotonic"] == pytest.approx(3 / 4)
    assert highest["platt"] == pytest.approx(3 / 4, abs=0.06)
    assert 0.9 < highest["temperature"] < 0.99  # its one constant follows the 98 negatives


@pytest.mark.parametrize("method", FITTED)
def test_label_without_positives_or_negatives_stays_uncalibrated_and_is_named(method: str) -> None:
    logit, labels = honest(300)
    labels[:, 0], labels[:, 3] = 0, 1
    calibration = fit(3 * logit, labels, method)
    assert calibration.uncalibrated == {
        "epidural": "undefined: no positives",
        "subarachnoid": "undefined: no negatives",
    }
    document = calibration.to_document()
    assert document["uncalibrated"] == calibration.uncalibrated
    assert document["labels"]["epidural"]["method"] == "none"
    assert document["labels"]["any"]["method"] == document["method"] == method
    np.testing.assert_array_equal(calibration.probability(logit)[:, 0], NONE.probability(logit)[:, 0])


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("platt", "refused: expected a slope above 0, found -"),
        ("temperature", "refused: expected a slope above 0, found -"),
        ("isotonic", "refused: the isotonic fit does not rise with the logit"),
    ],
)
def test_fit_that_would_turn_the_ranking_round_is_refused_and_recorded(method: str, message: str) -> None:
    logit, labels = honest(2000)
    logit[:, 2], labels[:, 2] = np.linspace(-5, 5, 2000), np.arange(2000) < 1000
    calibration = fit(logit, labels, method)
    assert list(calibration.uncalibrated) == ["intraventricular"]
    assert calibration.uncalibrated["intraventricular"].startswith(message)
    assert calibration.of_label[2].scale == 1


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_logits_that_are_all_equal_are_not_calibrated(method: str) -> None:
    _, labels = honest(100)
    assert set(fit(np.zeros((100, 6)), labels, method).uncalibrated) == set(LABELS)


def test_unknown_labels_are_left_out_label_by_label() -> None:
    logit, labels = honest(2000)
    blanked = labels.copy()
    blanked[1000:, 4] = -1
    whole, part = fit(logit[:1000], labels[:1000], "platt"), fit(logit, blanked, "platt")
    assert part.of_label[4] == whole.of_label[4]
    assert part.of_label[4].num_positive + part.of_label[4].num_negative == 1000
    assert part.of_label[3].num_positive + part.of_label[3].num_negative == 2000


def test_any_is_at_least_the_largest_subtype() -> None:
    logit, labels = honest(2000)
    probability = fit(logit, labels, "platt").probability(logit)
    assert (probability[:, ANY] >= probability[:, :ANY].max(axis=1)).all()
    assert (probability[:, ANY] == probability[:, :ANY].max(axis=1)).any()


def test_none_is_the_sigmoid_and_its_document_that_of_an_uncalibrated_model() -> None:
    logit, labels = honest(50)
    assert fit(logit, labels, "none") == NONE == Calibration.from_document({"method": "none"})
    assert NONE.to_document() == {"method": "none"}
    np.testing.assert_allclose(NONE.probability(logit)[:, :ANY], 1 / (1 + np.exp(-logit[:, :ANY])))


def test_document_keeps_what_others_wrote_beside_it_out_of_the_way() -> None:
    calibration = fit(*honest(200), "platt")
    document = calibration.to_document() | {"dataset_sha256": "ab", "split": "val"}
    assert Calibration.from_document(document) == calibration


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "expected a document of a method and six labels, found KeyError 'method'"),
        ({"method": "platt"}, "found KeyError 'labels'"),
        ({"method": "platt", "labels": {}}, "found KeyError 'epidural'"),
        ({"method": "platt", "labels": None}, "found TypeError"),
    ],
)
def test_document_that_holds_none_is_refused(document: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Calibration.from_document(document)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "histogram"}, "expected a method of none, temperature, platt, isotonic, found 'histogram'"),
        ({"scale": 0.0}, "expected scale > 0"),
        ({"scale": -1.0}, "expected scale > 0"),
        ({"scale": math.nan}, "expected scale > 0"),
        ({"bias": math.inf}, "a finite bias"),
        ({"method": "isotonic"}, "expected knots of isotonic only, found 0 of isotonic"),
        ({"method": "platt", "knots": ((0.0, 0.5),)}, "expected knots of isotonic only, found 1 of platt"),
        ({"method": "isotonic", "knots": ((1.0, 0.1), (1.0, 0.5))}, "rising in logit"),
        ({"method": "isotonic", "knots": ((1.0, 0.6), (2.0, 0.5))}, "never falling in probability"),
        ({"method": "isotonic", "knots": ((1.0, 0.6), (2.0, 1.5))}, "expected probabilities of knots from 0 to 1"),
    ],
)
def test_map_that_does_not_rise_into_zero_to_one_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelCalibration(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("logit", "labels", "message"),
    [
        (np.zeros((3, 5)), np.zeros((3, 5)), r"expected two \[N, 6\]"),
        (np.zeros((0, 6)), np.zeros((0, 6)), "N > 0"),
        (np.full((3, 6), np.nan), np.zeros((3, 6)), "not finite"),
        (np.zeros((3, 6)), np.full((3, 6), 2), r"expected 0, 1 or -1 \(unknown\)"),
    ],
)
def test_input_that_has_no_meaning_is_refused(logit: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(logit, labels, "platt")


def test_unknown_method_and_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a method of none, temperature, platt, isotonic, found 'beta'"):
        fit(*honest(10), "beta")
    with pytest.raises(ValueError, match="expected a method of none"):
        Calibration(method="beta")
    with pytest.raises(ValueError, match="expected 6 labels, found 1"):
        Calibration(of_label=(LabelCalibration(),))
    with pytest.raises(ValueError, match=r"logit: expected \[N, 6\], found \[4\]"):
        NONE.probability(np.zeros(4))


def test_constants_of_a_graph_fill_tables_of_knots_up_beyond_every_logit() -> None:
    short, long = (((0.0, 0.1), (1.0, 0.9)), ((-2.0, 0.0), (0.0, 0.5), (3.0, 0.8)))
    of_label = tuple(LabelCalibration(method="isotonic", knots=knots) for knots in (short, long))
    found = constants(Calibration(method="isotonic", of_label=(*of_label, *NONE.of_label[:4])))
    assert found["calibration_knots"][:, 0].tolist() == [0, 1, np.float32(3e38), np.float32(3e38)]
    assert found["calibration_values"][:, 1].tolist() == pytest.approx([0, 0.5, 0.8, 0.8])
    assert found["calibration_piecewise"].tolist() == [True, True, False, False, False, False]
    assert set(constants(NONE)) == {"calibration_scale", "calibration_bias"}


def test_cross_fitted_probability_never_comes_from_the_rows_own_patient() -> None:
    logit, labels = honest(400)
    patients = np.arange(400) // 8
    fold = group_folds(patients, labels, 5, seed=1)
    turned = labels.copy()
    turned[patients == 7] = labels[patients == 7][::-1]  # the same labels a patient, so the same folds
    before, after = (cross_fitted(3 * logit, one, patients, "platt", seed=1).probability for one in (labels, turned))
    np.testing.assert_array_equal(before[fold == fold[7 * 8]], after[fold == fold[7 * 8]])
    others = fold != fold[7 * 8]
    assert (before[others] != after[others]).all(axis=0).any()


def test_folds_hold_whole_patients_and_spread_the_rarest_label() -> None:
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 5)
    labels = (rng.random((300, 6)) < 0.2).astype(np.int64)
    labels[:, 0] = np.isin(patients, [3, 11, 20, 41, 59])
    fold = group_folds(patients, labels, 5, 0)
    assert all(len(set(fold[patients == one])) == 1 for one in range(60))
    assert sorted(set(fold[labels[:, 0] == 1])) == [0, 1, 2, 3, 4]
    assert np.bincount(fold).max() <= 1.5 * np.bincount(fold).min()
    np.testing.assert_array_equal(fold, group_folds(patients, labels, 5, 0))


@pytest.mark.parametrize("method", FITTED)
def test_cross_fitted_calibration_of_overconfident_logits_is_calibrated(method: str) -> None:
    logit, labels = honest(4000)
    found = cross_fitted(3 * logit, labels, np.arange(4000) // 10, method).probability
    errors = [expected_calibration_error(labels[:, i], found[:, i]) for i in range(ANY)]
    assert max(errors) < 0.03


@given(
    arrays(np.int64, st.tuples(st.integers(2, 40), st.just(6)), elements=st.sampled_from([0, 1, -1])),
    st.integers(2, 5),
    st.integers(1, 4),
)
def test_no_fold_is_empty_and_each_has_its_share_of_the_rarest_label(labels: np.ndarray, folds: int, size: int) -> None:
    """Whatever each patient has: before, five patients with a subtype each all went to fold 0."""
    assume(folds <= len(labels))
    fold = group_folds(np.repeat(np.arange(len(labels)), size), np.repeat(labels, size, axis=0), folds, seed=0)[::size]
    assert sorted(set(fold)) == list(range(folds))
    carriers = (labels == 1).sum(axis=0)
    rarest = min(range(6), key=lambda column: carriers[column])
    shares = np.bincount(fold[labels[:, rarest] == 1], minlength=folds)
    assert shares.max() - shares.min() <= 1


def test_patients_with_a_subtype_each_are_a_fold_each() -> None:
    labels = np.concatenate([np.eye(5, dtype=np.int64), np.ones((5, 1), dtype=np.int64)], axis=1)
    fold = group_folds(np.repeat(np.arange(5), 3), np.repeat(labels, 3, axis=0), 5, seed=0)
    assert sorted(fold[::3]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("folds", "patients"), [(1, 5), (6, 5), (2, 1)])
def test_too_few_patients_or_folds_are_refused(folds: int, patients: int) -> None:
    logit, labels = honest(20)
    wanted = rf"expected 2 or more folds and a patient for each, found {folds} folds and {patients} patients"
    with pytest.raises(ValueError, match=wanted):
        cross_fitted(logit, labels, np.arange(20) % patients, "platt", folds=folds)


def test_label_that_a_part_of_the_patients_cannot_calibrate_is_named_with_its_folds() -> None:
    logit, labels = honest(400)
    patients = np.arange(400) // 20
    labels[patients != 3, 0] = 0  # of one patient, so the others have none when it is held out
    labels[:, 1] = 0  # nobody's: no calibration at all, which is said elsewhere
    found = cross_fitted(logit, labels, patients, "platt", folds=4)
    assert found.unfitted == {"epidural": "not calibrated in 1 of 4 folds, undefined: no positives"}
    fold = group_folds(patients, labels, 4, seed=0)
    held = fold == fold[patients == 3][0]
    np.testing.assert_allclose(found.probability[held, 0], 1 / (1 + np.exp(-logit[held, 0])))
    assert cross_fitted(logit, labels, patients, "none", folds=4).unfitted == {}


def test_ece_and_brier_are_right_by_hand() -> None:
    truth, p = [0, 0, 1, 1], [0.1, 0.3, 0.6, 0.8]
    found = reliability(truth, p, bins=2)
    assert [(one.count, one.mean_probability, one.observed) for one in found] == [
        (2, pytest.approx(0.2), 0),
        (2, pytest.approx(0.7), 1),
    ]
    assert expected_calibration_error(truth, p, bins=2) == pytest.approx((2 * 0.2 + 2 * 0.3) / 4)
    assert brier(truth, p) == pytest.approx((0.01 + 0.09 + 0.16 + 0.04) / 4)


def test_equal_probabilities_share_a_bin_whatever_their_order() -> None:
    p, truth = np.full(30, 0.5), np.arange(30) % 2
    assert expected_calibration_error(truth, p) == 0
    assert expected_calibration_error(np.sort(truth), p) == 0
    assert len(reliability(truth, p)) == 1


@given(arrays(np.float64, 40, elements=st.floats(0, 1)), st.randoms(use_true_random=False))
def test_ece_is_between_zero_and_one_and_blind_to_order(p: np.ndarray, random: object) -> None:
    truth = np.arange(40) % 3 == 0
    assume(len(set(p)) > 1)
    order = np.random.default_rng(0).permutation(40)
    value = expected_calibration_error(truth, p)
    assert 0 <= value <= 1
    assert expected_calibration_error(truth[order], p[order]) == pytest.approx(value)
    assert sum(one.count for one in reliability(truth, p)) == 40


def test_bins_hold_nearly_equal_counts() -> None:
    logit, labels = honest(1000)
    counts = [one.count for one in reliability(labels[:, 0], NONE.probability(logit)[:, 0], bins=15)]
    assert len(counts) == 15
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("truth", "p"), [([], []), ([1], [0.1, 0.2]), ([[1]], [[0.1]])])
def test_reliability_of_nothing_is_refused(truth: list[int], p: list[float]) -> None:
    with pytest.raises(ValueError, match=r"reliability: expected two \[N\] with N > 0"):
        reliability(truth, p)


def test_before_and_after_is_json_and_leaves_unknown_labels_out() -> None:
    logit, labels = honest(600)
    labels[:, 0] = -1
    labels[:100, 1] = -1
    before = NONE.probability(3 * logit)
    found = before_and_after(labels, before, cross_fitted(3 * logit, labels, np.arange(600), "platt").probability)
    json.dumps(found, allow_nan=False)
    assert found["epidural"] == {"num_positive": 0, "num_negative": 0, "before": None, "after": None}
    row = found["intraparenchymal"]
    assert row["num_positive"] + row["num_negative"] == 500
    assert row["after"]["ece"] < row["before"]["ece"]
    assert row["after"]["brier"] < row["before"]["brier"]
    assert len(row["after"]["bins"]) == 15


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize("step", [1e-41, 1e-12, 1e-7])
def test_logits_that_differ_by_less_than_float32_sums_tell_are_not_calibrated(method: str, step: float) -> None:
    logit = np.zeros((40, 6))
    logit[20:] = step
    assert set(fit(logit, logit > 0, method).uncalibrated) == set(LABELS)


def test_knots_are_a_millionth_apart_or_more() -> None:
    logit = np.cumsum(np.full((200, 6), 3e-7), axis=0)
    labels = np.arange(200)[:, None] > np.full((200, 6), 100)
    for one in fit(logit, labels, "isotonic").of_label:
        assert np.diff(np.array(one.knots)[:, 0]).min() >= 9e-7
