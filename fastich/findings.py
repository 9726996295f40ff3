"""The findings of one study: which labels, on which slice, and how their class maps agree with a phantom's masks.

Shapes: N slices of a series, H rows, W columns, h and w of a class map.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastich import class_maps, pointing
from fastich.artifact import Thresholds
from fastich.dicom import Decoder, Series, Study
from fastich.errors import FastichError
from fastich.labels import ANY, LABELS
from fastich.pointing import Row
from fastich.score import read_series
from fastich.study_rule import Answers, Judged, place
from fastich.types import HuArray


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A label of a study and its key slice: which series, and which slice of it, from 0."""

    label: str
    probability: float
    series: int
    at: int


Pixels = dict[int, HuArray]
"""HU [N, H, W] of the series that are shown or judged, by their number in the study."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One study, what was said of it, and its masks by SOP UID."""

    study: Study
    judged: Judged
    found: Answers
    masks: dict[str, NDArray[np.uint8]]

    def findings(self, cut: Thresholds) -> list[Finding]:
        """The labels at or above their thresholds, with the first of the slices that are likeliest to hold each."""
        made = []
        for index, label in enumerate(LABELS):
            probability = float(self.judged.study_probability[index])
            if probability < cut.values[index]:
                continue
            largest = [float(one[:, index].max()) for one in self.judged.slice_probability]
            series = int(np.argmax(largest))
            at = int(self.judged.slice_probability[series][:, index].argmax())
            made.append(Finding(label=label, probability=probability, series=series, at=at))
        return made

    def pixels(self, decoder: Decoder, findings: Sequence[Finding]) -> Pixels:
        """Pixels of the series that hold a finding or have masks."""
        wanted = {finding.series for finding in findings}
        wanted |= {number for number, series in enumerate(self.study.series) if self._has_masks(series)}
        return {number: read_series(self.study.series[number], decoder) for number in sorted(wanted)}

    def _has_masks(self, series: Series) -> bool:
        return any(header.sop_uid in self.masks for header in series.headers)

    def cam(self, series: int, at: int, index: int) -> NDArray[np.float32]:
        """The class map [h, w] of one label on one slice."""
        cam = self.found[place(self.study.series[series].headers[at])].cam
        assert cam is not None, "asked for with keep_cam"
        return np.asarray(cam[index], dtype=np.float32)

    def mask(self, series: int, at: int, index: int) -> NDArray[np.bool_] | None:
        """Where a label is on one slice [H, W]; None without a mask."""
        whole = self.masks.get(self.study.series[series].headers[at].sop_uid)
        if whole is None:
            return None
        return whole > 0 if index == ANY else whole == index + 1

    def rows(self, pixels: Pixels, cut: Thresholds, tolerance_mm: float) -> Iterator[Row]:
        """How each label's map agrees with its mask, on every slice that carries the label."""
        for number, series in enumerate(self.study.series):
            for at, header in enumerate(series.headers):
                mask = self.masks.get(header.sop_uid)
                if mask is None:
                    continue
                hu, spacing_mm = pixels[number][at], header.pixel_spacing_mm
                if spacing_mm is None or mask.shape != hu.shape:
                    raise FastichError(
                        f"{header.path}: expected a pixel spacing and a mask of {list(hu.shape)}, "
                        f"found {spacing_mm} and {list(mask.shape)}; give the masks of these files"
                    )
                for label, here in pointing.labels_of(mask, spacing_mm):
                    index = LABELS.index(label)
                    probability = self.judged.slice_probability[number][at, index]
                    yield Row(
                        study_uid=self.study.study_uid,
                        label=label,
                        found=bool(probability >= cut.values[index]),
                        pointing=class_maps.pointing(
                            self.cam(number, at, index), here, class_maps.head(hu), spacing_mm, tolerance_mm
                        ),
                    )
