"""A finding as a picture: the slice as it is, and beside it the class map in colour over it. 0.3 s each."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastich.types import HuArray
from fastich.windowing import WINDOWS, window

PAPER, WORDS, QUIET = "#0e1217", "#e8edf3", "#95a1b0"
COLOURS = colormaps["inferno"]
STRONGEST_ALPHA = 0.65
CONTOUR = 0.5
"""Of the way from the map's smallest value to its largest."""
DPI = 110


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """What is drawn: HU [H, W], class map over it [H, W] in logits and its peak, two lines of text, a mask or None."""

    hu: HuArray
    map_HW: NDArray[np.float64]
    title: str
    subtitle: str
    peak: tuple[int, int]
    mask_HW: NDArray[np.bool_] | None


def draw(overlay: Overlay) -> bytes:
    """PNG bytes."""
    grey = window(overlay.hu, WINDOWS["brain"])
    figure = Figure(figsize=(8.6, 4.6), dpi=DPI, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    plain, marked = figure.subplots(1, 2)
    for axes in (plain, marked):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.set_axis_off()
    _draw_map(figure, marked, overlay.map_HW)
    marked.plot(overlay.peak[1], overlay.peak[0], marker="+", color=WORDS, markersize=12, markeredgewidth=1.6)
    if overlay.mask_HW is not None:
        marked.contour(overlay.mask_HW, levels=[0.5], colors=[WORDS], linewidths=1.2, linestyles="dashed")
    figure.suptitle(overlay.title, color=WORDS, fontsize=12, fontweight="bold", parse_math=False)
    figure.supxlabel(overlay.subtitle, color=QUIET, fontsize=9, parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=PAPER, metadata={"Software": None})
    return buffer.getvalue()


def _draw_map(figure: Figure, axes: Any, map_HW: NDArray[np.float64]) -> None:
    """The map, the stronger the less transparent, its contour, and a scale in logits."""
    scale = Normalize(float(map_HW.min()), float(map_HW.max()) if map_HW.max() > map_HW.min() else map_HW.min() + 1)
    share = np.asarray(scale(map_HW), dtype=np.float64)
    colour = COLOURS(share)
    colour[..., 3] = STRONGEST_ALPHA * share**2
    axes.imshow(colour, interpolation="nearest")
    if share.max() > CONTOUR > share.min():
        axes.contour(share, levels=[CONTOUR], colors=[COLOURS(0.9)], linewidths=1.2)
    bar = figure.colorbar(ScalarMappable(norm=scale, cmap=COLOURS), ax=axes, fraction=0.046, pad=0.02)
    bar.ax.tick_params(labelsize=8, colors=QUIET)
    bar.set_label("class map, logits", color=QUIET, fontsize=8)
    bar.outline.set_visible(False)
