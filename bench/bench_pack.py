"""DICOM files to a training format, with all cores: our records beside PNG and .npy, and beside merely reading them.

    python bench/bench_pack.py [--dicom DIR] [--quick] [--json FILE]

A pass starts from the folder and ends when everything is written; workers are started in every pass, as in use. Our
pass does more than the others: headers first, order, splits, duplicates, checksums, fsync, the index. It also spawns
its workers, which costs a second or two whatever the number of slices, so it gets a small synthetic set several times
(under other ids), up to MOST_FILES; the others start theirs by fork, in no time. A pass over few files, as with
``--quick``, says more about the start of processes than about packing.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from case import MOST_FILES, Case, first_files
from contest import Contender, Work, WrongOutputError
from rivals.files import dicom_hu, write_one

from fastich import dicom, ops
from fastich.hu import to_record
from fastich.pack import PackConfig, pack
from fastich.records.reader import RecordReader

STAGE = "pack"
READING = "merely reading and decoding, pydicom"
PNG8 = "DICOM to 8-bit PNG, pydicom and Pillow (the seed's way)"
OURS = "fastich.pack, DICOM to records"
QUICK = (OURS, READING, PNG8)
"""What ``--quick`` measures."""
CHUNK = 8
FEW_FILES = 64
SYNTHETIC_ID = b"ID_"
HEADER_BYTES = 2048
COPY_LETTERS = "0123456789ABCEFGHIJKLMNOPQRSTUVWXYZ"
"""The second letter of a copy's ids, one a copy; D is the originals'."""
CHECKED = 4


def contenders(case: Case) -> list[Contender]:
    def peer(name: str, kind: str, limit: str) -> Contender:
        arguments = {
            "folder": case.dicom,
            "work": case.derived,
            "kind": kind,
            "limit": FEW_FILES if case.quick else None,
        }
        return Contender(
            name=name, make="bench_pack:files", arguments=arguments, limit=limit, baseline=name == PNG8,
            ceiling="" if name == READING else f"row:{READING}",
        )  # fmt: skip

    parsing = "the cores: parsing DICOM"
    found = [
        Contender(
            name=OURS,
            make="bench_pack:ours",
            arguments={
                "folder": case.dicom,
                "work": case.derived,
                "quick": case.quick,
                "synthetic": case.labels is not None,
            },
            limit="the cores: reading DICOM, starting workers",
            ceiling=f"row:{READING}",
        ),
        peer("merely reading and decoding, fastich.dicom", "fastich", parsing),
        peer(READING, "pydicom", parsing),
        peer(PNG8, "png8", "the cores: deflate"),
        peer("DICOM to 16-bit PNG, pydicom and Pillow", "png16", "the cores: deflate"),
        peer("DICOM to .npy, pydicom", "npy", "the cores: parsing DICOM; storage write"),
    ]
    return [one for one in found if not case.quick or one.name in QUICK]


@contextlib.contextmanager
def ours(folder: Path, work: Path, quick: bool, synthetic: bool) -> Iterator[Work]:
    """``fastich.pack.pack`` with one worker a core."""
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        source = input_folder(folder, work, quick, synthetic)
        num_files = len(dicom.find_files(source))
        out = Path(scratch) / "records"
        summary: dict[str, Any] = {}

        def run() -> int:
            shutil.rmtree(out, ignore_errors=True)
            summary.update(pack(PackConfig(dicom=source, out=out)))
            return int(summary["num_slices"])

        def check() -> str:
            run()
            with RecordReader(out) as reader:
                for row in range(0, len(reader), max(1, len(reader) // CHECKED)):
                    path = source / str(reader.index["source"][row])
                    expected = to_record(dicom.read_file(path)[0].hu)
                    if not np.array_equal(reader.stored(row), expected):
                        raise WrongOutputError(f"{path.name} does not come back as it was")
            made.stored_bytes = summary["record_bytes"] / summary["num_slices"]
            made.facts |= {"ratio": summary["ratio"], "num_files": num_files}
            return "lossless"

        made = Work(run=run, check=check, facts={"ours": True, "ops": ops.backend()}, warms_up=False)
        yield made


def input_folder(folder: Path, work: Path, quick: bool, synthetic: bool) -> Path:
    """The files that are packed in a pass: a few with ``quick``, copies up to MOST_FILES of a synthetic set."""
    if quick:
        return first_files(folder, work / "few", FEW_FILES)
    found = dicom.find_files(folder)
    copies = min(MOST_FILES // len(found), len(COPY_LETTERS))
    return copied(folder, work / "copies", copies) if synthetic and copies > 1 else folder


def copied(folder: Path, to: Path, copies: int) -> Path:
    """``copies`` times the synthetic files of ``folder``, each time under other ids of the same length."""
    for number, letter in enumerate(COPY_LETTERS[:copies]):
        part = to / f"{number:02d}"
        if part.exists():
            continue
        temporary = to / "part"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for path in dicom.find_files(folder):
            data = path.read_bytes()
            header = data[:HEADER_BYTES].replace(SYNTHETIC_ID, f"I{letter}_".encode())
            (temporary / path.name).write_bytes(header + data[HEADER_BYTES:])
        temporary.rename(part)
    return to


@contextlib.contextmanager
def files(folder: Path, work: Path, kind: str, limit: int | None) -> Iterator[Work]:
    """Each file through ``kind`` in a pool of one process a core."""
    paths = dicom.find_files(folder)[:limit]
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        one: Callable[[Path], int] = partial(convert, kind, Path(scratch))

        def run() -> int:
            with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                return sum(pool.map(one, paths, chunksize=CHUNK))

        def check() -> str:
            for path in paths[:CHECKED]:
                if not np.array_equal(dicom_hu(path), dicom.read_file(path)[0].hu):
                    raise WrongOutputError(f"{path.name}: pydicom and fastich.dicom read different pixels")
            run()
            sizes = [path.stat().st_size for path in Path(scratch).iterdir()] or [path.stat().st_size for path in paths]
            made.stored_bytes = sum(sizes) / len(sizes)
            return "pixels as fastich.dicom reads them"

        made = Work(run=run, check=check, facts={"num_files": len(paths)}, warms_up=False)
        yield made


def convert(kind: str, folder: Path, path: Path) -> int:
    """Read one file and, but for ``pydicom`` and ``fastich``, write it below ``folder``; 1, the number of slices."""
    if kind == "fastich":
        return len(dicom.read_file(path))
    hu = dicom_hu(path)
    if kind != "pydicom":
        write_one(kind, folder / f"{path.stem}{'.npy' if kind == 'npy' else '.png'}", to_record(hu))
    return 1


if __name__ == "__main__":
    from throughput import alone

    alone(STAGE)
