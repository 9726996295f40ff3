"""The torch twin of ``windowing.py``: the same area mean, windows and normalisation, as a module that can be exported.

It stands inside every exported model and behind both loaders, so the pixels that train are the pixels that serve.
The area mean is two matrix products whose weights are built in the graph from H and W; nothing becomes a constant
when it is traced, scripted or exported with dynamic N, H and W. Cost: 2 S W (H + S) multiply-adds a plane (0.1 G at
512 to 256 px), 5 to 13 % of DenseNet121's time on a CPU.
Tolerance against ``windowing.preprocess``: 0.005 HU before the windows (float32 sums in another order).
On a GPU the products must run in full float32, not TF32, which would cost up to 1 HU.

Shapes: N slices, P planes of a slice (1, or the 3 of adjacent mode), H rows, W columns, S output side, C channels.
"""

import torch
from torch import Tensor, nn

from fastich.hu import AIR_HU
from fastich.windowing import DEFAULT_WINDOWS, Window, imagenet

NUM_ADJACENT = 3
"""Planes of adjacent mode: slices s-1, s, s+1."""


def area_weights(position: Tensor, square: Tensor, size: int) -> Tensor:
    """Weights [size, len(position)] of the area mean along one axis; see ``windowing.area_matrix``.

    Lengths are counted in units of ``1 / size`` pixel, where every border is a whole number: exact in float32 while
    square * size < 2^24.

    Args:
        position: ``arange`` of the axis, float32.
        square: side of the padded square, float32 [1].
        size: side of the output.
    """
    length = position[-1:] + 1
    start = (position + torch.floor((square - length) / 2)) * size
    left = torch.arange(size, dtype=torch.float32, device=position.device).unsqueeze(1) * square
    overlap = torch.minimum(start + size, left + square) - torch.maximum(start, left)
    return torch.clamp(overlap, min=0.0) / square


def resize_area(hu: Tensor, size: int, air_hu: float = float(AIR_HU)) -> Tensor:
    """Area mean in HU, centred in a square of air: [N, P, H, W] of int16 or float32 to float32 [N, P, size, size].

    Values below air (padding) count as air. (``air_hu`` is an argument because TorchScript sees no module constants.)
    """
    row = torch.arange(hu.shape[2], dtype=torch.float32, device=hu.device)
    column = torch.arange(hu.shape[3], dtype=torch.float32, device=hu.device)
    square = torch.maximum(row[-1:], column[-1:]) + 1
    above_air = torch.clamp(hu.to(torch.float32) - air_hu, min=0.0)
    narrow = torch.matmul(above_air, area_weights(column, square, size).transpose(0, 1))
    return torch.matmul(area_weights(row, square, size), narrow) + air_hu


class Preprocess(nn.Module):
    """HU to the network's input: area mean, windows, ImageNet mean and std.

    Input [N, H, W] (with ``adjacent`` [N, 3, H, W]: slices s-1, s, s+1) of int16 or float32 HU; output float32
    [N, C, size, size], C the number of windows (with ``adjacent`` 3, all through the first window).
    It has no parameters and adds nothing to a state dict.
    """

    low: Tensor
    width: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, size: int, windows: tuple[Window, ...] = DEFAULT_WINDOWS, adjacent: bool = False) -> None:
        super().__init__()
        self.size = size
        self.adjacent = adjacent
        used = windows[:1] * NUM_ADJACENT if adjacent else windows
        self._constant("low", [win.center_hu - win.width_hu / 2 for win in used])
        self._constant("width", [win.width_hu for win in used])
        mean, std = imagenet(len(used))
        self._constant("mean", mean)
        self._constant("std", std)

    def _constant(self, name: str, values: list[float]) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, hu: Tensor) -> Tensor:
        """Return the network's input [N, C, S, S] of ``hu`` [N, H, W] (adjacent: [N, 3, H, W])."""
        planes = hu if self.adjacent else hu.unsqueeze(1)
        return self.to_channels(resize_area(planes, self.size))

    def to_channels(self, hu: Tensor) -> Tensor:
        """Windows and normalisation of resized HU [N, P, S, S] to [N, C, S, S]; the loaders change intensity before."""
        windowed = torch.clamp((hu - self.low) / self.width, min=0.0, max=1.0)
        return (windowed - self.mean) / self.std
