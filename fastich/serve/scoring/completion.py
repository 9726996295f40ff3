"""Studies that are due are judged and finished, studies that still arrive get a partial result at most once a second.

What became of each file stands in the tables, its answers too; so a restart loses nothing, and slices that come late
only add to what is there. A study that cannot be judged is tried again, then failed with a reason; the others go on.
"""

import logging
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from fastich.decoder import Decoder
from fastich.errors import FastichError, StoreError
from fastich.gate_rules import Rules
from fastich.serve.config import ScoringConfig
from fastich.serve.entities import Outcome, ScoredSlice, Study, StudyState
from fastich.serve.scoring.batcher import identity_of
from fastich.serve.scoring.gathering import Gathered, Gatherer
from fastich.serve.scoring.late import Pixels, score_series
from fastich.serve.scoring.notes import NoteBook, read_object
from fastich.serve.scoring.outcome import Model, Plan, partly_scored, planned, scored
from fastich.serve.spool import Spool
from fastich.serve.store import Store
from fastich.study_rule import Answers, Place, SliceAnswer, place
from fastich.types import Slice
from fastich.verb import one_line

MOST_DUE, MOST_PARTIAL = 16, 64
"""Studies taken at a time: between two lots the thread looks whether it should stop."""
PARTIAL_EVERY_S = 1.0
FIRST_RETRY_S = 5.0
"""Doubled with each try: a disk that is gone for some seconds must cost nobody a result."""
MAX_REASON = 300
"""Characters of an error that become a study's reason."""

log = logging.getLogger(__name__)

DeliveriesFor = Callable[[Outcome], Sequence[tuple[str, str]]]


