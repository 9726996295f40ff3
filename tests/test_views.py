import numpy as np
import pytest
import torch

from fastich.errors import UsageError
from fastich.training.views import Views, crop, flip, parse_views, reverse, views_of
from fastich.windowing import WINDOWS, preprocess_adjacent

SIZE = 32


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def test_views_are_all_combinations_and_the_first_is_the_slice_itself() -> None:
    given = images()
    seen = list(views_of(given, ("flip", "crop")))
    expected = [given, flip(given), crop(given), flip(crop(given))]
    assert len(seen) == 4
    assert all(any(torch.equal(view, one) for view in seen) for one in expected)
    assert torch.equal(seen[0], given)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in seen)


def test_logits_of_the_views_are_averaged() -> None:
    def left_half(given: torch.Tensor) -> torch.Tensor:
        return given[:, 0, :, : SIZE // 2].mean(dim=(1, 2), keepdim=False).unsqueeze(1).expand(-1, 6).bfloat16()

    given = images()
    found = Views(forward=left_half, names=("flip",))(given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (left_half(given).float() + left_half(given.flip(3)).float()) / 2)
    assert torch.equal(Views(forward=left_half, names=())(given), left_half(given).float())


def test_flip_exchanges_left_and_right() -> None:
    assert torch.equal(flip(images())[..., 0], images()[..., -1])


def test_crop_enlarges_the_middle() -> None:
    ramp = torch.arange(SIZE, dtype=torch.float32).expand(1, 3, SIZE, SIZE)
    found = crop(ramp)
    assert found.shape == ramp.shape
    middle = slice(2, -2)
    expected = (ramp[..., middle] - (SIZE - 1) / 2) * (SIZE - 4) / SIZE + (SIZE - 1) / 2
    torch.testing.assert_close(found[..., middle], expected)


def test_reversed_adjacent_slices_are_those_of_the_series_read_backwards() -> None:
    slices = [np.random.default_rng(seed).integers(0, 90, (40, 40)).astype(np.int16) for seed in range(3)]
    onward, backward = (
        torch.from_numpy(preprocess_adjacent(series, SIZE, WINDOWS["brain"])) for series in (slices, slices[::-1])
    )
    torch.testing.assert_close(reverse(onward[None])[0], backward, atol=1e-5, rtol=1e-5)


def test_names_are_parsed() -> None:
    assert parse_views("none", adjacent=False) == ()
    assert parse_views("flip, crop", adjacent=False) == ("flip", "crop")
    assert parse_views("flip,reverse", adjacent=True) == ("flip", "reverse")


@pytest.mark.parametrize("text", ["", "turn", "flip,flip", "flip,none"])
def test_names_that_are_none_of_them_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--tta: expected none or some of flip, crop, reverse, each once, found"):
        parse_views(text, adjacent=True)


def test_reversal_of_single_slices_is_refused() -> None:
    with pytest.raises(UsageError, match="--tta reverse swaps the slices before and after, but the run was trained"):
        parse_views("reverse", adjacent=False)
