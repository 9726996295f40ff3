import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as sk

from fastich import metrics
from fastich.errors import FastichError
from fastich.labels import LABELS
from fastich.operating_points import choose, fallback_labels, parse_rule, predictive_values
from fastich.predictive_values import ppv_npv


def made_up(num_slices: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random((num_slices, 6)) < 0.15).astype(np.int8)
    return truth, np.round(1 / (1 + np.exp(-(rng.normal(size=truth.shape) + 2.5 * truth - 2))), 2)


def six(column: list[float]) -> np.ndarray:
    return np.tile(np.array(column)[:, None], (1, 6))


def rates(truth: np.ndarray, score: np.ndarray, at: float) -> tuple[float, float]:
    """Sensitivity and specificity of one label."""
    said = score >= at
    return float(said[truth == 1].mean()), float((~said[truth == 0]).mean())


def test_threshold_maximises_f1_and_stands_between_scores() -> None:
    truth, scores = six([1, 1, 0, 1, 0, 0]), six([0.9, 0.8, 0.6, 0.5, 0.3, 0.1])
    assert choose(truth, scores) == pytest.approx([0.4] * 6)  # calls 4: P 3/4, R 1; F1 6/7
    truth, scores = made_up()
    chosen = choose(truth, scores)
    for index in range(6):
        f1 = [sk.f1_score(truth[:, index], scores[:, index] >= at) for at in np.arange(-0.005, 1.1, 0.01)]
        at_chosen = sk.f1_score(truth[:, index], scores[:, index] >= chosen[index])
        assert at_chosen == pytest.approx(max(f1))


def test_youden_maximises_sensitivity_plus_specificity() -> None:
    truth, scores = made_up()
    chosen = choose(truth, scores, "youden")
    for index in range(6):
        sums = [sum(rates(truth[:, index], scores[:, index], at)) for at in np.arange(-0.005, 1.1, 0.01)]
        assert sum(rates(truth[:, index], scores[:, index], chosen[index])) == pytest.approx(max(sums))


one_label = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        arrays(np.int8, n, elements=st.integers(0, 1)).filter(lambda y: 0 < y.sum() < len(y)),
        arrays(np.float64, n, elements=st.sampled_from(np.linspace(0, 0.99, 12).tolist())),
        st.sampled_from([0.05, 0.1, 0.5, 0.8, 0.9, 0.95, 1.0]),
    )
)


@given(one_label)
def test_sensitivity_is_reached_and_by_no_higher_score(case: tuple[np.ndarray, np.ndarray, float]) -> None:
    truth, score, target = case
    at = choose(six(truth.tolist()), six(score.tolist()), "sensitivity", target)[0]
    assert rates(truth, score, at)[0] >= target - 1e-12
    higher = score[score >= at]
    next_decision = np.nextafter(higher.min(), 2)
    assert rates(truth, score, next_decision)[0] < target


@given(one_label)
def test_specificity_is_reached_and_by_no_lower_score(case: tuple[np.ndarray, np.ndarray, float]) -> None:
    truth, score, target = case
    at = choose(six(truth.tolist()), six(score.tolist()), "specificity", target)[0]
    assert 0 <= at <= 1
    assert rates(truth, score, at)[1] >= target - 1e-12
    below = score[score < at]
    assert len(below)
    assert rates(truth, score, below.max())[1] < target


def test_specificity_that_no_threshold_reaches_is_an_error() -> None:
    with pytest.raises(FastichError, match="epidural: a negative scores 1, so no threshold leaves it out"):
        choose(six([1, 0, 0]), six([0.5, 1.0, 0.2]), "specificity", 1.0)


def test_specificity_above_every_score_stands_between_the_highest_and_one() -> None:
    assert choose(six([1, 0, 0]), six([0.5, 0.8, 0.2]), "specificity", 1.0) == pytest.approx([0.9] * 6)


@pytest.mark.parametrize("rule", [("max-f1", None), ("youden", None), ("sensitivity", 0.9), ("specificity", 0.9)])
def test_label_without_a_positive_falls_back_to_one_half_and_is_named(rule: tuple[str, float | None]) -> None:
    truth, scores = made_up()
    truth[:, 3] = 0
    chosen = choose(truth, scores, *rule)
    assert chosen[3] == 0.5
    assert fallback_labels(truth, rule[0]) == ("subarachnoid",)
    assert not (chosen[[0, 1, 2, 4, 5]] == 0.5).all()


@pytest.mark.parametrize(("rule", "falls_back"), [("max-f1", False), ("youden", True)])
def test_label_without_a_negative_falls_back_where_the_rule_counts_negatives(rule: str, falls_back: bool) -> None:
    truth, scores = made_up()
    truth[:, 0] = 1
    assert fallback_labels(truth, rule) == (("epidural",) if falls_back else ())
    assert bool(choose(truth, scores, rule)[0] == 0.5) is falls_back


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("max-f1", ("max-f1", None)),
        ("youden", ("youden", None)),
        ("sensitivity:0.95", ("sensitivity", 0.95)),
        ("specificity:1", ("specificity", 1.0)),
    ],
)
def test_rule_text_is_parsed(text: str, parsed: tuple[str, float | None]) -> None:
    assert parse_rule(text) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best", "expected max-f1, youden, sensitivity or specificity, found 'best'"),
        ("sensitivity", r"expected a target in \(0, 1\], as in sensitivity:0.95, found none"),
        ("sensitivity:0", r"expected a target in \(0, 1\], as in sensitivity:0.95, found 0"),
        ("specificity:95", "found 95"),
        ("specificity:nan", "found nan"),
        ("youden:0.5", "expected no target for youden, found 0.5"),
        ("sensitivity:high", "threshold rule 'sensitivity:high': could not convert"),
    ],
)
def test_rule_text_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_rule(text)


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="expected max-f1, youden, sensitivity or specificity, found 'best'"):
        choose(*made_up(24), rule="best")


def test_predictive_values_are_right_by_hand() -> None:
    # Of 1000 patients 100 bleed: 90 found, 10 missed; of 900 others 45 alarms, 855 rightly left alone.
    assert ppv_npv(0.9, 0.95, 0.1) == pytest.approx((90 / 135, 855 / 865))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, 0.9, 0.1), (None, None)),
        ((0.9, None, 0.1), (None, None)),
        ((0.0, 1.0, 0.1), (None, 0.9)),
        ((1.0, 0.0, 0.1), (0.1, None)),
        ((0.9, 0.9, 0.0), (0.0, 1.0)),
    ],
)
def test_undefined_predictive_values_are_none(given: tuple[float, ...], expected: tuple[float | None, ...]) -> None:
    for found, value in zip(ppv_npv(*given), expected, strict=True):
        assert found == (None if value is None else pytest.approx(value))


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_predictive_values_are_probabilities(sensitivity: float, specificity: float, prevalence: float) -> None:
    for value in ppv_npv(sensitivity, specificity, prevalence):
        assert value is None or 0 <= value <= 1


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_value_outside_zero_to_one_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="prevalence: expected 0 to 1, found"):
        ppv_npv(0.9, 0.9, bad)


def test_predictive_table_at_the_data_sets_own_prevalence_repeats_the_data_sets_values() -> None:
    truth, scores = made_up()
    points = metrics.operating_points(truth, scores, 0.4)
    for index, label in enumerate(LABELS):
        (row,) = predictive_values(points, (float(truth[:, index].mean()),))[label]
        assert row["ppv"] == pytest.approx(points[label]["ppv"])
        assert row["npv"] == pytest.approx(points[label]["npv"])
