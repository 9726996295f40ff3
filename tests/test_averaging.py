from pathlib import Path

import pytest
import torch
from test_epoch import CountingLoader, TinyNet

from fastich.checkpoint import Checkpoint
from fastich.errors import CheckpointError
from fastich.training.averaging import Average
from fastich.training.learner import make_learner
from fastich.training.precision import Precision

CPU = Precision(dtype=torch.float32, device=torch.device("cpu"))


def state(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([v.flatten().double() for v in model.state_dict().values() if v.is_floating_point()])


def test_the_average_is_the_bias_corrected_one_of_all_weights_and_statistics() -> None:
    """Beside the plain form: m = d m + (1 - d) w from zero, divided by 1 - d ** t."""
    made = make_learner(TinyNet(), CPU, lr=1e-2, ema=0.9)  # type: ignore[arg-type]
    made.model.train()
    moment = torch.zeros_like(state(made.model))
    for number, batch in enumerate(CountingLoader(6).epoch(0), 1):
        made.step(batch, 1e-2)
        moment = 0.9 * moment + 0.1 * state(made.model)
        with made.judged():
            torch.testing.assert_close(state(made.model), moment / (1 - 0.9**number), rtol=1e-5, atol=1e-6)
    assert made.average.num_updates == 6


def test_the_first_weights_have_no_share() -> None:
    made = make_learner(TinyNet(), CPU, lr=1e-2, ema=0.999)  # type: ignore[arg-type]
    made.step(next(iter(CountingLoader(1).epoch(0))), 1e-2)
    with made.judged():
        averaged = state(made.model)
    assert torch.equal(averaged, state(made.model))


def test_the_network_is_put_back_to_the_bit_even_after_an_error() -> None:
    made = make_learner(TinyNet(), CPU, lr=1e-2, ema=0.5)  # type: ignore[arg-type]
    for batch in CountingLoader(3).epoch(0):
        made.step(batch, 1e-2)
    before, places = state(made.model), [value.data_ptr() for value in made.model.parameters()]
    with pytest.raises(ValueError, match="inside"), made.judged():
        assert not torch.equal(state(made.model), before)
        raise ValueError("inside")
    assert torch.equal(state(made.model), before)
    assert [value.data_ptr() for value in made.model.parameters()] == places


def test_without_an_average_the_network_judges_itself() -> None:
    made = make_learner(TinyNet(), CPU, lr=1e-2)  # type: ignore[arg-type]
    before = state(made.model)
    with made.judged():
        assert torch.equal(state(made.model), before)
    assert made.average is None


def test_an_average_of_another_network_is_refused() -> None:
    average = Average(TinyNet(), 0.9)
    saved = Checkpoint(path=Path("last"), meta={"ema_updates": 1}, tensors={"ema.other": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="last: expected the average of 8 tensors, found 1"):
        average.restore(saved)


def test_statistics_are_the_averages_of_buffers() -> None:
    assert [value.shape for value in Average(TinyNet(), 0.9).statistics] == [(4,), (4,)]
