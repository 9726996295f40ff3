"""The pictures of an evaluation, drawn from plain arrays: curves, histograms, confusion, reliability, studies along z.

Each function returns a ``Figure``; ``style.to_png`` makes the file. Costs 0.1 to 0.5 s a figure. N slices; the six
labels in the order of ``labels.LABELS``; ``truth`` bool or 0/1 [N, 6], ``scores`` float [N, 6].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastich import metrics
from fastich.labels import ANY, LABELS
from fastich.report.style import COLOURS, DARK_INK, GRID, INK, LINE_STYLES, STYLE, panels, to_png

Array = NDArray[Any]
_NOT_DEFINED = "not defined: one class only"
RELIABILITY_BINS = 10
HISTOGRAM_BINS = 40
MOST = 0.6
"""Above this share a field is filled and its text dark; below it is tinted only, so the text is always readable."""
MIN_BIN = 5
"""Slices a reliability bin needs before its point is drawn; fewer say nothing."""


@rc_context(STYLE)
def roc_figure(label: str, truth: Array, scores: Array, thresholds: Array, interval: str = "") -> Figure:
    """The ROC curve of one label with the operating points at 0.5 and at the chosen threshold (figures 6 to 11)."""
    figure, (axes,) = panels(1, 1, 4.2, 3.9)
    curve = metrics.roc_points(truth, scores).get(label)
    _roc_axes(axes)
    axes.set_title(label)
    if curve is None:
        axes.text(0.5, 0.5, _NOT_DEFINED, ha="center")
        return figure
    _, fpr, tpr = curve
    axes.fill_between(fpr, tpr, color=COLOURS[label], alpha=0.12, linewidth=0)
    axes.plot(fpr, tpr, color=COLOURS[label], clip_on=False)
    _mark_points(axes, label, truth, scores, thresholds)
    auc = metrics.roc_auc(truth, scores)[label]
    axes.text(0.97, 0.30, f"AUC {auc:.3f}", ha="right", fontsize=15, fontweight="bold", color=COLOURS[label])
    axes.text(0.97, 0.22, interval, ha="right", fontsize=10)
    axes.legend(loc="lower right", borderaxespad=0.1)
    return figure


def _mark_points(axes: Axes, label: str, truth: Array, scores: Array, thresholds: Array) -> None:
    index = LABELS.index(label)
    marks = ((0.5, "s", "at 0.5"), (float(thresholds[index]), "o", f"at {thresholds[index]:.3f} (validation)"))
    for threshold, marker, name in marks:
        point = metrics.operating_points(truth, scores, threshold)[label]
        at = (1 - point["specificity"], point["sensitivity"])
        axes.plot(*at, marker, color=COLOURS[label], markersize=8, markeredgecolor="white", clip_on=False, label=name)


@rc_context(STYLE)
def _roc_axes(axes: Axes) -> None:
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (2, 3)))
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel="false positive rate", ylabel="true positive rate")
    axes.set_xticks(np.linspace(0, 1, 5))
    axes.set_yticks(np.linspace(0, 1, 5))


@rc_context(STYLE)
def roc_overview(truth: Array, scores: Array) -> Figure:
    """All ROC curves in one picture."""
    figure, (axes,) = panels(1, 1, 6.0, 5.8)
    _roc_axes(axes)
    auc = metrics.roc_auc(truth, scores)
    for label, (_, fpr, tpr) in metrics.roc_points(truth, scores).items():
        axes.plot(fpr, tpr, color=COLOURS[label], linestyle=LINE_STYLES[label], label=f"{label}  {auc[label]:.3f}")
    axes.set_title("ROC, all labels (AUC)")
    _legend_below(figure, axes)
    return figure


def _legend_below(figure: Figure, axes: Axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower center", ncols=2)
    else:
        axes.text(0.5, 0.5, _NOT_DEFINED, ha="center")


@rc_context(STYLE)
def pr_overview(truth: Array, scores: Array) -> Figure:
    """All precision-recall curves in one picture; the legend tells average precision and prevalence."""
    figure, (axes,) = panels(1, 1, 6.0, 5.8)
    average, share = metrics.average_precision(truth, scores), metrics.prevalence(truth)
    for label, (recall, precision) in metrics.pr_points(truth, scores).items():
        name = f"{label}  {average[label]:.3f}  ({100 * share[label]:.1f} %)"
        axes.step(recall, precision, where="post", color=COLOURS[label], linestyle=LINE_STYLES[label], label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title("Precision and recall (average precision; share of slices)")
    _legend_below(figure, axes)
    return figure


@rc_context(STYLE)
def histogram_figure(truth: Array, scores: Array, thresholds: Array) -> Figure:
    """How scores of slices with and without each label lie; the dashed line is the chosen threshold."""
    figure, axes_6 = panels(2, 3, 9.5, 5.4, sharex=True)
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    for index, (label, axes) in enumerate(zip(LABELS, axes_6, strict=True)):
        real = np.asarray(truth[:, index], dtype=bool)
        axes.hist(scores[~real, index], edges.tolist(), color=INK, alpha=0.45, label="without")
        axes.hist(scores[real, index], edges.tolist(), color=COLOURS[label], alpha=0.75, label="with")
        axes.axvline(float(thresholds[index]), color=INK, linestyle="--", linewidth=1.4)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.set_title(label)
        axes.legend(loc="upper center", ncols=2)
    for axes in axes_6[3:]:
        axes.set_xlabel("probability")
    for axes in axes_6[::3]:
        axes.set_ylabel("slices")
    return figure


@rc_context(STYLE)
def confusion_figure(truth: Array, scores: Array, thresholds: Array) -> Figure:
    """The four counts of each label at ``thresholds`` [6]; right calls coloured, wrong ones grey, by row share."""
    figure, axes_6 = panels(2, 3, 9.5, 5.0)
    points = metrics.operating_points(truth, scores, thresholds)
    for index, (label, axes) in enumerate(zip(LABELS, axes_6, strict=True)):
        point = points[label]
        counts = np.array([[point["tp"], point["fn"]], [point["fp"], point["tn"]]])
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(_shades(share, COLOURS[label]), aspect="auto")
        axes.axhline(0.5, color=INK, linewidth=1)
        axes.axvline(0.5, color=INK, linewidth=1)
        for (row, column), count in np.ndenumerate(counts):
            text = f"{count:,}\n{100 * share[row, column]:.1f} %"
            ink = DARK_INK if share[row, column] > MOST else INK
            axes.text(column, row, text, ha="center", va="center", color=ink, fontweight="bold")
        axes.set_xticks([0, 1], ["called", "not called"])
        axes.set_yticks([0, 1], ["with", "without"])
        axes.grid(visible=False)
        axes.set_title(f"{label}, p ≥ {np.broadcast_to(thresholds, 6)[index]:.3f}")
    return figure


def _shades(share: Array, colour: str) -> Array:
    """RGBA [2, 2, 4]: right calls in the label's colour, wrong ones in grey, opaque by share."""
    fields = np.array([[to_rgba(colour), to_rgba(GRID)], [to_rgba(GRID), to_rgba(colour)]])
    fields[..., 3] = np.where(share > MOST, share, 0.02 + 0.4 * share)
    return fields


