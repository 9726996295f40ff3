"""One TCP connection of the DICOM port: since when, how fast, and when it is cut. No protocol, no threads.

Why: pynetdicom reads a PDU until it is whole, however slowly it comes, and its timers stand still meanwhile. Here a
second thread looks at the connection a few times a second, and shuts the socket of one that is overdue, which wakes
whoever is stuck in it.
"""

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from fastich.serve.config import DicomConfig

ABORT = struct.pack(">BBLBBBB", 7, 0, 4, 0, 0, 2, 0)
"""An A-ABORT PDU from the service provider, no reason given (PS3.8 section 9.3.8)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one connection may do (``DicomConfig``, ``SpoolConfig``)."""

    acse_timeout_s: float
    dimse_timeout_s: float
    min_bytes_per_s: int
    max_object_bytes: int


def limits_of(config: DicomConfig, max_object_bytes: int) -> Limits:
    """The limits that the configuration asks for."""
    return Limits(
        acse_timeout_s=config.acse_timeout_s,
        dimse_timeout_s=config.dimse_timeout_s,
        min_bytes_per_s=config.min_bytes_per_s,
        max_object_bytes=max_object_bytes,
    )


class Connection:
    """What the guards know of one connection. Two threads of pynetdicom write it, the watching one reads.

    Attributes:
        established: whether an association was accepted on it.
        serving: messages that came whole and are not answered yet; nothing is read meanwhile.
        was_cut: why it was cut, "" while it was not.
    """

    def __init__(
        self, raw: socket.socket, address: str, limits: Limits, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.socket, self.address, self.limits = raw, address, limits
        self.established = False
        self.serving = 0
        self.was_cut = ""
        self._clock = clock
        self._lock = threading.Lock()
        self._opened_at = self._active_at = clock()
        self._in_transit = False
        self._transit_bytes = 0
        self._mark: tuple[float, int] = (0.0, 0)

    def begin(self) -> None:
        """A PDU begins: from here on until ``end`` the sender owes bytes."""
        if not self._in_transit:
            self._transit_bytes = 0
            self._mark = (self._clock(), 0)
            self._in_transit = True

    def received(self, size_bytes: int) -> None:
        """Bytes came."""
        self._transit_bytes += size_bytes
        self._active_at = self._clock()

    def end(self) -> None:
        """A message, or a PDU that is no part of one, is whole: the sender owes nothing."""
        self._in_transit = False

    def taken(self) -> None:
        """A whole message waits for its answer, on us."""
        self.end()
        self.serving += 1

    def answered(self) -> None:
        """The answer is out; the sender's time begins."""
        self.serving = 0
        self._active_at = self._clock()

    @property
    def is_working(self) -> bool:
        """Whether something is being received or stored, which a graceful stop waits for."""
        return self.established and (self._in_transit or self.serving > 0)

    def overdue(self) -> str:
        """Why the connection should be cut now, "" where it should not."""
        now, limits = self._clock(), self.limits
        if not self.established:
            late = now - self._opened_at > limits.acse_timeout_s
            return f"no association within {limits.acse_timeout_s:g} s" if late else ""
        if self.serving:
            return ""
        if self._in_transit:
            return self._too_slow(now)
        idle = now - self._active_at > limits.dimse_timeout_s
        return f"nothing came for {limits.dimse_timeout_s:g} s" if idle else ""

    def _too_slow(self, now: float) -> str:
        """Compare each window of ``acse_timeout_s`` by itself: a fast start buys no slow end."""
        since, before = self._mark
        if now - since < self.limits.acse_timeout_s:
            return ""
        found = (self._transit_bytes - before) / (now - since)
        if found < self.limits.min_bytes_per_s:
            return f"{found:.0f} bytes/s, expected at least {self.limits.min_bytes_per_s}"
        self._mark = (now, self._transit_bytes)
        return ""

    def cut(self, reason: str) -> None:
        """End it now, with an A-ABORT where the socket takes one; whoever reads it sees the end of the stream."""
        with self._lock:
            if self.was_cut:
                return
            self.was_cut = reason
        if not isinstance(self.socket, ssl.SSLSocket):  # OpenSSL lets one thread at a time into a session
            with contextlib.suppress(OSError):
                self.socket.send(ABORT, socket.MSG_DONTWAIT)
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown, which takes the session away under the thread that reads.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back."""
        with contextlib.suppress(OSError):
            self.socket.close()
