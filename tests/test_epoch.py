"""A training step waits for no device: every call that would is counted, on the CPU, where it shows as well."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastich.loaders import Batch
from fastich.training.config import TrainConfig
from fastich.training.epoch import Job, learn
from fastich.training.learner import make_learner
from fastich.training.loss_watch import EVERY
from fastich.training.losses import make_loss
from fastich.training.position import Position
from fastich.training.precision import Precision
from fastich.training.predictions import Predictions
from fastich.training.profiling import Profile

CPU = torch.device("cpu")
WAITING = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero")


class TinyNet(torch.nn.Module):
    """Stands for the network: a convolution, batch statistics, dropout and six logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
            torch.nn.Dropout(0.2), torch.nn.Linear(4, 6),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class CountingLoader:
    """Gives ``num_batches`` batches and says how often it was asked to look at its own state."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches, self.num_slices, self.num_checks = num_batches, num_batches * 8, 0

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for number in range(start, self.num_batches):
            generator = torch.Generator().manual_seed(number)
            images, labels = torch.randn(8, 3, 8, 8, generator=generator), torch.rand(8, 6, generator=generator).round()
            yield Batch(images=images, labels=labels, rows=torch.arange(8))

    def check(self) -> None:
        self.num_checks += 1


class CountScalars(TorchDispatchMode):
    """Counts values that torch itself brings to the host, whatever asked for them."""

    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "_local_scalar_dense" in str(func):
            self.counts["scalar"] += 1
        return func(*args, **(kwargs or {}))


def job(out: Path, num_batches: int, dtype: torch.dtype = torch.float32, **changes: Any) -> Job:
    config = TrainConfig(records=Path("toy"), out=out, batch_size=8, size=32, **changes)
    torch.manual_seed(0)
    loader: Any = CountingLoader(num_batches)
    folder: Any = SimpleNamespace(save_last=lambda *_: None)
    return Job(
        config=config,
        folder=folder,
        learner=make_learner(
            TinyNet(),  # type: ignore[arg-type]
            Precision(dtype=dtype, device=CPU),
            lr=1e-3,
            loss=make_loss(config.loss, config.focal_gamma, config.class_weights, None, balanced=False),
            clip_norm=config.clip_norm,
            ema=config.ema,
        ),
        train_loader=loader,
        val_loader=loader,
        board=None,
        profile=Profile(out, CPU, enabled=False),
    )


def count_waits(made: Job, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counts: Counter[str] = Counter()
    with monkeypatch.context() as patch:
        for name in WAITING:
            original = getattr(torch.Tensor, name)

            def counted(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
                counts[_name] += 1
                return _original(*args, **kwargs)

            patch.setattr(torch.Tensor, name, counted)
        patch.setattr(torch.cuda, "synchronize", lambda *_: counts.update(["synchronize"]))
        with CountScalars(counts):
            learn(made, Position(), Predictions())
    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("looks", [1, 3])
def test_a_step_waits_for_nothing_and_losses_are_looked_at_once_in_twenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int, dtype: torch.dtype
) -> None:
    assert EVERY == 20
    assert count_waits(job(tmp_path, looks * EVERY, dtype), monkeypatch) == {"tolist": looks}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_no_option_makes_a_step_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    options = {"loss": "focal", "class_weights": "challenge", "ema": 0.99, "clip_norm": 0.1, "accumulate": 3}
    made = job(tmp_path, EVERY, dtype, schedule="cosine", **options)
    assert count_waits(made, monkeypatch) == {"tolist": 1}
    assert made.learner.average.num_updates == 7


def test_the_rate_is_that_of_the_optimisers_step(tmp_path: Path) -> None:
    """7 batches in groups of 3 are 3 steps an epoch; 2 epochs, the first of which warms up."""
    made = job(tmp_path, 7, epochs=2, accumulate=3, schedule="cosine", warmup_epochs=1.0, lr=3.0)
    rates = [made.lr(step) for step in range(14)]
    assert rates[:7] == pytest.approx([1.0] * 3 + [2.0] * 3 + [3.0])
    assert rates[7:] == pytest.approx([3.0] * 3 + [2.25] * 3 + [0.75])


def test_the_counter_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(tmp_path, 5)
    monkeypatch.setattr(Predictions, "add", lambda self, logits, labels, rows: float(logits.sum()) and logits.cpu())
    counts = count_waits(made, monkeypatch)
    assert counts["__float__"] == counts["cpu"] == 5
    assert counts["scalar"] >= 5


def test_a_loader_looks_at_its_state_before_a_checkpoint(tmp_path: Path) -> None:
    made = job(tmp_path, 5, checkpoint_steps=2)
    learn(made, Position(), Predictions())
    assert made.train_loader.num_checks == 2  # type: ignore[attr-defined]
