"""What slice context, calibration and chosen thresholds are worth, measured end to end on synthetic studies.

60 patients to train, 20 to validate and 60 to test, at 128 px: a 2D network, the sequence model over its embeddings,
both evaluated the same way, compared patient by patient, exported with the study model beside the slice model. Every
step is the command that a user would type. Ends with one table, in which every claim has an interval, and
``summary.json``. On two CPU cores about 20 minutes, most of it training the 2D network.

Phantoms are easier than patients: the figures say that the machinery works, not how well it would do in a hospital.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fastich import metrics
from fastich.files import write_json
from fastich.intervals import estimate, interval
from fastich.report import experiment_table
from fastich.report.folder import PREDICTIONS_FILE
from fastich.report.results import truth_and_scores
from fastich.resampling import Resampling
from fastich.steps import clear, step
from fastich.verb import add_config_flags, config_from_args, option, parser, run

TRUTH, SLICES, LABELS_CSV, MASKS = "truth.csv", "stage_2_train", "stage_2_train.csv", "masks"
PHANTOM_SIZE = 192
"""Side of the synthetic slices, pixels: larger than the network's input, as at a scanner."""
EMBEDDING_PASSES = 4
"""Over augmented training slices: 10 s each here; docs/trust.md has what they bring."""
PAGES = (
    "evaluation-cnn/report.html",
    "evaluation-study/report.html",
    "model/model_card.html",
    "explanation/index.html",
    "summary.json",
)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """What the experiment runs on, and how large it is."""

    out: Path = option(Path("runs/study"), "folder of everything it makes; replaced if it holds an experiment")
    studies: int = option(161, "synthetic studies; the default is 140 patients, 60 of them to train and 60 to test")
    size: int = option(128, "side of records and network input, pixels")
    epochs: int = option(10, "epochs of the 2D network")
    batch_size: int = option(24, "slices a step of the 2D network")
    val: float = option(0.143, "share of the slices to validate on")
    test: float = option(0.428, "share of the slices to test on")
    rule: str = option("sensitivity:0.9", "of the thresholds; a missed bleed is the dearer mistake")
    explained: int = option(20, "held-out studies with a bleed whose class maps are held against the true outlines")
    bootstrap: int = option(1000, "resamples of the patients for the intervals")
    workers: int = option(os.cpu_count() or 1, "processes that write synthetic studies and pack records")
    seed: int = option(0, "seed of the studies, the split and the training")


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = parser("experiment", __doc__)
    add_config_flags(made, ExperimentConfig)
    experiment(config_from_args(made.parse_args(argv), ExperimentConfig))
    return 0


def experiment(config: ExperimentConfig) -> dict[str, Any]:
    """Run every step in ``config.out`` and return what ``summary.json`` holds."""
    started = time.monotonic()
    clear(config.out, "experiment")
    seconds = _data(config) | _models(config) | _judgement(config) | _delivery(config)
    summary = _summary(config, seconds | {"total": time.monotonic() - started})
    write_json(config.out / "summary.json", summary)
    print(experiment_table.text(summary))
    for name in PAGES:
        print((config.out / name).resolve())
    return summary


def _data(config: ExperimentConfig) -> dict[str, float]:
    """Synthetic studies to records whose splits share nobody."""
    dicom, records = config.out / "dicom", config.out / "records"
    return {
        "phantom": step(
            "phantom", "--out", dicom, "--studies", config.studies, "--size", PHANTOM_SIZE, "--seed", config.seed,
            "--workers", config.workers,
        ),
        "pack": step(
            "pack", "--dicom", dicom / SLICES, "--labels", dicom / LABELS_CSV, "--out", records, "--size",
            config.size, "--val", config.val, "--test", config.test, "--seed", config.seed, "--workers", config.workers,
        ),
        "leakage": step("leakage", records),
    }  # fmt: skip


