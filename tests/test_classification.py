import numpy as np
import pytest
from sklearn import metrics as sk
from test_metrics import made_up

from fastich import resampling
from fastich.classification import RATES, classification_report, report_intervals
from fastich.labels import ANY, LABELS
from fastich.resampling import Resampling


def test_report_has_the_rows_and_numbers_of_scikit_learn() -> None:
    truth, scores, _ = made_up()
    thresholds = np.linspace(0.2, 0.7, 6)
    report = classification_report(truth, scores, thresholds)
    assert list(report) == [*LABELS, "micro avg", "macro avg", "weighted avg", "samples avg"]
    said = (scores >= thresholds).astype(int)
    for average in ("micro", "macro", "weighted", "samples"):
        wanted = sk.precision_recall_fscore_support(truth, said, average=average, zero_division=0)[:3]
        row = report[f"{average} avg"]
        assert (row["precision"], row["recall"], row["f1-score"]) == pytest.approx(wanted)
    assert [report[label]["support"] for label in LABELS] == truth.sum(axis=0).tolist()


def test_report_of_a_label_without_a_positive_is_undefined_and_not_in_the_macro_average() -> None:
    truth, scores, _ = made_up()
    whole = classification_report(truth, scores, 0.4)
    truth[:, 0] = 0
    truth[:, ANY] = truth[:, :ANY].max(axis=1)
    report = classification_report(truth, scores, 0.4)
    assert [report[LABELS[0]][name] for name in RATES] == [None] * 3
    assert report[LABELS[1]] == whole[LABELS[1]]
    assert report["macro avg"]["recall"] == pytest.approx(np.mean([report[label]["recall"] for label in LABELS[1:]]))
    none = classification_report(np.zeros((4, 6)), np.full((4, 6), 0.1))
    assert none["macro avg"] == {"precision": None, "recall": None, "f1-score": None, "support": 0.0}


def test_report_intervals_are_those_of_the_report_on_resampled_patients() -> None:
    truth, scores, patients = made_up(240)
    names = [f"{patient:02d}" for patient in patients]  # sorted as text
    found = report_intervals(truth, scores, Resampling.of(names, num_resamples=60, seed=3), thresholds=0.4)
    counts = resampling.resample_counts(20, 60, 3).astype(int)
    samples = []
    for drawn in counts:
        rows = np.concatenate([np.tile(np.flatnonzero(patients == p), times) for p, times in enumerate(drawn)])
        samples.append(classification_report(truth[rows], scores[rows], 0.4))
    for row in (*LABELS, "micro avg", "macro avg", "weighted avg"):
        for name in ("precision", "recall", "f1-score"):
            low, high = np.quantile([sample[row][name] for sample in samples], [0.025, 0.975])
            interval = found[row][name]
            assert interval is not None
            assert (interval.low, interval.high) == pytest.approx((low, high)), (row, name)


def test_report_intervals_of_a_label_without_positives_are_undefined() -> None:
    truth, scores, patients = made_up()
    truth[:, 0] = 0
    found = report_intervals(truth, scores, Resampling.of(patients, num_resamples=20))
    assert {(one.low, one.note) for one in found[LABELS[0]].values()} == {(None, "undefined: no positives")}
    assert found["macro avg"]["recall"].low is not None
    assert found["any"]["recall"].low is not None
    nothing = report_intervals(np.zeros_like(truth), scores, Resampling.of(patients, num_resamples=20))
    notes = {(one.low, one.note) for row in nothing.values() for one in row.values()}
    assert notes == {(None, "undefined: no positives")}


def test_all_or_none_are_exact_over_the_patients_of_the_denominator() -> None:
    """Eight patients of three slices; a bleed in four of them, each found; one more slice of two others is called."""
    patients = np.arange(24) // 3
    truth = np.zeros((24, 6), dtype=np.int8)
    truth[0:12:3] = 1
    scores = truth * 0.9
    found = report_intervals(truth, scores, Resampling.of(patients, num_resamples=200))["any"]
    for rate in ("recall", "precision"):
        assert (found[rate].low, found[rate].high) == (pytest.approx(0.025 ** (1 / 4)), 1.0)
        assert (found[rate].exact, found[rate].num_units) == (True, 4)
    scores[[13, 16]] = 0.9
    found = report_intervals(truth, scores, Resampling.of(patients, num_resamples=200))["any"]
    assert (found["recall"].low, found["precision"].exact) == (pytest.approx(0.025 ** (1 / 4)), False)
    none = report_intervals(truth, (1 - truth) * 0.9, Resampling.of(patients, num_resamples=200))["any"]
    assert (none["recall"].low, none["recall"].high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 4)))
    assert (none["precision"].low, none["precision"].high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 8)))
    share = 1 - 0.025 ** (1 / 8)
    assert (none["f1-score"].low, none["f1-score"].high) == (0.0, pytest.approx(2 * share / (1 + share)))


def test_a_precision_of_nothing_called_has_no_interval_and_says_so() -> None:
    truth, _, patients = made_up(240)
    found = report_intervals(truth, np.zeros(truth.shape), Resampling.of(patients, num_resamples=50))
    assert (found["any"]["precision"].low, found["any"]["precision"].note) == (None, "no interval: nothing is called")
    assert found["macro avg"]["precision"].note == "no interval: nothing is called (epidural)"
    assert (found["any"]["recall"].low, found["any"]["recall"].exact) == (0.0, True)


def test_a_mean_over_labels_is_known_no_better_than_its_rarest_label() -> None:
    truth, scores, patients = made_up(240)
    truth[:, 0] = 0
    truth[:12, 0] = [1, 0] * 6
    found = report_intervals(truth, scores, Resampling.of(patients, num_resamples=50))
    for row, note in ((LABELS[0], "no interval: one patient"), ("macro avg", "no interval: one patient (epidural)")):
        assert (found[row]["recall"].low, found[row]["recall"].note) == (None, note)
        assert (found[row]["f1-score"].low, found[row]["f1-score"].note) == (None, note)
    assert found["micro avg"]["recall"].low is not None
    assert found["weighted avg"]["recall"] == found["micro avg"]["recall"]


def test_without_any_positive_no_average_has_a_value() -> None:
    report = classification_report(np.zeros((4, 6)), np.full((4, 6), 0.9))
    for row, figures in report.items():
        assert [figures[name] for name in RATES] == [None] * 3, row
        assert figures["support"] == 0
