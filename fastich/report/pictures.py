"""All pictures of one evaluation from its prediction table and its numbers: curves, cases, studies.

About 4 s for the curves on one core, and a read and a resize for each of the eighteen slices of the gallery.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from fastich import calibration
from fastich.labels import LABELS
from fastich.report import figures, gallery
from fastich.report.gallery import Case
from fastich.report.results import LOGIT_COLUMNS, interval_text, truth_and_scores
from fastich.report.style import to_png
from fastich.types import HuArray


def draw(
    predictions: pd.DataFrame, measured: dict[str, Any], read_hu: Callable[[int], HuArray]
) -> tuple[dict[str, bytes], list[Case]]:
    """Figures as PNG bytes by name, and the cases of the gallery.

    Args:
        predictions: the judged slices (columns of predictions.parquet).
        measured: what ``results.summarise`` made of them.
        read_hu: gives int16 HU [H, W] of a row of the index.
    """
    truth, scores = truth_and_scores(predictions)
    thresholds = np.array([measured["thresholds"]["thresholds"][label] for label in LABELS])
    intervals = {label: interval_text(found) for label, found in measured["auc"].items()}
    drawn = figures.draw_all(truth, scores, thresholds, gallery.choose_studies(predictions), intervals)
    raw = calibration.NONE.probability(predictions[LOGIT_COLUMNS])  # as calibration_numbers has it
    drawn["reliability_raw"] = to_png(figures.reliability_figure(truth, raw))
    return drawn, gallery.build_cases(predictions, thresholds, read_hu)


def case_name(number: int, case: Case) -> str:
    """File name, without ending, of a gallery picture; no id from outside is in it."""
    return f"case_{case.group}_{number:02d}_row_{case.row}"
