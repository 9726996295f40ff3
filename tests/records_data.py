"""Small records folders made from seeded noise, for the tests of everything that reads records."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.labels import LABELS
from fastich.records import codec
from fastich.records.index import index_frame, shard_name
from fastich.records.writer import ShardWriter, finish_dataset

STUDIES = (("s0", "p0", "train", 3), ("s1", "p1", "val", 2), ("s2", "p2", "test", 3), ("s3", "p3", "", 2))
"""Study, patient, split, slices; two studies a shard."""
SHAPE = (40, 50)


def make_pixels(num_slices: int = 10, seed: int = 0) -> list[NDArray[np.uint16]]:
    """Smooth slopes with some noise: packs to a few bits like CT, and no two are equal."""
    rng = np.random.default_rng(seed)
    slope = np.add.outer(np.arange(SHAPE[0]) * 3, np.arange(SHAPE[1]) * 5)
    return [(1024 + slope + rng.integers(0, 60, SHAPE)).astype(np.uint16) for _ in range(num_slices)]


def slice_labels(split: str, number: int) -> list[int]:
    """Six labels: unknown without a split, else one subtype by number and none for each third."""
    if not split:
        return [-1] * 6
    return [0] * 6 if number % 3 == 2 else [int(place == number % 5) for place in range(5)] + [1]


def make_rows() -> list[dict[str, Any]]:
    """One row a slice with everything that is known before packing."""
    rows = []
    for study, patient, split, count in STUDIES:
        for z in range(count):
            number = len(rows)
            uids = {
                "sop_uid": f"ID_{number:09x}",
                "study_uid": study,
                "series_uid": f"{study}.1",
                "patient_id": patient,
            }
            millimetres = {"z_mm": 5.0 * z, "row_spacing_mm": 0.5, "col_spacing_mm": 0.5, "slice_spacing_mm": 4.8}
            shape = {
                "tilt_deg": 12.5,
                "height": SHAPE[0],
                "width": SHAPE[1],
                "shard": len({r["study_uid"] for r in rows} - {study}) // 2,
            }
            labels = dict(zip(LABELS, slice_labels(split, number), strict=True))
            source = {"split": split, "encoding": "unsigned 12", "source": f"{number}.dcm"}
            rows.append(uids | millimetres | shape | labels | source)
    return rows


def make_dataset(
    folder: Path,
    *,
    codec_name: str = "lbp",
    pixels: list[NDArray[np.uint16]] | None = None,
    rows: list[dict[str, Any]] | None = None,
    example_labels: dict[int, list[int]] | None = None,
    meta: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a records folder of ten slices in two shards; ``example_labels`` replaces what the shard says of a row."""
    folder.mkdir(exist_ok=True)
    pixels = make_pixels() if pixels is None else pixels
    rows = make_rows() if rows is None else rows
    shards = []
    for shard in sorted({row["shard"] for row in rows}):
        with ShardWriter(folder / shard_name(shard, 2)) as writer:
            for number, row in enumerate(rows):
                if row["shard"] == shard:
                    labels = (example_labels or {}).get(number, [row[name] for name in LABELS])
                    payload = codec.encode(pixels[number], codec_name)
                    place = writer.append(payload, *pixels[number].shape, labels, row["sop_uid"])
                    row |= {name: getattr(place, name) for name in place.__slots__}
                    row["pixel_sha1"] = hashlib.sha1(pixels[number].astype("<u2").tobytes()).hexdigest()
        shards.append(writer.close())
    facts = {"codec": codec_name, "size": None, "split": {"rule": "by patient", "seed": 0}, "shards": shards}
    return finish_dataset(
        folder, index_frame(rows), facts | {"rejects": None, "versions": {"fastich": "0"}} | (meta or {})
    )
