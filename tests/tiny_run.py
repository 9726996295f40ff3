"""``python -m fastich.train`` on a network of some hundred weights, for tests that start processes of their own.

    torchrun --nproc-per-node 2 tests/tiny_run.py --records DIR --out RUN ...

Without batch norm and dropout, so that any number of processes computes the same. ``TINY_KILL=RANK:STEP`` ends that
rank as ``kill -9`` does before its step, the time left in the file TINY_KILLED; ``TINY_NAN=RANK:STEP`` spoils an image.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from fastich import train, verb
from fastich.loaders import Batch
from fastich.training.learner import Learner


class TinyPlain(torch.nn.Module):
    """A strided convolution, a mean and six logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 5, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
            torch.nn.Linear(4, 6),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class TinyNorm(TinyPlain):
    """The same with what makes the ranks differ: batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.layers.insert(1, torch.nn.BatchNorm2d(4))
        self.layers.insert(5, torch.nn.Dropout(0.2))


NETWORKS = {"plain": TinyPlain, "norm": TinyNorm}


def build(*_: Any, **__: Any) -> torch.nn.Module:
    return NETWORKS[os.environ.get("TINY_NETWORK", "plain")]()


def is_named(variable: str, step: int) -> bool:
    return os.environ.get(variable) == f"{os.environ.get('RANK', '0')}:{step}"


def disturbed() -> Any:
    """``Learner.step`` that dies or spoils its batch where the environment says so."""
    step, taken = Learner.step, []

    def disturb(learner: Learner, batch: Batch, *given: Any) -> Any:
        if is_named("TINY_KILL", len(taken)):
            Path(os.environ["TINY_KILLED"]).write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        if is_named("TINY_NAN", len(taken)):
            batch.images[0] = float("nan")
        taken.append(0)
        return step(learner, batch, *given)

    return disturb


if __name__ == "__main__":
    train.build_model = build  # type: ignore[assignment]
    Learner.step = disturbed()  # type: ignore[method-assign]
    verb.run(train.main)
