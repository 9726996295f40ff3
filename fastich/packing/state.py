"""What an interrupted pack leaves in ``OUT/.packing``: the plan, the settings it holds for, and the finished parts.

``plan.json`` is written last, so its presence means that the plan is whole. The folder goes when dataset.json is there.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from fastich import files
from fastich.dicom import text_below
from fastich.errors import FastichError, UsageError
from fastich.packing.plan import Plan
from fastich.records.format import FORMAT_VERSION
from fastich.records.index import DATASET_FILE
from fastich.types import Reject, RejectReason

WORK_FOLDER = ".packing"
LOCK_FILE = "lock"
PLAN_FILE, ROWS_FILE, REJECTS_FILE = "plan.json", "plan.parquet", "plan-rejects.parquet"
SHARD_PATTERN = "shard-*.tfrecord"


def check_output(out: Path, *, resume: bool) -> bool:
    """Tell whether ``out`` already holds a complete data set.

    Raises:
        UsageError: it exists and may not be touched: complete or begun without ``resume``, or not ours.
    """
    complete, begun = (out / DATASET_FILE).exists(), (out / WORK_FOLDER).exists()
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; choose another --out")
    if complete and not resume:
        raise UsageError(f"{out} already holds a data set; choose another --out or remove it")
    if begun and not complete and not resume:
        raise UsageError(f"{out} holds an interrupted pack; go on with --resume, or remove it")
    if not complete and not begun and out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty and holds no data set; choose another --out")
    return complete


def fingerprint(root: Path, paths: Sequence[Path]) -> str:
    """Hex SHA-256 over names, sizes and times of the input files: what a resumed pack must find unchanged."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:  # a link to nothing
            status = os.lstat(path)
        line = f"{text_below(path, root)}\t{status.st_size}\t{status.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def save_plan(work: Path, plan: Plan, facts: dict[str, Any]) -> None:
    """Write ``plan`` and ``facts`` (settings, input, versions) into the work folder."""
    rejects = pd.DataFrame(
        [(reject.path, reject.reason.name, reject.detail) for reject in plan.rejects],
        columns=["path", "reason", "detail"],
        dtype=object,
    )
    for name, frame in ((ROWS_FILE, plan.rows), (REJECTS_FILE, rejects)):
        with files.atomic_path(work / name) as temporary:
            frame.to_parquet(temporary, index=False)
    value = {name: getattr(plan, name) for name in ("num_shards", "unmatched_labels", "notes")}
    files.write_json(work / PLAN_FILE, {**facts, "plan": value})


def load_plan(work: Path, facts: dict[str, Any]) -> Plan | None:
    """The plan of an interrupted pack, None if it did not get that far.

    Raises:
        FastichError: it was made with other settings, from another input or by another version.
    """
    if not (work / PLAN_FILE).exists():
        return None
    value = _read_json(work / PLAN_FILE)
    for key, expected in facts.items():
        if value.get(key) != expected:
            raise FastichError(f"{work.parent}: {_difference(key, value.get(key), expected)}; remove it to start again")
    rejects = pq.read_table(work / REJECTS_FILE).to_pylist()
    return Plan(
        rows=pq.read_table(work / ROWS_FILE).to_pandas(),
        rejects=tuple(Reject(path=r["path"], reason=RejectReason[r["reason"]], detail=r["detail"]) for r in rejects),
        num_shards=value["plan"]["num_shards"],
        unmatched_labels=tuple(value["plan"]["unmatched_labels"]),
        notes=tuple(value["plan"]["notes"]),
    )


def require_same_settings(out: Path, settings: dict[str, Any]) -> None:
    """Compare with the settings of a complete data set.

    Raises:
        FastichError: they differ; names the first. Or it is damaged, or of another format version.
    """
    dataset = _read_json(out / DATASET_FILE)
    if dataset.get("format_version") != FORMAT_VERSION:
        raise FastichError(
            f"{out / DATASET_FILE}: expected format version {FORMAT_VERSION}, found {dataset.get('format_version')}; "
            "choose another --out"
        )
    if dataset.get("settings") != settings:
        raise FastichError(f"{out}: {_difference('settings', dataset.get('settings'), settings)}; choose another --out")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise FastichError(f"{path}: damaged ({error}); remove the folder and pack again") from error
    return value


def _difference(key: str, found: Any, expected: Any) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        name = next(name for name in expected if found.get(name) != expected[name])
        return f"packed with {name} {found.get(name)}, now asked with {expected[name]}"
    if key == "input":
        return "the DICOM files have changed since this pack began"
    return f"begun with {key} {found}, now {expected}"


def clean_temporaries(out: Path, work: Path) -> None:
    """Remove the half-written files of a killed pack."""
    for folder in (out, work):
        for path in folder.glob("*" + files.TEMPORARY_SUFFIX):
            path.unlink()


def discard(out: Path, work: Path) -> None:
    """Leave nothing behind of a pack that can give no data set."""
    shutil.rmtree(work)
    for path in out.glob(SHARD_PATTERN):
        path.unlink()
    if not any(out.iterdir()):
        out.rmdir()
