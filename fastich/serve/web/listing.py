"""The worklist's rows, made once for everybody who looks: twenty open pages ask after every event at the same moment.

Made anew when an event came, or after ``MAX_AGE_S``, for not everything that a row shows has an event; a row that did
not change is not rendered again. 500 studies cost about 0.2 s of one core at first, then a third of that.
"""

import hashlib
import json
import threading
import time
from typing import Any

from markupsafe import Markup

from fastich.serve.entities import Study
from fastich.serve.web import view
from fastich.serve.web.jinja import render
from fastich.serve.web.parts import Parts

LIMIT = 500
MAX_AGE_S = 2.0
MAX_HTML_AGE_S = 30.0
"""How old the ages in a row may be where no script makes them tick."""

Row = dict[str, Any]


class Listing:
    """Rows and their HTML; safe to call from any thread."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = threading.Lock()
        self._made_at, self._event_id = float("-inf"), -1
        self._rows: list[Row] = []
        self._html: dict[str, tuple[float, Markup]] = {}

    def rows(self) -> list[Row]:
        """Rows in the worklist's order; ``html`` is the row as the page shows it, ``mark`` changes when it does."""
        newest = self._parts.store.last_event_id()
        with self._lock:
            if newest != self._event_id or time.monotonic() - self._made_at > MAX_AGE_S:
                self._make()
                self._event_id, self._made_at = newest, time.monotonic()
            return self._rows

    def _make(self) -> None:
        now = self._parts.clock()
        rows = [self._row(study) for study in self._parts.store.worklist(LIMIT)]
        kept = {mark: found for mark, found in self._html.items() if now - found[0] <= MAX_HTML_AGE_S}
        self._html = {row["mark"]: kept.get(row["mark"]) or (now, render("row.html", row=row, now=now)) for row in rows}
        for row in rows:
            row["html"] = self._html[row["mark"]][1]
        self._rows = rows

    def _row(self, study: Study) -> Row:
        row = view.study_view(study)
        comments = self._parts.store.comments_of(study.study_uid)
        row["num_comments"] = len(comments)
        row["last_comment"] = view.comment_view(comments[-1]) if comments else None
        row["mark"] = hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]
        return row
