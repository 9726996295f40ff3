"""The reading room obeys queueing theory: waits of one order in the mean, and what no order can change exactly."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fastich.serve.entities import Priority
from fastich.simulation.reading_room import Staff, first_in_first_out_s, opened_s

ONE, TWO = Staff(readers=(1,)), Staff(readers=(2,))
WARM_UP = 500
LENGTH, RUNS = 6000, 12
ERRORS = 4
"""Standard errors: a right simulation is further away once in 16,000 times."""
Floats = NDArray[np.float64]


def poisson(rate: float, rng: np.random.Generator) -> Floats:
    return np.cumsum(rng.exponential(1 / rate, LENGTH))


def agrees(means: list[float], theory: float) -> bool:
    """Within Monte-Carlo error, which must itself be small enough to tell."""
    error = float(np.std(means, ddof=1)) / math.sqrt(len(means))
    assert error < 0.08 * theory, "too few runs to say anything"
    return abs(float(np.mean(means)) - theory) < ERRORS * error


def test_mean_wait_first_come_first_read_is_that_of_m_m_1() -> None:
    rate, service = 0.7, 1.0
    means = []
    for run in range(RUNS):
        rng = np.random.default_rng(run)
        arrived, read = poisson(rate, rng), rng.exponential(service, LENGTH)
        means.append(float((first_in_first_out_s(arrived, read, ONE) - arrived)[WARM_UP:].mean()))
    load = rate * service
    assert agrees(means, load * service / (1 - load))
    assert not agrees(means, load * service / (1 - load) * 1.5)


def test_mean_wait_of_two_readers_is_that_of_m_m_2() -> None:
    """Source: Erlang C for two servers: P(wait) = 2 rho^2 / (1 + rho)."""
    rate, service = 1.5, 1.0
    means = []
    for run in range(RUNS):
        rng = np.random.default_rng(run)
        arrived, read = poisson(rate, rng), rng.exponential(service, LENGTH)
        means.append(float((first_in_first_out_s(arrived, read, TWO) - arrived)[WARM_UP:].mean()))
    load = rate * service / 2
    assert agrees(means, 2 * load**2 / (1 + load) * service / (2 * (1 - load)))


def test_mean_waits_of_two_classes_are_those_of_cobham() -> None:
    """Source: Cobham, "Priority assignment in waiting line problems", Operations Research 2, 1954: non-preemptive."""
    rate, share, mean, variation = 0.8, 0.25, 1.0, 0.6
    sigma = math.sqrt(math.log1p(variation**2))
    waits: dict[Priority, list[float]] = {Priority.FLAGGED: [], Priority.ROUTINE: []}
    for run in range(RUNS):
        rng = np.random.default_rng(run)
        arrived, read = poisson(rate, rng), mean * rng.lognormal(-(sigma**2) / 2, sigma, LENGTH)
        priority = np.where(rng.random(LENGTH) < share, Priority.FLAGGED, Priority.ROUTINE)
        wait = opened_s(arrived, read, priority, 0.0, ONE) - arrived
        for one, of in waits.items():
            of.append(float(wait[WARM_UP:][priority[WARM_UP:] == one].mean()))
    residual = rate * mean**2 * (1 + variation**2) / 2
    first, both = rate * share * mean, rate * mean
    assert agrees(waits[Priority.FLAGGED], residual / (1 - first))
    assert agrees(waits[Priority.ROUTINE], residual / ((1 - first) * (1 - both)))


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.integers(0, 9), min_size=1, max_size=30),
    seed=st.integers(0, 2**16),
    notification=st.integers(0, 20),
)
def test_work_that_waits_is_the_same_in_every_order(gaps: list[int], seed: int, notification: int) -> None:
    """One reader who never idles: the sum of reading time times wait is conserved on every path (Kleinrock 1965)."""
    rng = np.random.default_rng(seed)
    arrived, read = np.cumsum(gaps).astype(np.float64), rng.integers(1, 12, len(gaps)).astype(np.float64)
    priority = rng.integers(0, 3, len(gaps))
    sums = [
        float(read @ (opened - arrived))
        for opened in (
            first_in_first_out_s(arrived, read, ONE),
            opened_s(arrived, read, priority, float(notification), ONE),
        )
    ]
    assert sums[0] == sums[1]


def test_by_hand_a_raised_study_is_read_next_but_interrupts_nobody() -> None:
    arrived, read = np.array([0.0, 1.0, 2.0, 3.0]), np.full(4, 10.0)
    priority = [Priority.ROUTINE, Priority.ROUTINE, Priority.HUMAN_FIRST, Priority.FLAGGED]
    assert first_in_first_out_s(arrived, read, ONE).tolist() == [0, 10, 20, 30]
    assert opened_s(arrived, read, priority, 0.0, ONE).tolist() == [0, 30, 20, 10]


def test_by_hand_a_study_stands_in_order_of_arrival_until_its_score_is_there() -> None:
    arrived, read = np.array([0.0, 1.0, 2.0]), np.full(3, 10.0)
    late = [Priority.ROUTINE, Priority.ROUTINE, Priority.FLAGGED]
    assert opened_s(arrived, read, late, 8.0, ONE).tolist() == [0, 20, 10]
    assert opened_s(arrived, read, late, 8.1, ONE).tolist() == [0, 10, 20]


def test_by_hand_nobody_reads_before_duty_and_who_leaves_finishes() -> None:
    hours = [0] * 24
    hours[2] = 2
    arrived, read = np.array([600.0, 900.0, 7300.0]), np.array([100.0, 4000.0, 50.0])
    opened = first_in_first_out_s(arrived, read, Staff(readers=tuple(hours)))
    assert opened.tolist() == [7200, 7200, 7300]
    opened = first_in_first_out_s(np.array([7000.0, 10700.0, 10750.0]), np.full(3, 4000.0), Staff(readers=tuple(hours)))
    assert opened.tolist() == [7200, 10700, 26 * 3600]


def test_seconds_on_duty_by_hand() -> None:
    hours = [1] * 12 + [3] * 12
    assert Staff(readers=tuple(hours)).seconds(11.5 * 3600, 3600) == 1800 + 3 * 1800
    assert Staff(readers=(2,)).seconds(0, 5400) == 2 * 5400


def test_arrivals_out_of_order_are_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="must ascend"):
        first_in_first_out_s(np.array([1.0, 0.0]), np.ones(2), ONE)
