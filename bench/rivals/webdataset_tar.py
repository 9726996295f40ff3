"""WebDataset: slices as plain uint16 in tar files, two a worker, batches made in the workers."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from contest import Work
from preprocessing import EXACT, epoch_work, to_input

from fastich.records.reader import RecordReader


def write(folder: Path, reader: RecordReader, num_shards: int) -> list[str]:
    """Shards of about equal length."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"slices-{number:03d}.tar" for number in range(num_shards)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        temporary = path.with_suffix(".part")
        with webdataset.TarWriter(str(temporary)) as out:
            for row in range(number, len(reader), num_shards):
                height, width = reader.shape(row)
                head = np.asarray([row, height, width], "<u4").tobytes()
                out.write({"__key__": f"{row:06d}", "u16": head + reader.stored(row).tobytes()})
        temporary.replace(path)
    return [str(path) for path in paths]


@contextlib.contextmanager
def loader(records: Path, work: Path, size: int, batch: int) -> Iterator[Work]:
    """One worker a core, kept alive between epochs."""
    workers = len(os.sched_getaffinity(0))
    with RecordReader(records) as reader:
        shards = write(work / "webdataset", reader, 2 * workers)

        def decode(sample: dict[str, Any]) -> tuple[Any, int]:
            row, height, width = np.frombuffer(sample["u16"], "<u4", 3).tolist()
            return to_input(np.frombuffer(sample["u16"], "<u2", offset=12).reshape(height, width), size), row

        dataset = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False).map(decode).batched(batch)
        batches = webdataset.WebLoader(
            dataset, batch_size=None, num_workers=workers, persistent_workers=True, multiprocessing_context="fork"
        )
        stored = sum(Path(path).stat().st_size for path in shards) / len(reader)
        yield epoch_work(lambda: iter(batches), reader, size, EXACT, stored_bytes=stored)
