"""DICOM files and a label table to records: lossless, in slice order, split by patient, resumable after a kill.

Three passes. Headers only: group, order, join labels, draw the sample, cut into shards (``packing.plan``). Pixels:
each shard on its own, by a process pool (``packing.shard``). Join: splits, reject list, index, and dataset.json last.
The bytes written depend on input and settings only, not on workers, time or interruptions. What bounds it is reading
DICOM and encoding: see the summary line for slices/s.
"""

import contextlib
import importlib.metadata
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fastich
from fastich import dicom, files, ops, verb
from fastich.errors import FastichError, LabelError, UsageError
from fastich.labels import LABELS
from fastich.packing.finish import UNMATCHED_FILE, SplitRule, finish, read_parts
from fastich.packing.headers import read_many
from fastich.packing.part import part_path
from fastich.packing.plan import NothingToPackError, Plan, make_plan
from fastich.packing.pool import Workers, folder_lock
from fastich.packing.shard import PlannedSlice, ShardJob, write_shard
from fastich.packing.state import (
    LOCK_FILE,
    WORK_FOLDER,
    check_output,
    clean_temporaries,
    discard,
    fingerprint,
    load_plan,
    require_same_settings,
    save_plan,
)
from fastich.records.codec import CODECS
from fastich.records.format import FORMAT_VERSION
from fastich.records.index import DATASET_FILE, shard_name
from fastich.rsna import LabelTable, read_labels
from fastich.types import Reject, SliceHeader

