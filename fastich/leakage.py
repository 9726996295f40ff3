"""Do two splits, or two data sets, share a patient, a study, a series or an image? The certificate, and the verb.

A figure on patients who were trained on is a lie, and the closest open rival has such figures. So training writes what
each split holds, as hashes, and what any two of them share into every checkpoint (the certificate) and refuses to start
where that is not nothing; evaluation refuses a split whose patients the run has seen. Images that are equal by chance
(blank) do not count; where pixels cannot be looked at, they do. Some 7 s and 1.2 GB for RSNA's 750,000 slices.

The certificate holds patients, studies and one image a study (8 bytes each, 0.7 MB for the whole of RSNA 2019) and of
series and images the number and a SHA-256: ``fastich/fingerprints.py`` says what that finds and what not.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fastich import checkpoint, verb
from fastich.artifact import MANIFEST
from fastich.errors import CheckpointError, RecordError
from fastich.fingerprints import KINDS, Ids, blank_hashes, of_rows, pack
from fastich.leakage_pairs import WORDS, Pair, across, certified_pairs, pairs_of, within
from fastich.leakage_sides import (
    CERTIFICATE_KEY,
    Side,
    certificate_side,
    is_run,
    model_certificate,
    open_side,
    records_side,
    run_side,
)
from fastich.records.index import SPLITS
from fastich.records.reader import RecordReader

FORMAT_VERSION = 1
PACKED = ("patients", "studies", "copies")
"""Kinds whose hashes the certificate holds; the others would be too large for model.json."""


def certificate(
    index: pd.DataFrame,
    split_of_row: ArrayLike,
    *,
    dataset_sha256: str | None = None,
    rule: str | None = None,
    folds: Mapping[str, Any] | None = None,
    is_blank: Callable[[int], bool] | None = None,
) -> dict[str, Any]:
    """What each split holds and what any two share, as JSON values; ``clean`` tells that it is nothing.

    Args:
        index: one row a slice: sop_uid, study_uid, series_uid, patient_id, pixel_sha1.
        split_of_row: the split's name of each row [N]; "" where it is in none.
        dataset_sha256: identity of the records.
        rule: how the splits were made.
        folds: number of folds, which one, and seed, where the splits are a fold's.
        is_blank: tells of a row number whether its image is blank; without it every equal image counts.
    """
    blank = set() if is_blank is None else blank_hashes(index, is_blank)
    rows = index.assign(split=np.asarray(split_of_row, dtype=object))
    names = [name for name in SPLITS if name and (rows["split"] == name).any()]
    of_split = {name: of_rows(rows[rows["split"] == name], blank) for name in names}
    pairs = pairs_of(of_split)
    return {
        "format_version": FORMAT_VERSION,
        "clean": all(pair.is_clean for pair in pairs),
        "dataset_sha256": dataset_sha256,
        "rule": rule,
        "folds": None if folds is None else dict(folds),
        "blank_images": None if is_blank is None else len(blank),
        "splits": {name: _split_document(ids) for name, ids in of_split.items()},
        "shared": [pair.row() for pair in pairs],
    }


def _split_document(ids: Ids) -> dict[str, Any]:
    return {
        **{kind: len(ids[kind]) for kind in KINDS},
        "sha256": {kind: ids[kind].digest() for kind in KINDS},
        "ids": {kind: pack(ids[kind]) for kind in PACKED},
    }


def certify(
    reader: RecordReader, split_of_row: ArrayLike | None = None, folds: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The certificate of open records: of the splits in their index, or of ``split_of_row`` [N] (a fold)."""
    return certificate(
        reader.index,
        reader.index["split"] if split_of_row is None else split_of_row,
        dataset_sha256=reader.dataset_sha256,
        rule=reader.dataset["split"].get("rule"),
        folds=folds,
        is_blank=reader.is_blank,
    )


def require_clean(found: dict[str, Any], where: Path, *, allow: bool) -> dict[str, Any]:
    """Pass a certificate on, unless its splits share something and that is not allowed.

    Raises:
        RecordError: names the first two splits that share, and counts what.
    """
    leaks = [pair for pair in certified_pairs(found) if not pair.is_clean]
    if leaks and not allow:
        raise RecordError(
            f"{where}: expected splits that share nothing, found {leaks[0].text} in both {leaks[0].a} and "
            f"{leaks[0].b}; python -m fastich.leakage names them; pack again, or --allow-leakage"
        )
    if leaks:
        verb.say(f"warning: {leaks[0].a} and {leaks[0].b} share {leaks[0].text}: the figures will be too good")
    return found


