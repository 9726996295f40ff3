import numpy as np
import pytest

from fastich.training.schedule import learning_rate


def rates(num_warmup: int) -> list[float]:
    return [learning_rate("cosine", 1e-3, step, 100, num_warmup) for step in range(100)]


def test_cosine_rises_in_a_line_and_falls_to_nothing() -> None:
    found = rates(10)
    assert found[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert found[10] == 1e-3
    assert found[55] == pytest.approx(5e-4)
    assert np.all(np.diff(found[10:]) < 0)
    assert 0 < found[99] < 1e-6
    assert learning_rate("cosine", 1e-3, 100, 100, 10) == 0


def test_cosine_without_warm_up_begins_at_the_peak() -> None:
    assert rates(0)[0] == 1e-3
