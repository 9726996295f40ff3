import numpy as np
import pytest
from sklearn import metrics as sk
from test_metrics import made_up

from fastich import resampling
from fastich.resampling import Resampling


@pytest.mark.parametrize("ties", [False, True])
def test_resampled_auc_and_ap_equal_scikit_learn_with_weights(ties: bool) -> None:
    truth, scores, patients = made_up(240, ties=ties)
    counts = resampling.resample_counts(20, 8, seed=3)
    assert (counts.sum(axis=1) == 20).all()
    auc, precision = resampling.resampled_auc_and_ap(truth[:, 1] == 1, scores[:, 1], patients, counts)
    for row in range(8):
        weight = counts[row][patients]
        assert auc[row] == pytest.approx(sk.roc_auc_score(truth[:, 1], scores[:, 1], sample_weight=weight))
        wanted = sk.average_precision_score(truth[:, 1], scores[:, 1], sample_weight=weight)
        assert precision[row] == pytest.approx(wanted)


def test_a_rate_is_drawn_by_patient_and_rests_on_those_in_its_denominator() -> None:
    patients = np.repeat(np.arange(8), 3)
    whole = patients < 7
    part = whole & (np.arange(24) % 3 == 0) & (patients != 2)
    draws = Resampling.of([f"p{number}" for number in patients], num_resamples=40, seed=1)
    weight = draws.counts_RP[:, patients]
    wanted = (weight * part).sum(axis=1) / (weight * whole).sum(axis=1)
    assert draws.ratio(part, whole) == pytest.approx(wanted)
    found = draws.rate(part, whole)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(wanted, [0.025, 0.975])))
    assert (found.num_units, draws.basis.fewest) == (7, 8)


def test_equal_seeds_give_equal_draws() -> None:
    drawn = [Resampling.of(np.arange(9), num_resamples=20, seed=seed).counts_RP for seed in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
