import pytest
import torch

from fastich.models.sequence import (
    VARIANTS,
    SequenceEnsemble,
    SequenceModel,
    gap_features,
    members_of,
    reverse_slices,
    study_wide,
)

NAN = float("nan")


def study(length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    gap = torch.rand(1, length, generator=made) * 5 + 1
    gap[:, 0] = NAN
    return torch.randn(1, length, 8, generator=made), torch.randn(1, length, 6, generator=made), gap


def model(variant: str = "gru", seed: int = 1) -> SequenceModel:
    torch.manual_seed(seed)
    made = SequenceModel(8, variant=variant, projection_size=5, hidden_size=4).eval()
    for head in (made.slice_head, made.study_head):
        torch.nn.init.normal_(head.weight)
    return made


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_model_says_what_the_cnn_says(variant: str) -> None:
    embedding, logit, gap = study(7)
    found = SequenceModel(8, variant=variant).eval()(embedding, logit, gap, torch.ones(1, 7, dtype=torch.bool))
    assert torch.equal(found.slices, logit)
    assert torch.equal(found.study, logit.amax(dim=1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing(variant: str) -> None:
    made, (embedding, logit, gap) = model(variant), study(5)
    alone = made(embedding, logit, gap, torch.ones(1, 5, dtype=torch.bool))
    padded = [torch.cat([part, torch.full((1, 3, *part.shape[2:]), 7.0)], dim=1) for part in (embedding, logit, gap)]
    mask = torch.tensor([[True] * 5 + [False] * 3])
    found = made(*padded, mask)
    assert torch.allclose(found.slices[:, :5], alone.slices, atol=1e-6)
    assert torch.allclose(found.study, alone.study, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_slice_hears_of_slices_on_both_sides(variant: str) -> None:
    made, (embedding, logit, gap) = model(variant), study(9)
    embedding.requires_grad_()
    made(embedding, logit, gap, torch.ones(1, 9, dtype=torch.bool)).slices[0, 4].sum().backward()
    assert embedding.grad is not None
    assert (embedding.grad[0].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("length", [1, 800])
def test_a_study_of_any_length_has_finite_outputs(length: int) -> None:
    embedding, logit, gap = study(length)
    found = model()(embedding, logit, gap, torch.ones(1, length, dtype=torch.bool))
    assert found.slices.shape == (1, length, 6)
    assert all(torch.isfinite(part).all() for part in found)


def test_the_whole_study_is_told_by_its_largest_logits_and_counts_without_padding() -> None:
    logit = torch.tensor([[[2.0], [-1.0], [50.0]]]).expand(1, 3, 6)
    found = study_wide(logit, torch.tensor([[True, True, False]]))
    assert found.shape == (1, 12)
    assert found[0, :6].tolist() == [2.0] * 6
    assert found[0, 6:].tolist() == pytest.approx([float(torch.sigmoid(torch.tensor([2.0, -1.0])).sum())] * 6)


def test_unknown_gaps_are_marked_unknown_and_far_ones_are_capped() -> None:
    found = gap_features(torch.tensor([[NAN, 5.0, 1000.0, 2.0]]), torch.tensor([[True, True, True, False]]))
    assert found.tolist() == [[[0, 1, 0, 1], [1, 10, 1, 1], [10, 0, 1, 0], [0, 0, 0, 0]]]


def test_reversal_leaves_padding_behind() -> None:
    values = torch.arange(8.0).reshape(2, 4, 1)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert reverse_slices(values, mask)[:, :, 0].tolist() == [[3, 2, 1, 0], [5, 4, 6, 7]]


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="variant: expected gru or difference, found 'lstm'"):
        SequenceModel(8, variant="lstm")


def test_an_ensemble_says_the_mean_of_its_members() -> None:
    members = [model("gru", 1), model("difference", 2), model("gru", 3)]
    given = (*study(6), torch.ones(1, 6, dtype=torch.bool))
    found, said = SequenceEnsemble(members).eval()(*given), [member(*given) for member in members]
    for name in ("slices", "study", "auxiliary"):
        parts = [getattr(one, name) for one in said]
        assert torch.allclose(getattr(found, name), sum(parts) / 3, atol=1e-6), name
        assert not torch.allclose(parts[0], parts[2], atol=0.1), "the members must differ"


def test_members_are_those_of_the_ensemble_or_the_model_itself() -> None:
    alone, other = model(), model("difference")
    assert members_of(alone) == [alone]
    assert members_of(SequenceEnsemble([alone, other])) == [alone, other]
