"""SQLite: the embedded default. WAL, so that readers never wait; ``synchronous=FULL``: a commit is on the disk.

A commit costs one fsync of the log. Writers of this process queue at a lock: SQLite's own waiting is by sleeping, and
starves whoever came first.

Source: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html#pragma_synchronous
"""

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastich.errors import StoreError
from fastich.serve.store.door import Row

BUSY_TIMEOUT_S = 10.0
"""How long a transaction waits for another process that writes (a backup, a person with a shell)."""
WORDS = {"blob": "BLOB", "serial": "INTEGER PRIMARY KEY AUTOINCREMENT"}
FULL = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
"""A disk that is full, or that fails: both are the operator's to mend, and the sender's to try again."""
DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class SqliteTransaction:
    """What stands between BEGIN and COMMIT."""

    def __init__(self, connection: "SqliteConnection") -> None:
        self._connection = connection

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """As ``door.Transaction``."""
        return [dict(row) for row in self._connection.execute(sql, values)]

    def run(self, sql: str, *values: Any) -> int:
        """As ``door.Transaction``."""
        return self._connection.execute(sql, values).rowcount

    def many(self, sql: str, table: Iterable[Sequence[Any]]) -> None:
        """As ``door.Transaction``."""
        for values in table:
            self._connection.execute(sql, values)

    def script(self, statements: Iterable[str]) -> None:
        """As ``door.Transaction``."""
        for statement in statements:
            self._connection.execute(statement.format(**WORDS))


class SqliteConnection:
    """One connection, with the settings that make a commit last."""

    def __init__(self, path: Path, writers: threading.Lock, busy_timeout_s: float) -> None:
        self._path, self._writers, self._busy_timeout_s = path, writers, busy_timeout_s
        self.is_usable = True
        self._holds_lock = False
        try:
            self._inner = sqlite3.connect(
                path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, cached_statements=256
            )
        except sqlite3.Error as error:
            raise self._translated(error) from error
        self._inner.row_factory = sqlite3.Row
        try:
            for pragma in ("synchronous = FULL", "foreign_keys = ON"):
                self.execute(f"PRAGMA {pragma}")
            (mode,) = self.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise StoreError(
                    f"{path}: expected a file system that can hold a WAL, found mode {mode}; use a local disk"
                )
        except BaseException:
            self._inner.close()
            raise

    def begin(self, *, write: bool) -> SqliteTransaction:
        """Open a transaction; one that writes holds the write lock from its start, so that it cannot lose later."""
        if write:
            if not self._writers.acquire(timeout=self._busy_timeout_s):
                raise StoreError(f"{self._path}: locked for {self._busy_timeout_s:g} s by this process")
            self._holds_lock = True
        self.execute("BEGIN IMMEDIATE" if write else "BEGIN")
        return SqliteTransaction(self)

    def commit(self) -> None:
        """Make it last."""
        self.execute("COMMIT")
        self._release()

    def rollback(self) -> None:
        """Undo it; never raises."""
        try:
            if self._inner.in_transaction:
                self._inner.execute("ROLLBACK")
        except sqlite3.Error:
            self.is_usable = False
        finally:
            self._release()

    def close(self) -> None:
        """Close the connection; never raises."""
        self.is_usable = False
        self._inner.close()

    def execute(self, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Run one statement.

        Raises:
            StoreError: it failed.
        """
        try:
            return self._inner.execute(sql, values)
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _release(self) -> None:
        if self._holds_lock:
            self._holds_lock = False
            self._writers.release()

    def _translated(self, error: sqlite3.Error) -> StoreError:
        """The error in one line, with what to do about it where that is known."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
        if code in DAMAGED:
            self.is_usable = False
            return StoreError(f"{self._path}: damaged, or no SQLite database ({error}); restore it from a backup")
        if code == sqlite3.SQLITE_BUSY:
            return StoreError(f"{self._path}: locked for {self._busy_timeout_s:g} s by another process")
        return StoreError(f"{self._path}: {error}", is_full=code in FULL)
