"""What the server would make of files and folders: ``python -m fastich.gate [--rules FILE] [--show] [--json] PATH...``.

For each study which series would be scored and which not, and why; for each file that is left out its reason. Nothing
is scored, but every file is read and decoded as the server does, about 1 ms each. ``--show`` prints the rules.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastich import verb
from fastich.dicom import Decoder, Seen, Study, group_studies, named_files, read_bytes
from fastich.eligibility import (
    FieldsOf,
    LeftOut,
    SeriesVerdict,
    left_out,
    left_row,
    missed_by_series,
    plan,
    refused_slice,
    series_row,
    why_nothing,
)
from fastich.errors import DicomError, UsageError
from fastich.gate_fields import GateFields, Uids, read_fields, read_uids
from fastich.gate_rules import BUILT_IN, Rules, load_rules
from fastich.inspect import printable
from fastich.study_rule import Place, place
from fastich.types import RejectReason, SliceHeader


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyVerdict:
    """One study of a folder: what becomes of its series and which files are left out."""

    study: Study
    fields: FieldsOf
    series: tuple[SeriesVerdict, ...]
    left: tuple[LeftOut, ...]

    @property
    def why(self) -> str:
        """Why it is not scored, "" where it is."""
        return "" if any(one.is_scored for one in self.series) else why_nothing(self.series, self.left)


def examine(paths: Sequence[Path], rules: Rules, decoder: Decoder) -> list[StudyVerdict]:
    """What would become of the studies below ``paths``; files that name no study are one without a UID, at the end.

    Raises:
        FastichError: a path does not exist.
    """
    headers: list[SliceHeader] = []
    fields: dict[Place, GateFields] = {}
    left: dict[str, list[LeftOut]] = defaultdict(list)
    for one in read_all(paths, rules, decoder):
        if isinstance(one, LeftOut):
            left[one.uids.study].append(one)
        else:
            headers.append(one[0])
            fields[place(one[0])] = one[1]
    studies = group_studies(headers)
    unscored = sorted(set(left) - {study.study_uid for study in studies}, key=lambda uid: (not uid, uid))
    studies += [Study(study_uid=uid, patient_id="", series=()) for uid in unscored]
    return [
        StudyVerdict(
            study=study,
            fields=fields,
            series=plan(rules, study, fields, missed_by_series(left[study.study_uid])),
            left=tuple(left[study.study_uid]),
        )
        for study in studies
    ]


def read_all(
    paths: Sequence[Path], rules: Rules, decoder: Decoder
) -> Iterator[tuple[SliceHeader, GateFields] | LeftOut]:
    """Each slice below ``paths`` with its fields, or why its file is left out; ``path`` is as a user would type it."""
    seen = Seen()
    files = list(dict.fromkeys(path for path, _ in named_files(paths)))
    for path in verb.progress(files, total=len(files), unit="files", title="gate"):
        try:
            data = path.read_bytes()
        except OSError as error:
            detail = f"{type(error).__name__}: {error.strerror}"
            yield left_out(rules, str(path), Uids(), RejectReason.UNREADABLE.value, detail)
            continue
        try:
            slices = read_bytes(data, str(path), decoder=decoder, allow_deflated=False)
            seen.admit(path, slices, decoder)
        except DicomError as error:
            yield left_out(rules, str(path), read_uids(data), error.reason.value, error.detail)
            continue
        fields = read_fields(data)
        for one in slices:
            yield refused_slice(rules, one.header, fields) or (one.header, fields)


def as_json(found: Sequence[StudyVerdict], rules: Rules) -> dict[str, Any]:
    """The verdicts as plain values."""
    return {
        "rules_sha256": rules.sha256,
        "studies": [
            {
                "study_uid": one.study.study_uid,
                "scored": not one.why,
                "why": one.why,
                "series": [series_row(verdict) for verdict in one.series],
                "left_out": [left_row(left) for left in one.left],
            }
            for one in found
        ],
    }


def as_text(found: Sequence[StudyVerdict]) -> str:
    """The verdicts as a table for a person."""
    lines: list[str] = []
    for one in found:
        name = printable(one.study.study_uid) or "(files that name no study)"
        lines += [f"study {name}: {'not evaluated: ' + one.why if one.why else 'scored'}"]
        for verdict in one.series:
            uid, count = printable(verdict.series.series_uid), len(verdict.series.headers)
            lines.append(f"  series {uid}  {count} slices, {verdict.kind.id}: {verdict.why or 'scored'}")
            lines += [f"    caution: {caution}" for caution in verdict.cautions if verdict.is_scored]
        lines += [f"  left out {printable(left.path)}: {left.reason}: {printable(left.detail)}" for left in one.left]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run the verb; status 1 where no study would be scored."""
    made = verb.parser("gate", __doc__.split("\n\n")[0])
    made.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="DICOM file, or folder of any depth")
    made.add_argument("--rules", type=Path, metavar="FILE", help="TOML file of rules (default: the built-in ones)")
    made.add_argument("--show", action="store_true", help="print the rules, as a file to start from, and end")
    made.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = made.parse_args(argv)
    rules = load_rules(args.rules)
    if args.show:
        print((args.rules or BUILT_IN).read_text(encoding="utf-8"), end="")
        return 0
    if not args.paths:
        raise UsageError("expected files or folders, or --show")
    with Decoder() as decoder:
        found = examine(args.paths, rules, decoder)
    print(json.dumps(as_json(found, rules), indent=2, allow_nan=False) if args.json else as_text(found))
    if any(not one.why for one in found):
        return 0
    verb.say(f"error: {', '.join(map(str, args.paths))}: no study would be scored; the report says why")
    return 1


if __name__ == "__main__":
    verb.run(main)
