"""A folder of DICOM files to the score of its study, and where the time goes: reading, the network.

    python bench/bench_end_to_end.py [--dicom DIR] [--size 256] [--quick] [--json FILE]

The seed's way beside it reads with pydicom, windows to 8 bits, resizes with Pillow and runs torch eager in float32, one
process, all cores for the network. Opening the model is not counted for either.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from bench_infer import compare, reference, serving_graph
from case import Case
from contest import Contender, Work, WrongOutputError
from model import exported
from PIL import Image
from preprocessing import MEAN, STD, eight_bit_windows
from rivals.files import dicom_hu

from fastich import dicom, ops, score
from fastich.hu import to_record
from fastich.labels import ANY
from fastich.packing.headers import read_many
from fastich.score_files import Beside, read_all
from fastich.serve.session import open_session
from fastich.training.environment import num_cores, torch_threads
from fastich.types import SliceHeader

STAGE = "end-to-end"
NETWORK = "  of it the network"
SEED = "pydicom, Pillow, torch eager (the seed's way)"
BATCH = 16
NETWORK_TOLERANCE = 1e-3


def contenders(case: Case) -> list[Contender]:
    known = {"case": case}
    network = "the network's operators, each by itself"
    return [
        Contender(
            name="fastich.score, folder to study score", make="bench_end_to_end:whole", arguments=known,
            limit="the network", ceiling=f"row:{NETWORK}",
        ),
        Contender(
            name="  of it reading and decoding", make="bench_end_to_end:reading", arguments=known,
            limit="one core: parsing DICOM",
        ),
        Contender(name=NETWORK, make="bench_end_to_end:network", arguments=known, limit=network),
        Contender(name=SEED, make="bench_end_to_end:seed", arguments=known, limit=network, baseline=True),
    ]  # fmt: skip


def study_files(case: Case) -> list[Path]:
    """The files of the first study of the folder; with ``quick`` at most half a batch of them."""
    found = headers(case.dicom)
    study = Counter(header.study_uid for header in found).most_common(1)[0][0]
    paths = [case.dicom / header.path for header in found if header.study_uid == study]
    return paths[: BATCH // 2 if case.quick else 3 * BATCH]


def headers(folder: Path) -> list[SliceHeader]:
    """Headers of every slice below ``folder``."""
    found = read_many(folder, dicom.find_files(folder))
    return [one for one in found if isinstance(one, SliceHeader)]


@contextlib.contextmanager
def whole(case: Case) -> Iterator[Work]:
    """``fastich.score.score`` on the files of one study."""
    paths, folder = study_files(case), exported(case)
    session, config = open_session(folder, case.device), score.ScoreConfig(model=folder, batch_size=BATCH)

    def run() -> int:
        return int(score.score(paths, session, config)["studies"][0]["num_slices"])

    def check() -> str:
        report = score.score(paths, session, config)
        if report["not_scored"] or len(report["studies"]) != 1:
            raise WrongOutputError(f"{len(report['not_scored'])} files were not scored")
        truth = session.run(np.stack([dicom_hu(path) for path in paths])).probability[:, ANY].max()
        found = np.float32(report["studies"][0]["probability"]["any"])
        return compare(found[None, None], truth[None, None], 1e-3)

    yield Work(run=run, check=check, stored_bytes=mean_size(paths), facts={"ours": True, "ops": ops.backend()})


@contextlib.contextmanager
def reading(case: Case) -> Iterator[Work]:
    """What ``score`` does before the network: its own reading, without a session."""
    paths = study_files(case)

    def run() -> int:
        with dicom.Decoder() as decoder:
            return sum(1 for _ in read_all(paths, decoder, Beside()))

    def check() -> str:
        if run() != len(paths):
            raise WrongOutputError("not every file was read")
        return "every file read"

    yield Work(run=run, check=check, stored_bytes=mean_size(paths))


@contextlib.contextmanager
def network(case: Case) -> Iterator[Work]:
    """The session on the study's pixels in memory."""
    hu = np.stack([dicom_hu(path) for path in study_files(case)])
    session = open_session(exported(case), case.device)

    def run() -> int:
        return sum(len(session.run(hu[start : start + BATCH]).probability) for start in range(0, len(hu), BATCH))

    def check() -> str:
        return compare(session.run(hu[:4]).probability, reference(case, hu[:4]), NETWORK_TOLERANCE)

    yield Work(run=run, check=check)


@contextlib.contextmanager
def seed(case: Case) -> Iterator[Work]:
    """Slice by slice to 8 bits, resized, in batches through torch eager."""
    paths, model = study_files(case), serving_graph(case).model

    def image_of(path: Path) -> np.ndarray:
        picture = Image.fromarray(eight_bit_windows(to_record(dicom_hu(path))))
        small = np.asarray(picture.resize((case.size, case.size), Image.Resampling.BOX), np.float32) / 255
        return ((small - MEAN) / STD).transpose(2, 0, 1)

    def probabilities() -> np.ndarray:
        found = []
        with torch.inference_mode():
            for start in range(0, len(paths), BATCH):
                images = np.stack([image_of(path) for path in paths[start : start + BATCH]])
                found.append(torch.sigmoid(model(torch.from_numpy(images))).numpy())
        return np.concatenate(found)

    def check() -> str:
        if not np.isfinite(probabilities()).all() or len(probabilities()) != len(paths):
            raise WrongOutputError("not one finite probability a slice")
        return "finite; 8-bit windows before the mean"

    with torch_threads(num_cores()):
        yield Work(run=lambda: len(probabilities()), check=check, stored_bytes=mean_size(paths))


def mean_size(paths: list[Path]) -> float:
    """Bytes a file."""
    return sum(path.stat().st_size for path in paths) / len(paths)


if __name__ == "__main__":
    from throughput import alone

    alone(STAGE)
