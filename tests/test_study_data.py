from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fastich.embeddings import Store
from fastich.training.study_data import (
    Changes,
    Series,
    StudyBatch,
    StudySet,
    choose_slices,
    gaps_mm,
    look_up,
    rows_of,
    series_of,
)

NAN = float("nan")


def index(lengths: dict[str, list[int]]) -> pd.DataFrame:
    """Studies with the lengths of their series; slices 5 mm apart."""
    rows = [
        {"study_uid": study, "series_uid": f"{study}.{number}", "z_mm": 5.0 * z}
        for study, series in lengths.items()
        for number, length in enumerate(series)
        for z in range(length)
    ]
    return pd.DataFrame(rows)


def store(rows: np.ndarray, offset: float = 0.0) -> Store:
    """Row r has embedding (r, r) and logits r, plus ``offset``."""
    values = (rows[:, None] + offset).astype(np.float32)
    embedding, logit = values.repeat(2, axis=1).astype(np.float16), values.repeat(6, axis=1)
    return Store(folder=Path("toy"), embedding=embedding, logit=logit, rows=rows)


def studies(lengths: list[int], extra: tuple[Store, ...] = ()) -> StudySet:
    frame = index({f"s{number}": [length] for number, length in enumerate(lengths)})
    labels = np.zeros((len(frame), 6), dtype=np.int8)
    labels[::3] = 1
    every = np.arange(len(frame))
    return StudySet(series=series_of(frame, every), labels=labels, stores=(store(every), *extra))


def batch_of(made: StudySet, epoch: int = 0, **changes: object) -> StudyBatch:
    (batch,) = made.training_batches(epoch, len(made.series), Changes(**changes))
    return batch


def test_each_series_is_a_sequence_and_is_taken_whole() -> None:
    frame = index({"a": [2, 3], "b": [1], "c": [4]})
    found = series_of(frame, np.array([3, 8]))  # one slice of a's second series, one of c's
    assert [one.study_uid for one in found] == ["a", "c"]
    assert [one.rows.tolist() for one in found] == [[2, 3, 4], [6, 7, 8, 9]]
    assert found[1].z_mm.tolist() == [0, 5, 10, 15]


def test_gaps_are_distances_from_the_slice_before_and_unknown_where_a_place_is() -> None:
    found = gaps_mm(np.array([10.0, 7.5, NAN, 0.0, 5.0]))
    np.testing.assert_array_equal(found, np.array([NAN, 2.5, NAN, NAN, 5.0], dtype=np.float32))
    assert found.dtype == np.float32


@pytest.mark.parametrize("length", [1, 800])
def test_a_study_of_any_length_is_read(length: int) -> None:
    (batch,) = studies([length]).batches(4)
    assert batch.embedding.shape == (1, length, 2)
    assert bool(batch.mask.all())
    assert torch.isnan(batch.gap_mm[0, 0])
    assert (batch.gap_mm[0, 1:] == 5).all()


def test_padding_stands_behind_and_is_marked() -> None:
    first, second = studies([2, 4, 3]).batches(2)
    assert first.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert first.rows.tolist() == [[0, 1, -1, -1], [2, 3, 4, 5]]
    assert (first.labels[0, 2:] == -1).all()
    assert torch.isnan(first.gap_mm[0, 2:]).all()
    assert second.rows.tolist() == [[6, 7, 8]]
    assert first.embedding[1, :, 0].tolist() == [2, 3, 4, 5]
    assert first.embedding.dtype == first.logit.dtype == torch.float32


def test_a_study_is_positive_where_a_slice_is_and_unknown_where_all_are() -> None:
    made = studies([3, 3, 3])
    made.labels[:] = 0
    made.labels[1, 2], made.labels[5], made.labels[6:] = 1, -1, -1
    (batch,) = made.batches(3)
    assert batch.study_labels.tolist() == [[0, 0, 1, 0, 0, 0], [0] * 6, [-1] * 6]


