"""The rows as one bar chart: a panel a stage, slices/s on a log scale, ours in another colour than the others'."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from rows import Row, shown, stages

OURS, OTHERS, CEILING = "#0b6e4f", "#9aa5b1", "#b3261e"
CHAIN_ONLY = ("storage", "host to device")
"""Single rates that stand among the ceilings already."""
BAR_INCHES, MARGIN_INCHES = 0.27, 0.75


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Write the chart of the timed rows as a PNG."""
    timed = [row for row in rows if row["status"] == "ok" and row["stage"] not in CHAIN_ONLY]
    named = stages(timed)
    heights = [sum(row["stage"] == stage for row in timed) * BAR_INCHES + MARGIN_INCHES for stage in named]
    figure, panels = plt.subplots(
        len(named), 1, figsize=(10, sum(heights) + 0.6), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for panel, stage in zip(panels[:, 0], named, strict=True):
        _bars(panel, [row for row in timed if row["stage"] == stage], stage)
    figure.suptitle(title, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(panel: Axes, rows: Sequence[Row], stage: str) -> None:
    """One stage: a bar a row from the top, its spread, and its ceiling as a mark."""
    rates = [float(row["slices_per_s"]) for row in rows]
    places = list(range(len(rows)))
    spread = [
        [float(row["slices_per_s"]) - row["lowest"] for row in rows],
        [row["highest"] - float(row["slices_per_s"]) for row in rows],
    ]
    colours = [OURS if row["facts"].get("ours") else OTHERS for row in rows]
    panel.barh(places, rates, color=colours, xerr=spread, error_kw={"elinewidth": 0.8, "capsize": 2})
    marks = [
        (row["ceiling_slices_per_s"], place)
        for row, place in zip(rows, places, strict=True)
        if row["ceiling_slices_per_s"]
    ]
    if marks:
        panel.scatter(*zip(*marks, strict=True), marker="|", s=90, color=CEILING, zorder=3, label="its ceiling here")
        panel.legend(fontsize=7, loc="lower right")
    lows = [*rates, *(mark[0] for mark in marks)]
    panel.set_xscale("log")
    panel.set_xlim(min(lows) / 2, max(lows) * 6)
    for place, row in zip(places, rows, strict=True):
        panel.text(float(row["highest"]) * 1.08, place, shown(row["slices_per_s"]), va="center", fontsize=7)
    panel.set_yticks(places, [str(row["name"]).strip() for row in rows], fontsize=7)
    panel.invert_yaxis()
    panel.tick_params(axis="x", which="both", labelsize=7)
    panel.set_title(f"{stage}: slices/s, log scale", fontsize=8, loc="left")
    panel.spines[["top", "right"]].set_visible(False)
