"""What the page should know, numbered without gaps in the order in which it was committed.

A database's own sequence would not do: two transactions may commit in the other order than they drew numbers, and a
page that has seen number 8 never asks for 7. The row of ``counters`` is locked until the transaction ends, so it is
written last.
"""

from typing import Any

from fastich.serve.entities import Event
from fastich.serve.store import rows
from fastich.serve.store.door import Transaction


def add(transaction: Transaction, now: float, kind: str, study_uid: str, **values: Any) -> None:
    """Tell that something happened to a study; the last thing that a transaction does."""
    number = transaction.rows("UPDATE counters SET value = value + 1 WHERE name = 'event' RETURNING value")[0]["value"]
    transaction.run(
        "INSERT INTO events (event_id, kind, study_uid, created_at, body) VALUES (?, ?, ?, ?, ?)",
        number,
        kind,
        study_uid,
        now,
        rows.json_of(values),
    )


def after(transaction: Transaction, event_id: int, limit: int) -> list[Event]:
    """At most ``limit`` events behind ``event_id``, oldest first."""
    found = transaction.rows("SELECT * FROM events WHERE event_id > ? ORDER BY event_id LIMIT ?", event_id, limit)
    return [rows.event(row) for row in found]


def last_id(transaction: Transaction) -> int:
    """The number of the newest event, 0 before the first."""
    return int(transaction.rows("SELECT value FROM counters WHERE name = 'event'")[0]["value"])


def forget(transaction: Transaction, before_at: float) -> int:
    """Delete events from before a time; how many. Numbers go on counting."""
    return transaction.run("DELETE FROM events WHERE created_at < ?", before_at)
