"""The torch reference loader: what every faster backend must equal, and what runs where DALI is not installed.

Cost on one core, apart from decoding: see the loader rows of bench/. Each thread makes whole batches.
Shapes: N slices, P planes of a slice, H rows, W columns, S output side, C channels.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fastich.hu import AIR_HU
from fastich.loaders.augment import Augmentation
from fastich.loaders.config import Batch, LoaderConfig
from fastich.loaders.order import Step
from fastich.loaders.source import Source, Work
from fastich.preprocess import Preprocess, resize_area


def batches(source: Source, epoch: int, start: int) -> Iterator[Batch]:
    """The batches of ``epoch`` from number ``start`` on; pinned where the config's device is ``cuda``."""
    config = source.config
    preprocess = Preprocess(config.size, config.windows, config.adjacent)
    pin = config.device == "cuda"

    def make(work: Work) -> Batch:
        def warped(items: list[int]) -> Tensor:
            hu = torch.from_numpy(np.stack([work.planes[item] for item in items]))
            return hu if work.augmentation is None else warp(hu, matrices(work, items))

        images = assemble(work, config, preprocess, warped)
        return finished_batch(source, work.step, images, pin=pin)

    return source.work(epoch, start, make)


def assemble(work: Work, config: LoaderConfig, preprocess: Preprocess, warped: Callable[[list[int]], Tensor]) -> Tensor:
    """Images [N, C, S, S] of a batch whose slices may differ in size; the order is kept.

    ``warped(items)`` gives the HU [n, P, H, W] of slices of one size, the affine change already made; the area mean,
    the intensity and the windows follow here, on the device of ``preprocess``.
    """
    device = preprocess.low.device
    shape = (len(work.planes), config.num_channels, config.size, config.size)
    images = torch.empty(shape, dtype=torch.float32, device=device, memory_format=torch.channels_last)
    for items in same_size([planes.shape for planes in work.planes]):
        small = resize_area(warped(items), config.size)
        if work.augmentation is not None:
            small = change_intensity(small, work.augmentation, items)
        images[items] = preprocess.to_channels(small)
    return images


def same_size(shapes: list[tuple[int, ...]]) -> list[list[int]]:
    """Item numbers grouped by equal shape."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for item, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(item)
    return list(groups.values())


def matrices(work: Work, items: list[int]) -> NDArray[np.float64]:
    """The affine maps [n, 2, 3] of some slices of a batch; see ``Augmentation.matrix``."""
    assert work.augmentation is not None
    return np.stack([work.augmentation.matrix(item, *work.planes[item].shape[1:]) for item in items])


def warp(hu: Tensor, pixel_maps: NDArray[np.float64]) -> Tensor:
    """Bilinear resampling of ``hu`` [n, P, H, W] through maps [n, 2, 3] from output to input pixels, air outside."""
    height, width = hu.shape[2:]
    half = np.diag([width / 2, height / 2, 1.0])
    half[:2, 2] = width / 2, height / 2  # grid_sample counts from -1 to 1 between the image's borders
    full = np.concatenate([pixel_maps, np.broadcast_to([[[0.0, 0.0, 1.0]]], (len(pixel_maps), 1, 3))], axis=1)
    theta = (np.linalg.inv(half) @ full @ half)[:, :2]
    grid = F.affine_grid(torch.from_numpy(theta.astype(np.float32)), list(hu.shape), align_corners=False)
    above_air = hu.to(torch.float32) - AIR_HU
    return F.grid_sample(above_air, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + AIR_HU


def change_intensity(small: Tensor, augmentation: Augmentation, items: list[int]) -> Tensor:
    """Resized HU [n, P, S, S] times the gain plus the offset of each slice."""
    gain = torch.from_numpy(augmentation.gain[items]).to(small.device).view(-1, 1, 1, 1)
    offset_hu = torch.from_numpy(augmentation.offset_hu[items]).to(small.device).view(-1, 1, 1, 1)
    return small * gain + offset_hu


def finished_batch(source: Source, step: Step, images: Tensor, *, pin: bool) -> Batch:
    """Images and what belongs to them; ``pin`` puts what is on the CPU into pinned memory."""
    parts = (images, source.label_tensor(step), torch.from_numpy(step.rows))
    return Batch(*(part.pin_memory() if pin and part.device.type == "cpu" else part for part in parts))
