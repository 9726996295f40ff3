import numpy as np
import pytest

from fastich import intervals
from fastich.intervals import Basis, area_basis, estimate, exact, interval, rate_basis, text, weakest

SPREAD = np.linspace(0.5, 0.9, 101)


def of(count: int, **changes: object) -> Basis:
    return Basis(**({"fewest": count, "every": count, "trials": count} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "note"),
    [
        (0, "no interval: no patient"),
        (1, "no interval: one patient"),
        (2, "no interval: 2 patients, fewer than 6"),
        (5, "no interval: 5 patients, fewer than 6"),
    ],
)
def test_too_few_patients_have_no_interval_and_words_for_it(count: int, note: str) -> None:
    found = interval(SPREAD, of(count))
    assert (found.low, found.high, found.note, found.num_units) == (None, None, note, count)
    assert not of(count).allows_p


def test_few_patients_have_an_interval_that_says_so_and_many_one_that_does_not() -> None:
    few, many = interval(SPREAD, of(19)), interval(SPREAD, of(20))
    assert (few.low, few.high) == (many.low, many.high) == (pytest.approx(0.51), pytest.approx(0.89))
    assert (few.note, many.note) == ("few patients: 19", None)
    assert interval(SPREAD, of(6)).low is not None
    assert of(6).allows_p


def test_the_least_number_is_the_first_whose_range_can_hold_95_percent() -> None:
    """All of n patients lie on one side of the median with 2 ** (1 - n); that is also the least p of sign flips."""
    outside = {count: 2.0 ** (1 - count) for count in range(1, 10)}
    assert min(count for count, chance in outside.items() if chance <= 1 - intervals.LEVEL) == intervals.FEWEST
    assert of(intervals.FEWEST).least_p == outside[intervals.FEWEST]


@pytest.mark.parametrize(("value", "wanted"), [(1.0, (0.025 ** (1 / 4), 1.0)), (0.0, (0.0, 1 - 0.025 ** (1 / 4)))])
def test_all_or_none_is_exact_from_two_patients_on(value: float, wanted: tuple[float, float]) -> None:
    found = interval(np.full(50, value), of(4))
    assert (found.low, found.high) == pytest.approx(wanted)
    assert (found.exact, found.note) == (True, None)
    assert interval(np.full(50, value), of(2)).exact
    assert interval(np.full(50, value), of(1)).note == "no interval: one patient"


def test_an_interval_of_no_width_is_never_given() -> None:
    for value, basis in ((0.5, of(30)), (1.0, of(30, trials=None)), (0.0, of(30, trials=None))):
        found = interval(np.full(50, value), basis)
        assert (found.low, found.note) == (None, "no interval: every resample gives the same")


def test_undefined_resamples_are_counted_and_left_out() -> None:
    found = interval(np.append(SPREAD, [np.nan] * 7), of(30))
    assert (found.num_undefined, found.low) == (7, pytest.approx(0.51))
    none = interval(np.full(5, np.nan), of(30))
    assert (none.low, none.num_undefined, none.note) == (None, 5, "no interval: undefined in every resample")


def test_a_rate_counts_the_patients_of_its_denominator() -> None:
    patients = np.array([0, 0, 1, 1, 2, 3])
    found = rate_basis(patients, np.array([1, 1, 1, 0, 0, 0], dtype=bool))
    assert (found.fewest, found.trials, found.every) == (2, 2, 2)


@pytest.mark.parametrize(
    ("patients", "truth", "fewest", "trials"),
    [
        ([0, 1, 2, 3, 4], [1, 1, 0, 0, 0], 2, 2),
        ([0, 0, 1, 1, 2, 2], [1, 0, 1, 0, 1, 0], 3, 1),  # three patients of both kinds: one pair that shares nobody
        ([0, 0, 1, 2], [1, 0, 0, 0], 1, 1),
        ([0, 1], [1, 1], 0, 0),
    ],
)
def test_an_auc_rests_on_the_rarer_kind_and_on_pairs_without_a_patient_in_common(
    patients: list[int], truth: list[int], fewest: int, trials: int
) -> None:
    found = area_basis(np.array(patients), np.array(truth, dtype=bool))
    assert (found.fewest, found.trials) == (fewest, trials)


def test_classes_are_apart_no_oftener_than_the_exact_bound_says_and_as_often_in_the_worst_case() -> None:
    """8 positives, 20 negatives. Worst case: a share of the positives lies below all negatives."""
    rng = np.random.default_rng(0)
    negatives = rng.random((20_000, 20))
    low, _ = exact(is_one=True, trials=8)
    worst = np.where(rng.random((20_000, 8)) < low, 2.0, -1.0)  # their AUC is `low`
    apart = (worst.min(axis=1) > negatives.max(axis=1)).mean()
    assert apart == pytest.approx(0.025, abs=0.004)
    shift = 0.875  # positives on [shift, 1 + shift): AUC 1 - (1 - shift) ** 2 / 2 = 0.992
    smooth = (rng.random((20_000, 8)) + shift).min(axis=1) > negatives.max(axis=1)
    assert 0.1 < smooth.mean() < 0.992**8


def test_a_mean_over_labels_rests_on_the_label_with_the_fewest() -> None:
    found = weakest({"subdural": of(9), "epidural": of(1), "any": of(40)})
    assert (found.fewest, found.trials) == (1, None)
    assert interval(SPREAD, found).note == "no interval: one patient (epidural)"
    assert interval(SPREAD, weakest({"any": of(9)})).note == "few patients: 9 (any)"


def test_an_estimate_without_a_value_holds_nothing_but_words() -> None:
    found = estimate(None, interval(SPREAD, of(30)), undefined="undefined: no positives")
    assert found["note"] == "undefined: no positives"
    assert {found[key] for key in ("value", "low", "high", "num_undefined", "num_units")} == {None}
    assert set(found) == {"value", "low", "high", "num_undefined", "num_units", "exact", "note"}


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (estimate(0.7, interval(SPREAD, of(30))), "0.700 (0.510 to 0.890)"),
        (estimate(0.7, interval(SPREAD, of(9))), "0.700 (0.510 to 0.890; few patients: 9)"),
        (estimate(0.7, interval(SPREAD, of(1, unit="study"))), "0.700 (no interval: one study)"),
        (estimate(0.7, interval(SPREAD, of(3, unit="study"))), "0.700 (no interval: 3 studies, fewer than 6)"),
        (estimate(None, undefined="undefined: no positives"), "undefined: no positives"),
        (estimate(0.7), "0.700 (no interval)"),
        ({"value": 0.7, "low": None, "high": None}, "0.700 (no interval)"),
    ],
)
def test_text_says_why_something_is_not_there(found: dict[str, object], wanted: str) -> None:
    assert text(found) == wanted
