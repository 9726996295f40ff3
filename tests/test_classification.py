import numpy as np
import pytest
from sklearn import metrics as sk
from test_metrics import made_up

from fastich import metrics
from fastich.classification import RATES, classification_report, report_intervals
from fastich.labels import ANY, LABELS


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
    found = report_intervals(truth, scores, names, thresholds=0.4, num_resamples=60, seed=3)
    counts = metrics.resample_counts(20, 60, 3).astype(int)
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
    found = report_intervals(truth, scores, patients, num_resamples=20)
    assert found[LABELS[0]]["recall"] is None
    assert found[LABELS[0]]["f1-score"] is None
    assert found[LABELS[0]]["precision"] is None
    assert found["macro avg"]["recall"] is not None
    assert found["any"]["recall"] is not None
    nothing = report_intervals(np.zeros_like(truth), scores, patients, num_resamples=20)
    assert {interval for row in nothing.values() for interval in row.values()} == {None}
