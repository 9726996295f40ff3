"""Cost a slice of the loader, from 1,000 to 100,000 slices: it must stay flat, and so must memory.

    python bench/bench_scale.py [--records DIR] [--quick] [--json FILE]

The index is synthetic: its rows point to the same few payloads again and again, in studies of 32 rows; index.parquet
and dataset.json are the format's own, written by its writer, and the loader opens them as it opens any others. So the
cost of many rows is real and that of many bytes is not: payloads lie in the page cache. Opening (hash, parse and check
of the index) is not in slices/s; it stands in ``facts`` as ``open_s``.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from case import BATCH, Case
from contest import Contender, Work, WrongOutputError

from fastich import ops
from fastich.loaders import LoaderConfig, open_loader
from fastich.records.index import DATASET_FILE
from fastich.records.reader import RecordReader
from fastich.records.writer import ShardInfo, finish_dataset

STAGE = "scale"
STUDY = 32
PAYLOADS = 96
"""Different payloads: as few for every length, so that caches help all alike."""


def contenders(case: Case) -> list[Contender]:
    counts = (1000, 10_000) if case.quick else (1000, 10_000, 100_000)
    return [
        Contender(
            name=f"native loader, shuffled, {count:,} slices",
            make="bench_scale:loader",
            arguments={"records": case.half, "work": case.derived, "size": case.size, "count": count},
            limit="the cores: bit planes to pixels",
            baseline=count == counts[0],
            ceiling="all cores",
        )
        for count in counts
    ]


def repeated_index(index: pd.DataFrame, count: int) -> pd.DataFrame:
    """``count`` rows that point to the payloads of ``index``; studies of STUDY rows, ascending along z."""
    source = np.arange(count) % min(len(index), PAYLOADS)
    made = index.iloc[source].reset_index(drop=True).copy()
    number = np.arange(count)
    for column, each in (("sop_uid", number), ("study_uid", number // STUDY), ("series_uid", number // STUDY)):
        made[column] = [f"bench-{value:08d}" for value in each]
    made["patient_id"] = made["study_uid"]
    made["z_mm"] = (number % STUDY).astype(float)
    return made


def repeat(records: Path, folder: Path, count: int) -> Path:
    """A records folder of ``count`` rows over the shards of ``records``, which are linked, not copied."""
    if (folder / DATASET_FILE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with RecordReader(records) as reader:
        shards = [ShardInfo(**{name: shard[name] for name in SHARD_KEYS}) for shard in reader.dataset["shards"]]
        for shard in shards:
            if not (folder / shard.file).exists():
                os.link(records / shard.file, folder / shard.file)
        meta = {"codec": reader.codec, "size": None, "split": {"rule": "bench"}, "shards": shards, "rejects": None}
        note = {"note": "synthetic index: several rows point to one payload"}
        finish_dataset(folder, repeated_index(reader.index, count), meta | {"versions": {}} | note)
    return folder


SHARD_KEYS = ("file", "sha256", "size_bytes", "num_slices")


@contextlib.contextmanager
def loader(records: Path, work: Path, size: int, count: int) -> Iterator[Work]:
    """One shuffled epoch after the other of the native loader."""
    folder = repeat(records, work / f"scale-{count}", count)
    started = time.perf_counter()
    opened = open_loader(
        LoaderConfig(
            records=folder, split="all", batch_size=BATCH, size=size, shuffle=True, backend="native",
            threads=len(os.sched_getaffinity(0)),
        )
    )  # fmt: skip
    open_s = time.perf_counter() - started

    def run() -> int:
        return sum(len(batch.rows) for batch in opened.epoch(0))

    def check() -> str:
        rows = np.concatenate([batch.rows.numpy() for batch in opened.epoch(0)])
        if len(np.unique(rows)) != count or opened.num_slices != count:
            raise WrongOutputError(f"{len(np.unique(rows))} different rows of {count}")
        return "every row once"

    stored = float(opened.reader.index["payload_size"].mean())
    facts = {"backend": opened.backend, "ops": ops.backend(), "open_s": round(open_s, 3), "count": count}
    written = 4 * 3 * size**2
    yield Work(run=run, check=check, moved_bytes=stored + written, stored_bytes=stored, facts=facts)
    opened.close()


if __name__ == "__main__":
    from throughput import alone

    alone(STAGE)
