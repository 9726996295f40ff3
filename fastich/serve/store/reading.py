"""What the page asks and what people say: worklist, history, comments, counts."""

from typing import Any

from fastich.serve.entities import Comment, DeliveryState, Instance, InstanceState, Score, Study, StudyState
from fastich.serve.ordering import in_worklist_order
from fastich.serve.store import events, rows
from fastich.serve.store.door import Transaction

SHOWN = """
WHERE studies.study_uid IN (
  SELECT study_uid FROM studies
  ORDER BY CASE WHEN acknowledged_at IS NULL THEN -priority ELSE 0 END,
    CASE WHEN acknowledged_at IS NULL AND priority > 0 THEN arrived_at ELSE -arrived_at END
  LIMIT ?)
"""
"""Which studies a list of limited length shows: raised ones, then the newest; their order is ``ordering``'s."""
NOTIFICATIONS = 1000
"""How many of the newest results the time to notification is taken over."""
COUNTED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("instances", tuple(state.value for state in InstanceState)),
    ("studies", tuple(state.value for state in StudyState)),
    ("deliveries", tuple(state.value for state in DeliveryState)),
)
ADD_COMMENT = """
INSERT INTO comments (study_uid, who, created_at, body)
SELECT study_uid, ?, ?, ? FROM studies WHERE study_uid = ? RETURNING *
"""


def study(transaction: Transaction, study_uid: str) -> Study | None:
    """The study of this UID, or None."""
    found = transaction.rows(rows.STUDIES + "WHERE studies.study_uid = ?", study_uid)
    return rows.study(found[0]) if found else None


def worklist(transaction: Transaction, limit: int) -> list[Study]:
    """At most ``limit`` studies in the worklist's order; what does not fit is the longest here of those not raised."""
    return in_worklist_order(rows.study(row) for row in transaction.rows(rows.STUDIES + SHOWN, limit))


def instances_of(transaction: Transaction, study_uid: str) -> list[Instance]:
    """The instances of a study as they came."""
    sql = "SELECT * FROM instances WHERE study_uid = ? ORDER BY received_at, sop_uid"
    return [rows.instance(row) for row in transaction.rows(sql, study_uid)]


def scores_of(transaction: Transaction, study_uid: str) -> list[Score]:
    """The results of a study, oldest first."""
    sql = "SELECT * FROM scores WHERE study_uid = ? ORDER BY score_id"
    return [rows.score(row) for row in transaction.rows(sql, study_uid)]


def score(transaction: Transaction, score_id: int) -> Score | None:
    """One result, or None."""
    found = transaction.rows("SELECT * FROM scores WHERE score_id = ?", score_id)
    return rows.score(found[0]) if found else None


def scores_since(transaction: Transaction, since_at: float, after_id: int, limit: int) -> list[Score]:
    """At most ``limit`` final results from ``since_at`` on whose number is above ``after_id``."""
    sql = "SELECT * FROM scores WHERE created_at >= ? AND score_id > ? AND is_partial = 0 ORDER BY score_id LIMIT ?"
    return [rows.score(row) for row in transaction.rows(sql, since_at, after_id, limit)]


def comments_of(transaction: Transaction, study_uid: str) -> list[Comment]:
    """What was written about a study, oldest first."""
    found = transaction.rows("SELECT * FROM comments WHERE study_uid = ? ORDER BY comment_id", study_uid)
    return [rows.comment(row) for row in found]


def add_comment(transaction: Transaction, now: float, study_uid: str, who: str, text: str) -> Comment | None:
    """Write a comment; None where there is no such study."""
    added = transaction.rows(ADD_COMMENT, who, now, text, study_uid)
    if not added:
        return None
    made = rows.comment(added[0])
    events.add(transaction, now, "comment", study_uid, comment_id=made.comment_id)
    return made


def counts(transaction: Transaction, now: float) -> dict[str, Any]:
    """Instances, studies and deliveries by state, ``waiting``, and ``oldest_waiting_s`` (None where nothing waits)."""
    found: dict[str, Any] = {}
    for table, states in COUNTED:
        counted = transaction.rows(f"SELECT state, COUNT(*) AS found FROM {table} GROUP BY state")
        found[table] = dict.fromkeys(states, 0) | {row["state"]: int(row["found"]) for row in counted}
    oldest = transaction.rows("SELECT MIN(received_at) AS at FROM instances WHERE state = 'waiting'")[0]["at"]
    found["waiting"] = found["instances"][InstanceState.WAITING.value]
    found["oldest_waiting_s"] = None if oldest is None else max(0.0, now - oldest)
    return found


def notification_times(transaction: Transaction) -> list[float]:
    """Seconds from the last instance to the final result, of the newest results, newest first."""
    sql = """SELECT final_at - last_at AS seconds FROM studies WHERE final_at IS NOT NULL
             ORDER BY final_at DESC LIMIT ?"""
    return [float(row["seconds"]) for row in transaction.rows(sql, NOTIFICATIONS)]


def ping(transaction: Transaction) -> None:
    """Touch the database."""
    transaction.rows("SELECT version FROM schema_version")
