"""Pass 3 of packing: the parts of all shards become one index with its splits, a reject list and dataset.json.

Splits come this late because patients are joined by identical pixels, which only pass 2 has seen. Cost: seconds.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from fastich import files
from fastich.labels import LABELS
from fastich.packing.part import part_path, read_part
from fastich.packing.plan import Plan, count_rejects, frame_name, require_slices
from fastich.records.index import SCHEMA
from fastich.records.shard_file import ShardInfo
from fastich.records.writer import finish_dataset
from fastich.splits import assign_splits
from fastich.types import Reject, RejectReason

REJECTS_FILE = "rejects.csv"
UNMATCHED_FILE = "unmatched_labels.csv"
SPLIT_RULE = "patients joined by identical pixels, stratified by label, rarest first"
NO_SPLIT = {"rule": "none: packed without labels"}


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """How slices are divided: the seed, and the shares of validation and test."""

    seed: int
    val: float
    test: float


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What all shards say: the rows that were kept, in record order, every reject, and the shards by number."""

    kept: pd.DataFrame
    rejects: tuple[Reject, ...]
    shards: list[ShardInfo]


def read_parts(work: Path, plan: Plan) -> Parts:
    """Join the parts of all shards to the plan's rows, which stand in the order of the shards.

    Raises:
        NothingToPackError: no slice was kept; counts the rejects by reason.
        FastichError: a part is damaged.
    """
    counts = np.bincount(plan.rows["shard"], minlength=plan.num_shards).tolist()
    parts = [read_part(part_path(work, number), count) for number, count in enumerate(counts)]
    outcomes = pd.concat([pd.DataFrame(columns) for columns, _ in parts], ignore_index=True)
    planned = plan.rows.rename(columns={"height": "native_height", "width": "native_width"})
    rows = pd.concat([planned, outcomes], axis=1)
    kept = rows[rows["reason"] == ""].reset_index(drop=True)
    rejects = (*plan.rejects, *_late_rejects(rows))
    require_slices(len(kept), rejects)
    return Parts(kept=kept, rejects=rejects, shards=[info for _, info in parts])


def _late_rejects(parts: pd.DataFrame) -> list[Reject]:
    left_out = parts[parts["reason"] != ""]
    columns = (left_out[name] for name in ("path", "frame", "reason", "detail"))
    return [
        Reject(path=frame_name(path, frame), reason=RejectReason(reason), detail=detail)
        for path, frame, reason, detail in zip(*columns, strict=True)
    ]


def finish(out: Path, plan: Plan, parts: Parts, rule: SplitRule | None, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the lists of what was left out, the index with its splits, and dataset.json, whose value is returned."""
    rejects, settings = parts.rejects, facts["settings"]
    index = make_index(parts.kept, rule, settings["size"])
    write_csv(
        out / REJECTS_FILE,
        ("path", "reason", "detail"),
        sorted((reject.path, reject.reason.value, reject.detail) for reject in rejects),
    )
    if plan.unmatched_labels:
        write_csv(out / UNMATCHED_FILE, ("id",), [(name,) for name in plan.unmatched_labels])
    meta = {
        "codec": settings["codec"],
        "size": settings["size"],
        "split": NO_SPLIT if rule is None else {"rule": SPLIT_RULE, **asdict(rule)},
        "shards": parts.shards,
        "rejects": REJECTS_FILE,
        "num_rejects": count_rejects(rejects),
        "unmatched_labels": len(plan.unmatched_labels),
        "label_notes": list(plan.notes),
        "settings": settings,
        "versions": facts["versions"],
    }
    return finish_dataset(out, index, meta)


def make_index(kept: pd.DataFrame, rule: SplitRule | None, size: int | None) -> pd.DataFrame:
    """The index from the kept rows of the parts; spacing is that of the pixels as stored."""
    columns = {name: kept[name] for name in SCHEMA.names if name in kept}
    columns["source"] = kept["path"]
    columns["split"] = pd.Series("", kept.index)
    if rule is not None:
        patients = kept["patient_id"].to_numpy(object)
        keys = np.where(kept["blank"], "", kept["pixel_sha1"].to_numpy(object))
        split = assign_splits(
            patients, keys, kept[list(LABELS)].to_numpy(np.int8), seed=rule.seed, val=rule.val, test=rule.test
        )
        columns["split"] = pd.Series(list(split), kept.index, dtype=object)
    if size is not None:
        scale = np.maximum(kept["native_height"], kept["native_width"]) / size
        for name in ("row_spacing_mm", "col_spacing_mm"):
            columns[name] = kept[name] * scale
    types = {f.name: object if f.type == pa.string() else f.type.to_pandas_dtype() for f in SCHEMA}
    return pd.DataFrame({name: columns[name].astype(kind) for name, kind in types.items()})


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a CSV, whole or not at all, that is safe to open in a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    files.write_text(path, text.getvalue())


def _harmless(cell: str) -> str:
    """One line of valid UTF-8 that no spreadsheet takes for a formula."""
    printable = cell.encode("utf-8", "backslashreplace").decode("utf-8").replace("\r", " ").replace("\n", " ")
    return "'" + printable if printable[:1] in ("=", "+", "-", "@", "\t") else printable
