"""Small studies whose slices cannot be judged alone: a slice bleeds where a slice beside it is bright.

The toy CNN sees brightness only, so it can do no better than say how often slices bleed; whoever looks at the
neighbours can be right about every one.
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastich.checkpoint import LoadedRun, weights_sha256
from fastich.hu import to_record
from fastich.labels import LABELS
from fastich.records.codec import encode
from fastich.records.index import index_frame, shard_name
from fastich.records.reader import read_dataset
from fastich.records.writer import ShardWriter, finish_dataset
from fastich.windowing import DEFAULT_WINDOWS

SIZE, SIDE, LENGTH = 16, 16, 8
NUM_STUDIES = {"train": 24, "val": 8, "test": 8}
BRIGHT_HU, DARK_HU = 70, 20
INPUT = {
    "size": SIZE,
    "windows": [{"center_hu": window.center_hu, "width_hu": window.width_hu} for window in DEFAULT_WINDOWS],
    "adjacent": False,
}


class BrightnessCnn(nn.Module):
    """Embedding: brightness of the three channels and a constant; logits: those of the prevalence."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.prevalence = nn.Parameter(torch.tensor([-6.0, 0.0, -6.0, -6.0, -6.0, 0.0]))
        self.num_calls = 0

    def embedding(self, images: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        bright = images.mean(dim=(2, 3)) * self.scale
        return torch.cat([bright, torch.ones_like(bright[:, :1])], dim=1)

    def head(self, embedding: torch.Tensor) -> torch.Tensor:
        return self.prevalence + 0 * embedding[:, :1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(images))


def write_studies(path: Path, *, salt: str = "", unlabelled_row: int = -1) -> None:
    """Forty studies of eight slices, each of a patient of its own."""
    path.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    splits = [split for split, count in NUM_STUDIES.items() for _ in range(count)]
    with ShardWriter(path / shard_name(0, 1)) as writer:
        for study, split in enumerate(splits):
            bright = rng.random(LENGTH) < 0.3
            beside = np.append(False, bright[:-1]) | np.append(bright[1:], False)
            for z in range(LENGTH):
                number, bleeds = len(rows), int(beside[z])
                labels = [-1] * 6 if number == unlabelled_row else [0, bleeds, 0, 0, 0, bleeds]
                hu = (BRIGHT_HU if bright[z] else DARK_HU) + rng.integers(-3, 4, (SIDE, SIDE)).astype(np.int16)
                stored = to_record(hu)
                place = writer.append(encode(stored), SIDE, SIDE, labels, f"ID_{number:09x}")
                rows.append(
                    {"sop_uid": f"ID_{number:09x}", "study_uid": f"s{study:03d}{salt}", "series_uid": f"s{study:03d}.1"}
                    | {"patient_id": f"p{study}", "z_mm": 5.0 * z, "tilt_deg": 0.0, "height": SIDE, "width": SIDE}
                    | dict.fromkeys(("row_spacing_mm", "col_spacing_mm", "slice_spacing_mm"), 5.0)
                    | {"shard": 0, **dataclasses.asdict(place)}
                    | {"pixel_sha1": hashlib.sha1(stored.tobytes()).hexdigest()}
                    | dict(zip(LABELS, labels, strict=True))
                    | {"split": "" if labels[0] < 0 else split, "encoding": "toy", "source": f"{number}.dcm"}
                )
    meta = {"codec": "lbp", "size": None, "split": {}, "shards": [writer.close()], "rejects": None, "versions": {}}
    finish_dataset(path, index_frame(rows), meta)


def loaded_cnn(records: Path, run: Path = Path("cnn")) -> LoadedRun:
    """A trained run of the toy CNN over ``records``."""
    return LoadedRun(
        run=run,
        model=BrightnessCnn().eval(),
        config={"size": SIZE},
        dataset_sha256=read_dataset(records)[1],
        epoch=3,
        size=SIZE,
        windows=DEFAULT_WINDOWS,
        adjacent=False,
        meta={"input": INPUT},
    )


def changed(run: LoadedRun) -> LoadedRun:
    """The same run with other weights."""
    other = BrightnessCnn().eval()
    nn.init.constant_(other.scale, 2.0)
    assert weights_sha256(other) != weights_sha256(run.model)
    return dataclasses.replace(run, model=other)
