import math

import numpy as np
import pytest
from sklearn import metrics as sk

from fastich import metrics
from fastich.labels import ANY, LABELS
from fastich.resampling import Resampling


def made_up(num_slices: int = 600, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and patients: 12 slices a patient, a shift in the scores of each patient."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((num_slices, 6), dtype=np.int8)
    truth[:, :ANY] = rng.random((num_slices, ANY)) < 0.12
    truth[:, ANY] = truth[:, :ANY].max(axis=1)
    patients = np.arange(num_slices) // 12
    shift = rng.normal(size=patients.max() + 1)[patients, None]
    scores = 1 / (1 + np.exp(-(rng.normal(size=truth.shape) + shift + 2.5 * truth - 2)))
    return truth, np.round(scores, 1) if ties else scores, patients


def six(column: list[float]) -> np.ndarray:
    return np.tile(np.array(column)[:, None], (1, 6))


def test_auc_and_average_precision_are_right_by_hand() -> None:
    truth, scores = six([1, 0, 1, 0]), six([0.9, 0.8, 0.7, 0.1])
    assert metrics.roc_auc(truth, scores)["any"] == pytest.approx(3 / 4)  # 3 of 4 pairs are in order
    assert metrics.average_precision(truth, scores)["any"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert metrics.roc_auc(truth, six([0.5] * 4))["macro"] == pytest.approx(0.5)


def test_label_with_one_class_is_none_and_left_out_of_macro() -> None:
    truth, scores, _ = made_up()
    truth[:, 0], truth[:, 1] = 0, 1
    for values in (metrics.roc_auc(truth, scores), metrics.average_precision(truth, scores)):
        assert values["epidural"] is None
        assert values["intraparenchymal"] is None
        assert values["macro"] == pytest.approx(np.mean([values[label] for label in LABELS[2:]]))
    assert metrics.roc_auc(np.zeros((3, 6)), scores[:3])["macro"] is None


def test_challenge_metric_equals_its_definition_literally() -> None:
    truth, scores, _ = made_up(50)
    scores[0, :], scores[1, :] = 0.0, 1.0
    total = 0.0
    for row in range(50):
        for label, weight in zip(range(6), (1, 1, 1, 1, 1, 2), strict=True):
            p = min(max(scores[row, label], 1e-15), 1 - 1e-15)
            total += weight * -(math.log(p) if truth[row, label] else math.log(1 - p)) / 7
    assert metrics.log_loss_weighted(truth, scores) == pytest.approx(total / 50, rel=1e-9)
    assert metrics.log_loss_weighted([[0] * 6], [[1.0] * 6]) == pytest.approx(-math.log(1e-15), rel=1e-2)
    assert metrics.log_loss_weighted([[0, 0, 0, 0, 0, 1]], [[0.0] * 5 + [0.5]]) == pytest.approx(2 * math.log(2) / 7)


def test_operating_points_count_by_hand() -> None:
    point = metrics.operating_points(six([1, 1, 1, 0, 0]), six([0.9, 0.5, 0.1, 0.6, 0.2]), 0.5)["subdural"]
    assert [point[name] for name in ("tp", "fp", "fn", "tn")] == [2, 1, 1, 1]
    assert (point["sensitivity"], point["specificity"], point["ppv"], point["npv"]) == (2 / 3, 1 / 2, 2 / 3, 1 / 2)
    none = metrics.operating_points(six([0, 0]), six([0.1, 0.2]), 0.5)["any"]
    assert none["sensitivity"] is None
    assert none["ppv"] is None


def test_intervals_hold_the_estimate_and_shrink_with_more_patients() -> None:
    widths = []
    for num_slices in (480, 4800):
        truth, scores, patients = made_up(num_slices)
        found = metrics.bootstrap_intervals(truth, scores, Resampling.of(patients, num_resamples=400))
        points = {"auc": metrics.roc_auc(truth, scores), "average_precision": metrics.average_precision(truth, scores)}
        for name, values in points.items():
            for label in LABELS:
                interval = found[name][label]
                assert interval is not None
                assert interval.low < values[label] < interval.high
        loss = found["log_loss"]["all"]
        assert loss is not None
        assert loss.low < metrics.log_loss_weighted(truth, scores) < loss.high
        widths.append([found["auc"][label].high - found["auc"][label].low for label in LABELS])  # type: ignore[union-attr]
    assert (np.array(widths[1]) < 0.6 * np.array(widths[0])).all()


def test_intervals_resample_patients_not_slices() -> None:
    truth, scores, patients = made_up(600)
    by_patient = metrics.bootstrap_intervals(truth, scores, Resampling.of(patients, num_resamples=300))["log_loss"][
        "all"
    ]
    by_slice = metrics.bootstrap_intervals(truth, scores, Resampling.of(np.arange(600), num_resamples=300))["log_loss"][
        "all"
    ]
    assert by_patient is not None
    assert by_slice is not None
    assert by_patient.high - by_patient.low > 1.3 * (by_slice.high - by_slice.low)


def test_equal_seeds_give_equal_intervals() -> None:
    truth, scores, patients = made_up(120)
    runs = [
        metrics.bootstrap_intervals(truth, scores, Resampling.of(patients, num_resamples=50, seed=s)) for s in (1, 1, 2)
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_undefined_resamples_are_skipped_and_counted() -> None:
    truth, scores, patients = made_up(60)
    truth[:, 0] = 0
    truth[:12, 0] = [1, 0] * 6  # one of five patients: absent from (4/5)^5 = 33 % of the resamples
    truth[:, 1] = 0
    found = metrics.bootstrap_intervals(truth, scores, Resampling.of(patients, num_resamples=500))["auc"]
    assert 0.25 < found["epidural"].num_undefined / 500 < 0.41
    assert (found["epidural"].low, found["epidural"].note) == (None, "no interval: one patient")
    assert (found["intraparenchymal"].low, found["intraparenchymal"].num_undefined) == (None, 500)


def test_figures_count_the_patients_of_their_own_denominator() -> None:
    """Of 20 patients one has an epidural, and in all of his slices; five have slices without `any`."""
    truth, scores, patients = made_up(240)
    truth[:] = 0
    truth[:12, 0] = 1
    truth[60:, 5] = 1
    found = metrics.bootstrap_intervals(truth, scores, Resampling.of(patients, num_resamples=50))
    units = {name: found[name]["epidural"].num_units for name in found}
    assert units == {"log_loss": 20, "auc": 1, "average_precision": 1, "sensitivity": 1, "specificity": 19}
    assert found["specificity"]["any"].note == found["auc"]["any"].note == "no interval: 5 patients, fewer than 6"
    assert found["sensitivity"]["any"].note == "few patients: 15"
    assert found["auc"]["macro"].note == "no interval: one patient (epidural)"
    for lone in (found["auc"]["epidural"], found["average_precision"]["epidural"], found["sensitivity"]["epidural"]):
        assert (lone.low, lone.note) == (None, "no interval: one patient")


def test_classes_wholly_apart_have_the_exact_interval_of_pairs_of_patients() -> None:
    """Nine patients of two slices, four of them with bleeds in both: four pairs without a patient in common."""
    patients = np.arange(18) // 2
    truth = six(list((np.arange(18) < 8).astype(float)))
    draws = Resampling.of(patients, num_resamples=100)
    for scores, wanted in ((truth * 0.9, (0.025**0.25, 1.0)), (0.9 - truth * 0.9, (0.0, 1 - 0.025**0.25))):
        found = metrics.bootstrap_intervals(truth, scores, draws)
        assert (found["auc"]["any"].low, found["auc"]["any"].high) == pytest.approx(wanted)
        assert found["auc"]["any"].exact
        assert found["average_precision"]["any"].low is None
    mixed = six([1, 0] * 9)  # each patient has both kinds: nine patients make four pairs
    assert metrics.bootstrap_intervals(mixed, mixed, draws)["auc"]["any"].low == pytest.approx(0.025**0.25)


def test_sensitivity_intervals_are_at_the_given_thresholds() -> None:
    truth, scores, patients = made_up()
    found = metrics.bootstrap_intervals(
        truth, scores, Resampling.of(patients, num_resamples=100), thresholds=np.full(6, 0.9)
    )
    point = metrics.operating_points(truth, scores, 0.9)["any"]
    for name in ("sensitivity", "specificity"):
        interval = found[name]["any"]
        assert interval is not None
        assert interval.low <= point[name] <= interval.high
        assert interval.high - interval.low < 0.3


def test_where_all_or_none_are_found_the_interval_is_exact_over_patients() -> None:
    """Five patients of two slices, one positive each; all found: 0.025 ** (1 / 5) = 0.478 to 1."""
    truth, patients = six([1, 0] * 5), np.arange(10) // 2
    found = metrics.bootstrap_intervals(truth, six([0.9, 0.6] * 5), Resampling.of(patients, num_resamples=50))
    assert (found["sensitivity"]["any"].low, found["sensitivity"]["any"].high) == (pytest.approx(0.4782, abs=1e-4), 1.0)
    assert (found["specificity"]["any"].low, found["specificity"]["any"].high) == (0.0, pytest.approx(0.5218, abs=1e-4))


def test_slice_summary_gives_what_an_epoch_logs() -> None:
    truth, scores, _ = made_up()
    truth[:, 0] = 0
    summary = metrics.slice_summary(truth.astype(np.float32), scores.astype(np.float32))
    said = scores.astype(np.float32) >= 0.5
    assert summary["precision"]["any"] == pytest.approx(sk.precision_score(truth[:, ANY], said[:, ANY]))
    assert summary["recall"]["any"] == pytest.approx(sk.recall_score(truth[:, ANY], said[:, ANY]))
    assert summary["auc"]["any"] == pytest.approx(sk.roc_auc_score(truth[:, ANY], scores[:, ANY]), abs=1e-5)
    assert [summary[name]["epidural"] for name in ("precision", "recall", "auc")] == [None] * 3
    assert summary["recall"]["macro"] == pytest.approx(np.mean([summary["recall"][label] for label in LABELS[1:]]))
    assert metrics.slice_summary(truth, np.zeros((600, 6)))["precision"]["any"] == 0.0


def test_roc_points_start_with_nothing_called_and_leave_undefined_labels_out() -> None:
    truth, scores, _ = made_up()
    truth[:, 2] = 1
    curves = metrics.roc_points(truth, scores)
    assert "intraventricular" not in curves
    threshold, fpr, tpr = curves["any"]
    assert (threshold[0], fpr[0], tpr[0], fpr[-1], tpr[-1]) == (np.inf, 0, 0, 1, 1)


def test_pr_points_enclose_the_average_precision() -> None:
    truth, scores, _ = made_up()
    truth[:, 2] = 0
    curves = metrics.pr_points(truth, scores)
    assert "intraventricular" not in curves
    recall, precision = curves["any"]
    area = float(-np.sum(np.diff(recall) * precision[:-1]))
    assert area == pytest.approx(metrics.average_precision(truth, scores)["any"])


@pytest.mark.parametrize(
    ("labels", "probability", "match"),
    [
        (np.zeros((2, 5)), np.zeros((2, 5)), r"expected two \[N, 6\]"),
        (np.zeros((0, 6)), np.zeros((0, 6)), "N > 0"),
        (np.full((2, 6), -1), np.zeros((2, 6)), "expected 0 or 1"),
        (np.zeros((2, 6)), np.full((2, 6), np.nan), "not finite"),
    ],
)
def test_input_that_has_no_meaning_is_refused(labels: np.ndarray, probability: np.ndarray, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        metrics.log_loss_weighted(labels, probability)
