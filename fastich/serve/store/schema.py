"""The tables, as steps from one version to the next: a database of an older fastich is migrated when it is opened.

A step that was released is never changed; what is new is a further step. ``{blob}`` and ``{serial}`` are the words that
SQLite and PostgreSQL do not share. Times are seconds since the epoch.
"""

from collections.abc import Sequence

from fastich.errors import StoreError
from fastich.serve.store.door import Transaction

STEP_1 = (
    """CREATE TABLE studies (
        study_uid TEXT PRIMARY KEY,
        patient_id TEXT NOT NULL, patient_name TEXT NOT NULL, accession_number TEXT NOT NULL,
        study_date TEXT NOT NULL, study_time TEXT NOT NULL, study_description TEXT NOT NULL,
        way TEXT NOT NULL, sender TEXT NOT NULL, address TEXT NOT NULL,
        arrived_at DOUBLE PRECISION NOT NULL, last_at DOUBLE PRECISION NOT NULL,
        revision BIGINT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, priority BIGINT NOT NULL,
        num_slices BIGINT NOT NULL, partial_slices BIGINT NOT NULL,
        scored_revision BIGINT NOT NULL, score_id BIGINT, final_at DOUBLE PRECISION,
        acknowledged_by TEXT, acknowledged_at DOUBLE PRECISION)""",
    "CREATE INDEX studies_by_state ON studies (state, final_at)",
    "CREATE INDEX studies_by_arrival ON studies (arrived_at)",
    """CREATE TABLE instances (
        sop_uid TEXT PRIMARY KEY,
        sop_class_uid TEXT NOT NULL,
        study_uid TEXT NOT NULL REFERENCES studies (study_uid) ON DELETE CASCADE,
        series_uid TEXT NOT NULL, object_name TEXT NOT NULL, size_bytes BIGINT NOT NULL,
        content_sha256 TEXT NOT NULL, pixel_sha256 TEXT NOT NULL, received_at DOUBLE PRECISION NOT NULL,
        way TEXT NOT NULL, sender TEXT NOT NULL, address TEXT NOT NULL,
        state TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
        attempts BIGINT NOT NULL, leased_until DOUBLE PRECISION NOT NULL)""",
    "CREATE INDEX instances_by_state ON instances (state, received_at)",
    "CREATE INDEX instances_by_study ON instances (study_uid, state)",
    "CREATE INDEX instances_by_object ON instances (object_name)",
    """CREATE TABLE slices (
        sop_uid TEXT NOT NULL REFERENCES instances (sop_uid) ON DELETE CASCADE,
        frame BIGINT NOT NULL, study_uid TEXT NOT NULL, header TEXT NOT NULL,
        probability {blob} NOT NULL, logit {blob} NOT NULL, embedding {blob}, cam {blob},
        cam_height BIGINT NOT NULL, cam_width BIGINT NOT NULL,
        PRIMARY KEY (sop_uid, frame))""",
    "CREATE INDEX slices_by_study ON slices (study_uid)",
    """CREATE TABLE conflicts (
        sop_uid TEXT NOT NULL,
        study_uid TEXT NOT NULL REFERENCES studies (study_uid) ON DELETE CASCADE,
        object_name TEXT NOT NULL, received_at DOUBLE PRECISION NOT NULL,
        way TEXT NOT NULL, sender TEXT NOT NULL, address TEXT NOT NULL,
        PRIMARY KEY (sop_uid, object_name))""",
    "CREATE INDEX conflicts_by_study ON conflicts (study_uid)",
    "CREATE TABLE expectations (study_uid TEXT PRIMARY KEY, num_instances BIGINT NOT NULL)",
    """CREATE TABLE own_objects (
        sop_uid TEXT PRIMARY KEY, study_uid TEXT NOT NULL, kind TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE scores (
        score_id {serial},
        study_uid TEXT NOT NULL REFERENCES studies (study_uid) ON DELETE CASCADE,
        revision BIGINT NOT NULL, created_at DOUBLE PRECISION NOT NULL, is_partial BIGINT NOT NULL,
        state TEXT NOT NULL, reason TEXT NOT NULL, priority BIGINT NOT NULL, document TEXT)""",
    "CREATE INDEX scores_by_study ON scores (study_uid)",
    "CREATE INDEX scores_by_time ON scores (created_at)",
    """CREATE TABLE deliveries (
        delivery_id {serial},
        study_uid TEXT NOT NULL REFERENCES studies (study_uid) ON DELETE CASCADE,
        score_id BIGINT NOT NULL REFERENCES scores (score_id) ON DELETE CASCADE,
        destination TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, attempts BIGINT NOT NULL,
        next_at DOUBLE PRECISION NOT NULL, leased_until DOUBLE PRECISION NOT NULL,
        last_error TEXT NOT NULL, delivered_at DOUBLE PRECISION,
        UNIQUE (score_id, destination, kind))""",
    "CREATE INDEX deliveries_by_state ON deliveries (state, next_at)",
    "CREATE INDEX deliveries_by_study ON deliveries (study_uid)",
    """CREATE TABLE comments (
        comment_id {serial},
        study_uid TEXT NOT NULL REFERENCES studies (study_uid) ON DELETE CASCADE,
        who TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)""",
    "CREATE INDEX comments_by_study ON comments (study_uid)",
    """CREATE TABLE events (
        event_id BIGINT PRIMARY KEY, kind TEXT NOT NULL, study_uid TEXT NOT NULL,
        created_at DOUBLE PRECISION NOT NULL, body TEXT NOT NULL)""",
    "CREATE INDEX events_by_time ON events (created_at)",
    "CREATE TABLE counters (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
    "INSERT INTO counters (name, value) VALUES ('event', 0)",
)

KEPT_CONFLICTS = ("ALTER TABLE conflicts ADD COLUMN is_kept BIGINT NOT NULL DEFAULT 1",)
"""A conflict stays a doubt after its bytes were deleted by age."""

ACKNOWLEDGED_SCORE = ("ALTER TABLE studies ADD COLUMN acknowledged_score_id BIGINT",)
"""The result that whoever acknowledged a study had before them; NULL where there was none, or nobody knows."""

STEPS: tuple[tuple[str, ...], ...] = (STEP_1, KEPT_CONFLICTS, ACKNOWLEDGED_SCORE)
"""Step i makes version i + 1 of version i; version 0 is an empty database."""


def migrate(transaction: Transaction, where: str, steps: Sequence[Sequence[str]] = STEPS) -> int:
    """Bring a database to the newest version, in the one transaction given; the version that it had.

    Raises:
        StoreError: it was made by a newer fastich.
    """
    transaction.run("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
    found = transaction.rows("SELECT version FROM schema_version")
    version = int(found[0]["version"]) if found else 0
    if version > len(steps):
        raise StoreError(
            f"{where}: made by a newer fastich (schema {version}, this one knows up to {len(steps)}); upgrade fastich"
        )
    if version < len(steps):
        for step in steps[version:]:
            transaction.script(step)
        transaction.run("DELETE FROM schema_version")
        transaction.run("INSERT INTO schema_version (version) VALUES (?)", len(steps))
    return version
