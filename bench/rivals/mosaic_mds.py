"""MosaicML Streaming: slices as plain uint16 in MDS shards on the local disk."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from contest import Work
from preprocessing import EXACT, epoch_work, to_input
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from fastich.records.reader import RecordReader


class Slices(StreamingDataset):
    """Decoded in the worker."""

    def __init__(self, folder: Path, size: int, batch: int) -> None:
        super().__init__(local=str(folder), batch_size=batch, shuffle=False)
        self.side = size

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return to_input(sample["pixels"], self.side), sample["row"]


def write(folder: Path, reader: RecordReader) -> None:
    if (folder / "index.json").exists():
        return
    columns = {"pixels": "ndarray:uint16", "row": "int"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=2**25) as out:
        for row in range(len(reader)):
            out.write({"pixels": np.ascontiguousarray(reader.stored(row)), "row": row})


@contextlib.contextmanager
def loader(records: Path, work: Path, size: int, batch: int) -> Iterator[Work]:
    """One worker a core, kept alive between epochs."""
    with RecordReader(records) as reader:
        folder = work / "mds"
        write(folder, reader)
        clean_stale_shared_memory()
        batches: Any = DataLoader(
            Slices(folder, size, batch),
            batch_size=batch,
            num_workers=len(os.sched_getaffinity(0)),
            persistent_workers=True,
            multiprocessing_context="fork",
        )
        stored = sum(path.stat().st_size for path in folder.iterdir()) / len(reader)
        yield epoch_work(lambda: iter(batches), reader, size, EXACT, stored_bytes=stored)
