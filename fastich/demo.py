"""The main job, end to end: DICOM -> records -> training -> evaluation -> export -> scores of held-out studies.

Each step is the very command that a user would type: it is printed, then run as a process of its own. Without data of
your own it begins with synthetic studies. It ends with one table, ``summary.json`` and the path of an HTML report.
On two CPU cores it takes about six minutes, most of it training.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from fastich.errors import FastichError, UsageError
from fastich.files import write_json
from fastich.labels import LABELS
from fastich.steps import clear, step
from fastich.verb import add_config_flags, config_from_args, option, parser, run


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What the demo runs on, and how large it is."""

    out: Path = option(Path("runs/demo"), "folder of everything the demo makes; replaced if it holds a demo")
    dicom: Path | None = option(None, "your own DICOM folder instead of synthetic studies")
    labels: Path | None = option(None, "label table (CSV) of --dicom")
    studies: int = option(100, "synthetic studies")
    size: int = option(96, "side of records and network input, pixels")
    epochs: int = option(8, "training epochs")
    batch_size: int = option(32, "slices a training step")
    max_scored: int = option(12, "held-out studies to score at the end")
    workers: int = option(os.cpu_count() or 1, "processes that write synthetic studies and pack records")
    seed: int = option(0, "seed of the synthetic studies, the split and the training")

    def __post_init__(self) -> None:
        """Refuse half of a data set."""
        if (self.dicom is None) != (self.labels is None):
            raise UsageError("your own data needs both --dicom DIR and --labels CSV")


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = parser("demo", __doc__.splitlines()[0])
    add_config_flags(made, DemoConfig)
    args: argparse.Namespace = made.parse_args(argv)
    demo(config_from_args(args, DemoConfig))
    return 0


def demo(config: DemoConfig) -> dict[str, Any]:
    """Run every step in ``config.out`` and return what ``summary.json`` holds."""
    started = time.monotonic()
    out = config.out
    _check_input(config)
    clear(out, "demo")
    seconds: dict[str, float] = {}
    if config.dicom is None or config.labels is None:
        seconds["phantom"] = step(
            "phantom", "--out", out / "dicom", "--studies", config.studies, "--seed", config.seed,
            "--workers", config.workers,
        )  # fmt: skip
        dicom, labels = out / "dicom" / "stage_2_train", out / "dicom" / "stage_2_train.csv"
    else:
        dicom, labels = config.dicom, config.labels
    records, run_folder, model = out / "records", out / "run", out / "model"
    seconds["pack"] = step(
        "pack", "--dicom", dicom, "--labels", labels, "--out", records, "--size", config.size, "--seed", config.seed,
        "--workers", config.workers,
    )  # fmt: skip
    step("verify", records)
    seconds["train"] = _train(config, records, run_folder)
    seconds["evaluate"] = step("evaluate", "--run", run_folder, "--records", records, "--out", out / "evaluation")
    chosen = ("--run", run_folder, "--out", model, "--evaluation", out / "evaluation", "--records", records)
    seconds["export"] = step("export", *chosen)
    seconds["score"] = _score(config, dicom, records, model, out / "scores.json")
    summary = _summary(config, seconds, time.monotonic() - started)
    write_json(out / "summary.json", summary)
    print(table(summary))
    print(f"report:  {(out / 'evaluation' / 'report.html').resolve()}")
    print(f"summary: {(out / 'summary.json').resolve()}")
    return summary


def _check_input(config: DemoConfig) -> None:
    """Look at the user's own data before an earlier demo is cleared away, and never clear that data away."""
    for path, what in ((config.dicom, "DICOM folder"), (config.labels, "label table")):
        if path is None:
            continue
        if not path.exists():
            raise FastichError(f"{what} {path} does not exist")
        if path.resolve().is_relative_to(config.out.resolve()):
            raise UsageError(f"{what} {path} lies in {config.out}, which the demo replaces; choose another --out")


