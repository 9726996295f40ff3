"""Evaluate a training run on a held-out split: numbers with intervals, thresholds from validation, one HTML page.

Two passes of the network: the validation split, on which the thresholds are chosen, and the split that is judged. Then
seconds for the numbers and the pictures. Patients of the judged split were never trained on, which holds only on the
records that the run was trained on: others are refused unless ``--other-dataset`` says that they are meant.

The output folder holds predictions.parquet, thresholds.json, report.csv, roc.csv, figures/, report.html and, written
last, metrics.json. Validation's predictions are kept too (predictions-val.parquet).
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich import ops, verb
from fastich.checkpoint import LoadedRun
from fastich.errors import CheckpointError, RecordError, UsageError
from fastich.folds import fold_config, run_rows
from fastich.labels import UNKNOWN
from fastich.loaders.config import BACKENDS
from fastich.records.reader import RecordReader
from fastich.report import folder, results
from fastich.training.config import ALL_FOLDS
from fastich.training.environment import device_name, num_cores, torch_threads, versions
from fastich.training.precision import Precision, choose_device, choose_precision
from fastich.training.prediction import Feed, Pass, load_members, predict_members
from fastich.training.views import NONE, parse_views
from fastich.verb import option, required

VALIDATION = "val"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One evaluation."""

    run: Path = required("run folder that python -m fastich.train wrote")
    records: Path = required("records folder that holds the split")
    split: str = option("test", "which slices to judge", choices=("train", "val", "test"))
    out: Path | None = option(None, "folder to write (default: RUN/evaluation-<split>)")
    which: str = option("best", "which checkpoint", choices=("best", "last"))
    device: str = option("auto", "where the network runs", choices=("auto", "cpu", "cuda"))
    amp: bool = option(False, "mixed precision: bfloat16 where the device has it, else float16")
    batch_size: int = option(64, "slices at a time")
    loader: str = option("auto", "which loader feeds the network", choices=BACKENDS)
    threads: int = option(0, "CPU threads of the loader and of the network (0: all cores)")
    tta: str = option(NONE, "average over views: none, or some of flip, crop, reverse; n of them cost 2^n passes")
    bootstrap: int = option(1000, "resamples of the patients for the intervals")
    seed: int = option(0, "seed of the resampling")
    other_dataset: bool = option(False, "judge records that the run was not trained on, and say so in the report")
    overwrite: bool = option(False, "replace the output folder if it exists")

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything is opened."""
        for name, least in (("batch_size", 1), ("bootstrap", 1), ("threads", 0), ("seed", 0)):
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} must be >= {least}, found {getattr(self, name)}")

    def feed(self) -> Feed:
        """How slices get through the network."""
        precision = choose_precision(self.amp, choose_device(self.device))
        return Feed(precision=precision, batch_size=self.batch_size, loader=self.loader, threads=self.num_threads)

    @property
    def num_threads(self) -> int:
        """Threads, with 0 resolved."""
        return self.threads or num_cores()

    @property
    def folder(self) -> Path:
        """Where the evaluation is written."""
        return self.out or self.run / f"evaluation-{self.split}"


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("evaluate", __doc__)
    verb.add_config_flags(made, EvaluateConfig)
    made.add_argument("--json", action="store_true", help="print metrics.json on stdout instead of the table")
    args = made.parse_args(argv)
    config = verb.config_from_args(args, EvaluateConfig)
    measured = evaluate(config)
    print(json.dumps(measured, indent=2, allow_nan=False) if args.json else results.text_table(measured))
    verb.say(f"report: {config.folder / folder.REPORT_FILE}")
    return 0


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate as asked, write the folder and return what metrics.json holds.

    Raises:
        FastichError: one of its kinds: the folder exists, the run or the records cannot be used, a split is empty.
    """
    if not config.run.is_dir():
        raise CheckpointError(f"{config.run}: no such run folder; expected the --out folder of python -m fastich.train")
    folder.check(config.folder, overwrite=config.overwrite)
    members = load_members(config.run, config.which)
    run, feed = members[0], config.feed()
    views = parse_views(config.tta, adjacent=run.adjacent)
    for member in members:
        member.model.to(feed.precision.device)
    splits = tuple(dict.fromkeys((VALIDATION, config.split)))
    with (
        contextlib.closing(RecordReader(config.records)) as reader,
        torch_threads(1 if feed.num_replicas > 1 else feed.threads),
    ):
        dataset = _compare_datasets(config, run, reader)
        for split in splits:
            rows = run_rows(reader, fold_config(run.config, same_records=dataset["same_as_training"]), split)
            _require_labelled(config, reader, rows, split)
        folder.make(config.folder)
        passes = {split: predict_members(members, config.records, split, feed, views) for split in splits}
        validation, judged = passes[VALIDATION], passes[config.split]
        thresholds = results.choose_on_validation(validation.predictions)
        verb.say(
            f"predicted: {len(judged.predictions)} slices, {judged.slices_per_s} slices/s; now numbers and figures"
        )
        measured = {
            "split": config.split,
            "dataset": dataset,
            "model": {"run": str(config.run), "checkpoint": config.which, "epoch": _epochs(members)},
            **results.summarise(judged.predictions, thresholds, num_resamples=config.bootstrap, seed=config.seed),
            "slices_per_s": judged.slices_per_s,
            "machine": _machine(feed.precision, judged),
            "config": run.config if len(members) == 1 else {**run.config, "fold": ALL_FOLDS},
            "evaluation": verb.plain(config),
        }
        curves = sorted((config.run / "curves").glob("*.png"))
        folder.write(
            config.folder, measured, judged.predictions, validation.predictions, read_hu=reader.hu, curves=curves
        )
    return measured


def _compare_datasets(config: EvaluateConfig, run: LoadedRun, reader: RecordReader) -> dict[str, Any]:
    """Identity of the records and whether the run was trained on them.

    Raises:
        RecordError: it was trained on others and ``--other-dataset`` was not given.
    """
    same = reader.dataset_sha256 == run.dataset_sha256
    if not same and not config.other_dataset:
        raise RecordError(
            f"{config.records}: expected the records that {config.run} was trained on ({run.dataset_sha256[:12]}), "
            f"found {reader.dataset_sha256[:12]}; their splits may share patients: give those, or --other-dataset"
        )
    return {
        "records": str(config.records),
        "dataset_sha256": reader.dataset_sha256,
        "trained_on_sha256": run.dataset_sha256,
        "same_as_training": same,
    }


def _require_labelled(config: EvaluateConfig, reader: RecordReader, rows: NDArray[np.int64], split: str) -> None:
    if len(rows) == 0:
        raise RecordError(f"{config.records}: expected slices in split {split!r}, found none; pack more patients")
    unknown = int((reader.labels()[rows] == UNKNOWN).any(axis=1).sum())
    if unknown:
        raise RecordError(
            f"{config.records}: expected a label for every slice of split {split!r}, found {unknown} without; "
            "pack again with the label table"
        )


def _epochs(members: Sequence[LoadedRun]) -> int | list[int]:
    """The epoch whose weights judge, of a k-fold run one for each fold."""
    return members[0].epoch if len(members) == 1 else [member.epoch for member in members]


def _machine(precision: Precision, judged: Pass) -> dict[str, Any]:
    return {
        "device": precision.device.type,
        "device_name": device_name(precision.device),
        "precision": precision.name,
        "loader": judged.loader,
        "ops": ops.backend(),
        "versions": versions(),
    }


if __name__ == "__main__":
    verb.run(main)
