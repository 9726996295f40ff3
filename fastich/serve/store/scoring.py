"""What the scoring engine takes and writes: leased instances, scored slices, partial and final results."""

from collections.abc import Mapping, Sequence

from fastich.serve.entities import Instance, InstanceState, Outcome, Priority, ScoredSlice, Study, StudyState
from fastich.serve.store import events, rows, seen
from fastich.serve.store.door import Transaction

FREE = "state = 'waiting' AND leased_until <= ?"
LEASE = f"""
UPDATE instances SET attempts = attempts + 1, leased_until = ?
WHERE sop_uid IN (SELECT sop_uid FROM instances WHERE {FREE} {{which}} ORDER BY received_at, sop_uid LIMIT ?) AND {FREE}
RETURNING *
"""
"""The condition stands twice: PostgreSQL asks it again of a row that another transaction changed meanwhile."""
GIVE_UP = f"""
UPDATE instances SET state = 'failed', reason = 'tried ' || attempts || ' times'
WHERE {FREE} AND attempts >= ? {{which}} RETURNING study_uid
"""
SUSPECT = f"SELECT 1 AS found FROM instances WHERE {FREE} AND attempts > 0 {{which}} LIMIT 1"
"""What was in work when a process ended; it may be what ended it."""
RELEASE = """
UPDATE instances SET leased_until = 0, attempts = CASE WHEN attempts > 0 THEN attempts - 1 ELSE 0 END
WHERE sop_uid = ? AND state = 'waiting'
"""
POSTPONE = """
UPDATE instances SET leased_until = ?, attempts = CASE WHEN attempts > 0 THEN attempts - 1 ELSE 0 END
WHERE sop_uid = ? AND state = 'waiting'
"""
FINISH_INSTANCE = """
UPDATE instances SET state = ?, reason = ?, detail = ?, leased_until = 0
WHERE sop_uid = ? AND state = 'waiting' RETURNING study_uid
"""
RESCORE = """
UPDATE instances SET state = 'scored', reason = CASE WHEN state = 'scored' THEN reason ELSE '' END, detail = ?
WHERE sop_uid = ? AND state <> 'waiting' RETURNING study_uid
"""
DUE = """
WHERE studies.state = 'receiving'
AND NOT EXISTS (SELECT 1 FROM instances WHERE instances.study_uid = studies.study_uid AND instances.state = 'waiting')
AND (studies.last_at <= ? OR studies.last_at > ? OR
  (SELECT COUNT(*) FROM instances WHERE instances.study_uid = studies.study_uid) = expectations.num_instances)
ORDER BY studies.arrived_at, studies.study_uid LIMIT ?
"""
"""More than expected are no whole study: the rest is waited for, not judged one by one."""
PARTIAL = """
WHERE studies.state = 'receiving' AND studies.num_slices > studies.partial_slices
ORDER BY studies.arrived_at, studies.study_uid LIMIT ?
"""
ADD_SLICE = """
INSERT INTO slices (sop_uid, frame, study_uid, header, probability, logit, embedding, cam, cam_height, cam_width)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
ADD_SCORE = """
INSERT INTO scores (study_uid, revision, created_at, is_partial, state, reason, priority, document)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING score_id
"""
SHOW_SCORE = "UPDATE studies SET score_id = ?, scored_revision = ? WHERE study_uid = ?"
RAISE = """
UPDATE studies SET partial_slices = num_slices,
  priority = CASE WHEN priority < ? THEN ? ELSE priority END,
  acknowledged_by = CASE WHEN priority < ? THEN NULL ELSE acknowledged_by END,
  acknowledged_at = CASE WHEN priority < ? THEN NULL ELSE acknowledged_at END
WHERE study_uid = ? AND state = 'receiving'
"""
"""Whoever acknowledged a study that was less urgent has not seen this."""
FINISH = """
UPDATE studies SET state = ?, reason = ?, final_at = ?, priority = ?,
  acknowledged_by = CASE WHEN priority < ? THEN NULL ELSE acknowledged_by END,
  acknowledged_at = CASE WHEN priority < ? THEN NULL ELSE acknowledged_at END
