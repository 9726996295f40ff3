import numpy as np
import pytest
import torch
from test_epoch import TinyNet

from fastich.labels import LABELS
from fastich.loaders import Batch
from fastich.metrics import log_loss_weighted
from fastich.training.learner import make_learner
from fastich.training.losses import LARGEST_POSITIVE_WEIGHT, Loss, challenge_weights, make_loss, positive_weights
from fastich.training.precision import Precision
from fastich.training.replicas import Replicas

CPU = Precision(dtype=torch.float32, device=torch.device("cpu"))


def outputs(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(count, 6, generator=generator)
    return logits, (torch.rand(count, 6, generator=generator) > 0.7).float()


def by_hand(loss: Loss) -> torch.Tensor:
    """The formula of the docstring, in float64."""
    logits, labels = (value.double() for value in outputs())
    given = torch.where(labels == 1, logits.sigmoid(), 1 - logits.sigmoid())
    weight = torch.ones(6) if loss.weight_K is None else loss.weight_K
    positive = torch.ones(6) if loss.positive_weight_K is None else loss.positive_weight_K
    return (weight * torch.where(labels == 1, positive, 1.0) * (1 - given) ** loss.gamma * -given.log()).mean()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", ["none", "challenge", "inverse"])
def test_every_loss_is_its_formula(gamma: float, weights: str) -> None:
    labels = outputs()[1].numpy().astype(np.int8)
    loss = make_loss("focal" if gamma else "bce", gamma, weights, labels, balanced=False)
    assert loss(*outputs()).item() == pytest.approx(by_hand(loss).item(), rel=1e-5)


def test_plain_cross_entropy_is_torchs_own_to_the_bit() -> None:
    assert torch.equal(Loss()(*outputs()), torch.nn.functional.binary_cross_entropy_with_logits(*outputs()))


def test_challenge_weights_make_the_challenges_metric() -> None:
    logits, labels = outputs()
    loss = Loss(weight_K=challenge_weights())(logits, labels)
    expected = log_loss_weighted(labels.numpy(), logits.double().sigmoid().numpy())
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert challenge_weights().mean().item() == pytest.approx(1)


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_focal_gradients_are_finite_where_the_network_is_certain(gamma: float) -> None:
    logits = torch.tensor([[300.0, -300.0, 0.0, 40.0, -40.0, 300.0]], requires_grad=True)
    Loss(gamma=gamma)(logits, torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0, 0.0]])).backward()
    assert bool(logits.grad.isfinite().all())
    assert logits.grad[0, 5] > 0
    assert logits.grad[0, 2] < 0


def test_focal_turns_easy_slices_down() -> None:
    easy, hard = torch.full((1, 6), -4.0), torch.full((1, 6), 4.0)
    plain, focal = Loss(), Loss(gamma=2.0)
    nothing = torch.zeros(1, 6)
    assert focal(easy, nothing) < 1e-3 * plain(easy, nothing)
    assert focal(hard, nothing) > 0.9 * plain(hard, nothing)


def labels_of_prevalence(counts: tuple[int, ...], num_slices: int = 1000) -> np.ndarray:
    labels = np.zeros((num_slices, 6), np.int8)
    for column, count in enumerate(counts):
        labels[:count, column] = 1
    return labels


def test_positives_weigh_their_negatives_up_to_a_cap() -> None:
    weights = positive_weights(labels_of_prevalence((4, 48, 35, 500, 0, 1000)), balanced=False)
    expected = [LARGEST_POSITIVE_WEIGHT, 952 / 48, 965 / 35, 1.0, 1.0, 0.0]
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)
    assert weights.dtype == torch.float32


def test_balanced_drawing_is_not_corrected_twice() -> None:
    """Two kinds of slices, drawn equally often: a positive is as frequent as a negative then."""
    labels = labels_of_prevalence((10, 0, 0, 0, 0, 10))
    assert positive_weights(labels, balanced=False)[0] == LARGEST_POSITIVE_WEIGHT
    assert positive_weights(labels, balanced=True)[[0, 5]].tolist() == pytest.approx([1.0, 1.0])


WEIGHTED = Loss(weight_K=challenge_weights(), positive_weight_K=torch.full((6,), 7.0), gamma=1.5)


def test_both_ways_through_a_step_call_the_loss() -> None:
    _, labels = outputs(8)
    images = torch.randn(8, 3, 8, 8)
    learner = make_learner(TinyNet().eval(), CPU, lr=1e-3, loss=WEIGHTED)  # type: ignore[arg-type]
    loss, found = learner.step(Batch(images=images, labels=labels, rows=torch.arange(8)), 1e-3)
    assert torch.equal(loss, WEIGHTED(found, labels))
    replicas = Replicas(TinyNet().eval(), 2, CPU, loss=WEIGHTED)  # type: ignore[arg-type]
    loss, found = replicas.learn(images, labels)
    replicas.close()
    torch.testing.assert_close(loss, WEIGHTED(found, labels))


def test_weights_go_to_the_device_of_the_step() -> None:
    moved = WEIGHTED.to(torch.device("meta"))
    assert moved.weight_K.device.type == moved.positive_weight_K.device.type == "meta"
    assert moved.gamma == WEIGHTED.gamma
    assert Loss().to(torch.device("meta")) == Loss()


def test_a_label_has_its_own_weight() -> None:
    assert len(challenge_weights()) == len(LABELS)
    assert challenge_weights().argmax() == LABELS.index("any")
