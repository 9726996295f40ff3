"""A small records folder for the loader tests: smooth heads with a skull and blood, any mix of sizes."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastich.hu import to_record
from fastich.labels import LABELS
from fastich.loaders import Batch, Loader
from fastich.records.codec import encode
from fastich.records.index import INDEX_FILE, index_frame, read_index, shard_name
from fastich.records.writer import ShardWriter, finish_dataset

KINDS = ([0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1], [-1] * 6)


def head(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    radius = np.hypot((y + 0.5) / height - 0.5, ((x + 0.5) / width - 0.5) * 1.2)
    inside = 1 / (1 + np.exp((radius - 0.40) * 60))
    brain = 1 / (1 + np.exp((radius - 0.36) * 60))
    hu = -1024 + inside * 1900 - brain * 850 + 40 * np.sin(x * (9.0 + seed % 5) / width) * brain
    return np.clip(hu + rng.normal(0, 4, hu.shape), -1024, 3000).astype(np.int16)


def write_records(
    folder: Path, sizes: list[tuple[int, int]], *, series_length: int = 6, split: str = "train", image: Callable = head
) -> list[np.ndarray]:
    """One slice for each (height, width), in series of ``series_length``; returns their HU in row order."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [image(*size, seed=seed) for seed, size in enumerate(sizes)]
    rows = []
    with ShardWriter(folder / shard_name(0, 1)) as writer:
        for number, hu in enumerate(images):
            labels = KINDS[number % len(KINDS)]
            stored, study = to_record(hu), number // series_length
            place = writer.append(encode(stored), *hu.shape, labels, f"ID_{number:09x}")
            rows.append(
                {
                    "sop_uid": f"ID_{number:09x}",
                    "study_uid": f"ID_a{study:08x}",
                    "series_uid": f"ID_b{study:08x}",
                    "patient_id": f"ID_c{study:08x}",
                    "z_mm": 5.0 * number,
                    **dict.fromkeys(("row_spacing_mm", "col_spacing_mm", "slice_spacing_mm"), 0.5),
                    "tilt_deg": 0.0,
                    "height": hu.shape[0],
                    "width": hu.shape[1],
                    "shard": 0,
                    **dataclasses.asdict(place),
                    "pixel_sha1": hashlib.sha1(stored.tobytes()).hexdigest(),
                    **dict(zip(LABELS, labels, strict=True)),
                    "split": split if labels[0] >= 0 else "",
                    "encoding": "test",
                    "source": f"{number}.dcm",
                }
            )
    meta = {"codec": "lbp", "size": None, "split": {}, "shards": [writer.close()], "rejects": None, "versions": {}}
    finish_dataset(folder, index_frame(rows), meta)
    return images


def folders_of_all_kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Records that any backend must read: ``even`` and ``large`` squares, ``wide`` images, ``mixed`` sizes."""
    sizes = {
        "even": [(96, 96)] * 12,
        "mixed": [(96, 96), (70, 90), (96, 96), (90, 70), (70, 90)] * 2,
        "wide": [(64, 96)] * 4,
        "large": [(512, 512)] * 2,
    }
    made = {name: tmp_path_factory.mktemp(name) for name in sizes}
    for name, folder in made.items():
        write_records(folder, sizes[name], series_length=1 if name == "mixed" else 6)
    return made


def collect(loader: Loader, epoch: int = 0, start: int = 0) -> list[Batch]:
    """All batches of an epoch; the loader is closed."""
    batches = list(loader.epoch(epoch, start))
    loader.close()
    return batches


def damage(folder: Path, row: int) -> int:
    """Flip one bit in the middle of the payload of ``row``; returns the payload's offset in the shard."""
    place = read_index((folder / INDEX_FILE).read_bytes()).iloc[row]
    path = folder / shard_name(0, 1)
    data = bytearray(path.read_bytes())
    data[int(place["payload_offset"]) + int(place["payload_size"]) // 2] ^= 1
    path.write_bytes(data)
    return int(place["payload_offset"])
