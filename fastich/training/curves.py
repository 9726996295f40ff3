"""The study's figures 1 to 4: precision, recall, AUC and loss for each epoch, training beside validation.

Four small PNG files, 0.7 s in all: drawn again after each long epoch, so that a run can be watched, and at the end.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastich.files import atomic_path
from fastich.report.style import COLOURS, INK, panels, to_png
from fastich.training.history import Line

FOLDER = "curves"
TITLES = {"precision": "Precision at 0.5", "recall": "Recall at 0.5", "auc": "ROC AUC", "loss": "Binary cross entropy"}
SPLITS = {"train": ("training", COLOURS["any"]), "val": ("validation", COLOURS["intraparenchymal"])}
SHOWN = {"macro": ("mean of labels", "solid"), "any": ("any", "dashed")}


def draw(run: Path, lines: list[Line]) -> None:
    """Write ``curves/{precision,recall,auc,loss}.png`` of a run from its history; nothing for an empty one."""
    if not lines:
        return
    (run / FOLDER).mkdir(exist_ok=True)
    for measure in TITLES:
        with atomic_path(run / FOLDER / f"{measure}.png") as temporary:
            temporary.write_bytes(_picture(measure, lines))


def _picture(measure: str, lines: list[Line]) -> bytes:
    figure, (axes,) = panels(1, 1, 6, 4)
    epochs = [line["epoch"] + 1 for line in lines]
    for values, style in _courses(measure, lines):
        axes.plot(epochs, values, marker="o", markersize=3, **style)
    best = min(lines, key=lambda line: float(line["val"]["loss"]))["epoch"] + 1
    axes.axvline(best, color=INK, linewidth=1, linestyle="dotted", label="lowest validation loss")
    axes.set(title=TITLES[measure], xlabel="epoch")
    axes.locator_params(axis="x", integer=True)
    axes.set_ylim(bottom=0, top=None if measure == "loss" else 1.02)
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    return to_png(figure)


def _courses(measure: str, lines: list[Line]) -> Iterator[tuple[list[float], dict[str, Any]]]:
    """What is drawn and how: one course a split for the loss, else the mean of labels and ``any``; epochs from 1."""
    for split, (name, colour) in SPLITS.items():
        if measure == "loss":
            yield [line[split]["loss"] for line in lines], {"label": name, "color": colour}
            continue
        for key, (shown, dash) in SHOWN.items():
            values = [line[split][measure][key] for line in lines]
            known = [float("nan") if value is None else value for value in values]
            yield known, {"label": f"{name}, {shown}", "color": colour, "linestyle": dash}