def _models(config: ExperimentConfig) -> dict[str, float]:
    """The 2D network, then the sequence model over its embeddings."""
    records, cnn, study = (config.out / name for name in ("records", "cnn", "study"))
    return {
        "train": step(
            "train", "--records", records, "--out", cnn, "--weights", "none", "--size", config.size, "--epochs",
            config.epochs, "--batch-size", config.batch_size, "--schedule", "one-cycle", "--lr", "2e-3", "--amp",
            "--augment", "--seed", config.seed,
        ),
        "train_study": step(
            "train_study", "--run", cnn, "--records", records, "--out", study, "--embedding-passes", EMBEDDING_PASSES,
            "--amp", "--seed", config.seed,
        ),
    }  # fmt: skip


def _judgement(config: ExperimentConfig) -> dict[str, float]:
    """Both models on patients that neither has seen, and their difference."""
    out, records = config.out, config.out / "records"
    seconds = {}
    for name in ("cnn", "study"):
        seconds[f"evaluate_{name}"] = step(
            "evaluate", "--run", out / name, "--records", records, "--out", out / f"evaluation-{name}",
            "--truth", out / "dicom" / TRUTH, "--rule", config.rule, "--bootstrap", config.bootstrap,
        )  # fmt: skip
    folders = (out / "evaluation-cnn", out / "evaluation-study")
    return seconds | {"compare": step("compare", *folders, "--out", out / "comparison")}


def _delivery(config: ExperimentConfig) -> dict[str, float]:
    """The two ONNX files and the model card; class maps held against the true outlines."""
    out = config.out
    model = (
        "--run", out / "cnn", "--study", out / "study", "--evaluation", out / "evaluation-cnn", "--study-evaluation",
        out / "evaluation-study", "--records", out / "records", "--out", out / "model",
    )  # fmt: skip
    seconds = {"export": step("export", *model)}
    files = held_out_files(config)
    shown = f"python -m fastich.explain --model {out / 'model'} --masks ...  ({len(files)} held-out files)"
    words = ("--model", out / "model", "--out", out / "explanation", "--masks", out / "dicom" / MASKS, *files)
    return seconds | {"explain": step("explain", *words, shown=shown)}


def held_out_files(config: ExperimentConfig) -> list[Path]:
    """The DICOM files of the first ``config.explained`` studies with a bleed that are tested on."""
    columns = ["study_uid", "source", "split", "any"]
    index = pd.read_parquet(config.out / "records" / "index.parquet", columns=columns)
    tested = index[index["split"] == "test"]
    studies = tested.loc[tested["any"] == 1, "study_uid"].drop_duplicates().head(config.explained)
    sources = tested.loc[tested["study_uid"].isin(studies), "source"].drop_duplicates()
    return [config.out / "dicom" / SLICES / source for source in sources]


def log_loss_gain(folder_a: Path, folder_b: Path, num_resamples: int, seed: int) -> dict[str, Any]:
    """Share of the challenge's log loss of evaluation A that B saves, an ``estimate`` with its interval by patient."""
    tables = [pd.read_parquet(folder / PREDICTIONS_FILE) for folder in (folder_a, folder_b)]
    loss_a, loss_b = (metrics.slice_log_loss(*truth_and_scores(table)) for table in tables)
    resampling = Resampling.of(tables[0]["patient_id"], num_resamples=num_resamples, seed=seed)
    saved = interval(1 - resampling.ratio(loss_b, loss_a), resampling.basis)
    return estimate(float(1 - loss_b.sum() / loss_a.sum()), saved)


def _summary(config: ExperimentConfig, seconds: dict[str, float]) -> dict[str, Any]:
    """What the table is made of: the numbers of both evaluations and of their comparison, unchanged."""
    return {
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "cnn": _read(config.out / "evaluation-cnn" / "metrics.json"),
        "study": _read(config.out / "evaluation-study" / "metrics.json"),
        "log_loss_gain": log_loss_gain(
            config.out / "evaluation-cnn", config.out / "evaluation-study", config.bootstrap, config.seed
        ),
        "comparison": _read(config.out / "comparison" / "compare.json"),
        "explanation": _read(config.out / "explanation" / "findings.json"),
        "training": _read(config.out / "cnn" / "run.json"),
        "study_training": _read(config.out / "study" / "run.json"),
    }


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main)
