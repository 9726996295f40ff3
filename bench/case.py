"""What a run is measured on: DICOM files, and the same slices as records in every form that a contender reads.

Everything is made before anything is timed, in one work folder, from ``--dicom`` (else synthetic studies at 512 px) or
from ``--records``. ``half``, ``flat`` and ``raw`` hold the same rows in the same order, so that all loaders do the same
work: half-first LBP as pack writes it, LBP in the flat mode, uint16 as it is.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import ops, verb
from fastich.dicom import find_files
from fastich.errors import UsageError
from fastich.labels import LABELS
from fastich.records.codec import MODE_FLAT, encode_lbp
from fastich.records.index import DATASET_FILE, shard_name
from fastich.records.reader import RecordReader
from fastich.records.writer import ShardWriter, finish_dataset

BATCH = 32
MOST_FILES = 2048
"""Of a DICOM folder: enough for every stage, and a run ends the same day."""
PLACE_COLUMNS = ("offset", "size", "payload_offset", "payload_size", "crc32c")
DONE = "case.json"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Where the data of a run lies, and how much of it each stage takes.

    Attributes:
        work: folder of everything that was made.
        dicom: folder of DICOM files.
        labels: label table of ``dicom``, or None.
        records: packed by ``fastich.pack``, every slice.
        size: side of the network's input, pixels.
        num_slices: rows of ``half``, ``flat`` and ``raw``, a multiple of BATCH.
        quick: fewer rows, rounds and variants.
        device: ``cpu`` or ``cuda``.
    """

    work: Path
    dicom: Path
    labels: Path | None
    records: Path
    size: int
    num_slices: int
    quick: bool
    device: str

    @property
    def half(self) -> Path:
        """Records as pack writes them: half-first from 512 px on."""
        return self.work / "half"

    @property
    def flat(self) -> Path:
        """Records in the flat mode."""
        return self.work / "flat"

    @property
    def raw(self) -> Path:
        """Records of plain uint16."""
        return self.work / "raw"

    @property
    def derived(self) -> Path:
        """What peers and stages make of the records; goes when the records change."""
        return self.work / "derived"


@contextlib.contextmanager
def work_folder(kept: Path | None) -> Iterator[Path]:
    """``kept``, or a folder that goes when the run ends."""
    if kept:
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="fastich-bench-") as scratch:
        yield Path(scratch)


def make_case(
    work: Path, *, dicom: Path | None, records: Path | None, size: int, quick: bool, device: str, studies: int = 0
) -> Case:
    """Make what is missing in ``work`` and return the case.

    Raises:
        UsageError: fewer slices than a batch.
    """
    work.mkdir(parents=True, exist_ok=True)
    labels = None
    if dicom is None:
        dicom, labels = synthetic(work / "dicom", studies or (3 if quick else 12))
    dicom = first_files(dicom, work / "first", MOST_FILES)
    if records is None:
        records = packed(work / "records", dicom, labels)
    with RecordReader(records) as reader:
        limit = 2 * BATCH if quick else 32 * BATCH
        num_slices = min(len(reader), limit) // BATCH * BATCH
        if not num_slices:
            raise UsageError(
                f"{records}: expected at least {BATCH} slices, found {len(reader)}; "
                "give more DICOM files (--ct takes a few, for compression alone)"
            )
        case = Case(
            work=work,
            dicom=dicom,
            labels=labels,
            records=records,
            size=size,
            num_slices=num_slices,
            quick=quick,
            device=device,
        )
        write_variants(case, reader)
    return case


def first_files(folder: Path, to: Path, most: int) -> Path:
    """``folder``, or where it holds more than ``most`` files a folder of links to its first ones."""
    found = find_files(folder)
    if len(found) <= most:
        return folder
    to.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(found[:most]):
        link = to / f"{number:06d}-{path.name}"
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    return to


def synthetic(folder: Path, studies: int) -> tuple[Path, Path]:
    """DICOM folder and label table of ``studies`` synthetic studies at 512 px."""
    if not (folder / "stage_2_train.csv").exists():
        call("phantom", "--out", folder, "--studies", studies, "--workers", 2)
    return folder / "stage_2_train", folder / "stage_2_train.csv"


def packed(folder: Path, dicom: Path, labels: Path | None) -> Path:
    """``dicom`` packed with the default codec."""
    if not (folder / DATASET_FILE).exists():
        call("pack", "--dicom", dicom, *(("--labels", labels) if labels else ()), "--out", folder, "--resume")
    return folder


def call(verb_name: str, *words: object) -> None:
    """Run a verb as a user would, its progress lines on stderr."""
    command = [sys.executable, "-m", f"fastich.{verb_name}", *map(str, words)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def write_variants(case: Case, reader: RecordReader) -> None:
    """``half``, ``flat`` and ``raw``, unless they were made from the same records before."""
    facts = {"records": reader.dataset_sha256, "num_slices": case.num_slices}
    done = case.work / DONE
    if done.exists() and json.loads(done.read_text()) == facts:
        return
    shutil.rmtree(case.derived, ignore_errors=True)
    case.derived.mkdir()
    verb.say(f"bench: {case.num_slices} slices as half-first, flat and raw records")
    encoders: tuple[tuple[Path, str, Callable[[NDArray[np.uint16]], bytes]], ...] = (
        (case.half, "lbp", ops.encode),
        (case.flat, "lbp", lambda pixels: encode_lbp(pixels, MODE_FLAT)),
        (case.raw, "raw", lambda pixels: ops.encode(pixels, "raw")),
    )
    for folder, codec, encode in encoders:
        write_records(folder, reader, case.num_slices, codec, encode)
    done.write_text(json.dumps(facts))


def write_records(
    folder: Path,
    reader: RecordReader,
    num_slices: int,
    codec: str,
    encode: Callable[[NDArray[np.uint16]], bytes],
    change: Callable[[pd.DataFrame], None] = lambda index: None,
) -> None:
    """The first ``num_slices`` rows of ``reader`` in one shard, each payload made by ``encode``.

    ``change`` may set columns of the new index before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = reader.index.iloc[:num_slices].reset_index(drop=True).copy()
    change(index)
    places = []
    with ShardWriter(folder / shard_name(0, 1)) as writer:
        for row in range(num_slices):
            pixels = reader.stored(row)
            labels = index.loc[row, list(LABELS)].astype(int).tolist()
            places.append(writer.append(encode(pixels), *pixels.shape, labels, str(index.at[row, "sop_uid"])))
    for column in PLACE_COLUMNS:
        index[column] = np.asarray([getattr(place, column) for place in places], dtype=index[column].dtype)
    index["shard"] = np.int32(0)
    meta = {"codec": codec, "size": None, "split": {"rule": "bench"}, "shards": [writer.close()], "rejects": None}
    finish_dataset(folder, index, meta | {"versions": {}})
