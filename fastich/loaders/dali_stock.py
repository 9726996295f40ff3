"""The DALI loader of stock operators, for the CPU (no GPU needed) and the GPU: where our operator is not built, and for
adjacent slices.

Decoded int16 HU go in from threads (``source.py``). Where every slice is square with a side that is a multiple of the
image's, all arithmetic runs in DALI; else (another factor, other shapes, mixed sizes: DALI has no area mean for these)
DALI moves and warps, and ``preprocess.resize_area`` and the windows follow on the same device.
Tolerance against ``cpu.py``, in normalised units: 1e-4, augmented 1e-3 (the warp's float32 coordinates).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn, math
from nvidia.dali.pipeline import pipeline_def
from nvidia.dali.types import DALIDataType, DALIInterpType
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastich.hu import AIR_HU
from fastich.loaders import cpu
from fastich.loaders.config import Batch, LoaderConfig
from fastich.loaders.dali_feed import Feed, outputs, pipeline_options, stacked
from fastich.loaders.source import Source, Work
from fastich.preprocess import NUM_ADJACENT, Preprocess


def batches(source: Source, epoch: int, start: int) -> Iterator[Batch]:
    """The batches of ``epoch`` from number ``start`` on; images on the GPU where the config's device is ``cuda``."""
    config = source.config
    factor = block_factor(source)
    # HU, and where they are used maps, gains and offsets.
    layouts = ["HWC", *[""] * (config.augment * (3 if factor is not None else 1))]
    work = source.work(epoch, start, lambda one: one)
    feed = Feed(work, lambda one: _arrays(one, len(layouts)), layouts)
    preprocess = Preprocess(config.size, config.windows, config.adjacent).to(config.device)
    for output, one in outputs(_graph(config, factor, feed, **pipeline_options(config)), feed):
        images = stacked(output) if factor is not None else _finish(output, one, config, preprocess)
        yield cpu.finished_batch(source, one.step, images, pin=config.device == "cuda")


def _arrays(work: Work, count: int) -> tuple[Any, ...]:
    """The first ``count`` of HU [H, W, P] a slice, maps [N, 2, 3], gains [N] and offsets [N]."""
    hu = [np.ascontiguousarray(np.moveaxis(planes, 0, 2)) for planes in work.planes]
    if work.augmentation is None:
        return (hu,)
    maps: NDArray[np.float32] = cpu.matrices(work, list(range(len(hu)))).astype(np.float32)
    return (hu, maps, work.augmentation.gain, work.augmentation.offset_hu)[:count]


def block_factor(source: Source) -> int | None:
    """How many pixels a side go into one, where that is a whole number, the same for all slices, all square."""
    rows = source.order.rows
    sides = np.unique(source.reader.index[["height", "width"]].to_numpy()[rows])
    if len(sides) != 1 or sides[0] % source.config.size:
        return None
    return int(sides[0]) // source.config.size


@pipeline_def
def _graph(config: LoaderConfig, factor: int | None, feed: Feed[Work]) -> Any:
    """HU [H, W, P] to images [S, S, C] (``factor`` given) or to warped HU [H, W, P] (``factor`` is None)."""
    on_gpu = config.device == "cuda"
    hu, *change = fn.external_source(source=feed, num_outputs=len(feed.layouts), layout=feed.layouts)
    hu = hu.gpu() if on_gpu else hu
    if config.augment:
        hu = fn.warp_affine(hu, matrix=change[0], inverse_map=True, fill_value=float(AIR_HU), dtype=DALIDataType.FLOAT)
    if factor is None:
        return hu
    small = _block_mean(hu, factor, config)
    if config.augment:
        gain, offset_hu = (value.gpu() if on_gpu else value for value in change[1:])
        small = small * gain + offset_hu
    return _to_channels(small, config)


def _block_mean(hu: Any, factor: int, config: LoaderConfig) -> Any:
    """Mean of blocks of ``factor`` x ``factor`` pixels, [H, W, P] to float32 [S, S, P]."""
    hu = fn.cast(hu, dtype=DALIDataType.FLOAT)
    size, planes = config.size, NUM_ADJACENT if config.adjacent else 1
    if factor == 1:
        return hu
    if factor == 2:  # sampling midway between two pixels is their mean; 1.6 times as fast as the general way
        return fn.resize(hu, size=[size, size], interp_type=DALIInterpType.INTERP_LINEAR, antialias=False)
    blocks = fn.reshape(hu, shape=[size, factor, size, factor, planes], layout="")
    return fn.reshape(fn.reductions.mean(blocks, axes=[1, 3]), shape=[size, size, planes], layout="HWC")


def _to_channels(hu: Any, config: LoaderConfig) -> Any:
    """Windows and normalisation, [S, S, P] to [S, S, C]: clip to each window in HU, then one affine map a channel."""
    preprocess = Preprocess(config.size, config.windows, config.adjacent)
    low, width, mean, std = (
        value.flatten().numpy() for value in (preprocess.low, preprocess.width, preprocess.mean, preprocess.std)
    )
    ends = list(zip(low.tolist(), (low + width).tolist(), strict=True))
    clipped = [math.clamp(hu, *end) for end in (ends[:1] if config.adjacent else ends)]
    channels = clipped[0] if len(clipped) == 1 else fn.cat(*clipped, axis=2)
    return fn.normalize(channels, mean=(low + mean * width)[None, None], stddev=(std * width)[None, None])


def _finish(output: Any, work: Work, config: LoaderConfig, preprocess: Preprocess) -> Tensor:
    """Images [N, C, S, S] from warped HU [H, W, P] of any sizes: area mean, intensity and windows in torch."""

    def warped(items: list[int]) -> Tensor:
        return torch.stack([from_dlpack(output[item]) for item in items]).permute(0, 3, 1, 2)

    with torch.autocast(config.device, enabled=False):
        return cpu.assemble(work, config, preprocess, warped)
