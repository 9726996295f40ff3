"""How the step is run: ``torch.compile`` and its modes, and whether the whole of it is one CUDA graph.

DenseNet121 is bound by memory traffic, and compiling fuses its batch norms and ReLUs: on a GPU that halves the bytes,
by an estimate from them 1.4 to 1.7 times the steps a second (not run on a GPU). ``reduce-overhead`` and
``max-autotune`` also record CUDA graphs of the network; ``--cuda-graph`` records the whole step, loss and optimizer
included (``graphs.py``).
"""

from typing import cast

import torch

from fastich.errors import UsageError
from fastich.models.classifier import Classifier
from fastich.training.precision import Precision
from fastich.training.predictions import Forward

COMPILE_MODES = ("none", "default", "reduce-overhead", "max-autotune")
GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Modes in which torch records CUDA graphs itself."""


def compiled(model: Classifier, mode: str) -> Forward:
    """``model`` itself, or its compiled form, made for one shape of batch; they share their weights."""
    if mode == "none":
        return model
    return cast(Forward, torch.compile(model, mode=mode, dynamic=False))


def require_runnable(compile_mode: str, cuda_graph: bool, precision: Precision) -> None:
    """Refuse what the device cannot do, before anything is opened.

    Raises:
        UsageError: says which flag, and what to give instead.
    """
    on_cpu = precision.device.type == "cpu"
    if on_cpu and compile_mode == "reduce-overhead":
        raise UsageError(
            "--compile reduce-overhead records CUDA graphs, but the device is the CPU; use default or none"
        )
    if on_cpu and cuda_graph:
        raise UsageError("--cuda-graph needs a CUDA device, but the device is the CPU; leave it out")
    if cuda_graph and precision.needs_scaler:
        raise UsageError(
            "--cuda-graph does not take float16, whose loss scale moves between steps; leave it or --amp out"
        )
