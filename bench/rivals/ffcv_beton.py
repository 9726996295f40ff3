"""FFCV: slices as plain uint16 in a .beton file, area mean and windows compiled by numba into its pipeline."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from contest import Work
from ffcv.fields import NDArrayField
from ffcv.fields.decoders import NDArrayDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter
from preprocessing import EXACT, LOW, OFFSET, SCALE, WIDTH, epoch_work

from fastich.hu import RECORD_OFFSET
from fastich.records.reader import RecordReader


class ToInput(Operation):
    """uint16 [N, 2S, 2S] to float32 [N, C, S, S] in one pass."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def generate_code(self) -> Callable[..., Any]:
        parallel, size = Compiler.get_iterator(), self.size
        low, high, offset, scale = LOW, LOW + WIDTH, OFFSET, SCALE
        quarter, zero = np.float32(0.25), np.float32(RECORD_OFFSET)

        def convert(images: Any, out: Any) -> Any:
            for item in parallel(images.shape[0]):
                image, target = images[item], out[item]
                for y in range(size):
                    for x in range(size):
                        total = (
                            np.uint32(image[2 * y, 2 * x])
                            + np.uint32(image[2 * y, 2 * x + 1])
                            + np.uint32(image[2 * y + 1, 2 * x])
                            + np.uint32(image[2 * y + 1, 2 * x + 1])
                        )
                        hu = np.float32(total) * quarter - zero
                        for c in range(3):
                            target[c, y, x] = (min(max(hu, low[c]), high[c]) - offset[c]) * scale[c]
            return out[: images.shape[0]]

        convert.is_parallel = True  # type: ignore[attr-defined]
        return convert

    def declare_state_and_memory(self, previous: Any) -> Any:
        shape = (len(LOW), self.size, self.size)
        dtype = np.dtype(np.float32)
        return replace(previous, shape=shape, dtype=dtype, jit_mode=True), AllocationQuery(shape, dtype)


class Rows:
    """What FFCV's writer reads from."""

    def __init__(self, reader: RecordReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, row: int) -> tuple[Any]:
        return (np.ascontiguousarray(self.reader.stored(row)),)


@contextlib.contextmanager
def loader(records: Path, work: Path, size: int, batch: int) -> Iterator[Work]:
    """One thread a core; a .beton holds slices of one shape only."""
    with RecordReader(records) as reader:
        path = work / "slices.beton"
        if not path.exists():
            fields = {"pixels": NDArrayField(np.dtype(np.uint16), reader.shape(0))}
            DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Rows(reader))
        batches = Loader(
            str(path),
            batch_size=batch,
            num_workers=len(os.sched_getaffinity(0)),
            order=OrderOption.SEQUENTIAL,
            os_cache=True,
            pipelines={"pixels": [NDArrayDecoder(), ToInput(size), ToTensor()]},
        )
        stored = path.stat().st_size / len(reader)

        def epoch() -> Iterator[tuple[Any, Any]]:
            start = 0
            for (images,) in batches:
                yield images, range(start, start := start + len(images))

        yield epoch_work(epoch, reader, size, EXACT, stored_bytes=stored)
