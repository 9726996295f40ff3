"""A study read back from the tables and the files' notes: what may be scored, what was, what is left out and why."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fastich.decoder import Decoder
from fastich.doubts import conflicts
from fastich.eligibility import RULE_DETAIL, LeftOut, left_out, of_slice, refusal
from fastich.errors import DicomError, FastichError
from fastich.gate_fields import Uids
from fastich.gate_rules import Rules
from fastich.serve.entities import Instance, InstanceState, ScoredSlice, Study
from fastich.serve.scoring.notes import TRANSIENT, Note, NoteBook, note_of
from fastich.serve.scoring.outcome import Case
from fastich.serve.store import Store
from fastich.study_rule import Place, SliceAnswer, place

HELD = "waits for its study"
"""The reason of an instance whose slices are scored, if at all, once the study is complete."""


@dataclass(slots=True)
class Gathered:
    """A study as the tables have it.

    ``notes`` are of every slice that may be scored, ``answers`` what the present model said of some of them,
    ``sop_uids`` the instance of each file, ``num_failed`` files that the machine failed on.
    """

    notes: dict[Place, Note] = field(default_factory=dict)
    answers: dict[Place, SliceAnswer] = field(default_factory=dict)
    left: list[LeftOut] = field(default_factory=list)
    sop_uids: dict[str, str] = field(default_factory=dict)
    num_failed: int = 0
    doubts: tuple[str, ...] = ()

    def case(self, study_uid: str, *, answered: bool = False) -> Case:
        """The case; of ``answered`` slices only where asked."""
        notes = {where: note for where, note in self.notes.items() if not answered or where in self.answers}
        return Case(study_uid=study_uid, notes=notes, left=tuple(self.left), doubts=() if answered else self.doubts)


class Gatherer:
    """Reads studies back. ``decoder`` is for files whose notes are not in memory."""

    def __init__(self, store: Store, notes: NoteBook, rules: Rules) -> None:
        self._store, self._notes, self._rules = store, notes, rules

    def gather(self, study: Study, model: str, decoder: Decoder, *, is_last: bool) -> Gathered:
        """Everything about a study; answers that ``model`` (``batcher.identity_of``) gave.

        Raises:
            StoreError: the database cannot be read.
            FastichError: the machine fails on a file, unless this is the last try: then it counts as failed.
        """
        stored: dict[str, dict[int, ScoredSlice]] = defaultdict(dict)
        for one in self._store.scored_slices(study.study_uid):
            stored[one.header.sop_uid.partition("#")[0]][one.header.frame] = one
        instances = self._store.instances_of(study.study_uid)
        found = Gathered(doubts=_doubts(study, len(instances)))
        for instance in instances:
            found.num_failed += instance.state is InstanceState.FAILED
            if instance.state is InstanceState.SCORED or instance.reason == HELD:
                notes = self._notes_of(instance, stored[instance.sop_uid], found, decoder, is_last)
                self._add_slices(instance, stored[instance.sop_uid], instance.detail == model, found, notes)
            if instance.state is not InstanceState.WAITING and instance.reason not in ("", HELD):
                found.left.append(self._left(instance, instance.reason, instance.detail))
        return found

    def _add_slices(
        self,
        instance: Instance,
        stored: Mapping[int, ScoredSlice],
        is_current: bool,
        found: Gathered,
        notes: Iterable[Note],
    ) -> None:
        """The frames of one file: those that were scored, and those that may yet be."""
        for note in notes:
            frame = note.header.frame
            refused = refusal(of_slice(self._rules, note.header, note.fields)) if frame not in stored else None
            if refused is not None:
                if instance.reason == HELD:
                    found.left.append(self._left(instance, refused.reason, RULE_DETAIL + refused.rule))
                continue
            where = place(note.header)
            found.notes[where] = note
            found.sop_uids[note.header.path] = instance.sop_uid
            if is_current and frame in stored:
                found.answers[where] = stored[frame].answer

    def _notes_of(
        self, instance: Instance, stored: Mapping[int, ScoredSlice], found: Gathered, decoder: Decoder, is_last: bool
    ) -> Iterable[Note]:
        """Of the file; of what is stored where it is gone: deleted by age, or the disk fails to the last try."""
        try:
            notes = self._notes.of(instance.object_name, decoder)
        except DicomError as error:
            is_fault = bool(instance.object_name) and error.reason in TRANSIENT
            if is_fault and not is_last:
                raise FastichError(f"a stored file cannot be read now ({error})") from error
            if not stored:
                found.num_failed += is_fault
                found.left.append(self._left(instance, error.reason.value, error.detail))
            return [note_of(one.header) for one in stored.values()]
        return notes

    def _left(self, instance: Instance, reason: str, detail: str) -> LeftOut:
        uids = Uids(study=instance.study_uid, series=instance.series_uid, sop=instance.sop_uid)
        return left_out(self._rules, instance.object_name, uids, reason, detail)


def _doubts(study: Study, num_instances: int) -> tuple[str, ...]:
    """What is known to be wrong with the whole of a study."""
    found = [*conflicts(study.num_conflicts)]
    if study.expected_instances is not None and num_instances < study.expected_instances:
        found.append(f"{num_instances} of {study.expected_instances} expected files arrived")
    return tuple(found)
