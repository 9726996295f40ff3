"""What two splits share, counted and with examples: of one data set, of two, or as a certificate counted it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from fastich.errors import UsageError
from fastich.fingerprints import IMAGES, KINDS, Ids, IdSet, shared, without
from fastich.leakage_sides import NO_SPLIT, Side

NUM_EXAMPLES = 5
WORDS = {"copies": "copied studies", "pixels": "images", "ids": "ids in file names"}
"""Kinds as a message calls them, where that is not their own name."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What split ``a`` and split ``b`` share, by kind; ``None`` where it cannot be told."""

    a: str
    b: str
    counts: Mapping[str, int | None]
    examples: Mapping[str, list[str]]

    @property
    def is_clean(self) -> bool:
        """Nothing that could be looked at is shared."""
        return not any(self.counts.values())

    def row(self) -> dict[str, Any]:
        """The pair as JSON values, without examples."""
        return {"a": self.a, "b": self.b, **self.counts}

    @property
    def text(self) -> str:
        """``3 patients, 4 studies, 24 images``."""
        return ", ".join(f"{count} {WORDS.get(kind, kind)}" for kind, count in self.counts.items() if count)


def pairs_of(splits: Mapping[str, Ids]) -> list[Pair]:
    """What every two of ``splits`` share."""
    return [_pair(a, b, shared(splits[a], splits[b])) for a, b in combinations(splits, 2)]


def within(side: Side) -> list[Pair]:
    """What every two splits of a data set share; rows of no split do not count.

    Raises:
        UsageError: there are no two.
    """
    splits = {name: ids for name, ids in side.splits.items() if name != NO_SPLIT}
    if len(splits) < 2:
        raise UsageError(f"{side.path}: expected two splits to compare, found {len(splits)}; name a second data set")
    return pairs_of(splits)


def across(first: Side, second: Side) -> list[Pair]:
    """What each split of one side shares with each split of the other."""
    looked_at = [side.is_blank for side in (first, second) if side.is_blank is not None]
    return [
        _pair(a, b, _without_blank(shared(first.splits[a], second.splits[b]), looked_at))
        for a, b in product(first.splits, second.splits)
    ]


def _without_blank(found: dict[str, IdSet | None], looked_at: list[Callable[[str], bool]]) -> dict[str, IdSet | None]:
    """Leave out images that the side which names them says are blank: equal by chance in two data sets."""
    if not looked_at:
        return found
    return {
        kind: without(ids, (looked_at[0](str(name)) for name in ids.names))
        if kind in IMAGES and ids is not None and ids.names is not None
        else ids
        for kind, ids in found.items()
    }


def certified_pairs(found: Mapping[str, Any]) -> list[Pair]:
    """The pairs that a certificate counts; they have no examples."""
    counted = [({kind: row[kind] for kind in KINDS}, row) for row in found["shared"]]
    return [Pair(a=row["a"], b=row["b"], counts=counts, examples={}) for counts, row in counted]


def _pair(a: str, b: str, found: Mapping[str, IdSet | None]) -> Pair:
    return Pair(
        a=a,
        b=b,
        counts={kind: None if ids is None else len(ids) for kind, ids in found.items()},
        examples={
            kind: [str(name) for name in ids.names[:NUM_EXAMPLES]]
            for kind, ids in found.items()
            if ids is not None and ids.names is not None and len(ids)
        },
    )
