"""What a person has seen of a study: who acknowledges it says which result was shown, and what is worse is news."""

import json

from fastich.errors import FastichError
from fastich.serve.entities import Outcome, Priority
from fastich.serve.store import events
from fastich.serve.store.door import Transaction

ACKNOWLEDGE = """
UPDATE studies SET acknowledged_by = ?, acknowledged_at = ?, acknowledged_score_id = ?
WHERE study_uid = ? AND acknowledged_at IS NULL RETURNING priority, score_id
"""
"""Locks the row before anything is compared, so that no result comes between."""
UNACKNOWLEDGE = """
UPDATE studies SET acknowledged_by = NULL, acknowledged_at = NULL, acknowledged_score_id = NULL
WHERE study_uid = ? AND acknowledged_at IS NOT NULL
"""
PRIORITY_AT = """
SELECT MAX(priority) AS priority FROM scores
WHERE study_uid = ? AND score_id <= ? AND score_id >= (
  SELECT COALESCE(MAX(score_id), 0) FROM scores WHERE study_uid = ? AND score_id <= ? AND is_partial = 0)
"""
"""A partial result never lowers what a study has been raised to since its last final one."""


class UnseenError(FastichError):
    """A study says more than what the person who acknowledges it has seen."""


def acknowledge(transaction: Transaction, now: float, study_uid: str, who: str, seen: int | None) -> bool:
    """Note who has seen a study; False where there is none, or somebody has already.

    ``seen`` is the result that they had before them; None where there was none.

    Raises:
        UnseenError: since then it was raised, or a finding came up. Nothing is changed.
    """
    found = transaction.rows(ACKNOWLEDGE, who, now, seen, study_uid)
    if not found:
        return False
    new = findings(transaction, study_uid, found[0]["score_id"]) - findings(transaction, study_uid, seen)
    if found[0]["priority"] > _priority_at(transaction, study_uid, seen) or (found[0]["priority"] and new):
        raise UnseenError("a newer result says more than what was shown; nothing acknowledged, look at it again")
    events.add(transaction, now, "study", study_uid, what="acknowledged")
    return True


def unacknowledge(transaction: Transaction, now: float, study_uid: str) -> bool:
    """Take an acknowledgement back; False where there was none."""
    if not transaction.run(UNACKNOWLEDGE, study_uid):
        return False
    events.add(transaction, now, "study", study_uid, what="unacknowledged")
    return True


def forget_if_news(transaction: Transaction, study_uid: str, seen: int | None, outcome: Outcome) -> None:
    """Take an acknowledgement back where a raised result has a finding that the acknowledged one had not."""
    said = set((outcome.document or {}).get("findings", ()))
    if outcome.priority > Priority.ROUTINE and said - findings(transaction, study_uid, seen):
        transaction.run(UNACKNOWLEDGE, study_uid)


def findings(transaction: Transaction, study_uid: str, score_id: int | None) -> set[str]:
    """The labels that a result of a study found; none of no result."""
    sql = "SELECT document FROM scores WHERE study_uid = ? AND score_id = ? AND document IS NOT NULL"
    found = transaction.rows(sql, study_uid, score_id) if score_id is not None else []
    return {str(label) for row in found for label in json.loads(row["document"]).get("findings", ())}


def _priority_at(transaction: Transaction, study_uid: str, score_id: int | None) -> int:
    """What the study had been raised to when a result of it was the newest; 0 without one."""
    if score_id is None:
        return int(Priority.ROUTINE)
    found = transaction.rows(PRIORITY_AT, study_uid, score_id, study_uid, score_id)
    return int(found[0]["priority"] or Priority.ROUTINE)
