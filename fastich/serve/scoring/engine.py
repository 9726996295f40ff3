"""The scoring engine: takes waiting instances from the store, decodes and gates them, scores their slices, says so.

One thread leases, ``decode_workers`` threads read and decode, each with a decoder process of its own that may die, one
thread runs the model (``batcher.py``), one writes what became of instances, one judges studies (``completion.py``).
They meet in queues that are bounded by the number of leased instances. Nothing is finished before it is committed:
killed at any moment, leases run out and the work is done again.
"""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

from fastich.decoder import Decoder
from fastich.eligibility import RULE_DETAIL, of_slice, refusal, waits_for_study
from fastich.errors import ArtifactError, DicomError, StoreError
from fastich.gate_fields import GateFields
from fastich.gate_rules import load_rules
from fastich.serve.config import ScoringConfig
from fastich.serve.entities import Instance, InstanceState, ScoredSlice
from fastich.serve.scoring.batcher import Batcher, Scored
from fastich.serve.scoring.completion import FIRST_RETRY_S, Completion, DeliveriesFor, words_of
from fastich.serve.scoring.gathering import HELD
from fastich.serve.scoring.notes import TRANSIENT, NoteBook, notes_of, read_object
from fastich.serve.scoring.outcome import model_of
from fastich.serve.session import Session
from fastich.serve.spool import Spool
from fastich.serve.store import Store
from fastich.serve.study_session import StudySession
from fastich.types import Slice
from fastich.verb import one_line

LOOK_EVERY_S = 0.5
"""How often the store is asked for work without being told of any: leases of an earlier process run out silently."""
JUDGE_EVERY_S = 0.1
"""How often studies are looked for that are due; a part of the time to notification."""
AFTER_ERROR_S = 1.0
BATCHES_AHEAD = 3
"""Batches of slices that may be decoded and not yet scored."""
MODEL_FAILED = "model failed"
MAX_DETAIL = 300

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of an instance; ``again`` asks for another try, as long as there are any."""

    state: InstanceState
    reason: str = ""
    detail: str = ""
    slices: tuple[ScoredSlice, ...] = ()
    again: bool = False


@dataclass(slots=True)
class _Job:
    """An instance whose slices are in the model's queue."""

    instance: Instance
    slices: list[Slice]
    reason: str
    detail: str
    futures: "list[Future[Scored]]" = field(default_factory=list)
    num_left: int = 0


