import math

import pytest

from fastich.predictive_values import ppv_npv


def test_worth_follows_bayes():
    ppv, npv = ppv_npv(0.9, 0.8, 0.1)
    assert ppv is not None
    assert npv is not None
    assert math.isclose(ppv, 0.09 / 0.27)
    assert math.isclose(npv, 0.72 / 0.73)


def test_undefined_is_none():
    assert ppv_npv(None, 0.8, 0.1) == (None, None)
    assert ppv_npv(0.0, 1.0, 0.1) == (None, 0.9)


def test_what_is_no_rate_is_refused():
    with pytest.raises(ValueError, match=r"prevalence: expected 0 to 1, found 1\.5"):
        ppv_npv(0.9, 0.8, 1.5)
