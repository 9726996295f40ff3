"""The graph that is exported: HU in; probability, logit, embedding and exact class maps out.

The head is piecewise linear after global average pooling: at a given embedding the ReLU lets a fixed set of hidden
units through, so each logit is one linear map of the pooled features, and the same map applied before pooling is a
class map whose mean over the slice *is* the logit. Cost: 6 M multiply-adds a slice, under 0.1 % of DenseNet121.

Shapes: N slices, H rows, W columns, C features on an h x w grid, J = 512 hidden units, K labels.
"""

from typing import cast

import torch
from torch import Tensor, nn

from fastich.calibration import NONE, Calibration
from fastich.hu import AIR_HU
from fastich.models.calibrator import Calibrator
from fastich.models.classifier import Classifier
from fastich.preprocess import Preprocess
from fastich.windowing import Window

EXAMPLE_SHAPE = (2, 96, 80)
"""What the exporters trace with: no two sides equal, so that a side taken for another cannot go unseen."""


class Front(nn.Module):
    """HU to the network's input; adjacent mode makes the neighbours by shifting along N, the edge repeats itself."""

    def __init__(self, size: int, windows: tuple[Window, ...], adjacent: bool) -> None:
        super().__init__()
        self.preprocess = Preprocess(size, windows, adjacent)
        self.adjacent = adjacent

    def forward(self, hu: Tensor) -> Tensor:
        """Return float32 [N, 3, S, S] of ``hu`` int16 [N, H, W]."""
        planes = hu
        if self.adjacent:
            here = torch.arange(hu.shape[0], device=hu.device)
            before = torch.clamp(here - 1, min=0)
            after = torch.minimum(here + 1, here[-1:])
            planes = torch.stack([hu[before], hu, hu[after]], dim=1)
        channels: Tensor = self.preprocess(planes)
        return channels


class ServingModel(nn.Module):
    """A trained network between its preprocessing and its outputs, in the order of ``artifact.OUTPUTS``."""

    def __init__(self, front: nn.Module, model: Classifier, calibration: Calibration = NONE) -> None:
        super().__init__()
        self.front = front
        self.model = model
        self.calibrator = Calibrator(calibration)
        self.eval()

    def forward(self, hu: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return probability [N, K], raw logit [N, K], embedding [N, C], cam [N, K, h, w] of ``hu`` int16 [N, H, W]."""
        features_NChw = self.model.features(self.front(hu))
        embedding_NC = features_NChw.mean(dim=(2, 3))
        logit_NK = self.model.head(embedding_NC)
        return self.calibrator(logit_NK), logit_NK, embedding_NC, class_maps(self.model, features_NChw, embedding_NC)


def class_maps(model: Classifier, features_NChw: Tensor, embedding_NC: Tensor) -> Tensor:
    """Class maps [N, K, h, w] in logits: their mean over h and w is the logit (module docstring)."""
    first, last = cast(nn.Linear, model.head[0]), cast(nn.Linear, model.head[-1])
    open_NJ = (first(embedding_NC) > 0).to(features_NChw.dtype)
    weight_NKC = torch.matmul(last.weight.unsqueeze(0) * open_NJ.unsqueeze(1), first.weight)
    constant_NK = nn.functional.linear(open_NJ * first.bias, last.weight, last.bias)
    maps = torch.matmul(weight_NKC, features_NChw.flatten(2)) + constant_NK.unsqueeze(2)
    return maps.view(maps.shape[0], maps.shape[1], features_NChw.shape[2], features_NChw.shape[3])


def example() -> Tensor:
    """Slices of air that the exporters trace with, int16 [N, H, W]."""
    return torch.full(EXAMPLE_SHAPE, AIR_HU, dtype=torch.int16)
