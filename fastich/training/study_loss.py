"""What the sequence model learns from: the challenge's weighted log loss of slices, and the same of studies.

Shapes: B studies, L slices of the longest, K labels.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fastich.labels import CHALLENGE_WEIGHTS
from fastich.models.sequence import SequenceOutput
from fastich.training.study_data import StudyBatch


def weighted_loss(logit_xK: Tensor, labels_xK: Tensor) -> Tensor:
    """Mean binary cross entropy, ``any`` counted twice, over what is labelled (-1: unknown, and the padding)."""
    weight_K = torch.tensor(CHALLENGE_WEIGHTS, device=logit_xK.device)
    weight_xK = weight_K * (labels_xK >= 0)
    loss_xK = binary_cross_entropy_with_logits(logit_xK, labels_xK.clamp(min=0.0), reduction="none")
    return (loss_xK * weight_xK).sum() / weight_xK.sum().clamp(min=1.0)


def total_loss(found: SequenceOutput, batch: StudyBatch, *, auxiliary_weight: float, study_weight: float) -> Tensor:
    """The loss of a batch: slices, and by their weights the auxiliary output of slices and the study output."""
    return (
        weighted_loss(found.slices, batch.labels)
        + auxiliary_weight * weighted_loss(found.auxiliary, batch.labels)
        + study_weight * weighted_loss(found.study, batch.study_labels)
    )
