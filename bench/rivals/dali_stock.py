"""DALI without our kernels: raw records through its TFRecord reader, on the CPU; the best graph and the usual one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from contest import Work
from nvidia.dali import fn, math, pipeline_def, tfrecord, types
from preprocessing import EXACT, HALF_HU, LOW, MEAN, STD, WIDTH, epoch_work
from torch.utils.dlpack import from_dlpack

from fastich.hu import RECORD_OFFSET
from fastich.records.index import shard_name
from fastich.records.reader import RecordReader

QUEUE_DEPTH = 2


def slices(shard: Path, index: Path, shape: tuple[int, int]) -> Any:
    """uint16 [H, W, 1] of each record, in order."""
    features = {"pixels": tfrecord.FixedLenFeature((), tfrecord.string, "")}
    found = fn.readers.tfrecord(path=[str(shard)], index_path=[str(index)], features=features)
    return fn.reinterpret(found["pixels"], dtype=types.UINT16, shape=[*shape, 1], layout="HWC")


@pipeline_def
def best(shard: Path, index: Path, shape: tuple[int, int], size: int) -> Any:
    """Resized in uint16 (at half size linear is the block mean), then three look-up tables."""
    small = fn.resize(slices(shard, index, shape), size=[size, size], interp_type=types.INTERP_LINEAR, antialias=False)
    keys = np.arange(2**14)
    tables = (np.clip((keys - RECORD_OFFSET)[:, None], LOW, LOW + WIDTH) - LOW) / WIDTH
    tables = ((tables - MEAN) / STD).astype(np.float32)
    channels = [
        fn.lookup_table(small, keys=keys.tolist(), values=table.tolist(), default_value=float(table[-1]))
        for table in tables.T
    ]
    return fn.cat(*channels, axis=2)


@pipeline_def
def usual(shard: Path, index: Path, shape: tuple[int, int], size: int) -> Any:
    """Cast to float first, then resize, window and normalise in float."""
    hu = fn.cast(slices(shard, index, shape), dtype=types.FLOAT) - float(RECORD_OFFSET)
    small = fn.resize(hu, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=False)
    channels = []
    for low, width, mean, std in zip(LOW.tolist(), WIDTH.tolist(), MEAN.tolist(), STD.tolist(), strict=True):
        channels.append((math.clamp((small - low) / width, 0.0, 1.0) - mean) / std)
    return fn.cat(*channels, axis=2)


@contextlib.contextmanager
def loader(graph: str, records: Path, work: Path, size: int, batch: int) -> Iterator[Work]:
    """One thread a core."""
    with RecordReader(records) as reader:
        assert len(reader) % batch == 0
        index = work / "dali.idx"
        lines = zip(reader.index["offset"], reader.index["size"], strict=True)
        index.write_text("".join(f"{offset} {length}\n" for offset, length in lines))
        pipeline = {"best": best, "usual": usual}[graph](
            records / shard_name(0, 1),
            index,
            reader.shape(0),
            size,
            batch_size=batch,
            num_threads=len(os.sched_getaffinity(0)),
            device_id=None,
            prefetch_queue_depth=QUEUE_DEPTH,
            exec_dynamic=True,
        )
        pipeline.build()

        def epoch() -> Iterator[tuple[Any, Any]]:
            for start in range(0, len(reader), batch):
                (output,) = pipeline.run()
                yield from_dlpack(output.as_tensor()).permute(0, 3, 1, 2), range(start, start + batch)

        tolerance = HALF_HU if graph == "best" else EXACT
        yield epoch_work(epoch, reader, size, tolerance, stored_bytes=float(reader.index["size"].mean()))