class Completion:
    """Judges studies; used by one thread.

    ``model`` gives the present model, ``is_over`` says that nothing counts, ``on_final`` hears of each final result.
    """

    def __init__(
        self,
        store: Store,
        spool: Spool,
        notes: NoteBook,
        rules: Rules,
        config: ScoringConfig,
        *,
        model: Callable[[], Model],
        deliveries_for: DeliveriesFor,
        is_over: Callable[[], bool],
        on_final: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._spool, self._rules, self._config = store, spool, rules, config
        self._gatherer = Gatherer(store, notes, rules)
        self._model, self._deliveries_for = model, deliveries_for
        self._is_over, self._on_final = is_over, on_final
        self._tries: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._partial_from: dict[str, float] = {}
        self._late: dict[str, int] = {}

    def run(self, decoder: Decoder) -> None:
        """Finish what is due and scored, say what is known of what still arrives, then score one study that is due.

        Scoring a large study late takes a minute: nobody's result waits for it that is there already.

        Raises:
            StoreError: the database fails; everything that is not finished stays due.
        """
        num_put_off = len(self._not_before) + len(self._late)
        due = [
            one for one in self._store.due_studies(self._config.quiet_s, MOST_DUE + num_put_off) if self._is_time(one)
        ]
        for study in due:
            if not self._is_late(study):
                self._finish(study, decoder, may_score=False)
        self._say_what_is_known(decoder)
        late = [study for study in due if self._is_late(study)]
        self._late = {study.study_uid: study.revision for study in late}
        if late:
            self._finish(late[0], decoder, may_score=True)

    def _is_time(self, study: Study) -> bool:
        return time.monotonic() >= self._not_before.get(study.study_uid, 0.0)

    def _is_late(self, study: Study) -> bool:
        """Whether slices of a study were found to have no score yet."""
        return self._late.get(study.study_uid) == study.revision

    def _say_what_is_known(self, decoder: Decoder) -> None:
        for study in self._store.partial_studies(MOST_PARTIAL):
            if time.monotonic() >= self._partial_from.get(study.study_uid, 0.0):
                self._partial_from[study.study_uid] = time.monotonic() + PARTIAL_EVERY_S
                self._say_partly(study, decoder)

    def _finish(self, study: Study, decoder: Decoder, *, may_score: bool) -> None:
        """Judge a study; one that has to be scored first, where it may not be, is remembered as late."""
        if self._is_over():
            return
        try:
            outcome = self._outcome(study, decoder, may_score)
            if outcome is None:
                self._late[study.study_uid] = study.revision
            elif not self._is_over():  # then the decoder was closed, and files are missing for no other reason
                self._write(study, outcome)
        except StoreError:
            raise
        except Exception as error:
            if self._is_over():
                return
            self._try_again(study, words_of(error)[:MAX_REASON])

    def _write(self, study: Study, outcome: Outcome) -> None:
        if self._store.finish_study(study.study_uid, study.revision, outcome, self._deliveries_for(outcome)):
            # Not the reason: it may hold words of a header.
            log.info(
                "study %s: %s, %s", study.study_uid, outcome.state, outcome.priority.name.lower().replace("_", " ")
            )
            self._on_final()
        self._tries.pop(study.study_uid, None)
        self._not_before.pop(study.study_uid, None)
        self._partial_from.pop(study.study_uid, None)

    def _try_again(self, study: Study, why: str) -> None:
        """Judge a study once more a little later; after ``max_attempts`` tries it is failed, at the place it has."""
        uid = study.study_uid
        tries = self._tries[uid] = self._tries.get(uid, 0) + 1
        log.error("a study could not be judged (try %d of %d): %s", tries, self._config.max_attempts, why)
        self._not_before[uid] = time.monotonic() + FIRST_RETRY_S * 2 ** (tries - 1)
        if tries >= self._config.max_attempts:
            reason = f"tried {tries} times: {why}"
            self._write(study, Outcome(state=StudyState.FAILED, reason=reason, priority=study.priority))

    def _outcome(self, study: Study, decoder: Decoder, may_score: bool) -> Outcome | None:
        """What becomes of a study, None where it has to be scored first and may not.

        One that nothing is said of keeps the place that it has.
        """
        model = self._model()
        is_last = self._tries.get(study.study_uid, 0) + 1 >= self._config.max_attempts
        gathered = self._gatherer.gather(study, identity_of(model.session), decoder, is_last=is_last)
        case = gathered.case(study.study_uid)
        plan = planned(case, self._rules)
        if plan.why:
            state = StudyState.FAILED if gathered.num_failed else StudyState.NOT_EVALUATED
            return Outcome(state=state, reason=plan.why, priority=study.priority)
        known = (place(header) in gathered.answers for series in plan.study.series for header in series.headers)
        if not may_score and (model.needs_order or not all(known)):
            return None
        found = self._answers(plan, gathered, model, decoder)
        return scored(case, plan, found, model, self._rules, self._config.top_k)

    def _say_partly(self, study: Study, decoder: Decoder) -> None:
        """Judge what is scored so far; whatever goes wrong shows itself, with its reason, when the study is due."""
        model = self._model()
        try:
            gathered = self._gatherer.gather(study, identity_of(model.session), decoder, is_last=True)
            case = gathered.case(study.study_uid, answered=True)
            plan = planned(case, self._rules, partial=True)
            if plan.why:
                return
            outcome = partly_scored(case, plan, gathered.answers, model, self._rules, self._config.top_k)
            self._store.add_partial(study.study_uid, study.revision, outcome)
        except StoreError:
            raise
        except Exception as error:
            log.warning("no partial result of a study: %s", words_of(error)[:MAX_REASON])

    def _read(self, name: str, decoder: Decoder) -> list[Slice]:
        if self._is_over():
            raise FastichError("the server stops; the study is judged after its next start")
        return read_object(self._spool, name, decoder)[0]

    def _answers(self, plan: Plan, gathered: Gathered, model: Model, decoder: Decoder) -> Answers:
        """The answers of every planned slice; those that are given only now are stored."""
        pixels = Pixels(lambda name: self._read(name, decoder), self._config.batch_size + 2)
        found: dict[Place, SliceAnswer] = {}
        for series in plan.study.series:
            found |= score_series(series, gathered.answers, model.session, pixels, self._config.batch_size)
        headers = {place(header): header for series in plan.study.series for header in series.headers}
        touched = {where[0] for where in headers if found[where] is not gathered.answers.get(where)}
        new: dict[str, list[ScoredSlice]] = defaultdict(list)
        for where, answer in (gathered.answers | found).items():
            if where[0] in touched:
                header = gathered.notes[where].header
                new[gathered.sop_uids[where[0]]].append(ScoredSlice(header=header, answer=answer))
        if new:
            self._store.rescore_instances(identity_of(model.session), new)
        return found


def words_of(error: Exception) -> str:
    """An exception as one line without what may be a patient's: of errors that are not ours, type and place."""
    if isinstance(error, FastichError):
        return one_line(error)
    (*_, frame) = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"
