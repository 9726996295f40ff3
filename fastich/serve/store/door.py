"""The door to a database: connections that are used again, transactions that are tried again, errors in one line.

Connections are pooled instead of kept by thread: the DICOM server makes a thread for each association, and a connection
that belongs to a thread that has ended is a leaked file handle. A transaction is a function, so that one that lost
against another (a deadlock, a dropped connection) can run again from its start.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from fastich.errors import StoreError

P = ParamSpec("P")
T = TypeVar("T")

Row = Mapping[str, Any]

MAX_IDLE = 8
"""Connections kept open while nobody uses them; a busy server uses about as many at once."""
MAX_TRIES = 5
"""Runs of a transaction that lost against another; PostgreSQL ends one of two that wait for each other."""


class Transaction(Protocol):
    """One open transaction. SQL has ``?`` for each value, whatever the database."""

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """The rows that ``sql`` gives, by column name."""

    def run(self, sql: str, *values: Any) -> int:
        """How many rows ``sql`` changed."""

    def many(self, sql: str, table: Iterable[Sequence[Any]]) -> None:
        """Run ``sql`` once for each row of values."""

    def script(self, statements: Iterable[str]) -> None:
        """Statements of a migration, with the database's own words for ``{blob}`` and ``{serial}``."""


class Connection(Protocol):
    """One connection to a database."""

    is_usable: bool

    def begin(self, *, write: bool) -> Transaction:
        """Open a transaction."""

    def commit(self) -> None:
        """Make it last."""

    def rollback(self) -> None:
        """Undo it; never raises."""

    def close(self) -> None:
        """Close the connection; never raises."""


class LostTransactionError(Exception):
    """The transaction was undone through no fault of its own and may run again; ``__cause__`` says why."""


class Door:
    """Runs transactions on pooled connections; may be called from any thread.

    Args:
        connect: opens a connection, or raises ``StoreError``; a connection raises ``StoreError`` or
            ``LostTransactionError``, never its driver's own errors.
        where: names the database in messages, without a password.
    """

    def __init__(self, connect: Callable[[], Connection], where: str) -> None:
        self._connect, self.where = connect, where
        self._lock = threading.Lock()
        self._idle: list[Connection] = []
        self._is_closed = False

    def read(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``work`` gives, from one state of the database.

        Raises:
            StoreError: the database cannot be read.
        """
        return self._run(False, lambda transaction: work(transaction, *args, **kwargs))

    def write(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``work`` gives; its changes are on the disk when this returns, and undone where it raises.

        Raises:
            StoreError: the database cannot be written.
        """
        return self._run(True, lambda transaction: work(transaction, *args, **kwargs))

    def close(self) -> None:
        """Close every idle connection; those in use are closed by whoever uses them."""
        with self._lock:
            self._is_closed, idle, self._idle = True, self._idle, []
        for connection in idle:
            connection.close()

    def _run(self, write: bool, work: Callable[[Transaction], T]) -> T:
        for left in range(MAX_TRIES - 1, -1, -1):
            try:
                return self._try(write, work)
            except LostTransactionError as error:
                if not left:
                    raise StoreError(f"{self.where}: gave up after {MAX_TRIES} tries: {error.__cause__}") from error
        raise AssertionError("unreachable")

    def _try(self, write: bool, work: Callable[[Transaction], T]) -> T:
        connection = self._take()
        try:
            found = work(connection.begin(write=write))
            connection.commit()
        except BaseException:
            connection.rollback()
            raise
        finally:
            self._give_back(connection)
        return found

    def _take(self) -> Connection:
        with self._lock:
            if self._is_closed:
                raise StoreError(f"{self.where}: closed")
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            if connection.is_usable and not self._is_closed and len(self._idle) < MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()
