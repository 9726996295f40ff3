"""The native loader: a record's bytes become an image in one pass of the compiled core, on threads without the GIL.

``cpu.py`` takes five steps over whole batches (decode, warp, area mean, intensity, windows); here each slice goes
through once while it is in cache. Tolerance against ``cpu.py``, in normalised units: 1e-4, augmented 1e-3; a
half-first record read at half its size without augmentation is within 0.5 HU (docs/records.md). Adjacent slices are
not its job.
Shapes: N slices, S output side, C channels.
"""

from collections.abc import Iterator

import torch

from fastich import ops
from fastich.errors import RecordError
from fastich.loaders.augment import Augmentation, draw
from fastich.loaders.config import Batch
from fastich.loaders.cpu import finished_batch
from fastich.loaders.order import Step
from fastich.loaders.source import Source, ahead


def batches(source: Source, epoch: int, start: int) -> Iterator[Batch]:
    """The batches of ``epoch`` from number ``start`` on; pinned where the config's device is ``cuda``."""
    config = source.config
    fused = ops.DecodeWindow(config.windows, config.size, layout=ops.HWC)

    def make(step: Step) -> Batch:
        images_NSSC = source.empty_images(len(step.rows))
        augmentation = draw(config.seed, epoch, step.positions) if config.augment else None
        for item, row in enumerate(step.rows):
            _write(source, fused, int(row), images_NSSC[item], augmentation, item)
        return finished_batch(source, step, images_NSSC.permute(0, 3, 1, 2), pin=config.device == "cuda")

    return ahead(make, source.order.steps(epoch, start), config.threads)


def _write(
    source: Source, fused: ops.DecodeWindow, row: int, image_SSC: torch.Tensor, changes: Augmentation | None, item: int
) -> None:
    """Fill one image from the record of ``row``.

    Raises:
        RecordError: the record is damaged; names file and byte offset.
    """
    reader = source.reader
    assert image_SSC.numel() == fused.size**2 * fused.num_windows
    payload, (height, width) = reader.payload(row), reader.shape(row)
    place = image_SSC.data_ptr()
    try:
        if changes is None:
            fused(payload, height, width, reader.codec, place)
        else:
            fused(
                payload, height, width, reader.codec, place,
                matrix=changes.matrix(item, height, width),
                gain=float(changes.gain[item]),
                offset_hu=float(changes.offset_hu[item]),
            )  # fmt: skip
    except RecordError:
        reader.stored(row)  # says the same with file and offset
        raise
