"""Evaluate a training run on a held-out split: numbers with intervals, thresholds from validation, one HTML page.

Two passes of the network: the validation split, on which the thresholds are chosen, and the split that is judged. Then
seconds for the numbers and the pictures. Patients of the judged split were never trained on: records that the run was
not trained on are refused unless ``--other-dataset`` says that they are meant, and so is whatever it has seen
(``fastich/leakage.py``) unless ``--allow-leakage`` does.

The output folder holds predictions.parquet, thresholds.json, report.csv, roc.csv, figures/, report.html and, written
last, metrics.json. Validation's predictions are kept too (predictions-val.parquet).
"""

import contextlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import ops, verb
from fastich.checkpoint import LoadedRun, load_run
from fastich.errors import CheckpointError, FastichError, RecordError, UsageError
from fastich.labels import LABELS, UNKNOWN
from fastich.leakage import require_apart
from fastich.loaders import LoaderConfig, open_loader
from fastich.loaders.config import BACKENDS
from fastich.records.reader import RecordReader
from fastich.report import folder, results
from fastich.training.environment import device_name, num_cores, torch_threads, versions
from fastich.training.precision import Precision, choose_device, choose_precision
from fastich.training.predictions import Forward, predict
from fastich.training.replicas import Replicas
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

    def num_replicas(self, precision: Precision) -> int:
        """Parts of a batch that go through the network at once: one a thread on a CPU (``training/replicas.py``)."""
        return self.num_threads if precision.device.type == "cpu" else 1

    def threads_an_operation(self, precision: Precision) -> int:
        """Threads that torch gives each operation: one where the parts of a batch take the cores."""
        return 1 if self.num_replicas(precision) > 1 else self.num_threads

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
    run = load_run(config.run, config.which)
    precision = choose_precision(config.amp, choose_device(config.device))
    run.model.to(precision.device)
    splits = tuple(dict.fromkeys((VALIDATION, config.split)))
    with (
        contextlib.closing(RecordReader(config.records)) as reader,
        torch_threads(config.threads_an_operation(precision)),
    ):
        dataset = _compare_datasets(config, run, reader)
        for split in splits:
            _require_labelled(config, reader, split)
        folder.make(config.folder)
        passes = {split: predict_split(config, run, precision, split) for split in splits}
        validation, judged = passes[VALIDATION], passes[config.split]
        thresholds = results.choose_on_validation(validation.predictions)
        verb.say(
            f"predicted: {len(judged.predictions)} slices, {judged.slices_per_s} slices/s; now numbers and figures"
        )
        measured = {
            "split": config.split,
            "dataset": dataset,
            "model": {"run": str(config.run), "checkpoint": config.which, "epoch": run.epoch},
            **results.summarise(judged.predictions, thresholds, num_resamples=config.bootstrap, seed=config.seed),
            "slices_per_s": judged.slices_per_s,
            "machine": _machine(precision, judged),
            "config": run.config,
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
    }


def _require_labelled(config: EvaluateConfig, reader: RecordReader, split: str) -> None:
    rows = reader.rows(split)
    if len(rows) == 0:
        raise RecordError(f"{config.records}: expected slices in split {split!r}, found none; pack more patients")
    unknown = int((reader.labels()[rows] == UNKNOWN).any(axis=1).sum())
    if unknown:
        raise RecordError(
            f"{config.records}: expected a label for every slice of split {split!r}, found {unknown} without; "
            "pack again with the label table"
        )


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One split as the network saw it: the prediction table, who fed it, and how fast."""

    predictions: pd.DataFrame
    loader: str
    slices_per_s: float


def predict_split(config: EvaluateConfig, run: LoadedRun, precision: Precision, split: str) -> Pass:
    """Predict every slice of ``split``; the table has the columns of predictions.parquet, in row order."""
    loader = open_loader(
        LoaderConfig(
            records=config.records,
            split=split,
            batch_size=config.batch_size,
            size=run.size,
            windows=run.windows,
            adjacent=run.adjacent,
            backend=config.loader,
            device=precision.device.type,
            threads=config.num_threads,
        )
    )
    with contextlib.closing(loader):
        start = time.perf_counter()
        batches = verb.progress(loader.epoch(0), total=loader.num_batches, unit="batches", title=f"predict {split}")
        replicas = config.num_replicas(precision)
        with contextlib.ExitStack() as stack:
            forward: Forward = run.model
            if replicas > 1:
                forward = stack.enter_context(contextlib.closing(Replicas(run.model, replicas, precision)))
            seen = predict(run.model, forward, batches, precision, config.batch_size)
        rows, probability = seen.tensors()["rows"].cpu().numpy(), seen.probability()
        seconds = time.perf_counter() - start
        made = prediction_table(loader.reader.index, rows, probability)
        return Pass(predictions=made, loader=loader.backend, slices_per_s=round(len(made) / seconds, 2))


def prediction_table(index: pd.DataFrame, rows: NDArray[np.int64], probability: NDArray[np.float64]) -> pd.DataFrame:
    """Columns of predictions.parquet, ascending in ``row``.

    Raises:
        FastichError: a probability is not finite, and names the first such slice.
    """
    bad = ~np.isfinite(probability).all(axis=1)
    if bad.any():
        uid = index["sop_uid"].iloc[int(rows[bad][0])]
        raise FastichError(f"the network gave values that are not finite for {int(bad.sum())} slices, first {uid}")
    order = np.argsort(rows, kind="stable")
    table = index.loc[rows[order], ["sop_uid", "study_uid", "patient_id", *LABELS]].reset_index(drop=True)
    table.insert(0, "row", rows[order])
    return table.assign(**dict(zip(results.PROBABILITY_COLUMNS, probability[order].T, strict=True)))


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
