"""Evaluate a run on a held-out split: numbers with intervals, decisions from validation, one HTML page.

The networks see the validation split, on which calibration, thresholds and triage are chosen, and the split that is
judged (of a k-fold run each network does; a sequence model takes embeddings that are at hand). Then seconds for the
numbers and the pictures. Records that the run was not trained on are refused unless ``--other-dataset`` says that they
are meant, and so is whatever it has seen (``fastich/leakage.py``) unless ``--allow-leakage`` does.

The output folder holds predictions.parquet, thresholds.json, report.csv, roc.csv, figures/, report.html and, written
last, metrics.json. Validation's predictions are kept too (predictions-val.parquet).
"""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import operating_points, ops, verb
from fastich.calibration import METHODS
from fastich.checkpoint import LoadedRun
from fastich.errors import RecordError, UsageError
from fastich.folds import fold_config, run_rows
from fastich.labels import UNKNOWN
from fastich.leakage import require_apart
from fastich.loaders.config import BACKENDS
from fastich.records.reader import RecordReader
from fastich.report import folder, results
from fastich.report.choices import Choices, Rules, Tables, choose
from fastich.report.trust import apply, trust
from fastich.subgroups import read_truth, subgroup_table
from fastich.subject import open_subject
from fastich.training.environment import device_name, num_cores, torch_threads, versions
from fastich.training.feed import Feed
from fastich.training.precision import Precision, choose_device, choose_precision
from fastich.training.run_folder import RUN_JSON
from fastich.training.views import NONE
from fastich.verb import option, required

VALIDATION = "val"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One evaluation."""

    run: Path = required("run folder that python -m fastich.train or train_study wrote, of one model or of folds")
    records: Path = required("records folder that holds the split")
    split: str = option("test", "which slices to judge", choices=("train", "val", "test"))
    out: Path | None = option(None, "folder to write (default: RUN/evaluation-<split>)")
    which: str = option("best", "which checkpoint", choices=("best", "last"))
    device: str = option("auto", "where the network runs", choices=("auto", "cpu", "cuda"))
    amp: bool = option(False, "mixed precision: bfloat16 where the device has it, else float16")
    batch_size: int = option(64, "slices at a time")
    loader: str = option("auto", "which loader feeds the network", choices=BACKENDS)
    threads: int = option(0, "CPU threads of the loader and of the network (0: all cores)")
    calibration: str = option("platt", "how logits become probabilities, fitted on validation", choices=METHODS)
    rule: str = option("max-f1", "of the thresholds: max-f1, youden, sensitivity:0.95 or specificity:0.9 and the like")
    alpha_miss: float = option(0.1, "triage: most of the studies with a bleed that may be cleared")
    alpha_alarm: float = option(0.2, "triage: most of the studies without a bleed that may be flagged")
    truth: Path | None = option(None, "truth.csv of synthetic studies: subgroups by volume of bleed")
    tta: str = option(NONE, "average over views: none, or some of flip, crop, reverse; of a sequence model: reverse")
    bootstrap: int = option(1000, "resamples of the patients for the intervals")
    seed: int = option(0, "seed of the resampling")
    other_dataset: bool = option(False, "judge records that the run was not trained on, and say so in the report")
    allow_leakage: bool = option(False, "judge patients or images that the run has seen, and say so in metrics.json")
    overwrite: bool = option(False, "replace the output folder if it exists")

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything is opened."""
        for name, least in (("batch_size", 1), ("bootstrap", 1), ("threads", 0), ("seed", 0)):
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag} must be >= {least}, found {getattr(self, name)}")
        for name in ("alpha_miss", "alpha_alarm"):
            if not 0 < getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{flag}: expected above 0 and below 1, found {getattr(self, name)}")
        operating_points.parse_rule(self.rule)

    def rules(self) -> Rules:
        """How validation decides."""
        return Rules(
            calibration=self.calibration,
            threshold_rule=self.rule,
            alpha_miss=self.alpha_miss,
            alpha_alarm=self.alpha_alarm,
        )

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
    folder.check(config.folder, overwrite=config.overwrite)
    feed = config.feed()
    truth = None if config.truth is None else read_truth(config.truth)
    threads = 1 if feed.num_replicas > 1 else feed.threads  # of each operation, where parts of a batch take the cores
    with contextlib.closing(RecordReader(config.records)) as reader, torch_threads(threads):
        subject = open_subject(config.run, config.which, reader, feed, tta=config.tta)
        dataset = _compare_datasets(config, subject.cnn, reader)
        splits = tuple(dict.fromkeys((VALIDATION, config.split)))
        for split in splits:
            rows = run_rows(reader, fold_config(subject.cnn.config, same_records=dataset["same_as_training"]), split)
            _require_labelled(config, reader, rows, split)
        if isinstance(subject.epoch, list) and config.split == "train" and dataset["same_as_training"]:
            raise UsageError(
                "split train: a k-fold run has none of its own, for its networks learned from each other's slices; "
                "judge val, which is every slice of train and val out of fold, or one fold's run folder"
            )
        folder.make(config.folder)
        found = {split: subject.predict(split) for split in splits}
        verb.say(f"predicted: {len(found[config.split].tables.slices)} slices; now numbers and figures")
        seen = found[VALIDATION].tables
        choices = choose(seen, config.rules(), VALIDATION)
        validation, judged = (apply(choices, found[split].tables) for split in (VALIDATION, config.split))
        measured = {
            "split": config.split,
            "dataset": dataset,
            "model": {
                "run": str(config.run),
                "checkpoint": config.which,
                "epoch": subject.epoch,
                "weights_sha256": subject.weights_sha256,
            },
            **trust(
                validation,
                judged,
                choices,
                num_resamples=config.bootstrap,
                seed=config.seed,
                is_ensemble=isinstance(subject.epoch, list),
            ),
            "subgroups": _subgroups(config, judged, reader, choices, truth),
            "training": _training(config.run),
            "slices_per_s": found[config.split].slices_per_s,
            "machine": _machine(feed.precision, found[config.split].loader),
            "config": subject.config,
            "evaluation": verb.plain(config),
        }
        for label, why in (measured["calibration"]["slices"]["cross_fitted"] or {}).get("unfitted", {}).items():
            verb.say(f"cross-fitted calibration of slices, {label}: {why}")
        curves = sorted((config.run / "curves").glob("*.png"))
        folder.write(config.folder, measured, judged, validation, choices, read_hu=reader.hu, curves=curves)
    return measured


