"""The one network for every backbone: feature maps, global average pooling, the study's two-layer head for six labels.

The backbones are torchvision's. DenseNet121, the study's, costs 7.5 M parameters (30 MB) and 7.4 GFLOP for one 256 px
slice forward. The pooled features go through a piecewise linear head and nothing else, so the embedding and exact
class maps are at hand without hooks; ConvNeXt's last LayerNorm, which torchvision puts behind the pooling, therefore
stands before it, on each place of the feature map.

Shapes: N slices, S side in pixels, h and w = S / 32, C features (the embedding), K labels.
"""

import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum
from torchvision.ops.misc import SqueezeExcitation

from fastich.errors import CheckpointError
from fastich.labels import NUM_LABELS
from fastich.models.weights import MODEL_PREFIX, Tensors, load_exactly, present_name, read_tensors

M = TypeVar("M", bound=nn.Module)

HIDDEN_SIZE = 512
DROPOUT = 0.2
"""The head's. Source: the study, its section 4."""

# Source: torchvision.models.densenet._load_state_dict; the published file has module names with a dot in them.
OLD_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$")


class Backbone(NamedTuple):
    """One of torchvision's networks: what makes it, its ImageNet weights, and its part before the pooling.

    ``names`` are the beginnings of that part's tensors in torchvision's files, and what stands here instead.
    """

    build: Callable[..., nn.Module]
    imagenet: WeightsEnum
    features: Callable[[Any], nn.Sequential]
    names: Mapping[str, str]


class Classifier(nn.Module):
    """Feature maps, their mean over the slice, and the head Linear(C, 512)-ReLU-Dropout-Linear(512, K).

    Attributes:
        features: ``images`` [N, 3, S, S] to the last feature maps [N, C, h, w].
        head: an ``embedding`` [N, C] to logits [N, K].
        embedding_size: C.
    """

    def __init__(self, features: nn.Sequential, embedding_size: int) -> None:
        """Put a head with random weights behind ``features``."""
        super().__init__()
        self.embedding_size = embedding_size
        self.features = features
        self.head = nn.Sequential(
            nn.Linear(embedding_size, HIDDEN_SIZE), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN_SIZE, NUM_LABELS)
        )

    def embedding(self, images: torch.Tensor) -> torch.Tensor:
        """The pooled features of ``images`` [N, 3, S, S]: [N, C]."""
        return cast(torch.Tensor, self.features(images)).mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of ``images`` [N, 3, S, S]."""
        return cast(torch.Tensor, self.head(self.embedding(images)))


class _Mean(nn.Module):
    """Adaptive pooling to one pixel, whose own export gathers by N and so reaches past ``image`` to the input."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Means [N, C, 1, 1] of ``features`` [N, C, h, w]."""
        return features.mean(dim=(2, 3), keepdim=True)


def _of_densenet(network: models.DenseNet) -> nn.Sequential:
    return _named(*network.features.named_children(), ("relu5", nn.ReLU()))


def _of_resnet(network: models.ResNet) -> nn.Sequential:
    return _named(*((name, part) for name, part in network.named_children() if name not in ("avgpool", "fc")))


def _of_efficientnet(network: models.EfficientNet) -> nn.Sequential:
    for module in network.modules():
        if isinstance(module, SqueezeExcitation):
            module.avgpool = _Mean()
    return _named(*network.features.named_children())


def _of_convnext(network: models.ConvNeXt) -> nn.Sequential:
    return _named(*network.features.named_children(), ("norm", network.classifier[0]))


def _named(*parts: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


IN_FEATURES = {"features.": ""}
BACKBONES = {
    "densenet121": Backbone(models.densenet121, models.DenseNet121_Weights.IMAGENET1K_V1, _of_densenet, IN_FEATURES),
    "densenet169": Backbone(models.densenet169, models.DenseNet169_Weights.IMAGENET1K_V1, _of_densenet, IN_FEATURES),
    "resnext50_32x4d": Backbone(
        models.resnext50_32x4d,
        models.ResNeXt50_32X4D_Weights.IMAGENET1K_V1,
        _of_resnet,
        {name: name for name in ("conv1.", "bn1.", "layer")},
    ),
    "efficientnet_b0": Backbone(
        models.efficientnet_b0, models.EfficientNet_B0_Weights.IMAGENET1K_V1, _of_efficientnet, IN_FEATURES
    ),
    "convnext_tiny": Backbone(
        models.convnext_tiny,
        models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
        _of_convnext,
        {**IN_FEATURES, "classifier.0.": "norm."},
    ),
}
DEFAULT_BACKBONE = "densenet121"
"""The study's, and that of checkpoints whose config names none."""


def build_model(backbone: str = DEFAULT_BACKBONE, *, weights: str | Path = "imagenet") -> Classifier:
    """The network on the CPU in float32, channels_last, in training mode.

    Args:
        backbone: one of ``BACKBONES``.
        weights: ``imagenet`` (torchvision's IMAGENET1K_V1, fetched once into torch's cache), ``none`` (random, from
            torch's global generator), or a file: a state dict of torchvision's network or one of our checkpoints.

    Raises:
        CheckpointError: the weights cannot be fetched, read or do not fit.
    """
    chosen = BACKBONES[backbone]
    published = _fetch(chosen.imagenet) if str(weights) == "imagenet" else None
    whole = chosen.build(weights=None)
    width = [module for module in whole.modules() if isinstance(module, nn.Linear)][-1].in_features
    model = Classifier(chosen.features(whole), width)
    if published is not None:
        load_backbone(model, chosen, published, source=chosen.imagenet.url)
    elif str(weights) != "none":
        load_weights_file(model, chosen, Path(weights))
    return to_channels_last(model)


def to_channels_last(model: M) -> M:
    """``model`` itself, its weights laid out channels_last (the faster layout of convolutions, on CPU and GPU)."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # documented, but not in torch's stubs
    return model


def load_weights_file(model: Classifier, backbone: Backbone, path: Path) -> None:
    """Load ``path`` into ``model``: the whole network from our safetensors, the backbone from torchvision's file.

    Raises:
        CheckpointError: the file is missing, damaged or of another network.
    """
    tensors = read_tensors(path)
    ours = {
        present_name(key).removeprefix(MODEL_PREFIX): value
        for key, value in tensors.items()
        if key.startswith(MODEL_PREFIX)
    }
    if ours:
        load_exactly(model, ours, source=str(path))
    else:
        load_backbone(model, backbone, tensors, source=str(path))


def load_backbone(model: Classifier, backbone: Backbone, tensors: Tensors, source: str) -> None:
    """Load what a state dict of torchvision's network holds before the pooling; the head keeps its own values."""
    renamed = {rename_old_key(key): value for key, value in tensors.items()}
    features = {
        here + key.removeprefix(there): value
        for there, here in backbone.names.items()
        for key, value in renamed.items()
        if key.startswith(there)
    }
    load_exactly(model.features, features, source=source)


def rename_old_key(key: str) -> str:
    """The present name of a tensor in torchvision's published DenseNets: ``norm.1.weight`` became ``norm1.weight``."""
    return OLD_KEY.sub(r"\1\2", key)


def _fetch(imagenet: WeightsEnum) -> Tensors:
    try:
        state = imagenet.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"ImageNet weights could not be fetched from {imagenet.url} ({' '.join(str(error).split())}); "
            "use --weights none (random start), or fetch that file elsewhere and give --weights FILE, "
            "or put it into $TORCH_HOME/hub/checkpoints"
        ) from error
    return dict(state)