def require_apart(run: checkpoint.LoadedRun, reader: RecordReader, split: str, *, allow: bool) -> dict[str, Any]:
    """What is known of leakage between what ``run`` has seen and ``split`` of ``reader``, for metrics.json.

    On the records that the run was trained on its certificate must be clean (its own training split may be judged, and
    is said not to be); on others no patient, study or image of
    the split may be among its training and validation rows.

    Raises:
        RecordError: there is leakage, and it is not allowed.
        CheckpointError: nothing says what the run has seen, and it is not allowed.
    """
    if reader.dataset_sha256 == run.dataset_sha256:
        if split == "train":
            return {"clean": False, "told_by": "the run learned from this very split", "shared": []}
        known = run.meta.get(CERTIFICATE_KEY)
        found = require_clean(known or certify(reader), reader.folder, allow=allow)
        return {"clean": found["clean"], "told_by": "certificate" if known else "records", "shared": found["shared"]}
    with contextlib.ExitStack() as stack:
        try:
            seen = run_side(run.run, run.meta, None, stack)
        except CheckpointError:
            if not allow:
                raise
            return {"clean": None, "told_by": "nothing: the run has no certificate", "shared": []}
        pairs = across(seen, records_side(reader, (split,)))
    leaks = [pair for pair in pairs if not pair.is_clean]
    if leaks and not allow:
        raise RecordError(
            f"{reader.folder}: expected nothing of split {split!r} in what {run.run} was trained on, found "
            + "; ".join(f"{pair.text} of its {pair.a} split" for pair in leaks)
            + f" (told by {seen.told_by}); judge others, or --allow-leakage"
        )
    return {"clean": not leaks, "told_by": seen.told_by, "shared": [pair.row() for pair in pairs]}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the verb prints: the sides by name, and every pair that was compared."""

    a: Side
    b: Side | None
    pairs: list[Pair]

    @property
    def is_clean(self) -> bool:
        """No pair shares anything."""
        return all(pair.is_clean for pair in self.pairs)


def check(a: Path, b: Path | None, records: Path | None) -> Finding:
    """Compare every two splits of ``a``, or with ``b`` what one holds with what the other holds.

    Raises:
        FastichError: one of its kinds: a path is nothing that can be compared.
    """
    with contextlib.ExitStack() as stack:
        if b is not None:
            first, second = (open_side(path, records if is_run(path) else None, stack) for path in (a, b))
            return Finding(a=first, b=second, pairs=across(first, second))
        certified = None if records else _certificate_in(a)
        if certified:
            return Finding(a=certificate_side(a, certified), b=None, pairs=certified_pairs(certified))
        side = open_side(a, records, stack)
        return Finding(a=side, b=None, pairs=within(side))


def _certificate_in(path: Path) -> Mapping[str, Any] | None:
    """The certificate of a run or model folder; ``None`` for records and files, and for a run from before there was."""
    if is_run(path):
        found: Mapping[str, Any] | None = checkpoint.read_meta(path / checkpoint.BEST).get(CERTIFICATE_KEY)
        return found
    return model_certificate(path) if (path / MANIFEST).is_file() else None


def document(found: Finding) -> dict[str, Any]:
    """What ``--json`` prints."""
    sides = {"a": found.a} | ({} if found.b is None else {"b": found.b})
    return {
        "clean": found.is_clean,
        **{
            key: {
                "path": str(side.path),
                "told_by": side.told_by,
                "splits": {name: {kind: len(ids[kind]) for kind in ids} for name, ids in side.splits.items()},
            }
            for key, side in sides.items()
        },
        "shared": [pair.row() | {"examples": dict(pair.examples)} for pair in found.pairs],
    }


def table(found: Finding) -> Iterator[str]:
    """Lines for a terminal: the sides, a line a pair with what it shares and up to five examples, the verdict."""
    for side in (found.a, found.b):
        if side is not None:
            held = "; ".join(f"{name}: {_held(ids)}" for name, ids in side.splits.items())
            yield f"{side.path} (told by {side.told_by}): {held}"
    for pair in found.pairs:
        unknown = [WORDS.get(kind, kind) for kind, count in pair.counts.items() if count is None]
        looked = f" (not known: {', '.join(unknown)})" if unknown else ""
        yield f"{pair.a} / {pair.b}: {pair.text or 'nothing shared'}{looked}"
        for kind, names in pair.examples.items():
            more = " ..." if (pair.counts[kind] or 0) > len(names) else ""
            yield f"  {WORDS.get(kind, kind)}: {', '.join(names)}{more}"
    yield "clean" if found.is_clean else "LEAKING: figures of one on the other would be too good"


def _held(ids: Ids) -> str:
    return ", ".join(f"{len(found)} {WORDS.get(kind, kind)}" for kind, found in ids.items() if kind != "copies")


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = verb.parser("leakage", __doc__)
    made.add_argument("a", type=Path, metavar="A", help="records, run or model folder, or one of NIfTI files")
    made.add_argument("b", type=Path, metavar="B", nargs="?", help="another of them; without it the splits of A")
    made.add_argument("--records", type=Path, help="the records that a run was trained on, where they moved")
    made.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    args = made.parse_args(argv)
    found = check(args.a, args.b, args.records)
    print(json.dumps(document(found), indent=2, allow_nan=False) if args.json else "\n".join(table(found)))
    return 0 if found.is_clean else 1


if __name__ == "__main__":
    verb.run(main)
