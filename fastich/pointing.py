"""How well class maps point at bleeds, over many slices: rates per label with chance beside them, intervals by study.

Masks are those of the phantom: ``MASKS/<study>.npz`` with ``masks`` [N, H, W] (0, or 1 + the subtype's index) and
``sop_uids`` [N]. A slice carries a label where its mask covers at least ``phantom.study.VISIBLE_MM2``.
"""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.class_maps import Mask, Pointing
from fastich.errors import FastichError
from fastich.intervals import LEVEL, UNDEFINED, estimate
from fastich.labels import ANY, LABELS
from fastich.phantom.study import VISIBLE_MM2
from fastich.resampling import Resampling

NUM_RESAMPLES = 1000
SUBJECTS = ("all slices with the label", "those that are found")
NO_MAP = f"{UNDEFINED}: no map is positive anywhere"
RATES = {"hit": "chance", "cell_hit": "cell_chance", "energy": "mask_share"}
"""Each figure, and what a map that knows nothing would reach."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One label on one slice that carries it; ``found`` where its probability reaches the threshold."""

    study_uid: str
    label: str
    found: bool
    pointing: Pointing


class Masks:
    """The masks folder of a phantom data set; one study's file is read when it is asked for.

    Raises:
        FastichError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FastichError(f"{folder}: expected the masks folder of a phantom, found none; give its path")
        self.folder = folder

    def of_study(self, study_uid: str) -> dict[str, NDArray[np.uint8]]:
        """Mask [H, W] of each slice of a study by SOP UID; none where the folder has no file of it.

        Raises:
            FastichError: the file is damaged.
        """
        if study_uid not in {path.stem for path in self.folder.glob("*.npz")}:
            return {}
        path = self.folder / f"{study_uid}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(zip(map(str, file["sop_uids"]), np.asarray(file["masks"], dtype=np.uint8), strict=True))
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            what = f"{type(error).__name__} {error}"
            raise FastichError(f"{path}: expected masks [N, H, W] and sop_uids [N], found {what}") from error


def labels_of(mask_HW: NDArray[np.uint8], spacing_mm: tuple[float, float]) -> Iterator[tuple[str, Mask]]:
    """The labels that a slice carries, ``any`` last, and where each is."""
    carried: Mask = np.zeros(mask_HW.shape, dtype=np.bool_)
    for index, label in enumerate(LABELS[:ANY]):
        here: Mask = mask_HW == index + 1
        if here.sum() * spacing_mm[0] * spacing_mm[1] >= VISIBLE_MM2:
            carried |= here
            yield label, here
    if carried.any():
        yield LABELS[ANY], carried


def summary(rows: Sequence[Row], tolerance_mm: float, seed: int = 0) -> dict[str, Any]:
    """Everything that findings.json says of pointing, JSON-ready; a label that no slice carries is ``None``."""
    of_label = {}
    for label in LABELS:
        mine = [row for row in rows if row.label == label]
        of_label[label] = {
            name: _rates(chosen, seed)
            for name, chosen in zip(SUBJECTS, (mine, [row for row in mine if row.found]), strict=True)
        }
    return {
        "tolerance_mm": tolerance_mm,
        "intervals": {"level": LEVEL, "num_resamples": NUM_RESAMPLES, "unit": "study"},
        "labels": of_label,
    }


def _rates(rows: Sequence[Row], seed: int) -> dict[str, Any] | None:
    if not rows:
        return None
    studies = [row.study_uid for row in rows]
    resampling = Resampling.of(studies, num_resamples=NUM_RESAMPLES, seed=seed, unit="study")
    found: dict[str, Any] = {"num_slices": len(rows), "num_studies": len(set(studies))}
    for rate, chance in RATES.items():
        defined = np.array([getattr(row.pointing, rate) is not None for row in rows])
        for name in (rate, chance):
            values = np.array([float(getattr(row.pointing, name) or 0) for row in rows]) * defined
            mean = float(values.sum() / defined.sum()) if defined.any() else None
            found[name] = estimate(mean, resampling.rate(values, defined), undefined=NO_MAP)
        found[f"num_{rate}"] = int(defined.sum())
    return found
