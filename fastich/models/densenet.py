"""The study's network: torchvision's DenseNet121 with a two-layer head for six labels.

It costs 7.5 M parameters (30 MB) and 7.4 GFLOP for one 256 px slice forward. Global average pooling is followed by a
piecewise linear head, so the pooled embedding and exact class maps are at hand without hooks.

Shapes: N slices, S side in pixels, h and w = S / 32, K labels.
"""

import re
import sys
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models import DenseNet121_Weights, densenet121

from fastich.errors import CheckpointError
from fastich.labels import NUM_LABELS

M = TypeVar("M", bound=nn.Module)

EMBEDDING_SIZE = 1024
HIDDEN_SIZE = 512
IMAGENET = DenseNet121_Weights.IMAGENET1K_V1
MODEL_PREFIX = "model."
"""What the network's tensors are called in our own checkpoints, before the name in the state dict."""

# Source: torchvision.models.densenet._load_state_dict; the published file has module names with a dot in them.
OLD_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$")


class DenseNet121Classifier(nn.Module):
    """DenseNet121 whose classifier is Linear(1024, 512)-ReLU-Dropout-Linear(512, K)."""

    def __init__(self, num_labels: int = NUM_LABELS, dropout: float = 0.2) -> None:
        super().__init__()
        self.densenet = densenet121(weights=None)
        self.densenet.classifier = nn.Sequential(
            nn.Linear(EMBEDDING_SIZE, HIDDEN_SIZE),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN_SIZE, num_labels),
        )

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last feature maps of ``images`` [N, 3, S, S], after the final ReLU: [N, 1024, h, w]."""
        return nn.functional.relu(self.densenet.features(images))

    def embedding(self, images: torch.Tensor) -> torch.Tensor:
        """The pooled features of ``images`` [N, 3, S, S]: [N, 1024]."""
        return self.features(images).mean(dim=(2, 3))

    def head(self, embedding: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of an ``embedding`` [N, 1024]."""
        return cast(torch.Tensor, self.densenet.classifier(embedding))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, K] of ``images`` [N, 3, S, S]."""
        return self.head(self.embedding(images))


def build_model(
    num_labels: int = NUM_LABELS, weights: str | Path = "imagenet", dropout: float = 0.2
) -> DenseNet121Classifier:
    """The network on the CPU in float32, channels_last, in training mode.

    Args:
        num_labels: width of the output.
        weights: ``imagenet`` (torchvision's IMAGENET1K_V1, fetched once into torch's cache), ``none`` (random, from
            torch's global generator), or a file: a torchvision densenet121 state dict or one of our checkpoints.
        dropout: probability of the head's dropout.

    Raises:
        CheckpointError: the weights cannot be fetched, read or do not fit.
    """
    model = DenseNet121Classifier(num_labels, dropout)
    if str(weights) == "imagenet":
        load_backbone(model, _fetch_imagenet(), source=IMAGENET.url)
    elif str(weights) != "none":
        load_weights_file(model, Path(weights))
    return to_channels_last(model)


def to_channels_last(model: M) -> M:
    """``model`` itself, its weights laid out channels_last (the faster layout of convolutions, on CPU and GPU)."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # documented, but not in torch's stubs
    return model


def load_weights_file(model: DenseNet121Classifier, path: Path) -> None:
    """Load ``path`` into ``model``: the whole network from our safetensors, the backbone from torchvision's file.

    Raises:
        CheckpointError: the file is missing, damaged or of another network.
    """
    tensors = _read_tensors(path)
    ours = {key.removeprefix(MODEL_PREFIX): value for key, value in tensors.items() if key.startswith(MODEL_PREFIX)}
    if ours:
        load_exactly(model, ours, source=str(path))
    else:
        load_backbone(model, tensors, source=str(path))


def load_backbone(model: DenseNet121Classifier, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Load the ``features.*`` of a torchvision densenet121 state dict; the head keeps its own values."""
    renamed = {rename_old_key(key): value for key, value in tensors.items()}
    features = {key.removeprefix("features."): value for key, value in renamed.items() if key.startswith("features.")}
    load_exactly(model.densenet.features, features, source=source)


def rename_old_key(key: str) -> str:
    """The present name of a tensor in torchvision's published file: ``norm.1.weight`` became ``norm1.weight``."""
    return OLD_KEY.sub(r"\1\2", key)


def load_exactly(module: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Load ``tensors`` into ``module`` where names and shapes are the same, all of them.

    Batch normalisation's ``num_batches_tracked`` may be absent (files older than torch 0.4.1 lack it).

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape; names the first one.
    """
    expected = module.state_dict()
    optional = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = sorted(set(expected) - set(tensors) - optional)
    extra = sorted(set(tensors) - set(expected))
    if missing or extra:
        what = f"lacks {len(missing)} tensors (first: {missing[0]})" if missing else f"has unknown tensor {extra[0]}"
        raise CheckpointError(f"{source}: not the weights of this DenseNet121: {what}")
    for key, value in tensors.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"{source}: tensor {key}: expected shape {list(expected[key].shape)}, found {list(value.shape)}"
            )
    module.load_state_dict(tensors, strict=False)


def _fetch_imagenet() -> dict[str, torch.Tensor]:
    try:
        state = IMAGENET.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"ImageNet weights could not be fetched from {IMAGENET.url} ({' '.join(str(error).split())}); "
            "use --weights none (random start), or fetch that file elsewhere and give --weights FILE, "
            "or put it into $TORCH_HOME/hub/checkpoints"
        ) from error
    return dict(state)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; --weights takes imagenet, none or a file") from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    except Exception as error:  # torch.load raises RuntimeError, UnpicklingError, EOFError, KeyError and others
        raise CheckpointError(f"{path}: expected a state dict saved by torch: {type(error).__name__}") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path}: expected a state dict (names to tensors), found {type(loaded).__name__}")
    return loaded
