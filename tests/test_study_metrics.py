import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from fastich import resampling, study_metrics
from fastich.labels import LABELS, enforce_any
from fastich.resampling import Resampling
from fastich.study_metrics import LOGITS, PROBABILITIES, sensitivity_at_specificity, specificity_at_sensitivity


def slice_table(num_studies: int = 60, seed: int = 0, *, logits: bool = True) -> pd.DataFrame:
    """Studies of 1 to 8 slices, two a patient; epidural never occurs."""
    rng = np.random.default_rng(seed)
    study = np.repeat(np.arange(num_studies), rng.integers(1, 9, num_studies))
    truth = ((rng.random((num_studies, 6)) < 0.3)[study] & (rng.random((len(study), 6)) < 0.7)).astype(np.int8)
    truth[:, 0] = 0
    truth[:, 5] = truth[:, :5].max(axis=1)
    raw = rng.normal(size=truth.shape) + 2.0 * truth - 1
    table = pd.DataFrame({"row": np.arange(len(study)), "sop_uid": [f"i{row}" for row in range(len(study))]})
    table["study_uid"] = [f"s{number}" for number in study]
    table["patient_id"] = [f"p{number // 2}" for number in study]
    table[list(LABELS)] = truth
    table[PROBABILITIES] = enforce_any(1 / (1 + np.exp(-0.5 * raw)))
    if logits:
        table[LOGITS] = raw
    return table


def test_study_table_has_the_columns_of_the_contract_in_the_order_of_the_slices() -> None:
    slices = slice_table()
    table = study_metrics.study_table(slices)
    assert list(table.columns) == ["study_uid", "patient_id", "num_slices", *LABELS, *PROBABILITIES, *LOGITS]
    assert table["study_uid"].tolist() == list(dict.fromkeys(slices["study_uid"]))
    assert table["num_slices"].sum() == len(slices)
    one = slices[slices["study_uid"] == "s7"]
    row = table[table["study_uid"] == "s7"].iloc[0]
    assert row["patient_id"] == "p3"
    assert row[list(LABELS)].tolist() == one[list(LABELS)].max().tolist()
    assert row[PROBABILITIES].to_numpy(float) == pytest.approx(one[PROBABILITIES].max().to_numpy())
    assert row[LOGITS[:5]].to_numpy(float) == pytest.approx(one[LOGITS[:5]].max().to_numpy())


def test_study_table_of_slices_without_logits_has_none_and_each_rule_its_scores() -> None:
    slices = slice_table(logits=False)
    tables = {rule: study_metrics.study_table(slices, rule) for rule in study_metrics.RULES}
    assert not set(LOGITS) & set(tables["max"].columns)
    p = {rule: table["p_any"].to_numpy() for rule, table in tables.items()}
    assert (p["top-k mean"] <= p["max"]).all()
    assert (p["noisy-or"] >= p["max"] - 1e-12).all()
    with pytest.raises(ValueError, match="expected one of max, top-k mean, noisy-or, found 'mean'"):
        study_metrics.study_table(slices, "mean")


def brute(truth: np.ndarray, score: np.ndarray, weight: np.ndarray, target: float, *, of_specificity: bool) -> float:
    """Every threshold in turn: the best of one rate where the other reaches ``target``."""
    best = 0.0
    for threshold in [*np.unique(score), np.inf]:
        said = score >= threshold
        sensitivity = weight[truth & said].sum() / weight[truth].sum()
        specificity = weight[~truth & ~said].sum() / weight[~truth].sum()
        reached, told = (specificity, sensitivity) if of_specificity else (sensitivity, specificity)
        if reached >= target - 1e-9:
            best = max(best, told)
    return best


@pytest.mark.parametrize("decimals", [1, 12])
@pytest.mark.parametrize("target", [0.5, 0.9, 0.95, 1.0])
def test_rates_at_a_fixed_rate_equal_every_threshold_tried(decimals: int, target: float) -> None:
    rng = np.random.default_rng(decimals)
    truth = rng.random(70) < 0.4
    score = np.round(rng.random(70) + 0.5 * truth, decimals)
    of_study, counts = np.arange(70) // 2, resampling.resample_counts(35, 6, seed=1)
    for function, of_specificity in ((sensitivity_at_specificity, True), (specificity_at_sensitivity, False)):
        found = function(truth, score, of_study, counts, target)
        wanted = [brute(truth, score, row[of_study], target, of_specificity=of_specificity) for row in counts]
        assert found == pytest.approx(wanted)


def test_summary_agrees_with_scikit_learn_and_its_intervals_hold_the_value() -> None:
    studies = study_metrics.study_table(slice_table(200))
    found = study_metrics.summarise_studies(studies, Resampling.of(studies["patient_id"], num_resamples=200))
    assert set(found) == set(LABELS)
    any_ = found["any"]
    assert any_["num_positive"] == studies["any"].sum()
    assert any_["auc"]["value"] == pytest.approx(sk.roc_auc_score(studies["any"], studies["p_any"]))
    fpr, tpr, _ = sk.roc_curve(studies["any"], studies["p_any"], drop_intermediate=False)
    assert any_["sensitivity_at_specificity"]["0.90"]["value"] == pytest.approx(tpr[fpr <= 0.1 + 1e-9].max())
    assert any_["specificity_at_sensitivity"]["0.95"]["value"] == pytest.approx(1 - fpr[tpr >= 0.95 - 1e-9].min())
    for rates in (any_["sensitivity_at_specificity"], any_["specificity_at_sensitivity"], {"auc": any_["auc"]}):
        for told in rates.values():
            assert told["low"] <= told["value"] <= told["high"]
            assert told["low"] < told["high"]


def test_a_label_that_no_study_has_is_undefined() -> None:
    studies = study_metrics.study_table(slice_table())
    found = study_metrics.summarise_studies(studies, Resampling.of(studies["patient_id"], num_resamples=20))["epidural"]
    assert found["num_positive"] == 0
    told = [found["auc"], *found["sensitivity_at_specificity"].values(), *found["specificity_at_sensitivity"].values()]
    assert all((one["value"], one["low"], one["high"]) == (None, None, None) for one in told)
