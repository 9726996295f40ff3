"""Area resize, windows and normalisation in numpy: the truth that every fast path is tested against.

Order, fixed by the pixel contract:
HU -> pad to a square with air -> area mean in HU -> windows -> ImageNet mean and std.
Shapes: N slices, H rows, W columns, S the square output size, C channels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastich.hu import AIR_HU
from fastich.types import HuArray


@dataclass(frozen=True, slots=True)
class Window:
    """A display window in HU (PS3.3 C.11.2.1.2, linear): ``clip((HU - (center - width/2)) / width, 0, 1)``."""

    center_hu: float
    width_hu: float

    def __post_init__(self) -> None:
        """Refuse a width that has no meaning."""
        if not self.width_hu > 0:
            raise ValueError(f"window width must be > 0 HU, found {self.width_hu}")


WINDOWS = {
    "brain": Window(40, 80),
    "subdural": Window(80, 200),
    "bone": Window(600, 2800),
    "soft": Window(40, 380),
    "stroke": Window(40, 40),
}
DEFAULT_WINDOWS = (WINDOWS["brain"], WINDOWS["subdural"], WINDOWS["bone"])
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Per channel; channel c of more than three uses entry c % 3."""


def parse_windows(text: str) -> tuple[Window, ...]:
    """Parse ``brain,subdural,40/380``: named windows or ``center/width`` in HU, comma separated.

    Raises:
        ValueError: a name is unknown or a pair is not two numbers.
    """
    return tuple(_parse_window(part.strip()) for part in text.split(","))


def _parse_window(part: str) -> Window:
    if part in WINDOWS:
        return WINDOWS[part]
    try:
        center, width = (float(number) for number in part.split("/"))
    except ValueError:
        raise ValueError(f"window {part!r}: expected one of {', '.join(WINDOWS)} or center/width in HU") from None
    return Window(center, width)


def area_matrix(num_in: int, num_square: int, size: int) -> NDArray[np.float32]:
    """Weights [size, num_in] of the area mean along one axis of an image centred in a square of air.

    Output o covers [o*s, (o+1)*s) of the square, s = num_square / size; input i covers [i+p, i+p+1),
    p = (num_square - num_in) // 2. Rows sum to 1 where the image covers the output, to less where air does.
    """
    scale = num_square / size
    pad = (num_square - num_in) // 2
    left = np.arange(size, dtype=np.float64)[:, None] * scale
    start = np.arange(num_in, dtype=np.float64)[None, :] + pad
    overlap = np.minimum(start + 1, left + scale) - np.maximum(start, left)
    return np.asarray(np.maximum(overlap, 0) / scale, dtype=np.float32)


def resize_area(hu: HuArray, size: int) -> NDArray[np.float32]:
    """Area mean of ``hu`` [H, W] in HU, centred in a square of air, to float32 [size, size].

    Integer factors are plain block means. Enlarging repeats pixels by the same rule. Values below air (padding)
    count as air, as they do in a record.
    """
    height, width = hu.shape
    square = max(height, width)
    above_air = np.maximum(hu.astype(np.float32) - AIR_HU, np.float32(0))
    rows, columns = area_matrix(height, square, size), area_matrix(width, square, size)
    return np.asarray(rows @ above_air @ columns.T + np.float32(AIR_HU), dtype=np.float32)


def window(hu: NDArray[np.floating] | HuArray, win: Window) -> NDArray[np.float32]:
    """Apply one window; the result has the shape of ``hu`` and lies in [0, 1]."""
    low = np.float32(win.center_hu - win.width_hu / 2)
    scaled: NDArray[np.float32] = (hu.astype(np.float32) - low) / np.float32(win.width_hu)
    return np.clip(scaled, np.float32(0), np.float32(1))


def imagenet(count: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each of ``count`` channels."""
    return [IMAGENET_MEAN[c % 3] for c in range(count)], [IMAGENET_STD[c % 3] for c in range(count)]


def normalise(channels_CSS: NDArray[np.float32]) -> NDArray[np.float32]:
    """Subtract the ImageNet mean and divide by its standard deviation, channel by channel."""
    mean, std = (np.asarray(values, dtype=np.float32) for values in imagenet(channels_CSS.shape[0]))
    normalised: NDArray[np.float32] = (channels_CSS - mean[:, None, None]) / std[:, None, None]
    return normalised


def preprocess(hu: HuArray, size: int, windows: tuple[Window, ...] = DEFAULT_WINDOWS) -> NDArray[np.float32]:
    """One slice [H, W] to the network's input [C, size, size]: area mean, windows, normalisation."""
    small = resize_area(hu, size)
    return normalise(np.stack([window(small, win) for win in windows]))


def preprocess_adjacent(slices: list[HuArray], size: int, win: Window) -> NDArray[np.float32]:
    """Slices s-1, s, s+1 (each [H, W]) through one window to [3, size, size]; the caller repeats the edge slice."""
    return normalise(np.stack([window(resize_area(hu, size), win) for hu in slices]))
