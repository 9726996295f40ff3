"""Test-time augmentation: a network looks at several views of a slice, and its logits are averaged.

``flip`` mirrors left and right, ``crop`` enlarges the middle by one seventh, ``reverse`` (adjacent slices only) swaps
the slices before and after. All combinations count, so n transforms cost 2^n passes of the network.
Shapes: N slices, C channels, S side in pixels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastich.errors import UsageError
from fastich.training.predictions import Forward
from fastich.windowing import imagenet

NONE = "none"
CROP_SHARE = 1 / 16
"""Of the side that ``crop`` leaves out at each border."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """``forward``, averaged over every combination of the transforms in ``names``; a ``Forward`` itself."""

    forward: Forward
    names: tuple[str, ...]

    def __call__(self, images: Tensor) -> Tensor:
        """Mean logits float32 [N, 6] of ``images`` [N, C, S, S]."""
        logits = [self.forward(view).float() for view in views_of(images, self.names)]
        return torch.stack(logits).mean(dim=0)


def parse_views(text: str, *, adjacent: bool) -> tuple[str, ...]:
    """The transforms that ``none`` or a list such as ``flip,crop`` names.

    Raises:
        UsageError: a name is unknown or stands twice, or ``reverse`` is asked of a network that sees one slice.
    """
    names = () if text == NONE else tuple(part.strip() for part in text.split(","))
    if not set(names) <= set(TRANSFORMS) or len(set(names)) < len(names):
        raise UsageError(f"--tta: expected none or some of {', '.join(TRANSFORMS)}, each once, found {text!r}")
    if "reverse" in names and not adjacent:
        raise UsageError("--tta reverse swaps the slices before and after, but the run was trained without --adjacent")
    return names


def views_of(images: Tensor, names: tuple[str, ...]) -> Iterator[Tensor]:
    """``images`` [N, C, S, S] as they are, then through each combination of the transforms, in channels_last."""
    if not names:
        yield images.contiguous(memory_format=torch.channels_last)
        return
    for view in views_of(images, names[1:]):
        yield view
        yield TRANSFORMS[names[0]](view).contiguous(memory_format=torch.channels_last)


def flip(images: Tensor) -> Tensor:
    """Left and right exchanged."""
    return images.flip(3)


def crop(images: Tensor) -> Tensor:
    """The middle of each image, enlarged to its size (bilinear)."""
    size = images.shape[-1]
    margin = max(1, round(size * CROP_SHARE))
    middle = images[..., margin : size - margin, margin : size - margin]
    return functional.interpolate(middle, size=(size, size), mode="bilinear", align_corners=False)


def reverse(images: Tensor) -> Tensor:
    """Slices s+1, s, s-1 of images that hold s-1, s, s+1: normalised for the channels that they come to stand in."""
    mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in imagenet(images.shape[1]))
    return ((images * std + mean).flip(1) - mean) / std


TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {"flip": flip, "crop": crop, "reverse": reverse}
