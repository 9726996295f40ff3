"""Opening a database: new, older, newer, damaged, locked, absent."""

import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest
from serve_data import WHO, instance, uid

from fastich.errors import StoreError
from fastich.serve.store import open_store, postgres, schema, store
from fastich.serve.store.door import Transaction
from fastich.serve.store.sqlite import SqliteConnection

NEXT_STEP = (
    "ALTER TABLE studies ADD COLUMN referrer TEXT NOT NULL DEFAULT 'nobody'",
    "CREATE TABLE notes (note_id {serial}, body {blob})",
)


def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this the fastich of tomorrow, whose schema has one step more."""
    steps = (*schema.STEPS, NEXT_STEP)
    original = schema.migrate
    monkeypatch.setattr(schema, "migrate", lambda transaction, where: original(transaction, where, steps))


def version(transaction: Transaction) -> int:
    return int(transaction.rows("SELECT version FROM schema_version")[0]["version"])


def test_new_database_has_the_newest_schema(database: str | Path) -> None:
    with contextlib.closing(open_store(database)) as made:
        assert made._door.read(version) == len(schema.STEPS)


def test_fact_19_database_of_an_older_fastich_is_migrated_with_everything_in_it(
    database: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(open_store(database)) as old:
        old.add_instance(instance(1), WHO)
    newer(monkeypatch)
    for _ in range(2):
        with contextlib.closing(open_store(database)) as made:
            assert made.find_instance(uid(1)) == instance(1)
            assert made._door.read(version) == len(schema.STEPS) + 1
            rows = made._door.read(lambda transaction: transaction.rows("SELECT referrer FROM studies"))
            assert [row["referrer"] for row in rows] == ["nobody"]


def test_conflicts_of_schema_1_are_kept_as_they_were(database: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as yesterday:
        original = schema.migrate
        steps = schema.STEPS[:1]
        yesterday.setattr(schema, "migrate", lambda transaction, where: original(transaction, where, steps))
        open_store(database).close()
    old = "INSERT INTO conflicts (sop_uid, study_uid, object_name, received_at, way, sender, address)"
    with contextlib.closing(open_store(database)) as made:
        made.add_instance(instance(1), WHO)
        values = (uid(1), instance(1).study_uid, "a" * 64, 1.0, "dimse", "", "")
        made._door.write(lambda transaction: transaction.run(f"{old} VALUES (?, ?, ?, ?, ?, ?, ?)", *values))
        assert made.is_referenced("a" * 64)
        assert made._door.read(version) == len(schema.STEPS)


def test_fact_19_database_of_a_newer_fastich_is_refused_and_untouched(
    database: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as tomorrow:
        newer(tomorrow)
        open_store(database).close()
    newest = len(schema.STEPS)
    with pytest.raises(
        StoreError, match=rf"made by a newer fastich \(schema {newest + 1}, this one knows up to {newest}\); upgrade"
    ):
        open_store(database)
    newer(monkeypatch)
    with contextlib.closing(open_store(database)) as made:
        assert made._door.read(version) == newest + 1


def test_migration_that_fails_changes_nothing(database: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(open_store(database)) as old:
        old.add_instance(instance(1), WHO)
    broken = (*schema.STEPS, (NEXT_STEP[0], "CREATE TABLE nonsense ("))
    with monkeypatch.context() as tomorrow:
        original = schema.migrate
        tomorrow.setattr(schema, "migrate", lambda transaction, where: original(transaction, where, broken))
        with pytest.raises(StoreError):
            open_store(database)
    with contextlib.closing(open_store(database)) as made:
        assert made._door.read(version) == len(schema.STEPS)
        columns = made._door.read(lambda transaction: transaction.rows("SELECT * FROM studies"))[0]
        assert "referrer" not in columns


def filled(path: Path) -> None:
    with contextlib.closing(open_store(path)) as made:
        for number in range(200):
            made.add_instance(instance(number, study=number), WHO)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_fact_19_truncated_database_is_one_clear_line(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.sqlite"
    filled(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(StoreError, match=r"a\.sqlite: damaged, .*restore it from a backup") as caught:
        open_store(path)
    assert "\n" not in str(caught.value)


def test_file_that_is_no_database_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(b"GET / HTTP/1.1\r\n" * 500)
    with pytest.raises(StoreError, match=r"damaged, or no SQLite database \(file is not a database\); restore"):
        open_store(path)


def test_page_that_rots_later_is_an_error_and_no_wrong_answer(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    filled(path)
    data = bytearray(path.read_bytes())
    data[2 * 4096 :] = bytes(len(data) - 2 * 4096)
    path.write_bytes(data)
    with (
        pytest.raises(StoreError, match="damaged, or no SQLite database"),
        contextlib.closing(open_store(path)) as made,
    ):
        made.worklist()


def test_folder_that_is_absent_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"absent/a\.sqlite: unable to open database file"):
        open_store(tmp_path / "absent" / "a.sqlite")


def test_commits_wait_for_the_disk_and_rows_for_their_parents(tmp_path: Path) -> None:
    connection = SqliteConnection(tmp_path / "a.sqlite", threading.Lock(), 1.0)
    settings = {
        name: connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
    }
    connection.close()
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 1000}


def test_file_system_without_a_wal_is_refused() -> None:
    with pytest.raises(StoreError, match="expected a file system that can hold a WAL, found mode memory; use a local"):
        SqliteConnection(Path(":memory:"), threading.Lock(), 1.0)


def test_fact_19_write_waits_for_a_lock_of_another_process_and_then_succeeds(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with (
        contextlib.closing(open_store(path, busy_timeout_s=20)) as made,
        contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
        release.start()
        assert made.add_instance(instance(1), WHO)
        release.join()


def test_fact_19_lock_that_stays_is_an_error_and_the_store_works_again_after_it(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with (
        contextlib.closing(open_store(path, busy_timeout_s=0.1)) as made,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        for _ in range(3):
            with pytest.raises(StoreError, match=r"a\.sqlite: locked for 0\.1 s by another process"):
                made.add_instance(instance(1), WHO)
        assert made.find_instance(uid(1)) is None
        other.execute("ROLLBACK")
        assert made.add_instance(instance(1), WHO)


def test_readers_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with (
        contextlib.closing(open_store(path, busy_timeout_s=0.1)) as made,
        contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        assert made.worklist() == []
        other.execute("ROLLBACK")


def test_full_disk_is_told_apart_and_recovers(tmp_path: Path) -> None:
    with contextlib.closing(open_store(tmp_path / "a.sqlite")) as made:
        made.ping()
        inner = made._door._idle[0]._inner  # type: ignore[attr-defined]
        pages = inner.execute("PRAGMA page_count").fetchone()[0]
        inner.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        with pytest.raises(StoreError, match="database or disk is full") as caught:
            for number in range(500):
                made.add_instance(instance(number), WHO)
        assert caught.value.is_full
        inner.execute("PRAGMA max_page_count = 1000000").fetchall()
        assert made.add_instance(instance(1000), WHO)


def test_connections_are_used_again_and_few_stay_open(tmp_path: Path) -> None:
    with contextlib.closing(open_store(tmp_path / "a.sqlite")) as made:
        for _ in range(50):
            thread = threading.Thread(target=made.ping)
            thread.start()
            thread.join()
        assert len(made._door._idle) == 1


# PostgreSQL.


def test_url_of_postgres_without_psycopg_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "WHY_NO_POSTGRES", "No module named 'psycopg'")
    with pytest.raises(StoreError, match=r"PostgreSQL needs psycopg \(No module.*pip install 'fastich\[postgres\]'"):
        open_store("postgresql://me@localhost/fastich")


def test_server_that_does_not_answer_is_one_clear_line_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot connect") as caught:
        open_store(f"postgresql://me:hunter2@/fastich?host={tmp_path}")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_url_that_is_none_is_one_clear_line() -> None:
    with pytest.raises(StoreError, match="expected postgresql://user@host/name, found another form"):
        open_store("postgresql://[::1/fastich?nonsense")


def test_connections_that_the_server_ended_are_replaced(postgres_database: str) -> None:
    with contextlib.closing(open_store(postgres_database)) as made:
        barrier = threading.Barrier(4)

        def hold(transaction: Transaction) -> int:
            barrier.wait()
            return int(transaction.rows("SELECT pg_backend_pid() AS pid")[0]["pid"])

        threads = [threading.Thread(target=made._door.read, args=(hold,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(made._door._idle) == 4
        with contextlib.closing(store.open_store(postgres_database)) as other:
            other._door.write(
                lambda transaction: transaction.rows(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        assert made.add_instance(instance(1), WHO)
        assert made.find_instance(uid(1)) is not None


def test_deadlock_is_run_again(postgres_database: str) -> None:
    with contextlib.closing(open_store(postgres_database)) as made:
        for number in (1, 2):
            made.add_instance(instance(number, study=number), WHO)
        barrier = threading.Barrier(2)
        tries: list[int] = []

        def cross(transaction: Transaction, first: int, second: int) -> None:
            tries.append(first)
            for number in (first, second):
                transaction.run("UPDATE studies SET reason = reason || ? WHERE study_uid = ?", "x", f"2.25.77.{number}")
                if len(tries) <= 2 and number == first:
                    barrier.wait()

        threads = [threading.Thread(target=made._door.write, args=(cross, *pair)) for pair in ((1, 2), (2, 1))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(tries) >= 3  # a loaded machine may bring a second deadlock about
        assert [study.reason for study in made.worklist()] == ["xx", "xx"]


def test_text_with_nul_characters_is_stored_without_them(postgres_database: str) -> None:
    with contextlib.closing(open_store(postgres_database)) as made:
        made.add_instance(instance(1), WHO)
        assert made.add_comment("2.25.77.1", "me", "a\0b").text == "ab"
