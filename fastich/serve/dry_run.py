"""What the server would make of files, without taking any in: for ``fastich serve --dry-run DIR``.

The files go through the door's checks, the gate, the model and the judgement as they would in the server, by the same
functions; nothing is stored and nothing is sent. Costs what ``fastich.score`` costs, and reads each file twice.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastich.decoder import Decoder
from fastich.dicom import named_files, read_file
from fastich.doubts import conflicts
from fastich.eligibility import LeftOut, left_row, series_row
from fastich.gate import read_all
from fastich.gate_rules import Rules, load_rules
from fastich.inspect import printable
from fastich.serve.config import ScoringConfig, ServeConfig
from fastich.serve.entities import Outcome, Priority, Refused, StudyState
from fastich.serve.identity import identify
from fastich.serve.scoring.late import Pixels, score_series
from fastich.serve.scoring.notes import Note, note_of
from fastich.serve.scoring.outcome import Case, Model, Plan, model_of, planned, scored
from fastich.serve.session import Session
from fastich.serve.spool import MIB, IngestRefused
from fastich.serve.study_session import StudySession
from fastich.study_rule import Place, SliceAnswer, place
from fastich.types import RejectReason

PRIORITIES = {Priority.ROUTINE: "routine", Priority.HUMAN_FIRST: "human first", Priority.FLAGGED: "flagged"}


@dataclass(slots=True)
class _Found:
    notes: dict[Place, Note] = field(default_factory=dict)
    left: list[LeftOut] = field(default_factory=list)


def explain(
    paths: Sequence[Path], session: Session, study_session: StudySession | None, config: ServeConfig
) -> dict[str, Any]:
    """JSON values: ``studies`` with state, reason, priority, series and files left out; ``refused`` at the door.

    Raises:
        FastichError: a path does not exist, or the rules file is malformed.
        ArtifactError: the model failed.
    """
    rules, model = load_rules(config.scoring.rules), model_of(session, study_session)
    files = list(dict.fromkeys(path for path, _ in named_files(paths)))
    refused = {path: why for path in files if (why := why_refused(path, config.spool.max_object_mib))}
    studies: dict[str, _Found] = defaultdict(_Found)
    with Decoder() as decoder:
        for one in read_all([path for path in files if path not in refused], rules, decoder):
            if isinstance(one, LeftOut):
                studies[one.uids.study].left.append(one)
            else:
                studies[one[0].study_uid].notes[place(one[0])] = note_of(*one)
        rows = [_study(uid, found, rules, model, config.scoring, decoder) for uid, found in sorted(studies.items())]
    return {
        "rules_sha256": rules.sha256,
        "studies": sorted(rows, key=lambda row: -row["rank"]),
        "refused": [{"path": str(path), "reason": why} for path, why in refused.items()],
    }


def why_refused(path: Path, max_object_mib: int) -> str:
    """Why the server would not take a file in, "" where it would."""
    try:
        size_bytes = path.stat().st_size
        if size_bytes > max_object_mib * MIB:
            return f"{Refused.TOO_LARGE.value}: expected at most {max_object_mib} MiB, found {size_bytes} bytes"
        identify(path)
    except IngestRefused as error:
        return str(error)
    except OSError as error:
        return f"{RejectReason.UNREADABLE.value}: {error.strerror}"
    return ""


def _study(
    uid: str, found: _Found, rules: Rules, model: Model, config: ScoringConfig, decoder: Decoder
) -> dict[str, Any]:
    taken = sum(one.reason == RejectReason.CONFLICTING_DUPLICATE.value for one in found.left)
    case = Case(study_uid=uid, notes=found.notes, left=tuple(found.left), doubts=conflicts(taken))
    plan = planned(case, rules)
    outcome = _outcome(case, plan, rules, model, config, decoder)
    document = outcome.document
    return {
        "study_uid": uid,
        "state": outcome.state.value,
        "reason": outcome.reason,
        "priority": PRIORITIES[outcome.priority],
        "rank": int(outcome.priority),
        "probability": None if document is None else document["probability"],
        "triage": None if document is None else document["triage"],
        "series": [series_row(verdict) for verdict in plan.verdicts],
        "left_out": [left_row(left) for left in case.left],
    }


def _outcome(case: Case, plan: Plan, rules: Rules, model: Model, config: ScoringConfig, decoder: Decoder) -> Outcome:
    if plan.why:
        return Outcome(state=StudyState.NOT_EVALUATED, reason=plan.why)
    pixels = Pixels(lambda path: read_file(Path(path), decoder=decoder), config.batch_size + 2)
    answers: dict[Place, SliceAnswer] = {}
    for series in plan.study.series:
        answers |= score_series(series, {}, model.session, pixels, config.batch_size)
    return scored(case, plan, answers, model, rules, config.top_k)


def table(report: dict[str, Any]) -> str:
    """The report as text for a terminal, as the worklist would have it: the raised studies first."""
    lines: list[str] = []
    for row in report["studies"]:
        p_any = "" if row["probability"] is None else f", p(any) {row['probability']['any']:.3f}"
        why = f": {printable(row['reason'])}" if row["reason"] else ""
        lines.append(f"{row['priority']:<12} {printable(row['study_uid'])}  {row['state']}{p_any}{why}")
        for series in row["series"]:
            what = f"{series['num_slices']} slices, {series['kind']}"
            lines.append(f"  series {printable(series['series_uid'])}  {what}: {series['why'] or 'scored'}")
        for left in row["left_out"]:
            lines.append(f"  left out {printable(left['path'])}: {left['reason']}: {printable(left['detail'])}")
    lines += [f"refused {printable(one['path'])}: {printable(one['reason'])}" for one in report["refused"]]
    return "\n".join([*lines, "nothing was stored and nothing was sent"])
