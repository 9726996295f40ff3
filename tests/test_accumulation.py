import pytest
import torch
from test_epoch import CountingLoader
from tiny_run import TinyPlain

from fastich.loaders import Batch
from fastich.training.accumulation import Part, is_checkpoint_due, num_updates, part_of
from fastich.training.learner import Learner, make_learner
from fastich.training.precision import Precision


def test_the_last_group_of_an_epoch_is_what_is_left() -> None:
    parts = [part_of(number, 7, 3) for number in range(7)]
    assert [(part.index, part.count) for part in parts] == [(0, 3), (1, 3), (2, 3)] * 2 + [(0, 1)]
    assert [part.is_last for part in parts] == [False, False, True, False, False, True, True]
    assert (num_updates(7, 3), num_updates(6, 3), num_updates(2, 3), num_updates(7, 1)) == (3, 2, 1, 7)


def test_checkpoints_fall_on_the_end_of_a_group() -> None:
    """Epochs of 7 batches in groups of 3: the groups of the second epoch begin at step 7."""
    due = [step for step in range(14) if is_checkpoint_due(4, step, part_of(step % 7, 7, 3))]
    assert due == [5, 9, 12]
    assert [step for step in range(12) if is_checkpoint_due(4, step, Part())] == [3, 7, 11]
    assert not any(is_checkpoint_due(0, step, Part()) for step in range(5))


def learner(replicas: int, dtype: torch.dtype = torch.float32, clip_norm: float = 0.0) -> Learner:
    torch.manual_seed(0)
    precision = Precision(dtype=dtype, device=torch.device("cpu"))
    return make_learner(TinyPlain(), precision, lr=1e-3, replicas=replicas, clip_norm=clip_norm)  # type: ignore[arg-type]


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat([getattr(one, name) for one in batches]) for name in ("images", "labels", "rows")))


def weights(made: Learner) -> torch.Tensor:
    return torch.cat([value.flatten() for value in made.model.state_dict().values()])


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_a_group_is_one_large_batch(replicas: int, clip_norm: float) -> None:
    """Five batches in groups of two, the last alone, beside two batches of twice the size and one: same weights."""
    small = list(CountingLoader(5).epoch(0))
    split, whole = learner(replicas, clip_norm=clip_norm), learner(1, clip_norm=clip_norm)
    before = weights(whole)
    losses = [split.step(batch, 1e-2, part_of(number, 5, 2))[0] for number, batch in enumerate(small)]
    large = [joined(small[:2]), joined(small[2:4]), small[4]]
    whole_losses = [whole.step(batch, 1e-2)[0] for batch in large]
    split.close()
    torch.testing.assert_close((losses[0] + losses[1]) / 2, whole_losses[0])
    torch.testing.assert_close(losses[4], whole_losses[2])
    torch.testing.assert_close(weights(split), weights(whole), rtol=1e-4, atol=1e-6)
    assert (weights(whole) - before).abs().max() > 1e-2


def test_weights_move_at_the_end_of_a_group_only() -> None:
    made, batches = learner(1), list(CountingLoader(3).epoch(0))
    before = weights(made)
    for index in range(2):
        made.step(batches[index], 1e-2, Part(index=index, count=3))
        assert torch.equal(weights(made), before)
    made.step(batches[2], 1e-2, Part(index=2, count=3))
    assert not torch.equal(weights(made), before)
