"""What is to be sent: deliveries are leased, tried again, and where that does not help wait for a person."""

from fastich.serve.entities import Delivery, DeliveryState
from fastich.serve.store import events, rows
from fastich.serve.store.door import Row, Transaction

LEASE = """
UPDATE deliveries SET attempts = attempts + 1, leased_until = ?
WHERE delivery_id IN (
  SELECT delivery_id FROM deliveries JOIN scores ON scores.score_id = deliveries.score_id
  WHERE deliveries.state = 'pending' AND next_at <= ? AND leased_until <= ? AND destination = ?
  ORDER BY scores.priority DESC, next_at, delivery_id LIMIT ?)
AND state = 'pending' AND leased_until <= ?
RETURNING *, (SELECT priority FROM scores WHERE scores.score_id = deliveries.score_id) AS priority
"""
DELIVERED = """
UPDATE deliveries SET state = 'delivered', delivered_at = ?, last_error = '', leased_until = 0
WHERE delivery_id = ? AND state <> 'delivered' RETURNING *
"""
FAILED = """
UPDATE deliveries SET state = ?, next_at = COALESCE(?, next_at), last_error = ?, leased_until = 0
WHERE delivery_id = ? AND state = 'pending' RETURNING *
"""
SUPERSEDED = """
UPDATE deliveries SET state = 'superseded', last_error = ?, leased_until = 0
WHERE delivery_id = ? AND state = 'pending' RETURNING *
"""
REQUEUE = """
UPDATE deliveries SET state = 'pending', attempts = 0, next_at = ?, leased_until = 0
WHERE delivery_id = ? AND state = 'dead' RETURNING *
"""


def lease_deliveries(
    transaction: Transaction, now: float, limit: int, lease_s: float, destination: str
) -> list[Delivery]:
    """At most ``limit`` messages that are due, that nobody else gets for ``lease_s``.

    What is told of the most raised results comes first, then what is due the longest.
    """
    leased = transaction.rows(LEASE, now + lease_s, now, now, destination, limit, now)
    leased.sort(key=lambda row: (-row["priority"], row["next_at"], row["delivery_id"]))
    return [rows.delivery(row) for row in leased]


def delivered(transaction: Transaction, now: float, delivery_id: int, at: float) -> None:
    """Note that a message arrived; said twice, the first one counts."""
    _tell(transaction, now, transaction.rows(DELIVERED, at, delivery_id))


def delivery_failed(transaction: Transaction, now: float, delivery_id: int, error: str, next_at: float | None) -> None:
    """Note that a try failed: again at ``next_at``, or never (a dead letter)."""
    state = DeliveryState.DEAD if next_at is None else DeliveryState.PENDING
    _tell(transaction, now, transaction.rows(FAILED, state.value, next_at, error, delivery_id))


def superseded(transaction: Transaction, now: float, delivery_id: int, newer_score_id: int) -> None:
    """Note that a message is not sent, for a newer result says more."""
    _tell(transaction, now, transaction.rows(SUPERSEDED, f"superseded by score {newer_score_id}", delivery_id))


def release_deliveries(transaction: Transaction, now: float) -> None:
    """Free what a process that is gone had leased, and send what waits now: its time may be of a wrong clock."""
    transaction.run("UPDATE deliveries SET leased_until = 0 WHERE state = 'pending' AND leased_until > 0")
    transaction.run("UPDATE deliveries SET next_at = ? WHERE state = 'pending' AND next_at > ?", now, now)


def destinations_waiting(transaction: Transaction) -> list[str]:
    """Where pending messages go to, by name."""
    found = transaction.rows("SELECT DISTINCT destination FROM deliveries WHERE state = 'pending' ORDER BY destination")
    return [str(row["destination"]) for row in found]


def requeue(transaction: Transaction, now: float, delivery_id: int) -> bool:
    """Try a dead letter again from its start; False where it is none."""
    found = transaction.rows(REQUEUE, now, delivery_id)
    _tell(transaction, now, found)
    return bool(found)


def dead_letters(transaction: Transaction) -> list[Delivery]:
    """What waits for a person, oldest first."""
    found = transaction.rows("SELECT * FROM deliveries WHERE state = 'dead' ORDER BY delivery_id")
    return [rows.delivery(row) for row in found]


def deliveries_of(transaction: Transaction, study_uid: str) -> list[Delivery]:
    """Every message about a study, oldest first."""
    found = transaction.rows("SELECT * FROM deliveries WHERE study_uid = ? ORDER BY delivery_id", study_uid)
    return [rows.delivery(row) for row in found]


def _tell(transaction: Transaction, now: float, changed: list[Row]) -> None:
    for row in changed:
        values = {name: row[name] for name in ("delivery_id", "destination", "kind", "state")}
        events.add(transaction, now, "delivery", row["study_uid"], delivery=values)
