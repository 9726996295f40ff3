"""Studies that are due are judged and finished, studies that still arrive get a partial result at most once a second.

What became of each file stands in the tables, its answers too; so a restart loses nothing, and slices that come late
only add to what is there. A study that cannot be judged is tried again, then failed with a reason; the others go on.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from fastich.decoder import Decoder
from fastich.errors import StoreError
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
from fastich.verb import one_line

MOST_DUE, MOST_PARTIAL = 16, 64
"""Studies taken at a time: between two lots the thread looks whether it should stop."""
PARTIAL_EVERY_S = 1.0
RETRY_S = 1.0
MAX_REASON = 300
"""Characters of an error that become a study's reason."""

log = logging.getLogger(__name__)

DeliveriesFor = Callable[[Outcome], Sequence[tuple[str, str]]]


class Completion:
    """Judges studies; used by one thread. ``model`` gives the present model, ``on_final`` hears of each result."""

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
        on_final: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._spool, self._rules, self._config = store, spool, rules, config
        self._gatherer = Gatherer(store, notes, rules)
        self._model, self._deliveries_for, self._on_final = model, deliveries_for, on_final
        self._tries: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._partial_from: dict[str, float] = {}

    def run(self, decoder: Decoder) -> None:
        """Finish what is due, then say what is known of what still arrives.

        Raises:
            StoreError: the database fails; everything that is not finished stays due.
        """
        for study in self._store.due_studies(self._config.quiet_s, MOST_DUE + len(self._not_before)):
            if time.monotonic() >= self._not_before.get(study.study_uid, 0.0):
                self._finish(study, decoder)
        for study in self._store.partial_studies(MOST_PARTIAL):
            if time.monotonic() >= self._partial_from.get(study.study_uid, 0.0):
                self._partial_from[study.study_uid] = time.monotonic() + PARTIAL_EVERY_S
                self._say_partly(study, decoder)

    def _finish(self, study: Study, decoder: Decoder) -> None:
        try:
            self._write(study, self._outcome(study, decoder))
        except StoreError:
            raise
        except Exception as error:
            self._try_again(study, one_line(error)[:MAX_REASON])

    def _write(self, study: Study, outcome: Outcome) -> None:
        self._store.finish_study(study.study_uid, study.revision, outcome, self._deliveries_for(outcome))
        self._on_final()
        self._tries.pop(study.study_uid, None)
        self._not_before.pop(study.study_uid, None)
        self._partial_from.pop(study.study_uid, None)

    def _try_again(self, study: Study, why: str) -> None:
        """Judge a study once more a little later; after ``max_attempts`` tries it is failed, at the place it has."""
        uid = study.study_uid
        tries = self._tries[uid] = self._tries.get(uid, 0) + 1
        log.error("a study could not be judged (try %d of %d): %s", tries, self._config.max_attempts, why)
        self._not_before[uid] = time.monotonic() + RETRY_S
        if tries >= self._config.max_attempts:
            reason = f"tried {tries} times: {why}"
            self._write(study, Outcome(state=StudyState.FAILED, reason=reason, priority=study.priority))

    def _outcome(self, study: Study, decoder: Decoder) -> Outcome:
        """What becomes of a study; one that nothing is said of keeps the place that it has."""
        model = self._model()
        gathered = self._gatherer.gather(study, identity_of(model.session), decoder)
        case = gathered.case(study.study_uid)
        plan = planned(case, self._rules)
        if plan.why:
            state = StudyState.FAILED if gathered.num_failed else StudyState.NOT_EVALUATED
            return Outcome(state=state, reason=plan.why, priority=study.priority)
        found = self._answers(plan, gathered, model, decoder)
        return scored(case, plan, found, model, self._rules, self._config.top_k)

    def _say_partly(self, study: Study, decoder: Decoder) -> None:
        """Judge what is scored so far; whatever goes wrong shows itself, with its reason, when the study is due."""
        model = self._model()
        try:
            gathered = self._gatherer.gather(study, identity_of(model.session), decoder)
            case = gathered.case(study.study_uid, answered=True)
            plan = planned(case, self._rules, partial=True)
            if plan.why:
                return
            outcome = partly_scored(case, plan, gathered.answers, model, self._rules, self._config.top_k)
            self._store.add_partial(study.study_uid, study.revision, outcome)
        except StoreError:
            raise
        except Exception as error:
            log.warning("no partial result of a study: %s", one_line(error)[:MAX_REASON])

    def _answers(self, plan: Plan, gathered: Gathered, model: Model, decoder: Decoder) -> Answers:
        """The answers of every planned slice; those that are given only now are stored."""
        pixels = Pixels(lambda name: read_object(self._spool, name, decoder)[0], self._config.batch_size + 2)
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
