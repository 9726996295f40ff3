"""Batch normalisation in evaluation mode, folded away before export: a serving graph holds none of it.

Where a convolution stands right before it (all of ResNeXt and EfficientNet), it goes into that convolution's weights.
DenseNet's pre-activation (norm, ReLU, convolution) has none before it: there it becomes one multiply-add a channel,
written as a 1 x 1 convolution with a group a channel, which ONNX Runtime runs in its blocked layout in one pass with
the ReLU (a Mul and an Add are two more passes: 17 % fewer slices/s of DenseNet121). In exact arithmetic nothing
changes; float32 logits move by rounding. ConvNeXt has none.
It costs a copy of the network (30 MB).
"""

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

M = TypeVar("M", bound=nn.Module)

BEHIND_A_CONVOLUTION = {"norm2": "conv1", "bn1": "conv1", "bn2": "conv2", "bn3": "conv3"}
"""Norms that see the output of exactly one convolution of the same block. Source: torchvision.models.densenet (dense
layers) and torchvision.models.resnet (bottlenecks). In an ``nn.Sequential`` the order tells."""


def fold_batch_norm(model: M) -> M:
    """A copy of ``model`` in evaluation mode without batch normalisation; ``model`` itself is left as it is."""
    folded = copy.deepcopy(model).eval()
    for parent in list(folded.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                _fold(parent, name, child)
    return folded


def _fold(parent: nn.Module, name: str, norm: nn.BatchNorm2d) -> None:
    before = _before(parent, name)
    convolution = getattr(parent, before, None)
    if isinstance(convolution, nn.Conv2d):
        setattr(parent, before, fuse_conv_bn_eval(convolution, norm))
        setattr(parent, name, nn.Identity())
    else:
        setattr(parent, name, multiply_add(norm))


def _before(parent: nn.Module, name: str) -> str:
    """Name of the module whose output alone ``name`` sees, "" where there is none."""
    if not isinstance(parent, nn.Sequential):
        return BEHIND_A_CONVOLUTION.get(name, "")
    names = ["", *(child for child, _ in parent.named_children())]
    return names[names.index(name) - 1]


def multiply_add(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """``scale * x + shift`` for each channel of [N, C, h, w], computed in float64 and kept in float32."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None, "a checkpoint holds running statistics"
    assert variance is not None, "a checkpoint holds running statistics"
    scale = norm.weight.double() / torch.sqrt(variance.double() + norm.eps)
    shift = norm.bias.double() - mean.double() * scale
    made = nn.Conv2d(norm.num_features, norm.num_features, kernel_size=1, groups=norm.num_features)
    with torch.no_grad():
        made.weight.copy_(scale.view(-1, 1, 1, 1))
        made.bias.copy_(shift)  # type: ignore[union-attr]  # there is one: Conv2d's default
    return made.eval()
