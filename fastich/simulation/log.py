"""An arrival log, read strictly: one row a study, each fault named by its row.

Columns: ``arrived_at`` (ISO 8601, or seconds since midnight) and any of ``bleed`` (0, 1), ``p_any`` (0 to 1) or
``decision``, and ``read_minutes``. What a log does not say is drawn anew in each replication. Seconds for 100,000 rows.
"""

import csv
import datetime
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.conformal import CLEAR, FLAG, HUMAN_FIRST
from fastich.errors import FastichError
from fastich.serve.entities import Priority
from fastich.simulation.cases import HOUR_S, HOURS_A_DAY, MINUTE_S, Cases, Floats, Reading
from fastich.simulation.scores import Measured, ScoreModel

DECISIONS = {
    FLAG: Priority.FLAGGED,
    HUMAN_FIRST: Priority.HUMAN_FIRST,
    CLEAR: Priority.ROUTINE,
    "not evaluated": Priority.ROUTINE,
}
"""What the server makes of each outcome (serve/ordering.py)."""


@dataclass(frozen=True, kw_only=True)
class Log:
    """A log in order of arrival, each array [S]; None for a column that it lacks.

    ``arrived_s`` counts from the midnight before the first study.
    """

    name: str
    arrived_s: Floats
    bleed: NDArray[np.bool_] | None
    p_any: Floats | None
    decision: NDArray[np.intp] | None
    read_s: Floats | None

    def shifts(self, start_s: float, length_s: float) -> tuple[float, NDArray[np.intp]]:
        """When the first study's shift starts, and the number of each study's shift [S] from 0.

        Shifts of ``length_s`` follow one another, before and after ``start_s``.
        """
        number = np.floor((self.arrived_s - start_s) / length_s).astype(np.intp)
        return start_s + length_s * int(number[0]), np.asarray(number - number[0], dtype=np.intp)

    def scores(self, threshold: float, origin: str) -> Measured:
        """Its own ``p_any`` as what thresholds are chosen from; it must have bleeds and ``p_any``."""
        assert self.bleed is not None
        assert self.p_any is not None
        return Measured(
            with_bleed=self.p_any[self.bleed], without=self.p_any[~self.bleed], threshold=threshold, origin=origin
        )

    def draw(
        self, shift: NDArray[np.intp], prevalence: float, scores: ScoreModel, reading: Reading, rng: np.random.Generator
    ) -> Cases:
        """The log's studies with what it does not say drawn."""
        count = len(self.arrived_s)
        bleed = rng.random(count) < prevalence if self.bleed is None else self.bleed
        score = self.p_any
        if score is None and self.decision is None:
            score = scores.draw(bleed, rng)
        read_s = reading.draw(count, rng) if self.read_s is None else self.read_s
        return Cases(
            arrived_s=self.arrived_s,
            shift=shift,
            bleed=bleed,
            score=score,
            decision=self.decision,
            read_s=reading.interrupted(read_s, rng),
        )


def read_log(path: Path) -> Log:
    """The log in a CSV file with a header line.

    Raises:
        FastichError: the file is not CSV, a column is unknown or missing, a value means nothing (with its row), or the
            columns do not go together.
    """
    rows = _rows(path)
    header = [cell.strip() for cell in rows[0]] if rows else []
    _check_header(path, header)
    columns: dict[str, list[Any]] = {name: [] for name in header}
    clocks: set[str] = set()
    for number, cells in enumerate(rows[1:], start=2):
        if any(cell.strip() for cell in cells):
            _read_row(f"{path}: row {number}", header, cells, columns, clocks)
    if not columns["arrived_at"]:
        raise FastichError(f"{path}: expected a row for each study below the header, found none")
    return _in_order(path, columns)


def _rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise FastichError(f"{path}: expected a CSV file in UTF-8, found {error}") from error


def _check_header(path: Path, header: Sequence[str]) -> None:
    if "arrived_at" not in header or not set(header) <= set(READERS) or len(set(header)) != len(header):
        raise FastichError(
            f"{path}: expected the column arrived_at and any of {', '.join(list(READERS)[1:])}, each once, "
            f"found {', '.join(header) or 'no header'}"
        )
    if {"p_any", "decision"} <= set(header):
        raise FastichError(f"{path}: expected p_any or decision, found both; leave one out")
    if {"p_any", "decision"} & set(header) and "bleed" not in header:
        raise FastichError(f"{path}: p_any and decision need the column bleed beside them: which of them were right?")


def _read_row(
    where: str, header: Sequence[str], cells: Sequence[str], into: dict[str, list[Any]], clocks: set[str]
) -> None:
    if len(cells) != len(header):
        raise FastichError(f"{where}: expected {len(header)} cells, found {len(cells)}")
    for name, cell in zip(header, cells, strict=True):
        try:
            into[name].append(READERS[name](cell.strip()))
        except ValueError as error:
            raise FastichError(f"{where}: {name}: expected {error}, found {cell.strip()!r}") from error
    clocks.add(_clock(into["arrived_at"][-1]))
    if len(clocks) > 1:
        raise FastichError(
            f"{where}: arrived_at: expected one kind of time in all rows, found {' and '.join(sorted(clocks))}"
        )


def _time(text: str) -> float | datetime.datetime:
    try:
        seconds = float(text)
    except ValueError:
        try:
            return datetime.datetime.fromisoformat(text)
        except ValueError as error:
            raise ValueError("an ISO 8601 time or seconds") from error
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("seconds of at least 0")
    return seconds


def _clock(time: float | datetime.datetime) -> str:
    if isinstance(time, float):
        return "seconds"
    return "ISO times" if time.tzinfo is None else "ISO times with an offset"


def _choice(words: dict[str, Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text not in words:
            raise ValueError(" or ".join([", ".join(list(words)[:-1]), list(words)[-1]]))
        return words[text]

    return read


def _number(what: str, is_good: Callable[[float], bool]) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise ValueError(what) from error
        if not (math.isfinite(value) and is_good(value)):
            raise ValueError(what)
        return value

    return read


READERS: dict[str, Callable[[str], Any]] = {
    "arrived_at": _time,
    "bleed": _choice({"0": False, "1": True}),
    "p_any": _number("a probability from 0 to 1", lambda value: 0 <= value <= 1),
    "decision": _choice(DECISIONS),
    "read_minutes": _number("minutes above 0", lambda value: value > 0),
}
"""Each column's cell to its value; the message of a ValueError says what was expected."""


def _in_order(path: Path, columns: dict[str, list[Any]]) -> Log:
    times = columns["arrived_at"]
    if not isinstance(times[0], float):
        first = min(times)
        midnight = first.replace(hour=0, minute=0, second=0, microsecond=0)
        times = [(time - midnight).total_seconds() for time in times]
    arrived = np.array(times, dtype=np.float64)
    arrived -= HOURS_A_DAY * HOUR_S * np.floor(arrived.min() / (HOURS_A_DAY * HOUR_S))
    order = np.argsort(arrived, kind="stable")

    def column(name: str, dtype: Any, factor: float | None = None) -> Any:
        if name not in columns:
            return None
        values = np.array(columns[name], dtype=dtype)[order]
        return values if factor is None else values * factor

    return Log(
        name=path.name,
        arrived_s=arrived[order],
        bleed=column("bleed", np.bool_),
        p_any=column("p_any", np.float64),
        decision=column("decision", np.intp),
        read_s=column("read_minutes", np.float64, MINUTE_S),
    )
