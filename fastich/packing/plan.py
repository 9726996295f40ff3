"""Pass 1 of packing: from headers alone, which slice goes where; saved, so that a resumed pack follows the same plan.

Order of records: patient, study, series, position along the slice normal. Studies are never cut by a shard's border.
Everything depends on the input and the settings, never on the number of workers. Cost: one header read a file
(0.3-1 ms of a core) and about 2 KB of memory a slice.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich.dicom import group_studies
from fastich.errors import FastichError, LabelError
from fastich.geometry import SeriesGeometry
from fastich.labels import LABELS, UNKNOWN
from fastich.rsna import LabelTable
from fastich.splits import sample_patients
from fastich.types import Reject, RejectReason, SliceHeader

MIN_SHARDS = 8
"""Even a small data set is cut this often (study borders permitting): the unit of parallel work and of resuming."""
EXPECTED_RATIO = {"lbp": 3.0, "raw": 1.0}
"""For the number of shards only; LBP flat mode packs real head CT 3.4 times, phantoms about 3 times."""
MIB = 2**20

PLAN_COLUMNS = (
    "path", "frame", "sop_uid", "study_uid", "series_uid", "patient_id", "z_mm", "row_spacing_mm", "col_spacing_mm",
    "slice_spacing_mm", "tilt_deg", "height", "width", "encoding",
)  # fmt: skip


class NothingToPackError(FastichError):
    """The input holds no slice that can be packed, so there is nothing to keep or to resume."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What pass 1 found and decided.

    Attributes:
        rows: PLAN_COLUMNS, the six labels (-1 unknown) and ``shard``, one row a slice in record order; several rows
            may share a ``sop_uid``, of which pass 2 keeps the first whose pixels decode.
        rejects: inputs already left out.
        num_shards: shards to write, at least 1.
        unmatched_labels: ids of the label table that no file has.
        notes: one line for each thing that was put right in the label table.
    """

    rows: pd.DataFrame
    rejects: tuple[Reject, ...]
    num_shards: int
    unmatched_labels: tuple[str, ...]
    notes: tuple[str, ...]


def order_slices(headers: Sequence[SliceHeader]) -> pd.DataFrame:
    """One row a header, columns PLAN_COLUMNS, in record order; a doubled SOP UID stands right after its first.

    Rows of a study, and of a series, stand together and along z: a series that mixes sizes or orientations, and a
    study UID that a second patient has, get ``#2`` and so on behind their UID.
    """
    first: dict[str, SliceHeader] = {}
    again: dict[str, list[SliceHeader]] = defaultdict(list)
    for header in sorted(headers, key=lambda header: (header.path, header.frame)):
        if first.setdefault(header.sop_uid, header) is not header:
            again[header.sop_uid].append(header)
    rows: list[tuple[Any, ...]] = []
    studies: Counter[str] = Counter()
    for study in group_studies(first.values()):
        study_uid = _numbered(study.study_uid, studies)
        parts: Counter[str] = Counter()
        for series in study.series:
            series_uid = _numbered(series.series_uid, parts)
            uids = (study_uid, series_uid, study.patient_id or study_uid)
            # Places closer than the geometry tells apart are ordered by number, so z may fall by as much: make it flat.
            places = np.maximum.accumulate(np.asarray(series.geometry.z_mm, dtype=np.float64))
            for header, z_mm in zip(series.headers, places.tolist(), strict=True):
                for twin in (header, *again[header.sop_uid]):
                    rows.append((twin.path, twin.frame, header.sop_uid, *uids, z_mm, *_facts(header, series.geometry)))
    return pd.DataFrame(rows, columns=list(PLAN_COLUMNS))


def _numbered(uid: str, seen: "Counter[str]") -> str:
    seen[uid] += 1
    return uid if seen[uid] == 1 else f"{uid}#{seen[uid]}"


def _facts(header: SliceHeader, geometry: SeriesGeometry) -> tuple[Any, ...]:
    row_mm, column_mm = header.pixel_spacing_mm or (np.nan, np.nan)
    slice_mm = np.nan if geometry.spacing_mm is None else geometry.spacing_mm
    return row_mm, column_mm, slice_mm, geometry.tilt_deg, header.rows, header.columns, header.encoding


def make_plan(
    headers: Sequence[SliceHeader],
    rejects: Iterable[Reject],
    table: LabelTable | None,
    *,
    labels_name: str,
    sample: float,
    seed: int,
    codec: str,
    size: int | None,
    shards: int | None,
    shard_mb: int,
) -> Plan:
    """Join labels, draw the sample, cut into shards.

    Raises:
        NothingToPackError: no slice can be used; says why.
        LabelError: no label matches any file.
    """
    left_out = list(rejects)
    rows = order_slices(headers)
    require_slices(len(rows), left_out)
    labels, unmatched = _join_labels(rows, [reject.path for reject in left_out], table, labels_name)
    rows[list(LABELS)] = labels
    if table is not None:
        known = labels[:, 0] != UNKNOWN
        left_out += _rejects(rows[~known], RejectReason.UNLABELLED, f"{labels_name} has no row for it")
        rows = rows[known]
    if sample < 1:
        taken = sample_patients(
            rows["patient_id"].to_numpy(object), rows[list(LABELS)].to_numpy(np.int8), fraction=sample, seed=seed
        )
        left_out += _rejects(rows[~taken], RejectReason.NOT_SAMPLED, f"its patient is not in the sample of {sample}")
        rows = rows[taken]
    require_slices(len(rows), left_out)
    rows = rows.reset_index(drop=True)
    pixels = rows["height"].astype(np.int64) * rows["width"] if size is None else pd.Series(size * size, rows.index)
    estimate = float(pixels.sum()) * 2 / EXPECTED_RATIO[codec]
    wanted = shards or max(MIN_SHARDS, int(np.ceil(estimate / (shard_mb * MIB))))
    rows["shard"] = shard_numbers(pd.factorize(rows["study_uid"])[0], wanted)
    return Plan(
        rows=rows,
        rejects=tuple(left_out),
        num_shards=int(rows["shard"].max()) + 1,
        unmatched_labels=unmatched,
        notes=table.notes if table else (),
    )


def _join_labels(
    rows: pd.DataFrame, other_paths: Sequence[str], table: LabelTable | None, labels_name: str
) -> tuple[NDArray[np.int8], tuple[str, ...]]:
    """Labels [N, 6] of the rows by SOP UID, else by file name; and the ids of the table that no file has."""
    labels = np.full((len(rows), len(LABELS)), UNKNOWN, dtype=np.int8)
    if table is None:
        return labels, ()
    ids = pd.Index(table.ids, dtype=object)
    stems = np.asarray([Path(path).stem for path in rows["path"]], dtype=object)
    by_uid, by_name = (ids.get_indexer(pd.Index(names, dtype=object)) for names in (rows["sop_uid"], stems))
    found = np.where(by_uid >= 0, by_uid, by_name)
    if not (found >= 0).any():
        raise LabelError(
            f"{labels_name}: none of its {len(ids)} ids is the SOP Instance UID or the name of one of the {len(rows)} "
            f"slices; the first id is {ids[0]}, the first slice {rows['sop_uid'].iloc[0]} ({rows['path'].iloc[0]})"
        )
    labels[found >= 0] = table.labels[found[found >= 0]]
    used = np.zeros(len(ids), dtype=bool)
    used[found[found >= 0]] = True
    named = ids.get_indexer(pd.Index([Path(path).stem for path in other_paths], dtype=object))
    used[named[named >= 0]] = True
    return labels, tuple(sorted(table.ids[~used]))


def _rejects(rows: pd.DataFrame, reason: RejectReason, detail: str) -> list[Reject]:
    names = (frame_name(path, frame) for path, frame in zip(rows["path"], rows["frame"], strict=True))
    return [Reject(path=name, reason=reason, detail=detail) for name in names]


def frame_name(path: str, frame: int) -> str:
    """How a reject list names a frame: ``a.dcm``, and ``a.dcm#7`` for a later frame of a multi-frame file."""
    return f"{path}#{frame}" if frame else path


def require_slices(num_slices: int, rejects: Iterable[Reject]) -> None:
    """Refuse to make an empty data set.

    Raises:
        NothingToPackError: there is no slice; counts the rejects by reason.
    """
    if num_slices == 0:
        raise NothingToPackError(f"no usable CT slice: {describe_rejects(rejects) or 'the folder holds no file'}")


def describe_rejects(rejects: Iterable[Reject]) -> str:
    """``3 not DICOM, 1 damaged pixels``."""
    return ", ".join(f"{count} {reason}" for reason, count in count_rejects(rejects).items())


def count_rejects(rejects: Iterable[Reject]) -> dict[str, int]:
    """How many inputs each reason left out, most frequent first."""
    counts = Counter(reject.reason.value for reject in rejects)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def shard_numbers(study_codes: NDArray[np.int64], num_shards: int) -> NDArray[np.int32]:
    """The shard of each row, int32 [N] from 0 without gaps: about equal slice counts, cut at study borders."""
    _, starts, counts = np.unique(study_codes, return_index=True, return_counts=True)
    middle = (starts + counts / 2) / len(study_codes)
    _, dense = np.unique(np.floor(middle * num_shards).astype(np.int64), return_inverse=True)
    return np.repeat(dense, counts).astype(np.int32)