def _train(config: DemoConfig, records: Path, run_folder: Path) -> float:
    return step(
        "train", "--records", records, "--out", run_folder, "--weights", "none", "--size", config.size,
        "--epochs", config.epochs, "--batch-size", config.batch_size, "--schedule", "one-cycle", "--lr", "2e-3",
        "--amp", "--augment", "--seed", config.seed,
    )  # fmt: skip


def _score(config: DemoConfig, dicom: Path, records: Path, model: Path, target: Path) -> float:
    """Score studies of the test split as a scanner would send them; the JSON goes to ``target``."""
    index = pd.read_parquet(records / "index.parquet", columns=["study_uid", "source", "split"])
    held_out = index[index["split"] == "test"]
    studies = held_out["study_uid"].drop_duplicates().head(config.max_scored)
    files = [dicom / source for source in held_out[held_out["study_uid"].isin(studies)]["source"].drop_duplicates()]
    with target.open("w", encoding="utf-8") as output:
        shown = f"python -m fastich.score --model {model} --json  ({len(files)} held-out files)"
        return step("score", "--model", model, "--json", *files, shown=shown, stdout=output)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _summary(config: DemoConfig, seconds: dict[str, float], total_s: float) -> dict[str, Any]:
    out = config.out
    dataset, trained = _read(out / "records" / "dataset.json"), _read(out / "run" / "run.json")
    metrics, artifact = _read(out / "evaluation" / "metrics.json"), _read(out / "model" / "model.json")
    scores = _read(out / "scores.json")
    scored = sum(len(series["slices"]) for study in scores["studies"] for series in study["series"])
    slices = dataset["num_slices"]
    rates: dict[str, float] = {stage: slices / seconds[stage] for stage in ("phantom", "pack") if stage in seconds}
    rates |= {
        "train": trained["slices_per_s"]["train"],
        "evaluate": metrics["slices_per_s"],
        "score": scored / seconds["score"],
    }
    return {
        "studies": dataset["num_studies"],
        "slices": slices,
        "bytes": dataset["record_bytes"],
        "ratio": dataset["ratio"],
        "rates": rates,
        "seconds": {**seconds, "total": total_s},
        "auc": {label: metrics["auc"][label]["value"] for label in LABELS},
        "average_precision": {label: metrics["average_precision"][label]["value"] for label in LABELS},
        "log_loss": metrics["log_loss"]["value"],
        "held_out_patients": metrics["num_patients"],
        "held_out_slices": metrics["num_slices"],
        "parity": artifact["parity"],
        "scored_studies": len(scores["studies"]),
        "report": str(out / "evaluation" / "report.html"),
    }


def table(summary: dict[str, Any]) -> str:
    """The closing table of the demo, as text."""
    mib = summary["bytes"] / 2**20
    rows = [
        ("studies, slices", f"{summary['studies']}, {summary['slices']}"),
        ("records", f"{mib:.1f} MiB, {summary['ratio']:.2f} times smaller than raw"),
        *((f"{stage}, slices/s", f"{rate:.1f}") for stage, rate in summary["rates"].items()),
        *((f"AUC {label}", _number(value)) for label, value in summary["auc"].items()),
        ("weighted log loss", _number(summary["log_loss"])),
        (
            "held out",
            f"{summary['held_out_slices']} slices of {summary['held_out_patients']} patients never trained on",
        ),
        *((f"parity {name}", _parity(pair)) for name, pair in summary["parity"].items() if isinstance(pair, dict)),
        ("time", f"{summary['seconds']['total']:.0f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(["", *(f"  {name:<{width}}  {value}" for name, value in rows), ""])


def _number(value: float | None) -> str:
    return "undefined (one class only)" if value is None else f"{value:.4f}"


def _parity(pair: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.2e}" if isinstance(value, float) else f"{key} {value}" for key, value in pair.items()
    )


if __name__ == "__main__":
    run(main)
