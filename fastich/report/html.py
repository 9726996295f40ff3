"""The report page: one HTML file that needs nothing else, with every picture inside as a data URI.

Why one file: it is mailed, archived and opened on machines without a network. Nothing is fetched, no script runs, and
all text from outside goes through jinja2's autoescape. Some hundred kilobytes to 2 MB.
"""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fastich.labels import LABELS
from fastich.report.gallery import Case
from fastich.report.style import COLOURS, SHORT
from fastich.subgroups import to_html

_HERE = Path(__file__).parent


def data_uri(png: bytes) -> str:
    """PNG bytes as a ``data:`` address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def render_report(
    results: dict[str, Any],
    figures: Mapping[str, bytes],
    cases: Sequence[Case] = (),
    curves: Mapping[str, bytes] | None = None,
) -> str:
    """The evaluation report as HTML text.

    Args:
        results: what metrics.json holds.
        figures: PNG bytes by name (``roc_<label>``, ``roc_all``, ``pr_all``, ``histograms``, ``confusion_0.5``,
            ``confusion_thresholds``, ``reliability_raw``, ``reliability``, ``studies``); a missing one is left out.
        cases: the gallery.
        curves: training curves by name, PNG bytes.
    """
    return (
        environment()
        .get_template("report.html")
        .render(
            r=results,
            labels=LABELS,
            colours=COLOURS,
            short=SHORT,
            figures={name: data_uri(png) for name, png in figures.items()},
            curves={name: data_uri(png) for name, png in (curves or {}).items()},
            subgroups=to_html(pd.DataFrame(results["subgroups"], dtype=object)) if results["subgroups"] else "",
            cases=[{"case": case, "picture": data_uri(case.png)} for case in cases],
            css=(_HERE / "report.css").read_text(encoding="utf-8"),
        )
    )


def render_explanation(report: dict[str, Any], subjects: Sequence[str]) -> str:
    """The page of ``fastich.explain``: ``report`` is what findings.json holds, ``subjects`` its kinds of slices."""
    css = (_HERE / "report.css").read_text(encoding="utf-8")
    return environment().get_template("explain.html").render(r=report, labels=LABELS, subjects=subjects, css=css)


def environment() -> Environment:
    """The jinja2 environment of the report: escapes everything, refuses names that are not defined."""
    made = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"number": number, "percent": percent, "of_hundred": of_hundred, "flat": flat}
    return made


def number(value: float | None, digits: int = 3) -> str:
    """``0.987``, ``1,234`` for whole numbers, or a dash for what is not defined."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """``14.3 %``, or a dash for what is not defined."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def of_hundred(share: float) -> tuple[int, str]:
    """How many of 100 a share from 0 to 1 is, as a whole number to draw and in words: none and all only if it is so."""
    if 0 < share < 0.01:
        return 1, "fewer than 1"
    if 0.99 < share < 1:
        return 99, "more than 99"
    count = round(100 * share)
    return count, str(count)


def flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested dict as ``(dotted name, text)`` rows."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        rows += flat(item, f"{name}.") if isinstance(item, Mapping) else [(name, str(item))]
    return rows
