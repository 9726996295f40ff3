"""Named tensors into a network, all of them or an error: from our checkpoints and from torch's own files.

A file cannot run code when it is read here (safetensors, or torch's loader with weights only). Reading 30 MB takes
0.1 s.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fastich.errors import CheckpointError

Tensors = dict[str, torch.Tensor]

MODEL_PREFIX = "model."
"""What the network's tensors are called in our own checkpoints, before the name in the state dict."""
FORMER_NAMES = {"densenet.features.": "features.", "densenet.classifier.": "head."}
"""What parts of the network were called in checkpoints from before there was more than one backbone, and their name."""


def present_name(key: str) -> str:
    """The present name of a tensor in one of our checkpoints (``model.*``, ``optimizer.<moment>.*``)."""
    for former, name in FORMER_NAMES.items():
        key = key.replace(former, name, 1)
    return key


def load_exactly(module: nn.Module, tensors: Tensors, source: str) -> None:
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
        raise CheckpointError(f"{source}: not the weights of this network: {what}; --backbone must be the file's")
    for key, value in tensors.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"{source}: tensor {key}: expected shape {list(expected[key].shape)}, found {list(value.shape)}"
            )
    module.load_state_dict(tensors, strict=False)


def read_tensors(path: Path) -> Tensors:
    """The named tensors in ``path``: safetensors, or a state dict that torch saved.

    Raises:
        CheckpointError: the file is missing, damaged or holds something else.
    """
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
