"""Who trains, who validates, who tests: decided once, by patient, and written into the index.

Two slices of one patient, or the same image filed under two patients, on both sides of a split make every figure a lie.
So the unit is a group: patients joined, transitively, by identical pixels. Groups are dealt out by iterative
stratification, rarest label first, so that 0.4 % epidural reaches every split where enough patients have it.
The result depends on the seed and the data, never on the order of rows. Cost: about 1 s for 750,000 slices.

Source: Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data", ECML PKDD 2011.
Shapes: N slices, G groups, S splits, L label columns.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Names = Sequence[str] | NDArray[Any]
"""One name a slice: a list of str, or an object array [N]."""

SPLITS = ("train", "val", "test")
FLOOR_ORDER = (0, 2, 1)
"""With one patient for a label it trains, with two the second tests, with three the third validates."""
SPLIT_STREAM, SAMPLE_STREAM, FOLD_STREAM = 1, 2, 3
"""Second word of the seed, so that sample, split and folds draw independent numbers."""


def patient_groups(patient_ids: Names, pixel_keys: Names) -> NDArray[np.int64]:
    """Group number [N] of each slice: patients who share a pixel key, transitively, are one group.

    Args:
        patient_ids: the patient of each slice [N].
        pixel_keys: a hash of each slice's pixels [N]; "" joins nothing (blank images).
    """
    names, patient = _codes(patient_ids)
    keys = np.asarray(pixel_keys, dtype=object)
    used = keys != ""
    key_names, key = _codes(keys[used])
    num_nodes = len(names) + len(key_names)
    edges = coo_matrix((np.ones(len(key), dtype=np.int8), (patient[used], key + len(names))), (num_nodes, num_nodes))
    _, component = connected_components(edges, directed=False)
    _, first_seen, number = np.unique(component[: len(names)], return_index=True, return_inverse=True)
    rank = np.empty(len(first_seen), dtype=np.int64)
    rank[np.argsort(first_seen)] = np.arange(len(first_seen))
    return np.asarray(rank[number][patient])


def _codes(values: Names) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """Sorted distinct values and the number of each value among them."""
    code, names = pd.factorize(np.asarray(values, dtype=object), sort=True)
    return np.asarray(names, dtype=object), np.asarray(code, dtype=np.int64)


def assign_splits(
    patient_ids: Names,
    pixel_keys: Names,
    labels: NDArray[np.int8],
    *,
    seed: int,
    val: float = 0.15,
    test: float = 0.15,
) -> NDArray[np.object_]:
    """The split of each slice, object array [N] of "train", "val" and "test".

    Args:
        patient_ids: the patient of each slice [N].
        pixel_keys: a hash of each slice's pixels [N]; "" where the image is blank.
        labels: int8 [N, L], 1 where the slice has the label.
        seed: equal seeds give equal splits.
        val: share of the slices for validation, 0 for none.
        test: share of the slices for the test, 0 for none.

    Raises:
        ValueError: the shares leave nothing to train on.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise ValueError(f"val and test must be >= 0 and below 1 together, found {val} and {test}")
    groups = patient_groups(patient_ids, pixel_keys)
    shares = np.asarray([1 - val - test, val, test])
    rng = np.random.default_rng([seed, SPLIT_STREAM])
    dealt = stratify(_group_weights(groups, labels), shares, FLOOR_ORDER, rng)
    return np.asarray(SPLITS, dtype=object)[dealt[groups]]


def assign_folds(
    patient_ids: Names, pixel_keys: Names, labels: NDArray[np.int8], *, num_folds: int, seed: int
) -> NDArray[np.int64]:
    """The fold of each slice, int64 [N] of 0 to ``num_folds`` - 1: as even as whole groups allow, in every label.

    Args:
        patient_ids: the patient of each slice [N].
        pixel_keys: a hash of each slice's pixels [N]; "" where the image is blank.
        labels: int8 [N, L], 1 where the slice has the label.
        num_folds: at least 2.
        seed: equal seeds give equal folds.

    Raises:
        ValueError: there are fewer groups of patients than folds; says how many there are.
    """
    groups = patient_groups(patient_ids, pixel_keys)
    num_groups = len(np.unique(groups))
    if not 2 <= num_folds <= num_groups:
        raise ValueError(
            f"a fold too small: expected 2 to {num_groups} folds, for there are {num_groups} patients (those who share "
            f"pixels count once), found {num_folds}; use fewer folds or pack more patients"
        )
    rng = np.random.default_rng([seed, FOLD_STREAM])
    return stratify(_group_weights(groups, labels), np.full(num_folds, 1 / num_folds), None, rng)[groups]


def sample_patients(patient_ids: Names, labels: NDArray[np.int8], *, fraction: float, seed: int) -> NDArray[np.bool_]:
    """True [N] for the slices of the patients drawn: whole patients, stratified by label, about ``fraction`` of slices.

    Raises:
        ValueError: ``fraction`` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"sample must be in (0, 1], found {fraction}")
    _, groups = _codes(patient_ids)
    rng = np.random.default_rng([seed, SAMPLE_STREAM])
    dealt = stratify(_group_weights(groups, labels), np.asarray([fraction, 1 - fraction]), (0, 1), rng)
    return np.asarray(dealt[groups] == 0)


def _group_weights(groups: NDArray[np.int64], labels: NDArray[np.int8]) -> NDArray[np.int64]:
    """Per group: whether any slice has label l, then the number of slices [G, L + 1]."""
    num_groups = int(groups.max()) + 1 if len(groups) else 0
    positive = [np.bincount(groups[column == 1], minlength=num_groups) > 0 for column in labels.T]
    return np.stack([*positive, np.bincount(groups, minlength=num_groups)], axis=1).astype(np.int64)


def stratify(
    weights_GL: NDArray[np.int64],
    shares_S: NDArray[np.float64],
    floor_order: tuple[int, ...] | None,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Deal groups out to splits so that each column of ``weights_GL`` is divided as ``shares_S`` says; split [G].

    Column by column, the one that the fewest groups have first. A split that has none of the column yet comes first
    (in ``floor_order``), then the one that lacks most of it, then the one that lacks most slices (the last column).
    Without a ``floor_order`` all splits are alike: of those that have none yet, the one that lacks most comes first.
    """
    num_groups, num_columns = weights_GL.shape
    lack_SL = shares_S[:, None] * weights_GL.sum(axis=0, dtype=np.float64)[None, :]
    has_SL = np.zeros((len(shares_S), num_columns), dtype=bool)
    dealt = np.full(num_groups, -1, dtype=np.int64)
    order = rng.permutation(num_groups)
    open_splits = [split for split in floor_order or range(len(shares_S)) if shares_S[split] > 0]
    carriers = (weights_GL > 0).sum(axis=0)
    for column in sorted(range(num_columns), key=lambda c: (c == num_columns - 1, carriers[c])):
        for group in order[(weights_GL[order, column] > 0) & (dealt[order] < 0)]:
            without = [split for split in open_splits if not has_SL[split, column]]
            among = (without[:1] if floor_order else without) or open_splits
            split = max(among, key=lambda s: (lack_SL[s, column], lack_SL[s, -1]))
            dealt[group] = split
            lack_SL[split] -= weights_GL[group]
            has_SL[split] |= weights_GL[group] > 0
    return dealt
