import numpy as np
import pytest
import torch

from fastich import metrics
from fastich.models.sequence import SequenceOutput
from fastich.training.study_data import StudyBatch
from fastich.training.study_loss import total_loss, weighted_loss


def test_loss_is_the_challenges_metric() -> None:
    made = torch.Generator().manual_seed(0)
    logit, labels = torch.randn(20, 6, generator=made), (torch.rand(20, 6, generator=made) < 0.3).float()
    wanted = metrics.log_loss_weighted(labels.numpy(), logit.double().sigmoid().numpy())
    assert float(weighted_loss(logit, labels)) == pytest.approx(wanted, rel=1e-5)


def test_what_is_not_labelled_counts_nothing() -> None:
    logit, labels = torch.randn(2, 5, 6), torch.zeros(2, 5, 6)
    labels[0, 3:] = -1
    known = torch.cat([logit[0, :3], logit[1]])
    assert float(weighted_loss(logit, labels)) == pytest.approx(float(weighted_loss(known, torch.zeros(8, 6))))
    assert float(weighted_loss(logit, torch.full((2, 5, 6), -1.0))) == 0.0


def test_total_is_the_weighted_sum_of_slices_auxiliary_and_study() -> None:
    made = torch.Generator().manual_seed(1)
    found = SequenceOutput(*(torch.randn(*shape, generator=made) for shape in ((2, 4, 6), (2, 6), (2, 4, 6))))
    labels = torch.from_numpy(np.eye(2, 24, dtype=np.float32).reshape(2, 4, 6))
    empty = torch.empty(0)
    batch = StudyBatch(empty, empty, empty, empty, labels, empty)
    parts = [
        weighted_loss(found.slices, labels),
        weighted_loss(found.auxiliary, labels),
        weighted_loss(found.study, labels.amax(dim=1)),
    ]
    total = total_loss(found, batch, auxiliary_weight=0.25, study_weight=3.0)
    assert float(total) == pytest.approx(float(parts[0] + 0.25 * parts[1] + 3 * parts[2]))
