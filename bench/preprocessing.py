"""What peers do after they have read a slice, as fast as numpy does it, and the check that they did it.

The peers get the fastest of five ways that were tried (0.24 ms a slice; block mean by reshape 3.6 ms, torch's
avg_pool2d 1.1 ms), so that their rows show their reading and moving of data, not slow arithmetic.
Shapes: H rows, W columns, S output side, C channels, N slices.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from contest import Work, WrongOutputError
from numpy.typing import NDArray

from fastich.hu import RECORD_OFFSET, from_record
from fastich.records.reader import RecordReader
from fastich.windowing import DEFAULT_WINDOWS, IMAGENET_MEAN, IMAGENET_STD, area_matrix, normalise, preprocess, window

EXACT, HALF_HU, EIGHT_BIT = 1e-4, 0.03, 0.02
"""Tolerances in normalised units: float32 sums in another order; 0.5 HU in the narrowest window (0.5 / 80 / 0.225);
one step of 255 in a window over the smallest standard deviation."""
TOLERANCES = {
    EXACT: "1e-4",
    HALF_HU: "0.03 (0.5 HU)",
    EIGHT_BIT: "0.02 from windows before the mean, 8 bits a channel",
}
CHECKED_ROWS = 12

LOW = np.asarray([win.center_hu - win.width_hu / 2 for win in DEFAULT_WINDOWS], np.float32)
WIDTH = np.asarray([win.width_hu for win in DEFAULT_WINDOWS], np.float32)
MEAN, STD = np.asarray(IMAGENET_MEAN, np.float32), np.asarray(IMAGENET_STD, np.float32)
OFFSET, SCALE = LOW + MEAN * WIDTH, 1 / (STD * WIDTH)
"""Of the clipped HU: normalised = (clip(HU) - OFFSET) * SCALE."""


def half_plane(stored: NDArray[np.uint16], size: int) -> NDArray[np.float32]:
    """Area mean of record pixels [H, W] in HU, float32 [S, S]."""
    height, width = stored.shape
    if height == width == 2 * size:
        sums = stored[0::2].astype(np.uint32) + stored[1::2]
        small = (sums[:, 0::2] + sums[:, 1::2]).astype(np.float32)
        small *= np.float32(0.25)
    else:
        square = max(height, width)
        rows, columns = area_matrix(height, square, size), area_matrix(width, square, size)
        small = np.asarray(rows @ stored.astype(np.float32) @ columns.T, np.float32)
    small -= np.float32(RECORD_OFFSET)
    return small


def to_input(stored: NDArray[np.uint16], size: int) -> NDArray[np.float32]:
    """Record pixels [H, W] to the network's input [C, S, S]."""
    small = half_plane(stored, size)
    out = np.empty((len(LOW), size, size), np.float32)
    for channel, image in enumerate(out):
        np.clip(small, LOW[channel], LOW[channel] + WIDTH[channel], out=image)
        image -= OFFSET[channel]
        image *= SCALE[channel]
    return out


def eight_bit_windows(stored: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Record pixels [H, W] as three windows of 8 bits, uint8 [H, W, C]: what an 8-bit file can hold."""
    hu = from_record(stored)
    return np.stack([np.rint(window(hu, win) * 255).astype(np.uint8) for win in DEFAULT_WINDOWS], axis=2)


def eight_bit_reference(stored: NDArray[np.uint16], size: int) -> NDArray[np.float32]:
    """The network's input [C, S, S] of an 8-bit file: windows first, area mean after, so edges differ from ours."""
    height, width = stored.shape
    square = max(height, width)
    rows, columns = area_matrix(height, square, size), area_matrix(width, square, size)
    channels = eight_bit_windows(stored).transpose(2, 0, 1).astype(np.float32) / 255
    return normalise(np.stack([rows @ channel @ columns.T for channel in channels]).astype(np.float32))


def epoch_work(
    epoch: Callable[[], Iterator[tuple[Any, Any]]],
    reader: RecordReader,
    size: int,
    tolerance: float,
    *,
    stored_bytes: float,
    facts: dict[str, Any] | None = None,
) -> Work:
    """The work of a loader whose ``epoch()`` gives (images [N, C, S, S], row numbers [N]) of every row once."""

    def run() -> int:
        done, images = 0, None
        for images, rows in epoch():  # noqa: B007
            done += len(rows)
        if getattr(images, "is_cuda", False):
            torch.cuda.synchronize()  # work done, not work handed over
        return done

    def check() -> str:
        return check_epoch(epoch(), reader, size, tolerance)

    written = 4 * len(LOW) * size**2
    return Work(run=run, check=check, moved_bytes=stored_bytes + written, stored_bytes=stored_bytes, facts=facts or {})


def check_epoch(batches: Iterator[tuple[Any, Any]], reader: RecordReader, size: int, tolerance: float) -> str:
    """Every row once, float32 [N, C, S, S], and some rows against the numpy reference.

    Raises:
        WrongOutputError: says which row differs and by how much.
    """
    seen: list[int] = []
    every = max(1, len(reader) // CHECKED_ROWS)
    for images, rows in batches:
        numbers = np.asarray(rows).reshape(-1).tolist()
        check_shape(images, (len(numbers), len(LOW), size, size))
        for item, row in enumerate(numbers):
            if (len(seen) + item) % every == 0:
                check_image(
                    np.asarray(images[item].cpu() if hasattr(images, "cpu") else images[item]),
                    reader,
                    row,
                    size,
                    tolerance,
                )
        seen += numbers
    if sorted(seen) != list(range(len(reader))):
        raise WrongOutputError(f"gave {len(seen)} slices, {len(set(seen))} different ones, of {len(reader)}")
    return TOLERANCES.get(tolerance, f"{tolerance:g}")


def check_shape(images: Any, expected: tuple[int, ...]) -> None:
    """Refuse images of another shape or element type."""
    dtype = str(images.dtype).removeprefix("torch.")
    if tuple(images.shape) != expected or dtype != "float32":
        raise WrongOutputError(f"images are {dtype} {list(images.shape)}, expected float32 {list(expected)}")


def check_image(image: NDArray[np.float32], reader: RecordReader, row: int, size: int, tolerance: float) -> None:
    """Refuse an image that is further from the reference than ``tolerance`` anywhere."""
    is_eight_bit = tolerance == EIGHT_BIT
    stored = reader.stored(row)
    truth = eight_bit_reference(stored, size) if is_eight_bit else preprocess(from_record(stored), size)
    worst = float(np.abs(image - truth).max())
    if not worst <= tolerance:
        raise WrongOutputError(f"row {row} differs by {worst:.3g} from the reference, tolerance {tolerance:g}")