def _compare_datasets(config: EvaluateConfig, run: LoadedRun, reader: RecordReader) -> dict[str, Any]:
    """Identity of the records and whether the run was trained on them.

    Raises:
        RecordError: it was trained on others and ``--other-dataset`` was not given, or on patients of the split.
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
        "leakage": require_apart(run, reader, config.split, allow=config.allow_leakage),
        "leakage_of_validation": None if same else require_apart(run, reader, VALIDATION, allow=config.allow_leakage),
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


def _subgroups(
    config: EvaluateConfig, judged: Tables, reader: RecordReader, choices: Choices, truth: pd.DataFrame | None
) -> list[dict[str, Any]]:
    """The lines of ``subgroup_table``."""
    made = subgroup_table(
        judged.slices,
        judged.studies,
        reader.index,
        choices.thresholds["thresholds"],
        truth,
        config.bootstrap,
        config.seed,
        choices.study_thresholds["thresholds"],
    )
    return [{str(name): value for name, value in line.items()} for line in made.to_dict("records")]


def _training(run: Path) -> dict[str, Any] | None:
    """What training took, where the run has ended: seconds, slices/s and the device."""
    path = run / RUN_JSON
    if not path.is_file():
        return None
    told = json.loads(path.read_text(encoding="utf-8"))
    return {name: told[name] for name in ("seconds", "slices_per_s", "device_name", "epochs_run") if name in told}


def _machine(precision: Precision, loader: str) -> dict[str, Any]:
    return {
        "device": precision.device.type,
        "device_name": device_name(precision.device),
        "precision": precision.name,
        "loader": loader,
        "ops": ops.backend(),
        "versions": versions(),
    }


if __name__ == "__main__":
    verb.run(main)
