"""What a model card is made of: sections of sentences and tables, and how one value of model.json reads in them.

What model.json does not say reads "not stated", what has no value "undefined"; nothing is guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastich.intervals import UNDEFINED, text
from fastich.metrics import NO_POSITIVES

NOT_STATED = "not stated"
NOT_SET = "not set"

Document = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table: its caption, its columns, and its rows as text."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One heading of the card: sentences first, then tables."""

    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


def look(document: Any, *keys: str) -> Any:
    """The value below ``keys``, or None where one of them is missing."""
    for key in keys:
        if not isinstance(document, Mapping) or key not in document:
            return None
        document = document[key]
    return document


def said(value: Any) -> str:
    """A value as text; None is "not stated"."""
    if value is None:
        return NOT_STATED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(said(item) for item in value) if value else "none"
    return str(value)


def percent(value: Any) -> str:
    """``14.3 %``; None is "not stated"."""
    return NOT_STATED if value is None else f"{100 * float(value):.1f} %"


def estimated(found: Any, num_positive: Any = None, digits: int = 3) -> str:
    """``0.978 (0.959 to 0.993)`` of an estimate with its interval; words where there is none."""
    if not isinstance(found, Mapping):
        return NOT_STATED
    if found.get("value") is None and not found.get("note"):  # from a model folder of an earlier version
        return NO_POSITIVES if num_positive == 0 else UNDEFINED
    return text(found, digits)


def facts(caption: str, rows: Sequence[tuple[str, Any]]) -> Table:
    """A table of names and values."""
    return Table(caption=caption, columns=("", "value"), rows=tuple((name, said(value)) for name, value in rows))


def settings(caption: str, config: Document) -> Table:
    """A table of a configuration, where None is a setting that was not made."""
    return facts(caption, [(name, NOT_SET if value is None else value) for name, value in flat(config)])


def flat(document: Document, prefix: str = "") -> list[tuple[str, Any]]:
    """A nested mapping as rows (dotted name, value)."""
    rows: list[tuple[str, Any]] = []
    for key, value in document.items():
        name = f"{prefix}{key}"
        rows += flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return rows
