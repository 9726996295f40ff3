import json

import numpy as np
import pytest
from test_conformal import studies

from fastich import conformal_coverage
from fastich.conformal import Triage
from fastich.conformal_coverage import coverage


def test_coverage_over_patients_is_within_the_bound() -> None:
    p, bleed = studies(160, 3)
    found = coverage(p, bleed, np.arange(160) // 2, alpha_miss=0.1, alpha_alarm=0.1)
    assert found["resamples"] == 100
    assert found["bounded"] == {"miss_rate": True, "alarm_rate": True}
    for name in ("miss_rate", "alarm_rate"):
        assert 0.01 < found[name]["mean"] <= 0.1
        assert found[name]["standard_error"] > 0
    shares = [found[name]["mean"] for name in ("flag", "clear", "human_first")]
    assert sum(shares) == pytest.approx(1)
    assert found["too_small"] == {"clear": 0, "flag": 0}
    json.dumps(found, allow_nan=False)


def test_coverage_never_splits_a_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    p, bleed = studies(40, 1)
    patients = np.arange(40) // 4
    seen: list[set[float]] = []
    honest = conformal_coverage.fit

    def watched(p_any: np.ndarray, truth: np.ndarray, of: np.ndarray, **alphas: float) -> Triage:
        seen.append(set(p_any.tolist()))
        return honest(p_any, truth, of, **alphas)

    monkeypatch.setattr(conformal_coverage, "fit", watched)
    coverage(p, bleed, patients, alpha_miss=0.2, alpha_alarm=0.2, resamples=5)
    for calibrates in seen:
        halves = {int(patient): {value in calibrates for value in p[patients == patient]} for patient in set(patients)}
        assert all(len(one) == 1 for one in halves.values())
        assert sum(one == {True} for one in halves.values()) == 5


def test_a_triage_that_never_acts_proves_nothing() -> None:
    p, bleed = studies(20, 0)
    found = coverage(p, bleed, np.arange(20), alpha_miss=0.01, alpha_alarm=0.01, resamples=7)
    assert found["too_small"] == {"clear": 7, "flag": 7}
    assert found["bounded"] == {"miss_rate": None, "alarm_rate": None}
    assert found["miss_rate"] == {"mean": None, "standard_error": None, "num_undefined": 7}
    assert found["told"]["miss_rate"] == (
        "undefined: a threshold, and such studies to judge, in 0 of 7 only; alpha 0.01 needs 99 calibrating patients "
        "with a bleed"
    )
    assert "99 calibrating patients without a bleed" in found["told"]["alarm_rate"]
    assert found["human_first"]["mean"] == 1


def test_only_resamples_with_a_threshold_count() -> None:
    """Half of 20 patients with a bleed and 60 without calibrate: 9 with one, which alpha 0.1 needs, in many of them."""
    rng = np.random.default_rng(0)
    p, bleed = rng.random(80), np.repeat([1, 0], [20, 60])
    found = coverage(p, bleed, np.arange(80), alpha_miss=0.1, alpha_alarm=0.2, resamples=200)
    undefined = found["too_small"]["clear"]
    assert 0 < undefined < 100
    assert found["miss_rate"]["num_undefined"] == undefined
    assert found["told"]["miss_rate"].endswith(f"of the {200 - undefined} that had a threshold and such studies")
    few = coverage(p[2:], bleed[2:], np.arange(78), alpha_miss=0.09, alpha_alarm=0.2, resamples=200)
    assert 100 < few["too_small"]["clear"] < 200
    assert few["miss_rate"]["mean"] is not None  # what the few say stands there, and nothing is claimed of it
    assert few["bounded"] == {"miss_rate": None, "alarm_rate": True}
    assert "s.e." not in few["told"]["miss_rate"]


def test_a_mean_above_its_bound_is_not_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = conformal_coverage.fit
    monkeypatch.setattr(
        conformal_coverage, "fit", lambda *of, alpha_miss, alpha_alarm: honest(*of, alpha_miss=0.5, alpha_alarm=0.1)
    )
    found = coverage(*studies(200, 5), np.arange(200), alpha_miss=0.1, alpha_alarm=0.1)
    assert found["miss_rate"]["mean"] > 0.15
    assert found["bounded"] == {"miss_rate": False, "alarm_rate": True}


def test_coverage_without_any_bleed_is_undefined() -> None:
    found = coverage([0.1, 0.2, 0.3, 0.4], [0] * 4, list("abcd"), alpha_miss=0.4, alpha_alarm=0.4, resamples=3)
    assert found["miss_rate"] == {"mean": None, "standard_error": None, "num_undefined": 3}
    assert found["bounded"]["miss_rate"] is None


def test_coverage_of_one_patient_is_refused() -> None:
    with pytest.raises(ValueError, match="expected studies of 2 or more patients, found 1"):
        coverage([0.1, 0.2], [0, 1], ["a", "a"], alpha_miss=0.1, alpha_alarm=0.1)
