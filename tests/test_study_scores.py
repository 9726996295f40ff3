import numpy as np
import pytest

from fastich.labels import ANY
from fastich.study_scores import largest, noisy_or, top_k_mean

RULES = (largest, top_k_mean, noisy_or)


def test_rules_by_hand() -> None:
    slices = np.tile(np.array([0.5, 0.2, 0.0, 0.9])[:, None], (1, 6))
    assert largest(slices) == pytest.approx([0.9] * 6)
    assert top_k_mean(slices) == pytest.approx([(0.9 + 0.5 + 0.2) / 3] * 6)
    assert top_k_mean(slices, k=2) == pytest.approx([0.7] * 6)
    assert noisy_or(slices) == pytest.approx([1 - 0.5 * 0.8 * 1.0 * 0.1] * 6)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num_slices", [1, 2, 800])
def test_any_is_at_least_the_largest_subtype(rule: object, num_slices: int) -> None:
    slices = np.random.default_rng(num_slices).random((num_slices, 6)).astype(np.float32)
    slices[:, ANY] = 0.01
    found = rule(slices)  # type: ignore[operator]
    assert (found.shape, found.dtype) == ((6,), np.float64)
    assert found[ANY] == found[:ANY].max()
    assert (found <= 1).all()


@pytest.mark.parametrize("rule", RULES)
def test_the_study_of_one_slice_scores_as_its_slice_in_any_order(rule: object) -> None:
    one = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 1.0]])
    assert rule(one) == pytest.approx(one[0])  # type: ignore[operator]
    many = np.random.default_rng(0).random((9, 6))
    assert rule(many[::-1]) == pytest.approx(rule(many))  # type: ignore[operator]