MAX_SIZE = 4096
"""The largest side of a frame that is read; more would only cost memory."""
HEADERS_PER_JOB = 64
"""Files a header job: some 50 ms of work, so that handing it over costs little and progress moves."""


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """What to pack, how, and where to."""

    dicom: Path = verb.required("folder of DICOM files, searched with all its subfolders")
    labels: Path | None = verb.option(None, "label table (CSV); without it every label is unknown and no split is made")
    out: Path = verb.required("folder of records to write")
    codec: str = verb.option("lbp", "how pixels are stored", choices=CODECS)
    size: int | None = verb.option(None, "resize to this side by area mean, pixels (default: as it is)")
    sample: float = verb.option(1.0, "share of the slices to take, drawn as whole patients")
    seed: int = verb.option(0, "seed of the sample and the split")
    val: float = verb.option(0.15, "share of the slices for validation")
    test: float = verb.option(0.15, "share of the slices for the test")
    workers: int | None = verb.option(None, "processes (default: one a CPU)")
    shards: int | None = verb.option(None, "number of shards (default: from --shard-mb, at least 8)")
    shard_mb: int = verb.option(256, "aimed size of a shard, MiB")
    resume: bool = verb.option(False, "go on where an interrupted pack stopped")

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        if not 0 < self.sample <= 1:
            raise UsageError(f"--sample must be in (0, 1], found {self.sample}")
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise UsageError(f"--val and --test must be >= 0 and below 1 together, found {self.val} and {self.test}")
        for name in ("size", "workers", "shards", "shard_mb"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be 1 or more, found {value}")
        if self.size is not None and self.size > MAX_SIZE:
            raise UsageError(f"--size must be at most {MAX_SIZE}, found {self.size}")
        if self.seed < 0:
            raise UsageError(f"--seed must be 0 or more, found {self.seed}")


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("pack", __doc__.splitlines()[0])
    verb.add_config_flags(made, PackConfig)
    made.add_argument("--json", action="store_true", help="print the summary as JSON on stdout")
    args = made.parse_args(argv)
    summary = pack(verb.config_from_args(args, PackConfig))
    if args.json:
        print(json.dumps(summary, indent=2))
    return 0


def pack(config: PackConfig) -> dict[str, Any]:
    """Write the records and return the summary: counts, rejects by reason, bytes, ratio, seconds and slices/s.

    Raises:
        UsageError: the output exists and ``resume`` is not asked.
        FastichError: no usable slice, no label that fits, other settings than the pack to be resumed, disk full.
    """
    if not config.dicom.is_dir():
        raise FastichError(f"{config.dicom}: expected a folder of DICOM files, found none")
    settings = _settings(config)
    if check_output(config.out, resume=config.resume):
        return _already_complete(config, settings)
    table = read_labels(config.labels) if config.labels else None
    work = config.out / WORK_FOLDER
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FastichError(f"{work}: cannot make this folder ({error.strerror}); choose another --out") from error
    try:
        with folder_lock(work / LOCK_FILE):
            if (config.out / DATASET_FILE).exists():
                return _already_complete(config, settings)
            clean_temporaries(config.out, work)
            with Workers(config.workers or len(os.sched_getaffinity(0)), work / LOCK_FILE) as workers:
                return _pack(config, table, settings, work, workers)
    except OSError as error:
        where = error.filename or config.out
        raise FastichError(f"{where}: {error.strerror or error}; what is done is kept: repeat with --resume") from error


def _settings(config: PackConfig) -> dict[str, Any]:
    """Everything but the input that the bytes depend on; kept in the plan and in dataset.json."""
    names = ("codec", "size", "sample", "seed", "val", "test", "shards", "shard_mb")
    labels = files.sha256_file(config.labels) if config.labels else None
    return {**{name: getattr(config, name) for name in names}, "labels_sha256": labels}


def _versions() -> dict[str, str]:
    return {"fastich": fastich.__version__, **{name: importlib.metadata.version(name) for name in ("numpy", "pydicom")}}


def _already_complete(config: PackConfig, settings: dict[str, Any]) -> dict[str, Any]:
    require_same_settings(config.out, settings)
    shutil.rmtree(config.out / WORK_FOLDER, ignore_errors=True)
    dataset = json.loads((config.out / DATASET_FILE).read_text(encoding="utf-8"))
    verb.say(f"{config.out} is already complete: {dataset['num_slices']} slices")
    return _summary(dataset, read_s=0.0, pack_s=0.0, num_packed=0)


def _pack(
    config: PackConfig, table: LabelTable | None, settings: dict[str, Any], work: Path, workers: Workers
) -> dict[str, Any]:
    started = time.monotonic()
    paths = _input_files(config)
    facts = {
        "settings": settings,
        "input": fingerprint(config.dicom, paths),
        "versions": _versions(),
        "format_version": FORMAT_VERSION,
    }
    plan = load_plan(work, facts)
    if plan is None:
        with _discard_if_nothing(config.out, work):
            plan = _plan(config, paths, table, workers)
        save_plan(work, plan, facts)
    _say_plan(config, plan)
    planned = time.monotonic()
    num_packed = _write_shards(config, plan, work, workers)
    packed = time.monotonic()
    with _discard_if_nothing(config.out, work):
        parts = read_parts(work, plan)
    dataset = finish(config.out, plan, parts, _split_rule(config), facts)
    shutil.rmtree(work)
    summary = _summary(dataset, read_s=planned - started, pack_s=packed - planned, num_packed=num_packed)
    _say_summary(config, summary)
    return summary


def _input_files(config: PackConfig) -> list[Path]:
    """Every file below ``--dicom`` but those below ``--out``, which may lie inside it."""
    out = config.out.resolve()
    inside = out.is_relative_to(config.dicom.resolve())
    return [path for path in dicom.find_files(config.dicom) if not (inside and path.resolve().is_relative_to(out))]


def _plan(config: PackConfig, paths: Sequence[Path], table: LabelTable | None, workers: Workers) -> Plan:
    texts = list(map(str, paths))  # a quarter of the cost of handing over paths
    chunks = (texts[start : start + HEADERS_PER_JOB] for start in range(0, len(texts), HEADERS_PER_JOB))
    results = workers.map(partial(read_many, config.dicom), chunks)
    found = list(verb.progress(_flat(results), total=len(paths), unit="files", title="headers"))
    return make_plan(
        [item for item in found if isinstance(item, SliceHeader)],
        [item for item in found if isinstance(item, Reject)],
        table,
        labels_name=str(config.labels),
        sample=config.sample,
        seed=config.seed,
        codec=config.codec,
        size=config.size,
        shards=config.shards,
        shard_mb=config.shard_mb,
    )


def _flat(results: Iterator[list[SliceHeader | Reject]]) -> Iterator[SliceHeader | Reject]:
    for result in results:
        yield from result


def _write_shards(config: PackConfig, plan: Plan, work: Path, workers: Workers) -> int:
    """Write the shards that are not there yet; the number of slices done now."""
    num_packed = 0

    def slices() -> Iterator[None]:
        nonlocal num_packed
        for done in workers.map(write_shard, _shard_jobs(config, plan, work)):
            num_packed += done.num_packed
            yield from (None for _ in range(done.num_slices))

    for _ in verb.progress(slices(), total=len(plan.rows), unit="slices", title="pack"):
        pass
    return num_packed


def _shard_jobs(config: PackConfig, plan: Plan, work: Path) -> Iterator[ShardJob]:
    """The jobs of pass 2 in the order of the shards, which is that of the plan's rows."""
    columns = (plan.rows[name].tolist() for name in ("path", "frame", "sop_uid"))
    labels = map(tuple, plan.rows[list(LABELS)].to_numpy().tolist())
    slices = map(PlannedSlice, *columns, labels)
    for number, count in enumerate(plan.rows.groupby("shard", sort=True).size().tolist()):
        yield ShardJob(
            path=config.out / shard_name(number, plan.num_shards),
            part=part_path(work, number),
            slices=tuple(itertools.islice(slices, count)),
            dicom=config.dicom,
            codec=config.codec,
            size=config.size,
        )


def _split_rule(config: PackConfig) -> SplitRule | None:
    return SplitRule(seed=config.seed, val=config.val, test=config.test) if config.labels else None


@contextlib.contextmanager
def _discard_if_nothing(out: Path, work: Path) -> Iterator[None]:
    """Leave nothing behind where the input holds nothing to pack: resuming could not help."""
    try:
        yield
    except (NothingToPackError, LabelError):
        discard(out, work)
        raise


def _summary(dataset: dict[str, Any], *, read_s: float, pack_s: float, num_packed: int) -> dict[str, Any]:
    return {
        "num_slices": dataset["num_slices"],
        "num_studies": dataset["num_studies"],
        "num_patients": dataset["num_patients"],
        "num_rejects": dataset["num_rejects"],
        "unmatched_labels": dataset["unmatched_labels"],
        "splits": {name: dataset["splits"][name]["num_slices"] for name in ("train", "val", "test")},
        "num_shards": len(dataset["shards"]),
        "pixel_bytes": dataset["pixel_bytes"],
        "record_bytes": dataset["record_bytes"],
        "ratio": dataset["ratio"],
        "header_s": round(read_s, 3),
        "pack_s": round(pack_s, 3),
        "slices_per_s": round(num_packed / pack_s, 1) if num_packed else None,
        "backend": ops.backend(),
    }


def _say_plan(config: PackConfig, plan: Plan) -> None:
    for note in plan.notes:
        verb.say(f"{config.labels}: {note}")
    if plan.unmatched_labels:
        first = ", ".join(plan.unmatched_labels[:3])
        verb.say(f"{config.labels}: {len(plan.unmatched_labels)} ids match no file ({first}): see {UNMATCHED_FILE}")
    nameless = plan.rows.loc[plan.rows["patient_id"] == plan.rows["study_uid"], "study_uid"].nunique()
    if nameless:
        verb.say(
            f"note: {nameless} studies have no PatientID; each counts as a patient of its own, so one person may stand "
            "in two splits"
        )


def _say_summary(config: PackConfig, summary: dict[str, Any]) -> None:
    left_out = ", ".join(f"{count} {reason}" for reason, count in summary["num_rejects"].items())
    rate = f", {summary['slices_per_s']} slices/s" if summary["slices_per_s"] else ""
    verb.say(
        f"{config.out}: {summary['num_slices']} slices of {summary['num_studies']} studies, "
        f"{summary['record_bytes'] / 1e6:.1f} MB in {summary['num_shards']} shards, ratio {summary['ratio']}"
        f"{rate} (codec backend {summary['backend']}); left out: {left_out or 'nothing'}"
    )
    empty = [name for name in ("val", "test") if getattr(config, name) > 0 and not summary["splits"][name]]
    if config.labels and empty:
        verb.say(f"note: too few patients to fill {' and '.join(empty)}")
