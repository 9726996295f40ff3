"""The pages: worklist, study, drift. Rendered on the server; scripts only keep them fresh and quick.

The worklist's rows are one fragment: ``/worklist`` gives them alone, and the page's script puts the changed ones in
place, so there is one template for what is seen first and what comes later.
"""

import json
import statistics
from typing import Any

import numpy as np
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastich.labels import LABELS
from fastich.serve import drift
from fastich.serve.web import api, view
from fastich.serve.web.charts import histogram
from fastich.serve.web.jinja import page, render
from fastich.serve.web.listing import LIMIT, Row
from fastich.serve.web.names import moment
from fastich.serve.web.parts import Parts, parts_of
from fastich.serve.web.paths import STUDY
from fastich.serve.web.worth import DEFAULT_PREVALENCE, UNKNOWN, operating_points
from fastich.study_rule import triage_of
from fastich.windowing import WINDOWS

DRIFT_S = 26 * drift.WEEK_S
"""Half a year of results is read for the drift page."""


def summary(parts: Parts, rows: list[Row]) -> dict[str, Any]:
    """The line above the list: raised ones, what waits, how quick it was."""
    raised = [row for row in rows if row["is_raised"]]
    times = parts.store.notification_times()
    return {
        "num_raised": len(raised),
        "oldest_raised_at": min((row["arrived_at"] for row in raised), default=None),
        "num_waiting": parts.store.count_waiting(),
        "num_dead": len(parts.store.dead_letters()),
        "median_s": statistics.median(times) if times else None,
        "p95_s": float(np.quantile(times, 0.95)) if times else None,
        "quiet_s": parts.config.scoring.quiet_s,
        "is_cut": len(rows) == LIMIT,
        "limit": LIMIT,
    }


def worklist(request: Request) -> Response:
    """GET /: the worklist."""
    parts = parts_of(request)
    rows = request.app.state.listing.rows()
    return page(
        request,
        "worklist.html",
        rows=rows,
        summary=summary(parts, rows),
        points=operating_points(parts.session, parts.study_session),
        has_triage=triage_of(parts.session, parts.study_session) is not None,
        unknown=UNKNOWN,
        prevalence=DEFAULT_PREVALENCE,
        last_event_id=parts.store.last_event_id(),
    )


def fragment(request: Request) -> Response:
    """GET /worklist: rows and summary alone, as HTML in JSON, with the server's time."""
    parts = parts_of(request)
    rows, now = request.app.state.listing.rows(), parts.clock()
    about = summary(parts, rows)
    return JSONResponse(
        {
            "now": now,
            "num_raised": about["num_raised"],
            "rows": [{"uid": row["study_uid"], "mark": row["mark"], "html": row["html"]} for row in rows],
            "summary": render("summary.html", summary=about, now=now),
        }
    )


def study(request: Request) -> Response:
    """GET /studies/{uid}: JSON for programs, the page for browsers."""
    parts = parts_of(request)
    found = api.find_study(parts, request.path_params["uid"])
    api.note_viewed(request, found.study_uid)
    whole = api.whole_study(parts, found)
    if "text/html" not in request.headers.get("accept", ""):
        return JSONResponse(whole)
    return page(
        request,
        "study.html",
        row=whole,
        findings=view.finding_rows(whole),
        windows=WINDOWS,
        strip_json=json_in_html(whole["strip"] | {"key": (whole["key_slice"] or {"number": 0})["number"]}),
        threshold_json=json_in_html(((whole["model"] or {}).get("thresholds")) or {}),
        order=("any", *LABELS[:-1]),
        last_event_id=parts.store.last_event_id(),
    )


def json_in_html(value: Any) -> Markup:
    """JSON for a ``data-`` attribute or a JSON block: no character that HTML knows."""
    text = json.dumps(value, separators=(",", ":"))
    for character in "<>&'\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def drift_page(request: Request) -> Response:
    """GET /drift: weekly histograms against the reference."""
    parts = parts_of(request)
    found = drift.drifts(parts.store.score_history(parts.clock() - DRIFT_S))
    measures = [
        {
            "title": one.measure.title,
            "unit": one.measure.unit,
            "edges": one.measure.edges,
            "num_reference": one.num_reference,
            "is_told": any(one.reference),
            "weeks": [
                {
                    "date": moment(week.starts_at)[:10],
                    "count": round(sum(week.counts)),
                    "index": week.index,
                    "words": drift.in_words(week.index),
                    "svg": histogram(one, week),
                }
                for week in one.weeks
            ],
        }
        for one in found
    ]
    return page(request, "drift.html", measures=measures, fewest=drift.FEWEST, reference_weeks=drift.REFERENCE_WEEKS)


ROUTES = [
    Route("/", worklist),
    Route("/worklist", fragment),
    Route(STUDY, study),
    Route("/drift", drift_page),
]
