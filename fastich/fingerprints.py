"""Who and what a set of slices holds, as hashes: sets that two data sets can be compared by without giving ids away.

A patient, study, series or image becomes 8 bytes of SHA-256 over a constant salt and its id (an image's id is its
``pixel_sha1``), so 750,000 images against 100,000 agree by chance with probability 4e-9. The salt is no secret: it
keeps ids out of a file, and whoever has a list of ids can look them up. About 1 us an id.

A full set of images is too large to travel with a model (750,000 x 8 bytes), so a *copy* mark goes instead: of each
study the smallest hash of its images. A study filed again under other ids is found by it; a single image that two
studies share only if it happens to be the smallest of both.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

KINDS = ("patients", "studies", "series", "pixels", "copies")
"""``pixels`` are images that are not blank, ``copies`` one image a study (module docstring)."""
IMAGES = ("pixels", "copies")
ANY_KIND = "ids"
"""Ids that may be those of patients, studies or series: what file names hold."""
_SALT = "fastich leakage 1\0"
_CODE = np.dtype("<u8")


@dataclass(frozen=True, kw_only=True)
class IdSet:
    """Distinct hashes ``codes`` uint64 [n], ascending, and what each stands for; ``names`` is ``None`` once packed."""

    codes: NDArray[np.uint64]
    names: NDArray[np.object_] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def digest(self) -> str:
        """Hex SHA-256 of the sorted hashes: equal sets have equal digests."""
        return hashlib.sha256(self.codes.astype(_CODE).tobytes()).hexdigest()


Ids = Mapping[str, IdSet]
"""The sets of one split or data set by kind; a kind that is not known is left out."""


def id_set(ids: Collection[str], names: Collection[str] | None = None) -> IdSet:
    """The hashes of ``ids``; each stands for the first of ``names`` (by default the id itself)."""
    hashed = np.fromiter((_code(one) for one in ids), dtype=np.uint64, count=len(ids))
    codes, first = np.unique(hashed, return_index=True)
    return IdSet(codes=codes, names=np.array(list(ids if names is None else names), dtype=object)[first])


def _code(one: str) -> int:
    return int.from_bytes(hashlib.sha256((_SALT + one).encode()).digest()[:8], "little")


def pack(ids: IdSet) -> str:
    """The hashes as base64 text: 8 bytes each, little-endian, ascending (11 characters an id)."""
    return base64.b64encode(ids.codes.astype(_CODE).tobytes()).decode("ascii")


def unpack(text: str) -> IdSet:
    """The set that ``pack`` wrote, without names.

    Raises:
        ValueError: it is not base64 of ascending 8-byte numbers.
    """
    try:
        codes = np.frombuffer(base64.b64decode(text, validate=True), dtype=_CODE).astype(np.uint64)
    except binascii.Error as error:
        raise ValueError(f"packed ids: expected base64, found {error}") from error
    if (codes[1:] <= codes[:-1]).any():
        raise ValueError("packed ids: expected ascending numbers, found others")
    return IdSet(codes=codes)


def common(first: IdSet, second: IdSet) -> IdSet:
    """What both hold, under the names of the first, or of the second where the first has none."""
    codes, in_first, in_second = np.intersect1d(first.codes, second.codes, assume_unique=True, return_indices=True)
    if first.names is not None:
        return IdSet(codes=codes, names=first.names[in_first])
    return IdSet(codes=codes, names=None if second.names is None else second.names[in_second])


def shared(first: Ids, second: Ids) -> dict[str, IdSet | None]:
    """What two sides share, by kind; ``None`` where a side does not know its ids of that kind."""
    if ANY_KIND in first and ANY_KIND in second:
        return {ANY_KIND: common(first[ANY_KIND], second[ANY_KIND])}
    found: dict[str, IdSet | None] = {}
    for kind in KINDS:
        sides = [_of_kind(side, kind) for side in (first, second)]
        found[kind] = None if sides[0] is None or sides[1] is None else common(sides[0], sides[1])
    return found


def _of_kind(side: Ids, kind: str) -> IdSet | None:
    return side.get(kind, None if kind in IMAGES else side.get(ANY_KIND))


def of_rows(rows: pd.DataFrame, blank: Collection[str] = ()) -> dict[str, IdSet]:
    """The sets of some rows of an index; images whose ``pixel_sha1`` is in ``blank`` are left out.

    An image stands for the ``sop_uid`` of its first row.
    """
    images = rows.loc[~rows["pixel_sha1"].isin(list(blank)), ["study_uid", "pixel_sha1", "sop_uid"]]
    smallest = images.sort_values("pixel_sha1", kind="stable").drop_duplicates("study_uid")
    distinct = images.drop_duplicates("pixel_sha1")
    return {
        "patients": id_set(rows["patient_id"].unique().tolist()),
        "studies": id_set(rows["study_uid"].unique().tolist()),
        "series": id_set(rows["series_uid"].unique().tolist()),
        "pixels": id_set(distinct["pixel_sha1"].tolist(), distinct["sop_uid"].tolist()),
        "copies": id_set(smallest["pixel_sha1"].tolist(), smallest["sop_uid"].tolist()),
    }


def blank_hashes(index: pd.DataFrame, is_blank: Callable[[int], bool]) -> set[str]:
    """``pixel_sha1`` of the blank images that stand in two rows or more of ``index``: they are equal by chance.

    Only such rows are asked about: the first of each, by its row number.
    """
    repeated = index.loc[index["pixel_sha1"].duplicated(keep=False), "pixel_sha1"].drop_duplicates()
    return {sha1 for row, sha1 in repeated.items() if is_blank(int(str(row)))}


def without(ids: IdSet, leave_out: Iterable[bool]) -> IdSet:
    """``ids`` without those that ``leave_out`` [n] marks."""
    kept = ~np.fromiter(leave_out, dtype=bool, count=len(ids))
    return IdSet(codes=ids.codes[kept], names=None if ids.names is None else ids.names[kept])
