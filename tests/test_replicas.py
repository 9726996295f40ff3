import pytest
import torch
from torch import nn

from fastich.loaders import Batch
from fastich.models.classifier import Classifier, build_model
from fastich.training.learner import Learner, make_learner
from fastich.training.precision import choose_precision
from fastich.training.replicas import Replicas

CPU = choose_precision(False, torch.device("cpu"))


def fresh_model(backbone: str = "densenet121") -> Classifier:
    torch.manual_seed(0)
    return build_model(backbone, weights="none")


def batch(num_slices: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        images=torch.randn(num_slices, 3, 32, 32, generator=generator),
        labels=(torch.rand(num_slices, 6, generator=generator) > 0.5).float(),
        rows=torch.arange(num_slices),
    )


def learner(replicas: int, backbone: str = "densenet121") -> Learner:
    return make_learner(fresh_model(backbone), CPU, lr=1e-3, replicas=replicas)


def gradients(replicas: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and all gradients of one batch with fixed batch statistics and no dropout."""
    made = learner(replicas)
    made.model.eval()
    learn = made.replicas.learn if made.replicas else made._learn
    loss, _ = learn(batch().images, batch().labels)
    made.close()
    return loss, torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None])


def test_parts_add_up_to_the_gradient_of_the_whole_batch() -> None:
    whole_loss, whole = gradients(1)
    parts_loss, parts = gradients(2)
    torch.testing.assert_close(parts_loss, whole_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)
    assert whole.abs().max() > 0


def test_uneven_parts_weigh_what_they_hold() -> None:
    made = Replicas(fresh_model().eval(), 2, CPU)
    loss, logits = made.learn(batch(9).images, batch(9).labels)
    made.close()
    expected = nn.functional.binary_cross_entropy_with_logits(logits, batch(9).labels)
    torch.testing.assert_close(loss, expected)


def after_steps(replicas: int, backbone: str = "densenet121") -> torch.Tensor:
    torch.manual_seed(5)
    made = learner(replicas, backbone)
    made.model.train()
    for _ in range(3):
        made.step(batch(), 1e-3)
    made.close()
    state = made.model.state_dict().values()
    return torch.cat([value.flatten().double() for value in state if value.is_floating_point()])


def test_a_seed_gives_one_result_dropout_included() -> None:
    assert torch.equal(after_steps(2), after_steps(2))


@pytest.mark.parametrize("backbone", ["efficientnet_b0", "convnext_tiny"])
def test_a_seed_gives_one_result_stochastic_depth_included(backbone: str) -> None:
    """ConvNeXt has no batch statistics to share."""
    assert torch.equal(after_steps(2, backbone), after_steps(2, backbone))


def test_weights_are_shared_and_statistics_averaged() -> None:
    made = learner(2)
    made.model.train()
    made.step(batch(), 1e-3)
    assert made.replicas is not None
    main, other = made.replicas._models
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(main.parameters(), other.parameters(), strict=True))
    first_norm = next(module for module in main.modules() if isinstance(module, nn.BatchNorm2d))
    stem = next(module for module in fresh_model().modules() if isinstance(module, nn.Conv2d))
    images = batch().images.tensor_split(2)
    means = [stem(part).mean(dim=(0, 2, 3)).detach() for part in images]
    torch.testing.assert_close(first_norm.running_mean, 0.1 * (means[0] + means[1]) / 2, rtol=1e-4, atol=1e-5)
    made.close()


def test_looking_equals_the_network_itself() -> None:
    model = fresh_model().eval()
    made = Replicas(model, 2, CPU)
    with torch.inference_mode():
        torch.testing.assert_close(made(batch(5).images), model(batch(5).images), rtol=1e-4, atol=1e-5)
    made.close()


def test_a_small_batch_is_not_split() -> None:
    made = learner(2)
    made.model.train()
    loss, logits = made.step(batch(3), 1e-3)
    made.close()
    assert torch.isfinite(loss)
    assert logits.shape == (3, 6)


def test_an_error_in_one_part_is_raised_and_nothing_hangs() -> None:
    made = learner(2)
    made.model.train()
    bad = Batch(images=batch().images[:, :2], labels=batch().labels, rows=batch().rows)
    with pytest.raises(RuntimeError, match="channels"):
        made.step(bad, 1e-3)
    made.close()
