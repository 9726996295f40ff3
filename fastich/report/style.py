"""One look for every figure: colours that colour-blind readers can tell apart, readable on white and on black.

Figures have a transparent ground and mid-grey ink (contrast at least 4 to both), so the same PNG serves light and dark
pages. No pyplot: a figure is an object that is drawn and dropped, nothing global is left behind.
Source of the palette: Okabe and Ito, https://jfly.uni-koeln.de/color/ (blue lightened for dark pages).
"""

import io
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK = "#7b828c"
DARK_INK = "#0b0f14"
"""On a filled field: contrast at least 5 to every colour below."""
GRID = "#9aa1ab"
COLOURS = {
    "epidural": "#e69f00",
    "intraparenchymal": "#d55e00",
    "intraventricular": "#56b4e9",
    "subarachnoid": "#cc79a7",
    "subdural": "#009e73",
    "any": "#1f7fc4",
}
LINE_STYLES = {
    "epidural": (0, (6, 2)),
    "intraparenchymal": (0, (4, 1, 1, 1)),
    "intraventricular": (0, (1, 1)),
    "subarachnoid": (0, (3, 1)),
    "subdural": (0, (8, 2, 2, 2)),
    "any": "solid",
}
SHORT = {
    "epidural": "EDH",
    "intraparenchymal": "IPH",
    "intraventricular": "IVH",
    "subarachnoid": "SAH",
    "subdural": "SDH",
    "any": "any",
}
"""The abbreviations that radiologists use."""
DPI = 150
STYLE: Any = {
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.alpha": 0.25,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 2.2,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """A new styled figure of ``width`` x ``height`` inches and its axes, row by row."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)


def to_png(figure: Figure) -> bytes:
    """The figure as PNG bytes with a transparent ground."""
    buffer = io.BytesIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=DPI, transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG bytes with a transparent ground; equal figures give equal bytes."""
    buffer = io.BytesIO()
    with rc_context({**STYLE, "svg.hashsalt": "fastich"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
