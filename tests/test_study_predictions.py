from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fastich import metrics
from fastich.embeddings import Store
from fastich.models.sequence import SequenceModel
from fastich.training.predictions import probability_of
from fastich.training.study_data import StudySet, series_of
from fastich.training.study_predictions import (
    StudyPredictions,
    look,
    predict,
    slice_loss,
    study_aucs,
    turned_around,
)

LENGTHS = (3, 7, 1, 5, 12)
NUM_ROWS = sum(LENGTHS)
EVERY = np.arange(NUM_ROWS)


def model(*, random_heads: bool = True) -> SequenceModel:
    torch.manual_seed(0)
    made = SequenceModel(8, projection_size=6, hidden_size=5).eval()
    for head in (made.slice_head, made.study_head) if random_heads else ():
        torch.nn.init.normal_(head.weight)
    return made


def studies(series_a_study: int = 1) -> StudySet:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        [
            {"study_uid": f"s{number // series_a_study}", "series_uid": f"x{number}", "z_mm": 4.0 * z}
            for number, length in enumerate(LENGTHS)
            for z in range(length)
        ]
    )
    store = Store(
        folder=Path("toy"),
        embedding=rng.normal(size=(NUM_ROWS, 8)).astype(np.float16),
        logit=rng.normal(size=(NUM_ROWS, 6)).astype(np.float32),
        rows=EVERY,
    )
    labels = (rng.random((NUM_ROWS, 6)) < 0.3).astype(np.int8)
    return StudySet(series=series_of(frame, EVERY), labels=labels, stores=(store,))


def test_a_new_model_predicts_what_the_cnn_does() -> None:
    made = studies()
    found = predict(model(random_heads=False), made, EVERY, 4)
    np.testing.assert_allclose(found.slice_logit, made.stores[0].logit, rtol=1e-6)
    assert np.array_equal(found.cnn_logit, made.stores[0].logit)
    said, alone = slice_loss(found, made.labels)
    assert said == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("batch_size", [2, 5])
def test_batching_and_padding_change_no_prediction(batch_size: int, reverse: bool) -> None:
    alone, together = (predict(model(), studies(), EVERY, size, reverse=reverse) for size in (1, batch_size))
    np.testing.assert_allclose(together.slice_logit, alone.slice_logit, atol=1e-5)
    np.testing.assert_allclose(together.study_logit, alone.study_logit, atol=1e-5)


def test_turning_twice_is_where_it_began() -> None:
    (batch,) = studies().batches(5)
    turned = turned_around(batch)
    assert torch.equal(turned[1][1, :7], batch.logit[1, :7].flip(0))
    assert torch.equal(turned[2][1, 1:7], batch.gap_mm[1, 1:7].flip(0))
    assert bool(torch.isnan(turned[2][:, 0]).all())
    again = turned_around(type(batch)(*turned, batch.labels, batch.rows))
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(again, (batch.embedding, batch.logit), strict=False)
    )
    assert torch.equal(again[2].nan_to_num()[batch.mask], batch.gap_mm.nan_to_num()[batch.mask])


def test_reversal_averages_both_directions() -> None:
    (batch,) = studies().batches(5)
    made = model()
    plain, mean = look(made, batch), look(made, batch, reverse=True)
    turned = type(batch)(*turned_around(batch), batch.labels, batch.rows)
    other = look(made, turned)
    assert torch.allclose(mean.study, (plain.study + other.study) / 2)
    assert torch.allclose(mean.slices[1, :7], (plain.slices[1, :7] + other.slices[1, :7].flip(0)) / 2)
    assert torch.allclose(look(made, turned, reverse=True).study, mean.study, atol=1e-6)


def test_rows_that_were_not_asked_for_give_context_only() -> None:
    whole, part = predict(model(), studies(), EVERY, 5), predict(model(), studies(), EVERY[2:9], 5)
    assert part.rows.tolist() == list(range(2, 9))
    assert np.array_equal(part.slice_logit, whole.slice_logit[2:9])
    assert part.slice_study.tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert np.array_equal(part.study_logit, whole.study_logit)


def test_a_study_of_several_series_says_the_largest() -> None:
    single, double = predict(model(), studies(), EVERY, 5), predict(model(), studies(2), EVERY, 5)
    assert double.study_uid == ["s0", "s1", "s2"]
    assert np.array_equal(double.study_logit[0], single.study_logit[:2].max(axis=0))
    assert np.array_equal(double.slice_logit, single.slice_logit)
    assert double.slice_study.tolist() == [0] * 10 + [1] * 6 + [2] * 12


def test_probability_keeps_the_rule_of_any_and_never_overflows() -> None:
    found = probability_of(np.array([[2.0, -900, 900, 0, 0, -1]]))
    assert found[0].tolist() == pytest.approx([1 / (1 + np.exp(-2)), 0, 1, 0.5, 0.5, 1])


def judged() -> tuple[StudyPredictions, np.ndarray]:
    """Three studies of two slices; the last one bleeds, and only the study head of the sequence model knows."""
    cnn = np.full((6, 6), -3.0)
    cnn[0] = 2.0
    labels = np.zeros((6, 6), dtype=np.int8)
    labels[5] = 1
    found = StudyPredictions(
        rows=np.arange(6),
        slice_logit=cnn - 1,
        cnn_logit=cnn,
        slice_study=np.array([0, 0, 1, 1, 2, 2]),
        study_uid=["a", "b", "c"],
        study_logit=np.array([[-1.0] * 6, [-1.0] * 6, [1.0] * 6]),
    )
    return found, labels


def test_study_rules_stand_side_by_side() -> None:
    found, labels = judged()
    aucs = study_aucs(found, labels)
    assert set(aucs) == {"sequence_head"} | {
        f"{name}_{rule}" for name in ("cnn", "sequence") for rule in ("max", "top3_mean", "noisy_or")
    }
    assert aucs["sequence_head"]["any"] == 1.0
    assert aucs["cnn_max"]["any"] == 0.25  # below one healthy study, level with the other


def test_a_label_without_positives_has_no_auc() -> None:
    found, labels = judged()
    labels[5, 0] = 0
    aucs = study_aucs(found, labels)
    assert aucs["sequence_head"]["epidural"] is None
    assert aucs["sequence_head"]["subdural"] == 1.0


def test_slice_loss_is_the_challenges_metric_of_both() -> None:
    found, labels = judged()
    said, alone = slice_loss(found, labels)
    assert alone == pytest.approx(metrics.log_loss_weighted(labels, probability_of(found.cnn_logit)))
    assert said == pytest.approx(metrics.log_loss_weighted(labels, probability_of(found.slice_logit)))
    assert said != alone
