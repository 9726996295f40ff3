"""What the sequence model says of a split: logits of slices by row, logits of studies by id, and their quality.

Shapes: n slices, S studies, K labels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastich import metrics
from fastich.loaders.order import Int64Array
from fastich.models.sequence import SequenceNetwork, SequenceOutput, reverse_slices
from fastich.study_scores import largest, noisy_or, top_k_mean
from fastich.training.predictions import probability_of
from fastich.training.study_data import StudyBatch, StudySet, look_up

Floats = NDArray[np.float64]
RULES = {"max": largest, "top3_mean": top_k_mean, "noisy_or": noisy_or}
"""Of a study from its slices, by their names in run.json."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyPredictions:
    """Logits of the slices of a split, ascending in row, and of its studies in the index's order.

    Attributes:
        rows: int64 [n].
        slice_logit: float64 [n, K].
        cnn_logit: float64 [n, K], what the CNN alone says.
        slice_study: int64 [n], each slice's place in ``study_uid``.
        study_uid: [S].
        study_logit: float64 [S, K]; of the series of a study, the largest.
    """

    rows: Int64Array
    slice_logit: Floats
    cnn_logit: Floats
    slice_study: Int64Array
    study_uid: list[str]
    study_logit: Floats


@torch.inference_mode()
def look(model: SequenceNetwork, batch: StudyBatch, *, reverse: bool = False) -> SequenceOutput:
    """What ``model`` says of a batch; with ``reverse`` the mean with what it says of the studies turned around."""
    found: SequenceOutput = model(batch.embedding, batch.logit, batch.gap_mm, batch.mask)
    if not reverse:
        return found
    turned: SequenceOutput = model(*turned_around(batch))
    return SequenceOutput(
        slices=(found.slices + reverse_slices(turned.slices, batch.mask)) / 2,
        study=(found.study + turned.study) / 2,
        auxiliary=(found.auxiliary + reverse_slices(turned.auxiliary, batch.mask)) / 2,
    )


def turned_around(batch: StudyBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, logits, gaps and mask of the studies from the last slice to the first.

    The gap of a slice is then the one to the slice that came after it.
    """
    after = torch.cat([batch.gap_mm[:, 1:], torch.full_like(batch.gap_mm[:, :1], torch.nan)], dim=1)
    gap = reverse_slices(after.unsqueeze(2), batch.mask).squeeze(2)
    return reverse_slices(batch.embedding, batch.mask), reverse_slices(batch.logit, batch.mask), gap, batch.mask


def predict(
    model: SequenceNetwork, studies: StudySet, rows: Int64Array, batch_size: int, *, reverse: bool = False
) -> StudyPredictions:
    """What ``model``, left in eval mode, says of ``rows`` [n] (ascending) and of their studies."""
    model.eval()
    device = next(model.parameters()).device
    slices, of_series = [], []
    for batch in studies.batches(batch_size):
        there = batch.to(device)
        found = look(model, there, reverse=reverse)
        slices.append(found.slices[there.mask].double().cpu().numpy())
        of_series.append(found.study.double().cpu().numpy())
    return _joined(studies, rows, np.concatenate(slices), np.concatenate(of_series))


def _joined(studies: StudySet, rows: Int64Array, slice_logit: Floats, series_logit: Floats) -> StudyPredictions:
    """Logits of every slice and of every series, both in the order of the series, as those of ``rows`` and studies."""
    place = {uid: number for number, uid in enumerate(dict.fromkeys(one.study_uid for one in studies.series))}
    study_of_series = np.array([place[one.study_uid] for one in studies.series], dtype=np.int64)
    all_rows = np.concatenate([one.rows for one in studies.series])  # ascending, as series stand in the index
    is_asked = np.isin(all_rows, rows)
    study_logit = np.full((len(place), slice_logit.shape[1]), -np.inf)
    np.maximum.at(study_logit, study_of_series, series_logit)
    return StudyPredictions(
        rows=all_rows[is_asked],
        slice_logit=slice_logit[is_asked],
        cnn_logit=look_up(studies.stores[0], studies.stores[0], all_rows[is_asked])[1].astype(np.float64),
        slice_study=np.repeat(study_of_series, [len(one.rows) for one in studies.series])[is_asked],
        study_uid=list(place),
        study_logit=study_logit,
    )


def slice_loss(predictions: StudyPredictions, labels: NDArray[np.int8]) -> tuple[float, float]:
    """The challenge's log loss of the slices, by the sequence model and by the CNN alone; ``labels`` [M, K] of all."""
    truth = labels[predictions.rows]
    said, alone = (probability_of(logit) for logit in (predictions.slice_logit, predictions.cnn_logit))
    return metrics.log_loss_weighted(truth, said), metrics.log_loss_weighted(truth, alone)


def study_aucs(predictions: StudyPredictions, labels: NDArray[np.int8]) -> dict[str, Any]:
    """AUC of studies per label by four rules: largest, mean of the top three, noisy-or of the slices; the study head.

    A study is positive where one of its slices is. None where a label has one class only.
    """
    truth = np.zeros((len(predictions.study_uid), labels.shape[1]), dtype=np.int8)
    np.maximum.at(truth, predictions.slice_study, labels[predictions.rows])
    rules = {f"{name}_{rule}": scores for name, rule, scores in _scores(predictions)}
    rules["sequence_head"] = probability_of(predictions.study_logit)
    return {rule: metrics.roc_auc(truth, scores) for rule, scores in rules.items()}


def _scores(predictions: StudyPredictions) -> Iterable[tuple[str, str, Floats]]:
    """Study scores [S, K] made from slices, of the CNN alone and of the sequence model."""
    for name, logit in (("cnn", predictions.cnn_logit), ("sequence", predictions.slice_logit)):
        p = probability_of(logit)
        groups = [p[predictions.slice_study == study] for study in range(len(predictions.study_uid))]
        for rule, score in RULES.items():
            yield name, rule, np.stack([score(group) for group in groups])
