"""The evaluation folder: made first, so that one that cannot be written costs no prediction; metrics.json last.

Holds predictions.parquet and studies.parquet, the same of validation (-val), what was decided there (thresholds.json,
calibration.json, both also of studies, and triage.json), report.csv, roc.csv, figures/*.png, report.html and
metrics.json, whose presence means "complete". Every file is whole or absent.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from fastich.errors import UsageError
from fastich.files import atomic_path, write_json, write_text
from fastich.report import html, pictures, results
from fastich.report.choices import Choices, Tables
from fastich.types import HuArray

METRICS_FILE = "metrics.json"
REPORT_FILE = "report.html"
PREDICTIONS_FILE = "predictions.parquet"
STUDIES_FILE = "studies.parquet"
THRESHOLDS_FILE, STUDY_THRESHOLDS_FILE = "thresholds.json", "study-thresholds.json"
CALIBRATION_FILE, STUDY_CALIBRATION_FILE = "calibration.json", "study-calibration.json"
TRIAGE_FILE = "triage.json"
FIGURES_FOLDER = "figures"


def check(path: Path, *, overwrite: bool) -> None:
    """Refuse a folder that may not be written; changes nothing.

    Raises:
        UsageError: it is a file, or holds something and ``overwrite`` is not set.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: expected a folder to write, found a file; choose another --out")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UsageError(f"{path}: exists and is not empty; give --overwrite, or choose another --out")


def make(path: Path) -> None:
    """Make the folder, or clear an old evaluation out of the way; only once the run and the records are known good.

    Raises:
        UsageError: it cannot be written.
    """
    path.mkdir(parents=True, exist_ok=True)
    if not os.access(path, os.W_OK):
        raise UsageError(f"{path}: cannot be written; change its permissions, or choose another --out")
    (path / METRICS_FILE).unlink(missing_ok=True)
    for stale in (path / FIGURES_FOLDER).glob("*.png"):
        stale.unlink()


def write(
    path: Path,
    measured: dict[str, Any],
    judged: Tables,
    validation: Tables,
    choices: Choices,
    *,
    read_hu: Callable[[int], HuArray],
    curves: Sequence[Path] = (),
) -> None:
    """Write every file of the folder.

    Args:
        path: what ``make`` made.
        measured: the content of metrics.json.
        judged: calibrated tables of the judged split.
        validation: calibrated tables of the validation split.
        choices: what was decided on it.
        read_hu: gives int16 HU [H, W] of a row of the index.
        curves: PNG files of the training curves.
    """
    write_table(path / PREDICTIONS_FILE, judged.slices)
    write_table(path / STUDIES_FILE, judged.studies)
    write_table(path / "predictions-val.parquet", validation.slices)
    write_table(path / "studies-val.parquet", validation.studies)
    _write_choices(path, choices, measured)
    write_table(path / "report.csv", results.report_table(measured))
    write_table(path / "roc.csv", results.roc_table(judged.slices))
    drawn, cases = pictures.draw(judged.slices, measured, read_hu)
    (path / FIGURES_FOLDER).mkdir(exist_ok=True)
    shown = {pictures.case_name(number, case): case.png for number, case in enumerate(cases)}
    for name, png in (drawn | shown).items():
        with atomic_path(path / FIGURES_FOLDER / f"{name}.png") as temporary:
            temporary.write_bytes(png)
    page = html.render_report(measured, drawn, cases, {curve.stem: curve.read_bytes() for curve in curves})
    write_text(path / REPORT_FILE, page)
    write_json(path / METRICS_FILE, measured)


def _write_choices(path: Path, choices: Choices, measured: dict[str, Any]) -> None:
    """What an export needs of the evaluation, each file beside the identity of the records."""
    identity = {"dataset_sha256": measured["dataset"]["dataset_sha256"]}
    split = {"split": choices.thresholds["split"]}
    triage = choices.triage.to_document() | {"guarantee": measured["triage"]["guarantee"]}  # none of an ensemble
    write_json(path / THRESHOLDS_FILE, choices.thresholds | identity)
    write_json(path / STUDY_THRESHOLDS_FILE, choices.study_thresholds | identity)
    write_json(path / CALIBRATION_FILE, choices.slices.to_document() | split | identity)
    write_json(path / STUDY_CALIBRATION_FILE, choices.studies.to_document() | split | identity)
    write_json(path / TRIAGE_FILE, triage | split | identity)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV or parquet, by the name's ending, whole or not at all."""
    with atomic_path(path) as temporary:
        if path.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)
