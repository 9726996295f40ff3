"""The listening side of the DICOM port: who may connect, in a thread of each connection that watches over it.

It stands on the internals of pynetdicom too: see ``guards``.
"""

import contextlib
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from socketserver import BaseServer
from typing import Any

from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from fastich.serve.ingest import Ingest
from fastich.serve.receive.connection import Connection, Limits
from fastich.serve.receive.guards import GuardedDimse, GuardedMachine, GuardedSocket
from fastich.serve.receive.reasons import Report

MAX_SOCKETS = 256
WATCH_S = 0.1
LAST_S = 1.0


NOTHING: Any = None
"""What the reader of pynetdicom's queue takes for "nothing came"; the queue's annotation does not know it."""


class Contexts(list[PresentationContext]):
    """Supported contexts that all associations share: they are read only, and copying them costs 24 ms."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Contexts":
        return self


class GuardedHandler(RequestHandler):
    """Runs one connection from its first byte to its last, in a thread that watches it."""

    server: "GuardedServer"

    def handle(self) -> None:
        """Start pynetdicom's two threads, and stay until they are gone."""
        server = self.server
        connection = Connection(self.request, self.client_address[0], server.limits)
        association = self._create_association()
        association.dul.event_queue.get_nowait()  # of the socket that is replaced: each announces its connection
        association.dul.socket = GuardedSocket(association, connection)
        association.dul.state_machine = GuardedMachine(association, connection)
        association.dimse = GuardedDimse(association, connection, server.ingest, server.report)
        with server.watched(connection):
            association.start()
            while association.is_alive():
                association.join(WATCH_S)
                self._watch(association, connection)
            association.dul.join(LAST_S)
            association.dimse.discard()
        if connection.was_cut:
            server.report("cut", {"address": connection.address, "reason": connection.was_cut})

    def _watch(self, association: Association, connection: Connection) -> None:
        reason = connection.overdue()
        if reason:
            connection.cut(reason)
        if association._started_dul and not association.dul.is_alive() and not connection.established:
            association.dul.to_user_queue.put(NOTHING)  # nothing will come: do not wait acse_timeout for it


class GuardedServer(ThreadedAssociationServer):
    """Accepts connections up to its caps; TLS, where asked for, begins in the connection's own thread.

    Attributes:
        connections: those that are open, with an association or before it.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        ae: ApplicationEntity,
        address: tuple[str, int],
        ae_title: str,
        contexts: list[PresentationContext],
        *,
        ingest: Ingest,
        limits: Limits,
        max_associations: int,
        max_sockets_per_address: int,
        tls: ssl.SSLContext | None,
        report: Report,
        handlers: list[EventHandlerType],
    ) -> None:
        self.ingest, self.limits, self.report = ingest, limits, report
        self.connections: set[Connection] = set()
        self._admitted: set[Connection] = set()
        self._sockets: dict[socket.socket, str] = {}
        self._max_associations, self._max_per_address = max_associations, max_sockets_per_address
        self._tls = tls
        self._guard = threading.Lock()
        super().__init__(ae, address, ae_title, contexts, evt_handlers=handlers, request_handler=GuardedHandler)
        self.contexts = Contexts(self.contexts)

    def admit(self, connection: Connection) -> bool:
        """Count an association, unless there are too many."""
        with self._guard:
            if len(self._admitted) >= self._max_associations:
                return False
            self._admitted.add(connection)
            return True

    def dismiss(self, connection: Connection) -> None:
        """The association is over, and so is its place: its peer may ask for another before the socket is closed."""
        with self._guard:
            self._admitted.discard(connection)

    @contextlib.contextmanager
    def watched(self, connection: Connection) -> Iterator[None]:
        """Hold a connection among the open ones."""
        with self._guard:
            self.connections.add(connection)
        try:
            yield
        finally:
            connection.close()
            self.dismiss(connection)
            with self._guard:
                self.connections.discard(connection)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close a socket at once where its address, or all together, have too many."""
        address = client_address[0]
        with self._guard:
            if len(self._sockets) >= MAX_SOCKETS or Counter(self._sockets.values())[address] >= self._max_per_address:
                return False
            self._sockets[request] = address
            return True

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """All of one connection: handshake, association, end."""
        try:
            self.finish_request(self._secured(request), client_address)
        except OSError as error:
            reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
            self.report("cut", {"address": client_address[0], "reason": f"connection: {reason}"})
        except Exception as error:
            self.report("error", {"address": client_address[0], "reason": type(error).__name__})
        finally:
            self.shutdown_request(request)
            with self._guard:
                del self._sockets[request]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """No thread could be started: forget the socket instead of printing a traceback."""
        with self._guard:
            self._sockets.pop(request, None)
        self.report("error", {"address": client_address[0], "reason": "no thread for a connection"})

    def service_actions(self) -> None:
        """Nothing, instead of a full garbage collection every 60 polls: what matters was closed by hand."""

    def shutdown(self) -> None:
        """Stop accepting; open connections go on."""
        BaseServer.shutdown(self)
        self.server_close()

    def _secured(self, request: socket.socket) -> socket.socket:
        if self._tls is None:
            return request
        request.settimeout(self.limits.acse_timeout_s)  # of the whole handshake, not of each byte
        secured = self._tls.wrap_socket(request, server_side=True)
        secured.settimeout(None)
        return secured
