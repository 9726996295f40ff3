"""The replayed step on the CPU: a stand-in takes the place of the recorder and runs the work again on each replay."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_epoch import CountingLoader, TinyNet

from fastich.training.graphs import NUM_BEFORE, Outputs, StepGraph
from fastich.training.learner import Learner, make_learner, set_learning_rate
from fastich.training.losses import Loss, challenge_weights
from fastich.training.precision import Precision

CPU = torch.device("cpu")


class Recorder:
    """Records without running, as CUDA does; a replay writes into the tensors that the recording gave."""

    def __init__(self) -> None:
        self.num_recordings = self.num_replays = 0

    def __call__(self, work: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
        outputs = (torch.full((), float("nan")), torch.full((8, 6), float("nan")))
        self.num_recordings += 1

        def replay() -> None:
            self.num_replays += 1
            for place, value in zip(outputs, work(), strict=True):
                place.copy_(value)

        return outputs, replay


def learner(graph: StepGraph, **options: Any) -> Learner:
    torch.manual_seed(0)
    precision = Precision(dtype=torch.float32, device=CPU)
    made = make_learner(TinyNet(), precision, lr=1e-3, **options)  # type: ignore[arg-type]
    object.__setattr__(made, "graph", graph)
    return made


def steps(made: Learner, count: int) -> list[Outputs]:
    torch.manual_seed(1)
    rates = [1e-3 * (number + 1) for number in range(count)]
    return [made.step(batch, lr) for batch, lr in zip(CountingLoader(count).epoch(0), rates, strict=True)]


def test_replayed_steps_give_the_weights_and_losses_of_plain_ones() -> None:
    recorder = Recorder()
    plain = learner(StepGraph(CPU, enabled=False))
    replayed = learner(StepGraph(CPU, enabled=True, recorder=recorder))
    for (loss, logits), (same_loss, same_logits) in zip(steps(plain, 6), steps(replayed, 6), strict=True):
        assert torch.equal(loss, same_loss)
        assert torch.equal(logits, same_logits)
    assert (recorder.num_recordings, recorder.num_replays) == (1, 6 - NUM_BEFORE)
    for one, other in zip(plain.model.state_dict().values(), replayed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_replayed_step_has_the_loss_the_clipping_and_the_average_of_a_plain_one() -> None:
    options = {"loss": Loss(weight_K=challenge_weights(), gamma=2.0), "clip_norm": 0.01, "ema": 0.9}
    plain = learner(StepGraph(CPU, enabled=False), **options)
    replayed = learner(StepGraph(CPU, enabled=True, recorder=Recorder()), **options)
    for (loss, _), (same_loss, _) in zip(steps(plain, 6), steps(replayed, 6), strict=True):
        assert torch.equal(loss, same_loss)
    with plain.judged(), replayed.judged():
        for one, other in zip(plain.model.state_dict().values(), replayed.model.state_dict().values(), strict=True):
            assert torch.equal(one, other)
    assert plain.average.num_updates == replayed.average.num_updates == 6


def test_a_batch_of_another_shape_is_our_mistake() -> None:
    made = learner(StepGraph(CPU, enabled=True, recorder=Recorder()))
    steps(made, 5)
    batch = next(iter(CountingLoader(1).epoch(0)))
    with pytest.raises(AssertionError, match=r"recorded for \[8, 3, 8, 8\], found \[4, 3, 8, 8\]"):
        made.graph.run(made._whole_step, batch.images[:4], batch.labels[:4])


def test_the_rate_of_a_recorded_step_is_changed_in_place() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    rate = torch.tensor(1e-3)
    optimizer = torch.optim.Adam([parameter], lr=rate, fused=True)
    set_learning_rate(optimizer, 5e-3)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(5e-3)
