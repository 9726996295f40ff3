"""Splits and samples: no patient on two sides, rare labels everywhere, nothing left to chance but the seed."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastich.hu import is_blank
from fastich.labels import LABELS
from fastich.splits import SPLITS, assign_folds, assign_splits, patient_groups, sample_patients


def make_table(num_patients, *, seed=0, rates=(0.1, 0.2, 0.2, 0.25, 0.3), slices=(20, 41)):
    """Patients of 20-40 slices; a patient with a label has it on a third of the slices."""
    rng = np.random.default_rng(seed)
    patients, labels = [], []
    for number in range(num_patients):
        count = int(rng.integers(*slices))
        has = rng.random(len(rates)) < rates
        rows = (rng.random((count, len(rates))) < 0.33) & has
        rows[0] = has
        patients += [f"ID_{number * 7919 % 1000:04d}"] * count
        labels.append(np.c_[rows, rows.any(axis=1)].astype(np.int8))
    keys = [f"pixels {i}" for i in range(len(patients))]
    return np.asarray(patients, dtype=object), np.asarray(keys, dtype=object), np.concatenate(labels)


def patients_with(patients, labels, column):
    return set(patients[labels[:, column] == 1])


@pytest.mark.parametrize("seed", range(5))
def test_sixty_studies_put_every_label_into_every_split(seed):
    patients, keys, labels = make_table(60, seed=seed)
    split = assign_splits(patients, keys, labels, seed=seed)
    for column, label in enumerate(LABELS):
        carriers = patients_with(patients, labels, column)
        present = {split[patients == name][0] for name in carriers}
        assert len(present) == min(3, len(carriers)), f"{label}: {len(carriers)} patients in {present}"


@pytest.mark.parametrize(("val", "test"), [(0.15, 0.15), (0.1, 0.3), (0.0, 0.2)])
def test_shares_of_slices_and_of_each_label_are_as_asked(val, test):
    patients, keys, labels = make_table(800)
    split = assign_splits(patients, keys, labels, seed=1, val=val, test=test)
    for name, share in zip(SPLITS, (1 - val - test, val, test), strict=True):
        assert (split == name).mean() == pytest.approx(share, abs=0.01)
        for column in range(len(LABELS)):
            carriers = patients_with(patients, labels, column)
            got = len(patients_with(patients[split == name], labels[split == name], column))
            assert got == pytest.approx(share * len(carriers), abs=max(3, 0.05 * len(carriers)))


def test_no_patient_stands_in_two_splits():
    patients, keys, labels = make_table(60)
    split = assign_splits(patients, keys, labels, seed=0)
    assert all(len(set(split[patients == name])) == 1 for name in set(patients))


def test_patients_are_joined_through_identical_pixels_transitively():
    patients = ["a", "a", "b", "b", "c", "c", "d"]
    keys = ["1", "2", "2", "3", "3", "4", "5"]
    groups = patient_groups(patients, keys)
    assert groups.tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_split_keeps_joined_patients_together():
    patients, keys, labels = make_table(60)
    names = sorted(set(patients))
    chain = [[np.flatnonzero(patients == name)[i] for i in (3, 4)] for name in names[:12]]
    for (_, left), (right, _) in itertools.pairwise(chain):
        keys[right] = keys[left]
    split = assign_splits(patients, keys, labels, seed=0)
    assert len(set(split[np.isin(patients, names[:12])])) == 1


def test_blank_images_join_nobody():
    assert patient_groups(["a", "b"], ["", ""]).tolist() == [0, 1]
    assert is_blank(np.zeros((4, 4), dtype=np.uint16))
    padded = np.full((4, 4), 24, dtype=np.uint16)
    padded[0] = 0
    assert is_blank(padded)
    padded[1, 1] = 25
    assert not is_blank(padded)


def test_same_seed_gives_the_same_split_whatever_the_row_order():
    patients, keys, labels = make_table(60)
    split = assign_splits(patients, keys, labels, seed=3)
    order = np.random.default_rng(9).permutation(len(patients))
    assert (assign_splits(patients[order], keys[order], labels[order], seed=3) == split[order]).all()
    assert (assign_splits(patients, keys, labels, seed=4) != split).any()


@pytest.mark.parametrize(("count", "expected"), [(1, {"train"}), (2, {"train", "test"}), (3, {"train", "test", "val"})])
def test_a_label_of_few_patients_trains_first_then_tests_then_validates(count, expected):
    patients, keys, labels = make_table(40, rates=(0, 0.2, 0.2, 0.2, 0.2))
    rare = sorted(set(patients))[:count]
    labels[np.isin(patients, rare), 0] = 1
    split = assign_splits(patients, keys, labels, seed=0)
    assert set(split[labels[:, 0] == 1]) == expected


def test_one_patient_trains():
    split = assign_splits(["a", "a"], ["1", "2"], np.zeros((2, 6), dtype=np.int8), seed=0)
    assert split.tolist() == ["train", "train"]


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.2, 1.0), (float("nan"), 0.1)])
def test_shares_that_leave_nothing_to_train_on_are_refused(val, test):
    with pytest.raises(ValueError, match="val and test must be >= 0 and below 1 together"):
        assign_splits(["a"], ["1"], np.zeros((1, 6), dtype=np.int8), seed=0, val=val, test=test)


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_sample_takes_whole_patients_and_about_the_fraction(fraction):
    patients, _, labels = make_table(800)
    taken = sample_patients(patients, labels, fraction=fraction, seed=0)
    assert all(len(set(taken[patients == name])) == 1 for name in set(patients))
    assert taken.mean() == pytest.approx(fraction, abs=0.005)
    for column in range(len(LABELS)):
        share = len(patients_with(patients[taken], labels[taken], column)) / len(
            patients_with(patients, labels, column)
        )
        assert share == pytest.approx(fraction, abs=0.05)


def test_sample_depends_on_the_seed_only():
    patients, _, labels = make_table(60)
    taken = sample_patients(patients, labels, fraction=0.25, seed=0)
    order = np.random.default_rng(9).permutation(len(patients))
    assert (sample_patients(patients[order], labels[order], fraction=0.25, seed=0) == taken[order]).all()
    assert (sample_patients(patients, labels, fraction=0.25, seed=1) != taken).any()
    assert sample_patients(patients, labels, fraction=1.0, seed=0).all()


@pytest.mark.parametrize("fraction", [0, -1, 1.01, float("nan")])
def test_sample_refuses_what_is_no_fraction(fraction):
    with pytest.raises(ValueError, match=r"sample must be in \(0, 1\]"):
        sample_patients(["a"], np.zeros((1, 6), dtype=np.int8), fraction=fraction, seed=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=40), st.integers(0, 99))
def test_neither_patient_nor_image_ever_crosses_a_split(rows, seed):
    patients = [f"p{patient}" for patient, _ in rows]
    keys = [f"k{key}" if key else "" for _, key in rows]
    split = assign_splits(patients, keys, np.zeros((len(rows), 6), dtype=np.int8), seed=seed)
    for shared in (patients, keys):
        for value in set(shared) - {""}:
            assert len({s for s, v in zip(split, shared, strict=True) if v == value}) == 1


def test_folds_share_out_slices_and_every_label():
    patients, keys, labels = make_table(800)
    fold = assign_folds(patients, keys, labels, num_folds=5, seed=1)
    assert fold.dtype == np.int64
    for number in range(5):
        mine = fold == number
        assert mine.mean() == pytest.approx(0.2, abs=0.01)
        for column in range(len(LABELS)):
            carriers = len(patients_with(patients, labels, column))
            assert len(patients_with(patients[mine], labels[mine], column)) == pytest.approx(
                carriers / 5, abs=max(3, 0.01 * carriers)
            )


@pytest.mark.parametrize("seed", range(5))
def test_rarest_label_reaches_every_fold_that_it_can(seed):
    patients, keys, labels = make_table(60, seed=seed, rates=(0.1, 0.5, 0.5, 0.5, 0.5))
    fold = assign_folds(patients, keys, labels, num_folds=5, seed=seed)
    carriers = patients_with(patients, labels, 0)
    assert len(set(fold[labels[:, 0] == 1])) == min(5, len(carriers))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12), st.integers(0, 63)), min_size=1, max_size=40),
    st.integers(2, 5),
    st.integers(0, 99),
)
def test_no_patient_or_image_crosses_folds_and_none_is_empty(rows, num_folds, seed):
    patients = [f"p{patient}" for patient, _, _ in rows]
    keys = [f"k{key}" if key else "" for _, key, _ in rows]
    labels = np.array([[bits >> column & 1 for column in range(6)] for _, _, bits in rows], dtype=np.int8)
    groups = len(set(patient_groups(patients, keys)))
    if groups < num_folds:
        with pytest.raises(ValueError, match=f"a fold too small: expected 2 to {groups} folds"):
            assign_folds(patients, keys, labels, num_folds=num_folds, seed=seed)
        return
    fold = assign_folds(patients, keys, labels, num_folds=num_folds, seed=seed)
    assert set(fold) == set(range(num_folds))
    for shared in (patients, keys):
        for value in set(shared) - {""}:
            assert len({one for one, other in zip(fold, shared, strict=True) if other == value}) == 1


def test_folds_depend_on_the_seed_whatever_the_row_order():
    patients, keys, labels = make_table(60)
    fold = assign_folds(patients, keys, labels, num_folds=4, seed=3)
    order = np.random.default_rng(9).permutation(len(patients))
    assert (assign_folds(patients[order], keys[order], labels[order], num_folds=4, seed=3) == fold[order]).all()
    assert (assign_folds(patients, keys, labels, num_folds=4, seed=4) != fold).any()


def test_patients_joined_by_pixels_are_too_few_for_the_folds():
    with pytest.raises(
        ValueError, match=r"for there are 1 patients .*, found 2; use fewer folds or pack more patients"
    ):
        assign_folds(["a", "b"], ["same", "same"], np.zeros((2, 6), dtype=np.int8), num_folds=2, seed=0)
