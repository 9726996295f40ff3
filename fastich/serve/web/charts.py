"""Pictures made of SVG on the server: a week's histogram beside the reference. No script, no inline style."""

from collections.abc import Sequence

from markupsafe import Markup

from fastich.serve.drift import Drift, Week

WIDTH, HEIGHT = 120, 64
PAPER_TOP = 4
"""Units of the viewBox: one small picture a week, side by side."""


def histogram(drift: Drift, week: Week) -> Markup:
    """Bars of a week, and the reference as a line of steps over them; both as shares."""
    bars, line = _shares(week.counts), _shares(drift.reference)
    top = max(*bars, *line, 1e-9)
    step = WIDTH / len(bars)
    rects = Markup("").join(
        Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"/>').format(
            _n(i * step + 0.5), _n(_y(share, top)), _n(step - 1), _n(HEIGHT - _y(share, top))
        )
        for i, share in enumerate(bars)
        if share
    )
    return Markup('<svg class="histogram" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>').format(
        WIDTH, HEIGHT, _words(drift, week), rects, _steps(line, top, step)
    )


def _steps(shares: Sequence[float], top: float, step: float) -> Markup:
    if not any(shares):
        return Markup("")
    points = [f"{_n(x)},{_n(_y(share, top))}" for i, share in enumerate(shares) for x in (i * step, (i + 1) * step)]
    return Markup('<polyline class="reference" points="{}"/>').format(" ".join(points))


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _y(share: float, top: float) -> float:
    return HEIGHT - (HEIGHT - PAPER_TOP) * share / top


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _words(drift: Drift, week: Week) -> str:
    """The histogram for somebody who does not see it: its fullest bins."""
    total, edges = sum(week.counts), drift.measure.edges
    if not total:
        return "no study says it"
    fullest = sorted(range(len(week.counts)), key=lambda i: -week.counts[i])[:3]
    said = [
        f"{100 * week.counts[i] / total:.0f} % from {edges[i]:g} to {edges[i + 1]:g} {drift.measure.unit}".strip()
        for i in fullest
        if week.counts[i]
    ]
    return f"{total:.0f} studies: {', '.join(said)}"