def test_training_order_is_new_each_epoch_and_the_same_again() -> None:
    made = studies([2] * 20)
    rows = [batch_of(made, epoch).rows.tolist() for epoch in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    assert sorted(row for study in rows[2] for row in study) == list(range(40))
    assert batch_of(made, 0, seed=1).rows.tolist() != rows[0]


def test_what_happens_to_a_study_does_not_hang_on_its_batch() -> None:
    made, changes = studies([9] * 6), Changes(subsample=1.0, reverse=True)
    together = {tuple(row.tolist()) for batch in made.training_batches(3, 6, changes) for row in batch.rows}
    alone = {tuple(row.tolist()) for batch in made.training_batches(3, 1, changes) for row in batch.rows}
    longest = max(len(row) for row in together)
    assert {row + (-1,) * (longest - len(row)) for row in alone} == together


def test_reversal_turns_every_second_study_around_with_its_gaps() -> None:
    made = studies([5] * 40)
    for series in made.series:
        series.z_mm[:] = [0, 1, 3, 6, 10]
    batch = batch_of(made, reverse=True)
    is_turned = batch.rows[:, 0] > batch.rows[:, 1]
    assert 10 < int(is_turned.sum()) < 30
    assert (batch.gap_mm[is_turned][:, 1:] == torch.tensor([4.0, 3, 2, 1])).all()
    assert (batch.gap_mm[~is_turned][:, 1:] == torch.tensor([1.0, 2, 3, 4])).all()


def test_subsampling_keeps_order_and_measures_gaps_again() -> None:
    batch = batch_of(studies([12] * 60), subsample=1.0)
    lengths = batch.mask.sum(dim=1)
    assert 1 <= lengths.min() < lengths.max() <= 12
    for rows, gaps, length in zip(batch.rows, batch.gap_mm, lengths.tolist(), strict=True):
        assert (rows[:length].diff() > 0).all()
        assert torch.equal(gaps[1:length], 5.0 * rows[:length].diff())
    every_second = (batch.rows[:, 1:6].diff(dim=1) == 2).all(dim=1)
    assert 15 < int(every_second.sum()) < 45


def test_without_changes_a_study_is_as_it_is() -> None:
    batch = batch_of(studies([4] * 10))
    assert (batch.rows.diff(dim=1) == 1).all()


@pytest.mark.parametrize("length", [1, 2])
def test_subsampling_never_empties_a_study(length: int) -> None:
    changes = Changes(subsample=1.0, reverse=True)
    assert all(len(choose_slices(length, np.random.default_rng(seed), changes)) > 0 for seed in range(50))


def test_a_study_to_learn_from_comes_out_of_one_of_the_augmented_stores() -> None:
    made = studies([4] * 60, tuple(store(np.arange(240), offset=offset) for offset in (0.25, 0.5)))
    batch = batch_of(made)
    offset = batch.logit[:, 0, 0] % 1
    assert set(offset.tolist()) == {0.25, 0.5}
    assert 15 < int((offset == 0.5).sum()) < 45
    assert torch.equal(batch.logit[:, :, 0], batch.rows + offset[:, None])


def test_studies_to_be_judged_and_those_without_a_pass_come_out_of_the_whole_store() -> None:
    augmented, plain = studies([4] * 9, (store(np.arange(36), offset=0.5),)), studies([4] * 9)
    for batch in (*augmented.batches(9), batch_of(plain)):
        assert torch.equal(batch.logit[:, :, 0], batch.rows.to(torch.float32))


def test_rows_that_a_pass_lacks_come_from_the_whole_store() -> None:
    whole = store(np.arange(6))
    embedding, logit = look_up(store(np.array([1, 3]), offset=0.5), whole, np.array([0, 1, 3, 5]))
    assert embedding[:, 0].tolist() == logit[:, 0].tolist() == [0, 1.5, 3.5, 5]


def test_series_hold_their_own_places() -> None:
    series = Series(study_uid="s", rows=np.arange(2), z_mm=np.array([NAN, NAN]))
    made = StudySet(series=[series], labels=np.zeros((2, 6), np.int8), stores=(store(np.arange(2)),))
    (batch,) = made.batches(1)
    assert torch.isnan(batch.gap_mm).all()


def test_rows_of_a_split_are_the_labelled_ones() -> None:
    class Reader:
        def labels(self) -> np.ndarray:
            return np.array([[0] * 6, [-1] * 6, [1] * 6], dtype=np.int8)

        def rows(self, split: str) -> np.ndarray:
            return {"train": np.array([0, 1, 2])}[split]

    assert rows_of(Reader(), {}, "train").tolist() == [0, 2]  # type: ignore[arg-type]
