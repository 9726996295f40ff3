"""What is to be sent is sent: one thread a destination, each message until it arrived, is superseded, or is dead.

The tables say what is to be done, so whoever is killed, the next process goes on. A message that was sent and not noted
as delivered is sent again: as the same object (same UID, same bytes), which a PACS holds once. Before the first try its
UID is noted as our own, so that a PACS that routes everything back to us does not make it a study.

A result that a newer final one of its study has replaced is not sent any more; it ends as superseded, visibly. A raised
one only where the newer one goes to the same destination: a flag must not vanish because the study was failed since.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from fastich.errors import FastichError, StoreError
from fastich.serve.config import ServeConfig
from fastich.serve.entities import Delivery, Priority, Score
from fastich.serve.outputs import dimse_client, sr, stow_client, webhook
from fastich.serve.outputs.build import Objects, build
from fastich.serve.outputs.policy import WEBHOOK, names_of
from fastich.serve.outputs.send_error import SendError
from fastich.serve.store import Store

log = logging.getLogger(__name__)

POLL_S = 1.0
"""How long a message that nobody woke us for may wait, and a retry be late."""
LEASE_TIMEOUTS = 4
"""Connect, associate, store and release may each take the whole time limit."""
LEASE_MARGIN_S = 60.0

Told = Callable[[Delivery, str, str], None]
"""What became of a try: the message; delivered, failed, dead or superseded; in words, without patient data."""


def _tell_nobody(message: Delivery, what: str, words: str) -> None:
    """Nobody wants to know."""


def _place(error: Exception) -> str:
    """What an error is and where it was raised; its text may hold a patient's data, so it is left out."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


DRAIN_S = 10.0
"""How long a stop waits for a message that is being sent."""


class Sender:
    """Sends deliveries of the store until stopped. ``wake`` after new ones were written saves them ``POLL_S``."""

    def __init__(
        self,
        store: Store,
        objects: Objects,
        config: ServeConfig,
        *,
        clock: Callable[[], float] = time.time,
        on_told: Told = _tell_nobody,
    ) -> None:
        self._store, self._objects, self._config = store, objects, config
        self._clock, self._on_told = clock, on_told
        self._names = names_of(config)
        self._where = {where.name: where for where in config.destinations}
        self._wake = {name: threading.Event() for name in self._names}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Take over what an earlier process had begun, and start the threads."""
        self._store.release_deliveries()
        self.bury_unknown()
        self._threads = [
            threading.Thread(target=self._run, args=(name,), name=f"send-{name}", daemon=True) for name in self._names
        ]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Look for work now."""
        for event in self._wake.values():
            event.set()

    def stop(self, drain_s: float = DRAIN_S) -> bool:
        """Finish what is being sent, at most ``drain_s``; False where a try is still under way (its lease ends)."""
        self._stop.set()
        self.wake()
        deadline = time.monotonic() + drain_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def bury_unknown(self) -> None:
        """Make dead letters of messages to destinations that the configuration no longer names."""
        for name in self._store.destinations_waiting():
            while name not in self._names and (leased := self._lease(name)):
                self._fail(leased[0], f"{name}: not among the destinations of the configuration", None)

    def send_due(self, name: str) -> int:
        """Send everything that is due for one destination; how many tries that were."""
        tries = 0
        while not self._stop.is_set() and (leased := self._lease(name)):
            self._try(leased[0])
            tries += 1
        return tries

    def _run(self, name: str) -> None:
        while not self._stop.is_set():
            try:
                self.send_due(name)
            except StoreError as error:  # the lease ends by itself; what was sent is the same object next time
                log.warning("destination %s: %s", name, error)
            except Exception as error:
                log.error("destination %s: unexpected %s; going on", name, _place(error))
            self._wake[name].wait(POLL_S)
            self._wake[name].clear()

    def _lease(self, name: str) -> list[Delivery]:
        """One at a time: a lease that waits behind others of a slow peer would end."""
        lease_s = LEASE_TIMEOUTS * self._config.delivery.timeout_s + LEASE_MARGIN_S
        return self._store.lease_deliveries(1, lease_s, destination=name)

    def _try(self, message: Delivery) -> None:
        """One try of one message, whatever comes of it."""
        try:
            scores = self._store.scores_of(message.study_uid)
            score = next(one for one in scores if one.score_id == message.score_id)
            newer = self._replaced_by(message, score, scores)
            if newer is not None:
                self._store.superseded(message.delivery_id, newer)
                self._tell(message, "superseded", f"by score {newer}")
                return
            warning = self._send(message, score, scores)
        except StoreError:
            raise
        except SendError as error:
            self._fail(message, str(error), None if error.permanent else self._next_at(message))
            return
        except FastichError as error:  # cannot be built, and not tomorrow either
            self._fail(message, str(error), None)
            return
        except Exception as error:
            log.error("delivery %d: unexpected %s", message.delivery_id, _place(error))
            self._fail(message, f"unexpected {type(error).__name__}", self._next_at(message))
            return
        self._store.delivered(message.delivery_id, self._clock())
        self._tell(message, "delivered", warning)

    def _replaced_by(self, message: Delivery, score: Score, scores: list[Score]) -> int | None:
        """The newest score of the study that is told in place of this one.

        A report takes the place of a key image too: a clear result has a report and no picture.
        """
        if score.outcome.priority > Priority.ROUTINE:
            told = (one for one in self._store.deliveries_of(message.study_uid) if one.kind in (message.kind, sr.KIND))
            newer = [one.score_id for one in told if one.destination == message.destination]
        else:
            newer = [one.score_id for one in scores if not one.partial]
        return max((score_id for score_id in newer if score_id > score.score_id), default=None)

    def _send(self, message: Delivery, score: Score, scores: list[Score]) -> str:
        """Build and send; the peer's warning, if any."""
        timeout_s = self._config.delivery.timeout_s
        if message.kind == WEBHOOK:
            body = webhook.body_of(score, scores, self._config.webhook.body)
            return webhook.send(self._config.webhook, message.delivery_id, body, self._clock(), timeout_s)
        made = build(self._store, self._objects, score, message.kind)
        self._store.add_own(made.sop_uid, made.study_uid, message.kind)
        where = self._where[message.destination]
        if where.kind == "stow":
            return stow_client.send(where, made.sop_uid, made.data, timeout_s)
        return dimse_client.send(where, self._config.dicom.ae_title, made.data, timeout_s)

    def _next_at(self, message: Delivery) -> float | None:
        """When to try again; None after the last try. ``attempts`` counts this one."""
        config = self._config.delivery
        if message.attempts >= config.max_attempts:
            return None
        doubled = config.first_retry_s * 2.0 ** min(message.attempts - 1, 60)  # beyond is past any limit
        return self._clock() + min(doubled, config.max_retry_s)

    def _fail(self, message: Delivery, words: str, next_at: float | None) -> None:
        self._store.delivery_failed(message.delivery_id, words, next_at)
        self._tell(message, "dead" if next_at is None else "failed", words)

    def _tell(self, message: Delivery, what: str, words: str) -> None:
        level = logging.WARNING if what in ("failed", "dead") or words.startswith("0x") else logging.INFO
        log.log(
            level,
            "delivery %d (%s to %s), try %d: %s%s",
            message.delivery_id,
            message.kind,
            message.destination,
            message.attempts,
            what,
            f": {words}" if words else "",
        )
        self._on_told(message, what, words)
