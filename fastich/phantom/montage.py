"""The picture in the README: a healthy head and each bleed, below it with the outline of its mask.

``python -m fastich.phantom.montage docs/img/phantom.png``. Needs matplotlib, as every figure does.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastich import verb
from fastich.files import atomic_path
from fastich.labels import SUBTYPES
from fastich.phantom.cohort import StudyPlan
from fastich.phantom.study import Study, count_classes, make_study
from fastich.types import HuArray
from fastich.windowing import WINDOWS, window

COLOURS = ("#ff5d5d", "#ffb347", "#5dd6ff", "#8cff66", "#e58cff")
PANEL_INCHES, DOTS_PER_INCH = 2.0, 91
HEALTHY_SLICE = 0.55
"""Which part of the stack is shown of the healthy head: the level of the lateral ventricles."""
MONTAGE_SIZE = 256
SHOWN, HEAD_ABOVE_HU = 0.84, -50


def draw_montage(path: Path, seed: int) -> None:
    """Write a PNG of two rows: brain window without and with the outline of the bleed, one column a subtype."""
    names = ("healthy", *SUBTYPES)
    size_inches = (PANEL_INCHES * len(names), 2 * PANEL_INCHES + 0.25)
    figure = Figure(figsize=size_inches, dpi=DOTS_PER_INCH, facecolor="black")
    panels = figure.subplots(2, len(names))
    for column, name in enumerate(names):
        subtypes = (name,) if name in SUBTYPES else ()
        study = make_study(StudyPlan(number=column, patient=column, visit=0, subtypes=subtypes), seed, MONTAGE_SIZE)
        number = _best_slice(study)
        brain = window(study.hu[number], WINDOWS["brain"])
        for panel in panels[:, column]:
            panel.imshow(brain, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
            panel.set_axis_off()
            _look_at_head(panel, study.hu[number])
        panels[0, column].set_title(name, color="white", fontsize=10)
        if subtypes:
            mask = (study.masks[number] > 0).astype(np.float32)
            panels[1, column].contour(mask, levels=[0.5], colors=[COLOURS[column - 1]], linewidths=1.0)
    figure.subplots_adjust(left=0, right=1, bottom=0, top=0.94, wspace=0.01, hspace=0.01)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="black")


def _look_at_head(panel: Axes, hu: HuArray) -> None:
    """Show a square of ``SHOWN`` of the slice around the head."""
    rows, columns = (float(np.median(axis)) for axis in np.nonzero(hu > HEAD_ABOVE_HU))
    half = SHOWN * len(hu) / 2
    panel.set_xlim(columns - half, columns + half)
    panel.set_ylim(rows + half, rows - half)


def _best_slice(study: Study) -> int:
    """The slice with most blood; a fixed level where there is none."""
    areas = count_classes(study.masks).sum(axis=1)
    return int(areas.argmax()) if areas.any() else int(len(areas) * HEALTHY_SLICE)


def main(argv: list[str]) -> int:
    """Parse the flags and draw."""
    parser = verb.parser("phantom.montage", "Draw one synthetic slice with each bleed and a healthy one.")
    parser.add_argument("file", type=Path, help="PNG to write")
    parser.add_argument("--seed", type=int, default=2, help="which heads (default: 2)")
    args = parser.parse_args(argv)
    draw_montage(args.file, args.seed)
    return 0


if __name__ == "__main__":
    verb.run(main, sys.argv[1:])
