"""Signals of the process in the order in which they came, read by one thread; nothing is decided inside a handler.

A handler that sets an Event can stop for good: it may interrupt the very thread that holds the Event's lock. Here
Python's own C handler writes the number of each signal into a pipe, whichever thread it was delivered to.
"""

import os
import signal
from collections.abc import Sequence
from types import FrameType

END = (signal.SIGTERM, signal.SIGINT)
AGAIN = signal.SIGHUP


class Signals:
    """SIGTERM, SIGINT and SIGHUP from here on to ``close``; made by the main thread only.

    An end once asked for stays asked for: no later SIGHUP takes it back.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._must_end = False
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, _nothing) for number in (*END, AGAIN)}

    def wait(self) -> int:
        """Wait for the next signal; SIGTERM, for ever, once an end was asked for."""
        os.set_blocking(self._read, True)
        while not self._must_end:
            (number,) = os.read(self._read, 1)
            if number == AGAIN:
                return number
            self._note([number])
        return signal.SIGTERM

    def must_end(self) -> bool:
        """Whether an end was asked for by now; each SIGHUP up to now is forgotten."""
        os.set_blocking(self._read, False)
        try:
            while numbers := os.read(self._read, 512):
                self._note(numbers)
        except BlockingIOError:
            pass
        return self._must_end

    def close(self) -> None:
        """Put back what handled the signals before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        os.close(self._read)
        os.close(self._write)

    def _note(self, numbers: Sequence[int]) -> None:
        self._must_end = self._must_end or any(number in END for number in numbers)


def _nothing(_: int, __: FrameType | None) -> None:
    """The number is in the pipe already."""
