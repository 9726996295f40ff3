"""How often an address may be wrong about a token. Bounded memory, no clock of its own."""

import threading
from collections import OrderedDict
from collections.abc import Callable

MAX_FAILURES = 10
WINDOW_S = 60.0
MAX_ADDRESSES = 10_000
"""Beyond these the one that failed longest ago is forgotten."""


class FailedLogins:
    """Counts failures by address; an address with too many waits until its window ends."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._found: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wait_s(self, address: str) -> float:
        """Seconds that ``address`` has to wait; 0 where it may try."""
        with self._lock:
            count, since = self._found.get(address, (0, 0.0))
            left = since + WINDOW_S - self._clock()
            return left if count >= MAX_FAILURES and left > 0 else 0.0

    def failed(self, address: str) -> None:
        """Note a wrong token."""
        now = self._clock()
        with self._lock:
            count, since = self._found.pop(address, (0, now))
            self._found[address] = (count + 1, since) if now < since + WINDOW_S else (1, now)
            while len(self._found) > MAX_ADDRESSES:
                self._found.popitem(last=False)