@rc_context(STYLE)
def reliability_figure(truth: Array, scores: Array) -> Figure:
    """Observed frequency against probability in ten bins; on the diagonal a probability means what it says."""
    figure, axes_6 = panels(2, 3, 9.5, 6.2, sharex=True, sharey=True)
    for index, (label, axes) in enumerate(zip(LABELS, axes_6, strict=True)):
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=(0, (2, 3)))
        mean, observed, count = reliability(truth[:, index], scores[:, index])
        axes.plot(mean, observed, color=COLOURS[label], linewidth=1.4)
        axes.scatter(mean, observed, s=20 + 120 * count / count.max(initial=1), color=COLOURS[label], zorder=3)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        axes.set_title(label)
    for axes in axes_6[3:]:
        axes.set_xlabel("mean probability")
    for axes in axes_6[::3]:
        axes.set_ylabel("observed frequency")
    return figure


def reliability(truth: Array, score: Array) -> tuple[Array, Array, Array]:
    """Mean probability, observed frequency and count of the bins with ``MIN_BIN`` slices or more; ``truth`` [N]."""
    bins = np.minimum((np.asarray(score) * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    count = np.bincount(bins, minlength=RELIABILITY_BINS)
    used = count >= MIN_BIN
    mean = np.bincount(bins, weights=score, minlength=RELIABILITY_BINS)[used] / count[used]
    observed = np.bincount(bins, weights=truth, minlength=RELIABILITY_BINS)[used] / count[used]
    return mean, observed, count[used]


@dataclass(frozen=True, kw_only=True)
class StudyStrip:
    """One study for ``study_figure``: why it is shown, its id, p(any) [n] and truth [n] in slice order."""

    title: str
    study_uid: str
    probability: Array
    truth: Array


@rc_context(STYLE)
def study_figure(strips: Sequence[StudyStrip], threshold: float) -> Figure:
    """p(any) along each study, slice by slice; the band below marks the slices that hold a bleed."""
    figure, axes_n = panels(max(len(strips), 1), 1, 8.0, 0.5 + 1.3 * max(len(strips), 1), sharey=True)
    for axes, strip in zip(axes_n, strips, strict=False):
        at = np.arange(len(strip.probability))
        axes.bar(at, strip.probability, width=0.9, color=COLOURS["any"], alpha=0.85)
        axes.bar(at, np.where(strip.truth, -0.16, 0), width=1.0, color=COLOURS["intraparenchymal"])
        axes.axhline(threshold, color=INK, linestyle="--", linewidth=1.2)
        axes.set(ylim=(-0.18, 1.04), xlim=(-0.6, len(at) - 0.4))
        axes.set_yticks([0, 0.5, 1])
        title = f"{strip.title}   {_shortened(strip.study_uid)}"
        axes.set_title(title, fontsize=10, fontweight="normal", loc="left", parse_math=False)
    axes_n[-1].set_xlabel("slice, bottom of the head first; orange: a bleed is there; dashed: threshold")
    return figure


def _shortened(uid: str) -> str:
    return uid if len(uid) <= 40 else f"{uid[:18]}…{uid[-18:]}"


def draw_all(
    truth: Array, scores: Array, thresholds: Array, strips: Sequence[StudyStrip], intervals: Mapping[str, str]
) -> dict[str, bytes]:
    """Every picture of the report as PNG bytes by name; ``intervals`` is the text below each label's AUC."""
    drawn = {f"roc_{label}": roc_figure(label, truth, scores, thresholds, intervals.get(label, "")) for label in LABELS}
    drawn |= {
        "roc_all": roc_overview(truth, scores),
        "pr_all": pr_overview(truth, scores),
        "histograms": histogram_figure(truth, scores, thresholds),
        "confusion_0.5": confusion_figure(truth, scores, np.full(len(LABELS), metrics.DEFAULT_THRESHOLD)),
        "confusion_thresholds": confusion_figure(truth, scores, thresholds),
        "reliability": reliability_figure(truth, scores),
        "studies": study_figure(strips, float(thresholds[ANY])),
    }
    return {name: to_png(figure) for name, figure in drawn.items()}