WHERE study_uid = ? AND revision = ? AND state = 'receiving' RETURNING acknowledged_score_id
"""
ADD_DELIVERY = """
INSERT INTO deliveries (study_uid, score_id, destination, kind, state, attempts, next_at, leased_until, last_error)
VALUES (?, ?, ?, ?, 'pending', 0, ?, 0, '')
"""


def lease_instances(
    transaction: Transaction, now: float, limit: int, lease_s: float, max_attempts: int, held: Sequence[str]
) -> list[Instance]:
    """At most ``limit`` waiting instances, oldest first, that nobody else gets for ``lease_s``.

    Those that were taken ``max_attempts`` times and never finished become failed. One that was taken and never finished
    goes first and alone, once nothing is ``held``, so that it takes no other with it. What is ``held`` is left alone,
    however long its lease has run out.
    """
    which = f"AND sop_uid NOT IN ({', '.join('?' * len(held))})" if held else ""
    given_up = {row["study_uid"] for row in transaction.rows(GIVE_UP.format(which=which), now, max_attempts, *held)}
    for study_uid in sorted(given_up):
        events.add(transaction, now, "study", study_uid, what="instance failed")
    if transaction.rows(SUSPECT.format(which=which), now, *held):
        which, limit = f"{which} AND attempts > 0", 0 if held else min(limit, 1)
    taken = transaction.rows(LEASE.format(which=which), now + lease_s, now, *held, limit, now)
    found = [rows.instance(row) for row in taken]
    return sorted(found, key=lambda one: (one.received_at, one.sop_uid))


def release_instances(transaction: Transaction, sop_uids: Sequence[str]) -> None:
    """Give back work that was taken and not finished; the try does not count."""
    transaction.many(RELEASE, [(sop_uid,) for sop_uid in sorted(sop_uids)])


def postpone_instance(transaction: Transaction, now: float, sop_uid: str, delay_s: float) -> None:
    """Give back work that a fault of the machine stopped: nobody gets it for ``delay_s``; the try does not count."""
    transaction.run(POSTPONE, now + delay_s, sop_uid)


def free_instances(transaction: Transaction) -> None:
    """Free what a process that is gone had leased; the try counts, for the instance may be what ended it."""
    transaction.run("UPDATE instances SET leased_until = 0 WHERE state = 'waiting' AND leased_until > 0")


def finish_instance(
    transaction: Transaction,
    sop_uid: str,
    state: InstanceState,
    reason: str,
    detail: str,
    slices: Sequence[ScoredSlice],
) -> None:
    """Write what became of a waiting instance, with its slices; said twice, the first one counts."""
    found = transaction.rows(FINISH_INSTANCE, state.value, reason, detail, sop_uid)
    if not found:  # final already, or never here
        return
    study_uid = found[0]["study_uid"]
    transaction.many(ADD_SLICE, [rows.slice_values(sop_uid, study_uid, one) for one in slices])
    if slices:
        sql = "UPDATE studies SET num_slices = num_slices + ? WHERE study_uid = ?"
        transaction.run(sql, len(slices), study_uid)


def rescore_instances(transaction: Transaction, detail: str, slices_of: Mapping[str, Sequence[ScoredSlice]]) -> None:
    """Write slices that were scored once their study was complete, in place of any that their instance had."""
    for sop_uid, slices in sorted(slices_of.items()):
        found = transaction.rows(RESCORE, detail, sop_uid)
        if found:  # else it was deleted by age
            _replace_slices(transaction, found[0]["study_uid"], sop_uid, slices)


def _replace_slices(transaction: Transaction, study_uid: str, sop_uid: str, slices: Sequence[ScoredSlice]) -> None:
    """Not news for a partial result, for the study is being judged."""
    more = len(slices) - transaction.run("DELETE FROM slices WHERE sop_uid = ?", sop_uid)
    transaction.many(ADD_SLICE, [rows.slice_values(sop_uid, study_uid, one) for one in slices])
    sql = "UPDATE studies SET num_slices = num_slices + ?, partial_slices = partial_slices + ? WHERE study_uid = ?"
    transaction.run(sql, more, more, study_uid)


def due_studies(transaction: Transaction, now: float, quiet_s: float, limit: int) -> list[Study]:
    """Receiving studies of which nothing waits and that are quiet, or have as many instances as were expected.

    One whose last instance came later than any can have come was stored by a clock that was ahead: it is due too.
    """
    found = transaction.rows(rows.STUDIES + DUE, now - quiet_s, now + max(quiet_s, rows.CLOCK_SLACK_S), limit)
    return [rows.study(row) for row in found]


def partial_studies(transaction: Transaction, limit: int) -> list[Study]:
    """Receiving studies with slices that were scored after their newest partial result."""
    return [rows.study(row) for row in transaction.rows(rows.STUDIES + PARTIAL, limit)]


def scored_slices(transaction: Transaction, study_uid: str) -> list[ScoredSlice]:
    """Every scored slice of a study, by file and frame."""
    found = transaction.rows("SELECT * FROM slices WHERE study_uid = ? ORDER BY sop_uid, frame", study_uid)
    return [rows.scored_slice(row) for row in found]


def add_partial(transaction: Transaction, now: float, study_uid: str, revision: int, outcome: Outcome) -> None:
    """Write a partial result; it may raise a study, never lower it. Nothing where the study is final or gone."""
    to = int(outcome.priority)
    if not transaction.run(RAISE, to, to, to, to, study_uid):
        return
    score_id = _add_score(transaction, now, study_uid, revision, outcome, is_partial=True)
    events.add(transaction, now, "study", study_uid, what="partial", score_id=score_id, priority=to)


def finish_study(
    transaction: Transaction,
    now: float,
    study_uid: str,
    revision: int,
    outcome: Outcome,
    deliveries: Sequence[tuple[str, str]],
) -> bool:
    """Write the final result and what is to be sent of it.

    False, and nothing written, where more of the study has arrived, or it is final already.
    """
    assert outcome.state is not StudyState.RECEIVING, "a final state is expected"
    to = int(outcome.priority)
    found = transaction.rows(FINISH, outcome.state.value, outcome.reason, now, to, to, to, study_uid, revision)
    if not found:
        return False
    seen.forget_if_news(transaction, study_uid, found[0]["acknowledged_score_id"], outcome)
    score_id = _add_score(transaction, now, study_uid, revision, outcome, is_partial=False)
    transaction.many(ADD_DELIVERY, [(study_uid, score_id, where, kind, now) for where, kind in deliveries])
    values = {"what": "final", "state": outcome.state.value, "score_id": score_id, "priority": to}
    events.add(transaction, now, "study", study_uid, **values)
    return True


def _add_score(
    transaction: Transaction, now: float, study_uid: str, revision: int, outcome: Outcome, *, is_partial: bool
) -> int:
    added = transaction.rows(
        ADD_SCORE,
        study_uid,
        revision,
        now,
        int(is_partial),
        outcome.state.value,
        outcome.reason,
        int(Priority(outcome.priority)),
        rows.json_of(outcome.document),
    )
    score_id = int(added[0]["score_id"])
    transaction.run(SHOW_SCORE, score_id, revision, study_uid)
    return score_id
