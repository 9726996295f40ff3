"""What is deleted by age. Rows go first and files after them: a row never speaks of a file that is gone."""

from collections.abc import Sequence

from fastich.serve.entities import Instance
from fastich.serve.store import events, rows
from fastich.serve.store.door import Transaction

DONE = """
studies.state <> 'receiving' AND studies.final_at < ? AND NOT EXISTS (
  SELECT 1 FROM deliveries WHERE deliveries.study_uid = studies.study_uid AND deliveries.state = 'pending')
"""
"""Final before a time, and nothing left to send."""
HOLD = f"""
UPDATE studies SET state = state
WHERE study_uid = (SELECT study_uid FROM instances WHERE sop_uid = ?) AND {DONE}
"""
"""Changes nothing, but asks whether a study is done, and lets nothing come to it before the transaction has ended."""


def expired_objects(transaction: Transaction, before_at: float, limit: int) -> list[Instance]:
    """At most ``limit`` instances whose bytes are still here, of studies that are done since before ``before_at``."""
    found = transaction.rows(
        f"""SELECT instances.* FROM studies JOIN instances ON instances.study_uid = studies.study_uid
            WHERE instances.object_name <> '' AND {DONE}
            ORDER BY instances.received_at, instances.sop_uid LIMIT ?""",
        before_at,
        limit,
    )
    return [rows.instance(row) for row in found]


def forget_objects(transaction: Transaction, before_at: float, sop_uids: Sequence[str]) -> list[str]:
    """Note that the bytes of instances are gone, and give their UIDs; what was said of them stays.

    Those whose study is no longer done since before ``before_at`` keep them: a slice of it came meanwhile.
    """
    gone = []
    for sop_uid in sorted(sop_uids):
        if transaction.run(HOLD, sop_uid, before_at):
            transaction.run("UPDATE instances SET object_name = '' WHERE sop_uid = ?", sop_uid)
            gone.append(sop_uid)
    return gone


def forget_conflicts(transaction: Transaction, before_at: float, limit: int) -> list[str]:
    """Forget the bytes of at most ``limit`` objects that were set aside before ``before_at``; their names.

    That they came is remembered: it keeps their study from being called clear.
    """
    found = transaction.rows(
        f"""SELECT conflicts.object_name FROM studies JOIN conflicts ON conflicts.study_uid = studies.study_uid
            WHERE conflicts.received_at < ? AND conflicts.is_kept = 1 AND {DONE} LIMIT ?""",
        before_at,
        before_at,
        limit,
    )
    names = [row["object_name"] for row in found]
    transaction.many("UPDATE conflicts SET is_kept = 0 WHERE object_name = ?", [(name,) for name in names])
    return names


def delete_studies(transaction: Transaction, now: float, before_at: float, limit: int) -> tuple[list[str], list[str]]:
    """Delete at most ``limit`` studies that are done since before ``before_at``; their UIDs and objects' names."""
    sql = f"SELECT study_uid FROM studies WHERE {DONE} ORDER BY studies.final_at LIMIT ?"
    uids = sorted(row["study_uid"] for row in transaction.rows(sql, before_at, limit))
    names: list[str] = []
    for uid in uids:
        found = transaction.rows(
            """SELECT object_name FROM instances WHERE study_uid = ? AND object_name <> ''
               UNION SELECT object_name FROM conflicts WHERE study_uid = ? AND is_kept = 1""",
            uid,
            uid,
        )
        names += [row["object_name"] for row in found]
        for table in ("expectations", "own_objects", "studies"):  # the rest goes with the study
            transaction.run(f"DELETE FROM {table} WHERE study_uid = ?", uid)
    for uid in uids:
        events.add(transaction, now, "study", uid, what="deleted")
    return uids, names