class Engine:
    """Scores what the store has; ``wake`` tells it of new work.

    Raises:
        FastichError: the rules file is malformed.
        ArtifactError: the model folder is damaged.
    """

    def __init__(
        self,
        store: Store,
        spool: Spool,
        session: Session,
        study_session: StudySession | None,
        config: ScoringConfig,
        *,
        deliveries_for: DeliveriesFor,
        on_final: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._spool, self._config = store, spool, config
        self._rules = load_rules(config.rules)
        self._model = model_of(session, study_session)
        self._notes = NoteBook(spool)
        self._capacity = config.decode_workers + BATCHES_AHEAD * config.batch_size
        self._batcher = Batcher(
            session,
            batch_size=config.batch_size,
            max_wait_ms=config.max_wait_ms,
            max_waiting=BATCHES_AHEAD * config.batch_size,
        )
        self._completion = Completion(
            store,
            spool,
            self._notes,
            self._rules,
            config,
            model=lambda: self._model,
            deliveries_for=deliveries_for,
            is_over=lambda: self._is_over.is_set(),
            on_final=on_final,
        )
        self._to_decode: queue.SimpleQueue[Instance | None] = queue.SimpleQueue()
        self._to_write: queue.SimpleQueue[tuple[Instance, Verdict] | None] = queue.SimpleQueue()
        self._leased: dict[str, Instance] = {}
        self._tries: dict[str, int] = {}
        self._changed = threading.Condition()
        self._news = threading.Event()
        self._is_stopping = threading.Event()
        self._is_over = threading.Event()
        self._decoders = [Decoder() for _ in range(config.decode_workers + 1)]
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Take over what an earlier process had begun, warm the model up and begin.

        Raises:
            ArtifactError: the model fails.
        """
        self._store.free_instances()
        self._batcher.start()
        works: list[tuple[str, Callable[[], None]]] = [("lease", self._lease), ("write", self._write)]
        works += [(f"decode-{i}", lambda one=one: self._decode(one)) for i, one in enumerate(self._decoders[1:])]  # type: ignore[misc]
        works += [("judge", self._judge)]
        self._threads = [threading.Thread(target=work, name=name, daemon=True) for name, work in works]
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Tell that something may wait; costs nothing, from any thread."""
        self._news.set()

    def trouble(self) -> str:
        """Why nothing is scored, in one line; empty where all is well."""
        if not self._threads:
            return "scoring has not started"
        ended = [thread.name for thread in self._threads if not thread.is_alive()]
        return f"threads of scoring have ended: {', '.join(ended)}" if ended else ""

    def stop(self, drain_s: float) -> None:
        """Take nothing new, give what is in hand ``drain_s`` seconds to be finished, give the rest back, end."""
        self._is_stopping.set()
        self._news.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._leased, drain_s)
        self._is_over.set()
        for decoder in self._decoders:
            decoder.close()
        self._batcher.close()
        for _ in self._decoders[1:]:
            self._to_decode.put(None)
        self._to_write.put(None)
        for thread in self._threads:
            thread.join()
        for decoder in self._decoders:
            decoder.close()
        self._give_back()

    def _give_back(self) -> None:
        try:
            self._store.release_instances(list(self._leased))
        except StoreError as error:
            log.warning("leases were not given back, they run out: %s", one_line(error))

    def _lease(self) -> None:
        while not self._is_stopping.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._room() > 0 or self._is_stopping.is_set(), LOOK_EVERY_S)
                room = self._room()
            self._news.clear()
            if room > 0 and not self._is_stopping.is_set() and self._lease_some(room):
                continue
            self._news.wait(LOOK_EVERY_S)

    def _room(self) -> int:
        """How many instances to lease now; 0 until it is worth a transaction, and beside one that was tried before."""
        if any(one.attempts > 1 for one in self._leased.values()):
            return 0
        room = self._capacity - len(self._leased)
        return room if room >= self._config.batch_size else 0

    def _lease_some(self, room: int) -> bool:
        with self._changed:
            held = list(self._leased)
        try:
            found = self._store.lease_instances(
                room, self._config.lease_s, max_attempts=self._config.max_attempts, held=held
            )
        except StoreError as error:
            log.error("no work can be taken: %s", one_line(error))
            self._is_stopping.wait(AFTER_ERROR_S)
            return False
        with self._changed:
            self._leased |= {one.sop_uid: one for one in found}
        for one in found:
            self._to_decode.put(one)
        return bool(found)

    def _decode(self, decoder: Decoder) -> None:
        while (instance := self._to_decode.get()) is not None:
            if self._is_over.is_set():
                continue
            try:
                verdict = self._begin(instance, decoder)
            except Exception as error:
                detail = words_of(error)[:MAX_DETAIL]
                log.error("an instance could not be taken on: %s", detail)
                verdict = Verdict(state=InstanceState.FAILED, reason=type(error).__name__, detail=detail, again=True)
            if verdict is not None:
                self._to_write.put((instance, verdict))

    def _begin(self, instance: Instance, decoder: Decoder) -> Verdict | None:
        """Read, gate and submit an instance; what became of it, or None where that is the model's to say."""
        try:
            slices, fields = read_object(self._spool, instance.object_name, decoder)
        except DicomError as error:
            again = error.reason in TRANSIENT
            state = InstanceState.FAILED if again else InstanceState.NOT_EVALUATED
            return Verdict(state=state, reason=error.reason.value, detail=error.detail[:MAX_DETAIL], again=again)
        self._notes.put(instance.object_name, notes_of(slices, fields))
        return self._submit(instance, slices, fields)

    def _submit(self, instance: Instance, slices: list[Slice], fields: GateFields) -> Verdict | None:
        refused = [refusal(of_slice(self._rules, one.header, fields)) for one in slices]
        first = next((one for one in refused if one is not None), None)
        reason, detail = ("", "") if first is None else (first.reason, RULE_DETAIL + first.rule)
        kept = [one for one, why in zip(slices, refused, strict=True) if why is None]
        if not kept:
            return Verdict(state=InstanceState.NOT_EVALUATED, reason=reason, detail=detail)
        if self._model.needs_order or any(waits_for_study(self._rules, one.header, fields) for one in kept):
            return Verdict(state=InstanceState.NOT_EVALUATED, reason=HELD)
        job = _Job(instance, kept, reason, detail, num_left=len(kept))
        try:
            for one in kept:
                job.futures.append(self._batcher.submit(one.hu))
        except RuntimeError:  # the batcher is closed: the lease is given back
            return None
        for future in job.futures:
            future.add_done_callback(lambda _: self._one_done(job))
        return None

    def _one_done(self, job: _Job) -> None:
        """Count a slice that was scored; called by the model's thread only, but for slices that were done at once."""
        with self._changed:
            job.num_left -= 1
            is_last = not job.num_left
        if is_last:
            self._to_write.put((job.instance, _verdict(job)))

    def _write(self) -> None:
        while (done := self._to_write.get()) is not None:
            instance, verdict = done
            if self._is_over.is_set() and verdict.again:
                continue
            while not self._try_write(instance, verdict) and not self._is_over.wait(AFTER_ERROR_S):
                pass

    def _try_write(self, instance: Instance, verdict: Verdict) -> bool:
        """Write what became of an instance; False where the database fails."""
        uid = instance.sop_uid
        if verdict.again:
            self._tries[uid] = self._tries.get(uid, 0) + 1
        try:
            if verdict.again and self._tries[uid] < self._config.max_attempts:
                self._store.postpone_instance(uid, FIRST_RETRY_S * 2 ** (self._tries[uid] - 1))
            else:
                self._store.finish_instance(uid, verdict.state, verdict.reason, verdict.detail, verdict.slices)
                self._tries.pop(uid, None)
        except StoreError as error:
            log.error("what became of an instance cannot be written yet: %s", one_line(error))
            if verdict.again:
                self._tries[uid] -= 1
            return False
        with self._changed:
            self._leased.pop(uid, None)
            self._changed.notify_all()
        self._news.set()
        return True

    def _judge(self) -> None:
        while not self._is_stopping.wait(JUDGE_EVERY_S):
            try:
                self._completion.run(self._decoders[0])
            except Exception as error:
                log.error("studies cannot be judged now: %s", words_of(error))
                self._is_stopping.wait(AFTER_ERROR_S)


def _verdict(job: _Job) -> Verdict:
    """What the model said of an instance's slices; one that it failed on fails the instance."""
    try:
        said = [future.result() for future in job.futures]
    except ArtifactError as error:
        detail = one_line(error)[:MAX_DETAIL]
        return Verdict(state=InstanceState.FAILED, reason=MODEL_FAILED, detail=detail, again=True)
    except CancelledError:
        return Verdict(state=InstanceState.FAILED, reason=MODEL_FAILED, again=True)
    if len({one.model for one in said}) > 1:  # another model came between two frames
        return Verdict(state=InstanceState.FAILED, reason=MODEL_FAILED, detail="two models", again=True)
    slices = tuple(
        ScoredSlice(header=one.header, answer=answer.answer) for one, answer in zip(job.slices, said, strict=True)
    )
    detail = said[0].model
    return Verdict(state=InstanceState.SCORED, reason=job.reason, detail=detail, slices=slices)
