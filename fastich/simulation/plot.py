"""One picture of a simulation: how long bleeds wait in both orders, and what each operating point costs and gives."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastich.report.style import COLOURS, INK, panels, to_png, to_svg
from fastich.simulation.cases import Floats

SUFFIXES = (".png", ".svg")
LEGEND: Any = {"frameon": False, "labelcolor": INK}
"""So that it reads on white and on black."""
GAIN, COST, WORST, BEFORE = COLOURS["subdural"], COLOURS["intraparenchymal"], COLOURS["epidural"], COLOURS["any"]


def draw(found: Mapping[str, Any], waits: Mapping[str, Floats], suffix: str) -> bytes:
    """The picture in the format of ``suffix``.

    Args:
        found: what ``simulate.simulate`` found.
        waits: minutes that bleeds wait, ``first come`` and ``worklist``.
        suffix: one of ``SUFFIXES``.
    """
    points = sorted([found["operating_point"], *found["sweep"]], key=lambda one: one["alarms_per_shift"]["value"])
    figure, axes = panels(1, 3 if found["sweep"] else 1, 15 if found["sweep"] else 6, 4.5)
    _waits(axes[0], waits)
    if found["sweep"]:
        _saved(axes[1], points, found["operating_point"])
        _cost(axes[2], points)
    return to_png(figure) if suffix == ".png" else to_svg(figure)


def _waits(axes: Any, waits: Mapping[str, Floats]) -> None:
    for (name, minutes), colour, style in zip(waits.items(), (BEFORE, GAIN), ("dashed", "solid"), strict=True):
        share = np.arange(1, len(minutes) + 1) / max(len(minutes), 1)
        axes.step(np.sort(minutes), share, where="post", label=name, color=colour, linestyle=style)
    axes.set(title="Bleeds opened within", xlabel="minutes after arrival", ylabel="share of bleeds", ylim=(0, 1.02))
    axes.legend(loc="lower right", **LEGEND)


def _saved(axes: Any, points: list[dict[str, Any]], asked: dict[str, Any]) -> None:
    known = [one for one in points if one["bleeds"]["saved"]["mean"]["value"] is not None]
    alarms = [one["alarms_per_shift"]["value"] for one in known]
    for name, style in (("mean", "solid"), ("p95", "dashed")):
        values = [one["bleeds"]["saved"][name] for one in known]
        axes.plot(alarms, [one["value"] for one in values], label=name, color=GAIN, linestyle=style, marker="o")
        if all(one["low"] is not None for one in values):
            low, high = ([one[side] for one in values] for side in ("low", "high"))
            axes.fill_between(alarms, low, high, color=GAIN, alpha=0.2, linewidth=0)
    if asked in known:
        at = (asked["alarms_per_shift"]["value"], asked["bleeds"]["saved"]["mean"]["value"])
        axes.plot(*at, marker="D", markersize=10, color=WORST, linestyle="none", label="operating point")
    axes.set(title="Bleeds opened earlier by", xlabel="alarms a shift", ylabel="minutes")
    axes.legend(**LEGEND)


def _cost(axes: Any, points: list[dict[str, Any]]) -> None:
    for key, name, label, colour, style in (
        ("others_delayed", "mean", "without a bleed, mean", COST, "solid"),
        ("missed_bleeds_delayed", "mean", "bleeds not raised, mean", WORST, "dotted"),
    ):
        known = [one for one in points if one[key][name]["value"] is not None]
        alarms = [one["alarms_per_shift"]["value"] for one in known]
        axes.plot(
            alarms, [one[key][name]["value"] for one in known], label=label, color=colour, linestyle=style, marker="o"
        )
    axes.set(title="Others opened later by", xlabel="alarms a shift", ylabel="minutes")
    axes.legend(**LEGEND)
