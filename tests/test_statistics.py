import math
from statistics import NormalDist

import numpy as np
import pytest
from sklearn import metrics as sk

from fastich import metrics, statistics
from fastich.intervals import Basis
from fastich.labels import ANY
from fastich.resampling import Resampling


def brute_force(truth: np.ndarray, *scores: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Areas and covariance as DeLong et al. (1988) define them: every positive against every negative."""
    above, below = [], []
    for score in scores:
        pairs = np.array(
            [[(p > n) + 0.5 * (p == n) for n in score[truth == 0]] for p in score[truth == 1]], dtype=np.float64
        )
        above.append(pairs.mean(axis=1))
        below.append(pairs.mean(axis=0))
    num_positive, num_negative = len(above[0]), len(below[0])
    covariance = np.zeros((len(scores), len(scores)))
    for i in range(len(scores)):
        for j in range(len(scores)):
            terms = [sum((v[i] - v[i].mean()) * (v[j] - v[j].mean())) / (len(v[i]) - 1) for v in (above, below)]
            covariance[i, j] = terms[0] / num_positive + terms[1] / num_negative
    return [float(v.mean()) for v in above], covariance


def cases(num_cases: int = 80, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth and two scores of it that share half of their noise; the second is the better one."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(num_cases) < 0.3).astype(np.int8)
    both = rng.normal(size=num_cases)
    a, b = (shift * truth + both + rng.normal(size=num_cases) for shift in (1.0, 2.0))
    return truth, *(np.round(score) if ties else score for score in (a, b))


def slices(num_patients: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, two models' probabilities, patients: ten slices a patient, who share a shift of the scores."""
    rng = np.random.default_rng(seed)
    patients = np.arange(num_patients * 10) // 10
    bleeds = (rng.random((num_patients, ANY)) < 0.4)[patients]
    truth = np.zeros((len(patients), 6), dtype=np.int8)
    truth[:, :ANY] = bleeds & (rng.random(bleeds.shape) < 0.8)
    truth[:, ANY] = truth[:, :ANY].max(axis=1)
    shift = 2 * rng.normal(size=num_patients)[patients, None]
    a, b = (1 / (1 + np.exp(-(gain * truth + shift + rng.normal(size=truth.shape) - 1))) for gain in (1.5, 3.0))
    return truth, a, b, patients


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_delong_equals_its_definition_over_all_pairs(ties: bool, seed: int) -> None:
    truth, a, b = cases(seed=seed, ties=ties)
    areas, covariance = brute_force(truth, a, b)
    for score, area, variance in zip((a, b), areas, np.diag(covariance), strict=True):
        found = statistics.delong(truth, score)
        assert found.auc == pytest.approx(area, abs=1e-12)
        assert found.auc == pytest.approx(sk.roc_auc_score(truth, score))
        assert found.variance == pytest.approx(variance, rel=1e-9)
    compared = statistics.delong_test(truth, a, b)
    deviation = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert compared.difference == pytest.approx(areas[1] - areas[0])
    assert compared.p_value == pytest.approx(2 * NormalDist().cdf(-abs(areas[1] - areas[0]) / deviation), rel=1e-6)
    assert compared.high - compared.low == pytest.approx(2 * 1.959964 * deviation, rel=1e-6)


def test_delong_by_hand() -> None:
    """Positives 3 and 2, negatives 1 and 2: placements (1, 3/4) on both sides, each of variance 1/32."""
    found = statistics.delong([1, 1, 0, 0], [3, 2, 1, 2])
    assert (found.auc, found.variance) == (7 / 8, pytest.approx(1 / 32 / 2 + 1 / 32 / 2))
    assert (found.low, found.note) == (None, "no interval: 2 patients, fewer than 6")
    wide = statistics.delong([1, 1, 0, 0] * 3, [3, 2, 1, 2] * 3)
    assert wide.low == pytest.approx(7 / 8 - 1.959964 * math.sqrt(2 * 3 * 2 / 64 / 5 / 6), abs=1e-6)
    assert (wide.high, wide.note) == (1.0, "few patients: 6")


def test_a_real_difference_is_found_and_none_is_seen_in_the_same_scores() -> None:
    truth, a, b = cases(400)
    better = statistics.delong_test(truth, a, b)
    assert better.difference > 0
    assert better.p_value < 1e-3
    assert better.low > 0
    same = statistics.delong_test(truth, a, np.exp(a))
    assert (same.difference, same.p_value) == (0.0, 1.0)


def test_p_values_of_equal_models_are_even() -> None:
    rng = np.random.default_rng(1)
    truth = np.arange(120) % 3 == 0
    both = rng.normal(size=(300, 120)) + truth
    drawn = [statistics.delong_test(truth, *(row + rng.normal(size=(2, 120)))).p_value for row in both]
    assert 0.02 < np.mean(np.array(drawn) < 0.05) < 0.09
    assert 0.4 < np.mean(drawn) < 0.6


def test_what_has_no_variance_has_no_interval() -> None:
    one_class = statistics.delong([1, 1], [0.1, 0.2])
    assert (one_class.auc, one_class.variance, one_class.low) == (None, None, None)
    lone = statistics.delong([1, 0, 0], [0.2, 0.1, 0.3])
    assert (lone.auc, lone.variance, lone.high) == (0.5, None, None)
    apart = statistics.delong([1, 1, 0, 0], [4, 3, 2, 1])
    assert (apart.auc, apart.variance) == (1.0, 0.0)
    assert (apart.low, apart.high) == (pytest.approx(0.025**0.5), 1.0)
    assert statistics.delong_test([1, 1], [1, 2], [2, 1]).p_value is None
    assert statistics.delong_test([1, 0, 0], [1, 2, 3], [3, 2, 1]).p_value is None
    opposite = statistics.delong_test([1, 1, 0, 0], [1, 2, 3, 4], [4, 3, 2, 1])
    assert (opposite.difference, opposite.p_value) == (1.0, None)
    many = statistics.delong_test([1, 0] * 6, [0, 1] * 6, [1, 0] * 6)
    assert (many.low, many.p_value, many.note) == (None, None, "no interval: no variance between the cases")


def test_delong_of_a_class_of_five_has_neither_interval_nor_p_value() -> None:
    truth, a, b = cases(80)
    few = np.flatnonzero(truth)[5:]
    kept = np.setdiff1d(np.arange(80), few)
    found = statistics.delong_test(truth[kept], a[kept], b[kept])
    assert found.difference is not None
    assert (found.low, found.p_value, found.note) == (None, None, "no interval: 5 patients, fewer than 6")


@pytest.mark.parametrize(
    ("num_positive", "note"), [(1, "no interval: one patient"), (5, "no interval: 5 patients, fewer than 6")]
)
def test_differences_over_too_few_patients_have_neither_interval_nor_p_value(num_positive: int, note: str) -> None:
    truth, a, b, patients = slices()
    truth[:, 0] = (patients < num_positive) & (np.arange(len(patients)) % 2 == 0)
    found = statistics.paired_bootstrap(truth, a, b, Resampling.of(patients, num_resamples=100))
    for metric in ("auc", "average_precision", "sensitivity"):
        lacking = found[metric]["epidural"]
        assert lacking.difference is not None
        assert (lacking.low, lacking.high, lacking.p_value, lacking.note) == (None, None, None, note)
    assert found["specificity"]["epidural"].p_value is not None
    one = statistics.paired_bootstrap(truth, a, b, Resampling.of(np.zeros(len(truth)), num_resamples=100))
    assert (one["log_loss"]["all"].low, one["log_loss"]["all"].p_value) == (None, None)


@pytest.mark.parametrize(
    ("truth", "score", "match"),
    [([1, 0], [0.1], "truth: expected 0 or 1"), ([2, 0], [0.1, 0.2], "0 or 1"), ([1, 0], [np.nan, 1], "not finite")],
)
def test_scores_that_have_no_meaning_are_refused(truth: list[int], score: list[float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        statistics.delong(truth, score)


def test_bootstrap_and_delong_agree_where_patients_have_one_case_each() -> None:
    truth, a, b = cases(300)
    labels, one, other = (np.tile(np.asarray(v)[:, None], (1, 6)) for v in (truth, a, b))
    squash = [1 / (1 + np.exp(-values)) for values in (one, other)]
    drawn = statistics.paired_bootstrap(labels, *squash, Resampling.of(np.arange(300), num_resamples=2000))["auc"][
        "any"
    ]
    exact = statistics.delong_test(truth, a, b)
    assert drawn.difference == pytest.approx(exact.difference)
    assert drawn.high - drawn.low == pytest.approx(exact.high - exact.low, rel=0.12)


def test_delong_on_slices_is_too_sure_of_itself() -> None:
    truth, a, _, patients = slices()
    by_patient = metrics.bootstrap_intervals(truth, a, Resampling.of(patients, num_resamples=500))["auc"]["any"]
    by_slice = statistics.delong(truth[:, ANY], a[:, ANY])
    assert by_patient.high - by_patient.low > 1.5 * (by_slice.high - by_slice.low)


def test_paired_intervals_are_narrower_than_those_of_models_judged_apart() -> None:
    truth, a, b, patients = slices()
    found = statistics.paired_bootstrap(truth, a, b, Resampling.of(patients, num_resamples=500))
    assert set(found) == {"log_loss", "auc", "average_precision", "sensitivity", "specificity"}
    better = found["auc"]["any"]
    assert better.a == pytest.approx(sk.roc_auc_score(truth[:, ANY], a[:, ANY]))
    assert better.difference == pytest.approx(better.b - better.a)
    assert better.low < better.difference < better.high
    assert better.p_value < 0.05
    apart = [
        metrics.bootstrap_intervals(truth, p, Resampling.of(patients, num_resamples=500))["auc"]["any"] for p in (a, b)
    ]
    widths = [span.high - span.low for span in apart]
    assert better.high - better.low < 0.8 * math.hypot(*widths)
    assert found["log_loss"]["all"].difference == pytest.approx(
        metrics.log_loss_weighted(truth, b) - metrics.log_loss_weighted(truth, a)
    )


def test_each_model_is_cut_at_its_own_thresholds() -> None:
    truth, a, _, patients = slices()
    low, high = np.full(6, 0.2), np.full(6, 0.8)
    found = statistics.paired_bootstrap(
        truth, a, a, Resampling.of(patients, num_resamples=50), thresholds_a=low, thresholds_b=high
    )
    for label, at in metrics.operating_points(truth, a, low).items():
        assert found["sensitivity"][label].a == at["sensitivity"]
    assert found["sensitivity"]["any"].difference < 0 < found["specificity"]["any"].difference
    assert found["auc"]["any"].p_value == 1.0


def test_a_label_without_a_positive_is_undefined_and_stays_so() -> None:
    truth, a, b, patients = slices()
    truth[:, 0] = 0
    found = statistics.paired_bootstrap(truth, a, b, Resampling.of(patients, num_resamples=20))
    for metric in ("auc", "average_precision", "sensitivity"):
        lacking = found[metric]["epidural"]
        assert (lacking.a, lacking.difference, lacking.low, lacking.p_value) == (None, None, None, None)
    assert found["specificity"]["epidural"].difference is not None


def test_p_value_counts_resamples_on_the_far_side_of_zero() -> None:
    drawn = np.array([-1.0] * 3 + [2.0] * 96)
    basis = Basis(fewest=30, every=30)
    found = statistics.paired_difference(0.5, 0.75, np.zeros(99), drawn, basis)
    assert (found.difference, found.p_value) == (0.25, pytest.approx(2 * 4 / 100))
    none = statistics.paired_difference(0.5, 0.75, np.zeros(4), np.full(4, np.nan), basis)
    assert (none.low, none.p_value, none.num_undefined) == (None, None, 4)


def test_no_p_value_is_below_that_of_the_exact_test_of_as_many_patients() -> None:
    """Six patients whose sign is the same: 2 of 2 ** 6 sign flips are as far out, p = 1/32, whatever is resampled."""
    drawn = np.linspace(1, 2, 1000)
    found = statistics.paired_difference(0.5, 0.75, np.zeros(1000), drawn, Basis(fewest=6, every=6))
    assert found.p_value == 1 / 32
    assert found.note == "few patients: 6"
    many = statistics.paired_difference(0.5, 0.75, np.zeros(1000), drawn, Basis(fewest=60, every=60))
    assert many.p_value == pytest.approx(2 / 1001)
