"""One step's gradient: clipped to a norm, in every precision."""

import pytest
import torch
from test_epoch import CountingLoader
from tiny_run import TinyPlain

from fastich.training.learner import make_learner
from fastich.training.precision import Precision


def norm_of_a_step(clip_norm: float, dtype: torch.dtype) -> float:
    """Norm of the gradient that moved the weights (the fused Adam takes float16's scale out of it)."""
    torch.manual_seed(0)
    precision = Precision(dtype=dtype, device=torch.device("cpu"))
    made = make_learner(TinyPlain(), precision, lr=1e-3, clip_norm=clip_norm)  # type: ignore[arg-type]
    made.step(next(iter(CountingLoader(1).epoch(0))), 1e-3)
    return float(torch.stack([weight.grad.norm() for weight in made.model.parameters()]).norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_gradients_norm_is_what_was_asked_for(dtype: torch.dtype) -> None:
    free = norm_of_a_step(0.0, dtype)
    assert free > 0.1
    assert norm_of_a_step(0.1, dtype) == pytest.approx(0.1, rel=1e-4)
    assert norm_of_a_step(10 * free, dtype) == pytest.approx(free, rel=1e-2)


def test_a_step_that_overflows_float16_is_left_out_although_it_is_clipped() -> None:
    torch.manual_seed(0)
    precision = Precision(dtype=torch.float16, device=torch.device("cpu"))
    made = make_learner(TinyPlain(), precision, lr=1e-3, clip_norm=1.0)  # type: ignore[arg-type]
    before = [weight.clone() for weight in made.model.parameters()]
    batch = next(iter(CountingLoader(1).epoch(0)))
    batch.images[0] = float("inf")
    scale = made.scaler.get_scale()
    made.step(batch, 1e-3)
    assert made.scaler.get_scale() < scale
    assert all(torch.equal(one, other) for one, other in zip(before, made.model.parameters(), strict=True))
