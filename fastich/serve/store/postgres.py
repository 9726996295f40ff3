"""PostgreSQL, for sites that back up one: chosen by URL, an extra (``pip install fastich[postgres]``).

The same SQL as SQLite's, ``?`` for each value. Passwords stand in ``~/.pgpass`` or ``PGPASSWORD``, never in a message.

Source: https://www.postgresql.org/docs/current/errcodes-appendix.html, libpq connection strings.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from fastich.errors import StoreError
from fastich.serve.store.door import LostTransactionError, Row

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
    from psycopg.rows import dict_row

    WHY_NO_POSTGRES = ""
except ImportError as missing:  # an extra
    WHY_NO_POSTGRES = str(missing)

SCHEMES = ("postgresql://", "postgres://")
CONNECT_TIMEOUT_S = 5
WORDS = {"blob": "BYTEA", "serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"}
LOST = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: one of two transactions was ended so that the other could go on."""
FULL = frozenset({"53100", "58030"})
"""Disk full, and an I/O error."""


def is_url(text: str) -> bool:
    """Tell a URL of PostgreSQL from a path."""
    return text.startswith(SCHEMES)


def place_of(url: str) -> str:
    """What names the database in messages: without user and password.

    Raises:
        StoreError: psycopg is not installed, or it is no URL.
    """
    if WHY_NO_POSTGRES:
        raise StoreError(f"database.url: PostgreSQL needs psycopg ({WHY_NO_POSTGRES}); pip install 'fastich[postgres]'")
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error as error:
        raise StoreError("database.url: expected postgresql://user@host/name, found another form") from error
    return f"postgresql://{parts.get('host') or 'localhost'}/{parts.get('dbname') or ''}"


class PostgresTransaction:
    """What stands between BEGIN and COMMIT."""

    def __init__(self, connection: "PostgresConnection") -> None:
        self._connection = connection

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """As ``door.Transaction``."""
        return list(self._connection.execute(sql, values).fetchall())

    def run(self, sql: str, *values: Any) -> int:
        """As ``door.Transaction``."""
        return int(self._connection.execute(sql, values).rowcount)

    def many(self, sql: str, table: Iterable[Sequence[Any]]) -> None:
        """As ``door.Transaction``."""
        for values in table:
            self._connection.execute(sql, values)

    def script(self, statements: Iterable[str]) -> None:
        """As ``door.Transaction``."""
        for statement in statements:
            self._connection.execute(statement.format(**WORDS))


class PostgresConnection:
    """One connection, whose commits wait for the server's disk whatever the server's default is."""

    def __init__(self, url: str, where: str, busy_timeout_s: float) -> None:
        self._where = where
        self.is_usable = True
        try:
            self._inner = psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, row_factory=dict_row)
        except psycopg.Error as error:
            raise StoreError(f"{where}: cannot connect ({_one_line(error)})") from error
        try:
            self.execute("SET synchronous_commit = on")
            self.execute(f"SET lock_timeout = {int(busy_timeout_s * 1000)}")
        except BaseException:
            self._inner.close()
            raise

    def begin(self, *, write: bool) -> PostgresTransaction:
        """Open a transaction; one that reads sees one state of the database."""
        self.execute("BEGIN" if write else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return PostgresTransaction(self)

    def commit(self) -> None:
        """Make it last."""
        self.execute("COMMIT")

    def rollback(self) -> None:
        """Undo it; never raises."""
        try:
            self._inner.execute("ROLLBACK")
        except psycopg.Error:
            self.is_usable = False

    def close(self) -> None:
        """Close the connection; never raises."""
        self.is_usable = False
        self._inner.close()

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Run one statement; NUL characters, which PostgreSQL's text cannot hold, are left out.

        Raises:
            LostTransactionError: the transaction, or the connection, was ended by the server.
            StoreError: it failed otherwise.
        """
        storable = [value.replace("\0", "") if isinstance(value, str) else value for value in values]
        try:
            return self._inner.execute(sql.replace("?", "%s"), storable)
        except psycopg.Error as error:
            self._raise(error)

    def _raise(self, error: "psycopg.Error") -> NoReturn:
        state = error.sqlstate or ""
        told = StoreError(f"{self._where}: {_one_line(error)}", is_full=state in FULL)
        if self._inner.closed:
            self.is_usable = False
            raise LostTransactionError from told
        if state in LOST:
            raise LostTransactionError from told
        raise told from error


def _one_line(error: "psycopg.Error") -> str:
    """The server's message without its DETAIL, which may repeat values of a row."""
    return error.diag.message_primary or str(error).partition("\n")[0]
