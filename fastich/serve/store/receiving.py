"""What a receiver writes: instances, conflicts, how many to expect, and which objects are our own."""

from fastich.errors import StoreError
from fastich.serve.entities import Description, Instance, InstanceState, Origin
from fastich.serve.store import events, rows
from fastich.serve.store.door import LostTransactionError, Transaction

ADD_STUDY = """
INSERT INTO studies (study_uid, patient_id, patient_name, accession_number, study_date, study_time, study_description,
  way, sender, address, arrived_at, last_at, revision, state, reason, priority, num_slices, partial_slices,
  scored_revision)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 'receiving', '', 0, 0, 0, 0)
ON CONFLICT (study_uid) DO NOTHING
"""
ADD_INSTANCE = """
INSERT INTO instances (sop_uid, sop_class_uid, study_uid, series_uid, object_name, size_bytes, content_sha256,
  pixel_sha256, received_at, way, sender, address, state, reason, detail, attempts, leased_until)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0)
ON CONFLICT (sop_uid) DO NOTHING
"""
REVISE = """
UPDATE studies SET revision = revision + 1, state = 'receiving', reason = '', final_at = NULL,
  last_at = CASE WHEN last_at > ? AND last_at <= ? THEN last_at ELSE ? END
WHERE study_uid = ? RETURNING revision
"""
TAKE_AGAIN = """
UPDATE instances SET state = 'waiting', reason = '', detail = '', attempts = 0, leased_until = 0
WHERE sop_uid = ? AND state = 'failed'
"""
ADD_CONFLICT = """
INSERT INTO conflicts (sop_uid, study_uid, object_name, received_at, way, sender, address)
VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (sop_uid, object_name) DO NOTHING
"""


def add_instance(transaction: Transaction, now: float, instance: Instance, description: Description) -> bool:
    """Take an instance in; False (nothing written) where its UID is here already."""
    if find_instance(transaction, instance.sop_uid) is not None:
        return False
    _add_study(transaction, instance, description)
    if not _add_row(transaction, instance):
        raise LostTransactionError from StoreError(f"instance {instance.sop_uid} came twice at once")
    _revise(transaction, now, instance.study_uid, instance.received_at, "instance")
    return True


def _add_study(transaction: Transaction, instance: Instance, description: Description) -> None:
    """Write the row of a study where there is none."""
    origin, at = instance.origin, instance.received_at
    transaction.run(
        ADD_STUDY,
        instance.study_uid,
        description.patient_id,
        description.patient_name,
        description.accession_number,
        description.study_date,
        description.study_time,
        description.study_description,
        origin.way,
        origin.sender,
        origin.address,
        at,
        at,
    )


def _add_row(transaction: Transaction, instance: Instance) -> int:
    """Write the row of an instance; 0 where another transaction was faster."""
    return transaction.run(
        ADD_INSTANCE,
        instance.sop_uid,
        instance.sop_class_uid,
        instance.study_uid,
        instance.series_uid,
        instance.object_name,
        instance.size_bytes,
        instance.content_sha256,
        instance.pixel_sha256,
        instance.received_at,
        instance.origin.way,
        instance.origin.sender,
        instance.origin.address,
        instance.state.value,
        instance.reason,
        instance.detail,
    )


def find_instance(transaction: Transaction, sop_uid: str) -> Instance | None:
    """The instance of this UID, or None."""
    found = transaction.rows("SELECT * FROM instances WHERE sop_uid = ?", sop_uid)
    return rows.instance(found[0]) if found else None


def restore_object(transaction: Transaction, sop_uid: str, object_name: str) -> None:
    """Say where the bytes of an instance are again, after they were deleted by age and sent once more."""
    transaction.run("UPDATE instances SET object_name = ? WHERE sop_uid = ?", object_name, sop_uid)


def take_again(transaction: Transaction, now: float, sop_uid: str) -> bool:
    """Let what failed be tried anew, for it was sent once more: the instance, its study; False where neither failed."""
    sql = """SELECT instances.study_uid FROM instances JOIN studies ON studies.study_uid = instances.study_uid
             WHERE sop_uid = ? AND (instances.state = 'failed' OR studies.state = 'failed')"""
    found = transaction.rows(sql, sop_uid)
    if found:
        transaction.run(TAKE_AGAIN, sop_uid)
        _revise(transaction, now, found[0]["study_uid"], now, "instance")
    return bool(found)


def _revise(transaction: Transaction, now: float, study_uid: str, at: float, what: str) -> None:
    """Say that something about a study changed at ``at``: a result of before no longer is the last word."""
    (study,) = transaction.rows(REVISE, at, at + rows.CLOCK_SLACK_S, at, study_uid)
    events.add(transaction, now, "study", study_uid, what=what, revision=study["revision"])


def add_conflict(
    transaction: Transaction, now: float, sop_uid: str, study_uid: str, object_name: str, origin: Origin
) -> None:
    """Count another object under a UID that is taken; the same one twice counts once. The study is judged again."""
    added = transaction.run(
        ADD_CONFLICT, sop_uid, study_uid, object_name, now, origin.way, origin.sender, origin.address
    )
    if added:
        _revise(transaction, now, study_uid, now, "conflict")
        return
    sql = "UPDATE conflicts SET is_kept = 1 WHERE sop_uid = ? AND object_name = ?"
    transaction.run(sql, sop_uid, object_name)


def is_own(transaction: Transaction, sop_uid: str) -> bool:
    """Tell whether this server wrote the object of this UID."""
    return bool(transaction.rows("SELECT 1 AS found FROM own_objects WHERE sop_uid = ?", sop_uid))


def add_own(transaction: Transaction, now: float, sop_uid: str, study_uid: str, kind: str) -> None:
    """Remember the UID of an object that this server wrote."""
    transaction.run(
        "INSERT INTO own_objects (sop_uid, study_uid, kind, created_at) VALUES (?, ?, ?, ?) "
        "ON CONFLICT (sop_uid) DO NOTHING",
        sop_uid,
        study_uid,
        kind,
        now,
    )


def expect(transaction: Transaction, now: float, study_uid: str, count: int) -> None:
    """Say how many instances make the study whole; it may be said before any of them is here.

    A study that lacks some by the new count, or did by the old one, is judged again.
    """
    before = transaction.rows("SELECT num_instances FROM expectations WHERE study_uid = ?", study_uid)
    here = transaction.rows("SELECT COUNT(*) AS found FROM instances WHERE study_uid = ?", study_uid)[0]["found"]
    old = before[0]["num_instances"] if before else 0
    if here and count != old and max(count, old) > here:
        _revise(transaction, now, study_uid, now, "expected")
    transaction.run(
        "INSERT INTO expectations (study_uid, num_instances) VALUES (?, ?) "
        "ON CONFLICT (study_uid) DO UPDATE SET num_instances = excluded.num_instances",
        study_uid,
        count,
    )


def count_waiting(transaction: Transaction) -> int:
    """Instances that wait to be scored, leased ones among them."""
    sql = "SELECT COUNT(*) AS found FROM instances WHERE state = ?"
    return int(transaction.rows(sql, InstanceState.WAITING.value)[0]["found"])


def is_referenced(transaction: Transaction, object_name: str) -> bool:
    """Tell whether a row speaks of an object of the spool."""
    sql = """SELECT 1 AS found FROM instances WHERE object_name = ?
             UNION ALL SELECT 1 AS found FROM conflicts WHERE object_name = ? AND is_kept = 1 LIMIT 1"""
    return bool(transaction.rows(sql, object_name, object_name))
