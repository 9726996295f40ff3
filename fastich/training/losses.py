"""What a step minimises: binary cross entropy over slices and labels, plain, weighted or focal; one call everywhere.

The weights are tensors on the device that trains, so a recorded step (``graphs.py``) reads them there, without a wait.
A weighted or focal loss ranks the rare labels higher and says probabilities that are too high: calibrate afterwards.
The loss of histories, early stopping and the best checkpoint is plain (``predictions.py``), so runs can be compared.

Shapes: N slices, K = 6 labels, M slices of the training split.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from fastich.labels import CHALLENGE_WEIGHTS
from fastich.loaders.order import balanced_weights

LOSSES = ("bce", "focal")
CLASS_WEIGHTS = ("none", "challenge", "inverse")
FOCAL_GAMMA = 2.0
"""Source: Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002, section 5.1: 2 worked best."""
LARGEST_POSITIVE_WEIGHT = 50.0
"""Epidural bleeds, 0.41 % of RSNA 2019, would weigh 243: a step that meets one would follow it alone. The other labels
of that set stay below the cap (28 for intraventricular, 3.5 %)."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """The mean over slices and labels of a weighted, focal cross entropy; as it stands, of the plain one.

    With ``p`` the probability given to what is true, one slice's term of label k is

        weight_k * (positive_weight_k if positive else 1) * (1 - p) ** gamma * -log(p)

    Attributes:
        weight_K: of each label, or None for 1.
        positive_weight_K: of each label's positives, or None for 1.
        gamma: how far easy slices are turned down; 0 not at all. (Lin's alpha is what the weights are here, and he
            divides by the number of matched boxes, for which there is no counterpart.)
    """

    weight_K: Tensor | None = None
    positive_weight_K: Tensor | None = None
    gamma: float = 0.0

    def __call__(self, logits_NK: Tensor, labels_NK: Tensor) -> Tensor:
        """The loss, a scalar, of float32 ``logits_NK`` against ``labels_NK`` of 0 and 1."""
        each = binary_cross_entropy_with_logits(
            logits_NK,
            labels_NK,
            weight=self.weight_K,
            pos_weight=self.positive_weight_K,
            reduction="none" if self.gamma else "mean",
        )
        if not self.gamma:
            return each
        missed_log = logsigmoid(logits_NK - 2 * labels_NK * logits_NK)  # of 1 - p: finite, and so is its gradient
        return (each * (self.gamma * missed_log).exp()).mean()

    def to(self, device: torch.device) -> "Loss":
        """The same with its weights on ``device``."""
        weights = (self.weight_K, self.positive_weight_K)
        weight, positive = (None if value is None else value.to(device) for value in weights)
        return Loss(weight_K=weight, positive_weight_K=positive, gamma=self.gamma)


def make_loss(
    loss: str, gamma: float, class_weights: str, labels_MK: NDArray[np.int8] | None, *, balanced: bool
) -> Loss:
    """The loss that a config names, its weights on the CPU.

    Args:
        loss: of ``LOSSES``.
        gamma: of the focal loss.
        class_weights: of ``CLASS_WEIGHTS``.
        labels_MK: the training split's labels, 0 and 1; only ``inverse`` asks for them.
        balanced: the split is drawn by ``order.balanced_weights``; prevalence is then that of what is drawn.
    """
    positive = None
    if class_weights == "inverse":
        assert labels_MK is not None
        positive = positive_weights(labels_MK, balanced=balanced)
    return Loss(
        weight_K=challenge_weights() if class_weights == "challenge" else None,
        positive_weight_K=positive,
        gamma=gamma if loss == "focal" else 0.0,
    )


def challenge_weights() -> Tensor:
    """The labels' weights in the challenge's metric, float32 [K] of mean 1: plain cross entropy becomes that metric.

    Source: RSNA 2019 challenge, evaluation page: weighted log loss, ``any`` counts twice.
    """
    weights = np.asarray(CHALLENGE_WEIGHTS)
    return torch.tensor(weights / weights.mean(), dtype=torch.float32)


def positive_weights(labels_MK: NDArray[np.int8], *, balanced: bool) -> Tensor:
    """Negatives for each positive, at most ``LARGEST_POSITIVE_WEIGHT``, float32 [K]: ``(1 - q) / q`` at prevalence q.

    A label without positives gets 1: there is nothing that a weight could act on.

    Source: torch.nn.BCEWithLogitsLoss, ``pos_weight``.
    """
    share_M = balanced_weights(labels_MK) if balanced else np.full(len(labels_MK), 1 / len(labels_MK))
    prevalence = share_M @ (labels_MK == 1)
    known = np.where(prevalence > 0, prevalence, 0.5)
    return torch.tensor(np.minimum((1 - known) / known, LARGEST_POSITIVE_WEIGHT), dtype=torch.float32)
