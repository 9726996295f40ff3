"""The DALI loader: packed bytes go in, our operator ``decode_window`` makes the network's input of them in one pass.

The operator (kernels/dali_op.cc) runs on DALI's threads on a CPU, and as CUDA kernels on a GPU, where a slice crosses
the bus in its packed form: 56 to 190 KB instead of 512. Where it is not built, and for adjacent slices,
``dali_stock.py`` runs DALI's own operators. Tolerance against ``cpu.py``: that of ``native.py``.
Shapes: N slices, S output side, C channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import backend, fn, plugin_manager
from nvidia.dali.pipeline import pipeline_def

from fastich import ops
from fastich.errors import RecordError
from fastich.loaders import cpu
from fastich.loaders.augment import Augmentation, draw
from fastich.loaders.config import Batch, LoaderConfig
from fastich.loaders.dali_feed import Feed, outputs, pipeline_options, stacked
from fastich.loaders.order import Step
from fastich.loaders.source import Source, ahead
from fastich.windowing import imagenet

OPERATOR = "fastich__DecodeWindow"


def _load_operator() -> str:
    """Make the operator known to DALI; why it is not, or nothing."""
    if not ops.DALI_LIBRARY.exists():
        return f"{ops.DALI_LIBRARY.name} is not built; run make setup with a C++ compiler"
    try:
        plugin_manager.load_library(str(ops.DALI_LIBRARY))
    except RuntimeError as error:
        return f"{ops.DALI_LIBRARY.name} does not load, was it built for another DALI? ({' '.join(str(error).split())})"
    return ""


WHY_NO_OPERATOR = _load_operator()


def has_operator(device: str) -> bool:
    """Whether the operator is there for ``device``, ``cpu`` or ``cuda``."""
    registry: Any = backend
    known = registry.RegisteredGPUOps() if device == "cuda" else registry.RegisteredCPUOps()
    return not WHY_NO_OPERATOR and OPERATOR in known


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A batch before decoding: its step, a payload a slice, their sides int32 [N, 2], and what to change in them."""

    step: Step
    payloads: list[NDArray[np.uint8]]
    sides: NDArray[np.int32]
    changes: Augmentation | None


def batches(source: Source, epoch: int, start: int) -> Iterator[Batch]:
    """The batches of ``epoch`` from number ``start`` on; images on the GPU where the config's device is ``cuda``."""
    config = source.config
    work = ahead(lambda step: _read(source, epoch, step), source.order.steps(epoch, start), config.threads)
    feed = Feed(work, _arrays, [""] * (4 if config.augment else 2))
    pipeline = _graph(config, source.reader.codec, feed, **pipeline_options(config))
    try:
        for output, one in outputs(pipeline, feed):
            yield cpu.finished_batch(source, one.step, stacked(output), pin=config.device == "cuda")
    except RuntimeError as error:
        _name_damage(source, feed, error)
        raise


def _read(source: Source, epoch: int, step: Step) -> Packed:
    """The records of a step, their checksums compared.

    Raises:
        RecordError: one is damaged; names file and byte offset.
    """
    reader, config = source.reader, source.config
    return Packed(
        step=step,
        payloads=[np.frombuffer(reader.payload(int(row)), np.uint8) for row in step.rows],
        sides=np.array([reader.shape(int(row)) for row in step.rows], np.int32),
        changes=draw(config.seed, epoch, step.positions) if config.augment else None,
    )


def _arrays(packed: Packed) -> tuple[Any, ...]:
    """Inputs of the operator: payloads, sides, and where they are used maps [N, 2, 3] and intensities [N, 2]."""
    if packed.changes is None:
        return packed.payloads, packed.sides
    changes = packed.changes
    maps = np.stack([changes.matrix(item, *sides) for item, sides in enumerate(packed.sides.tolist())])
    intensity = np.column_stack([changes.gain, changes.offset_hu])
    return packed.payloads, packed.sides, maps.astype(np.float32), intensity.astype(np.float32)


@pipeline_def
def _graph(config: LoaderConfig, codec: str, feed: Feed[Packed]) -> Any:
    """Payloads to images [S, S, C]."""
    on_gpu = config.device == "cuda"
    payload, *rest = fn.external_source(source=feed, num_outputs=len(feed.layouts), layout=feed.layouts)
    (mean, std), operators = imagenet(len(config.windows)), cast(Any, fn).fastich
    return operators.decode_window(
        payload.gpu() if on_gpu else payload,
        *rest,
        codec=codec,
        size=config.size,
        centers=[window.center_hu for window in config.windows],
        widths=[window.width_hu for window in config.windows],
        mean=mean,
        std=std,
        layout="HWC",
        device="gpu" if on_gpu else "cpu",
    )


def _name_damage(source: Source, feed: Feed[Packed], error: RuntimeError) -> None:
    """Where the operator refused a payload, say which: those of the batches in the air are decoded one by one.

    Raises:
        RecordError: names file and byte offset of the first that does not decode.
    """
    if "payload" not in str(error):
        return
    for packed in feed.given:
        for row in packed.step.rows:
            try:
                source.reader.stored(int(row))
            except RecordError as found:
                raise found from error
