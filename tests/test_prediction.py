"""One split through one network or through the networks of a k-fold run: which rows, which logits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from loaders_data import write_records
from torch import nn

from fastich.checkpoint import LoadedRun
from fastich.errors import CheckpointError, FastichError, UsageError
from fastich.folds import fold_of_rows, run_rows
from fastich.labels import ANY, LABELS
from fastich.records.reader import RecordReader
from fastich.report.results import LOGIT_COLUMNS, PROBABILITY_COLUMNS
from fastich.training import prediction
from fastich.training.precision import choose_precision
from fastich.training.prediction import Feed, load_members, predict_members, predict_split, prediction_table
from fastich.windowing import DEFAULT_WINDOWS

NUM_FOLDS, FOLD_SEED, SIZE = 3, 5, 32
FEED = Feed(precision=choose_precision(False, torch.device("cpu")), batch_size=4, loader="cpu", threads=1)


class Says(nn.Module):
    """A network that says one number and, a tenth as loud, how bright the left half of a slice is."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        left = images[:, 0, :, : SIZE // 2].mean(dim=(1, 2)) / 10
        return torch.stack([left + self.number] * 5 + [left + self.number - 1], dim=1)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients of four slices, two of which have no label."""
    made = tmp_path_factory.mktemp("prediction") / "records"
    write_records(made, [(40, 40)] * 24, series_length=4)
    return made


@pytest.fixture(scope="module")
def reader(records: Path) -> RecordReader:
    return RecordReader(records)


def run_of(reader: RecordReader, number: float, dataset_sha256: str = "", **config: int) -> LoadedRun:
    model: Any = Says(number)
    return LoadedRun(
        run=Path("run"),
        model=model,
        config=config,
        dataset_sha256=dataset_sha256 or reader.dataset_sha256,
        epoch=1,
        size=SIZE,
        windows=DEFAULT_WINDOWS,
        adjacent=False,
        meta={},
    )


def members_of(reader: RecordReader, **changes: str) -> list[LoadedRun]:
    return [
        run_of(reader, fold, folds=NUM_FOLDS, fold=fold, fold_seed=FOLD_SEED, **changes) for fold in range(NUM_FOLDS)
    ]


def rounded(table: pd.DataFrame) -> list[int]:
    """The number that was said of each slice."""
    return [int(value) for value in table[LOGIT_COLUMNS[0]].round()]


def test_table_holds_raw_logits_and_probabilities_that_respect_any(records: Path, reader: RecordReader) -> None:
    table = predict_split(run_of(reader, 1), records, "train", FEED).predictions
    assert list(table.columns[-12:]) == [*PROBABILITY_COLUMNS, *LOGIT_COLUMNS]
    assert table["row"].tolist() == reader.rows("train").tolist()
    logit = table[LOGIT_COLUMNS].to_numpy()
    assert logit.dtype == np.float64
    each = 1 / (1 + np.exp(-logit))
    each[:, ANY] = each.max(axis=1)
    np.testing.assert_allclose(table[PROBABILITY_COLUMNS].to_numpy(), each, rtol=1e-12)
    assert (logit[:, ANY] < logit[:, 0]).all(), "raw: before the rule of any"


def test_run_of_one_fold_validates_on_its_own_rows(records: Path, reader: RecordReader) -> None:
    member = members_of(reader)[1]
    for split in ("train", "val"):
        expected = run_rows(reader, member.config, split).tolist()
        assert predict_split(member, records, split, FEED).predictions["row"].tolist() == expected


def test_folds_mean_nothing_on_other_records(records: Path, reader: RecordReader) -> None:
    others = members_of(reader, dataset_sha256="ab" * 32)
    table = predict_split(others[0], records, "train", FEED).predictions
    assert table["row"].tolist() == reader.rows("train").tolist()
    found = predict_members(others, records, "train", FEED).predictions
    assert found["row"].tolist() == reader.rows("train").tolist()
    assert set(rounded(found)) == {1}, "the mean of 0, 1 and 2"


def test_each_slice_is_validated_by_the_network_that_did_not_see_it(records: Path, reader: RecordReader) -> None:
    found = predict_members(members_of(reader), records, "val", FEED).predictions
    fold_of = fold_of_rows(reader, num_folds=NUM_FOLDS, seed=FOLD_SEED)
    assert found["row"].tolist() == np.flatnonzero(fold_of >= 0).tolist()
    assert rounded(found) == fold_of[found["row"]].tolist()


def test_unseen_slices_get_the_mean_of_all_logits(records: Path, reader: RecordReader) -> None:
    members = members_of(reader)
    found = predict_members(members, records, "", FEED)
    parts = [predict_split(member, records, "", FEED).predictions[LOGIT_COLUMNS] for member in members]
    np.testing.assert_allclose(found.predictions[LOGIT_COLUMNS], np.mean(parts, axis=0), rtol=1e-12)
    mean = found.predictions[LOGIT_COLUMNS[0]]
    np.testing.assert_allclose(found.predictions[PROBABILITY_COLUMNS[0]], 1 / (1 + np.exp(-mean)), rtol=1e-12)
    assert found.slices_per_s > 0


def test_train_split_of_a_k_fold_run_is_refused(records: Path, reader: RecordReader) -> None:
    with pytest.raises(UsageError, match=r"a k-fold run has none of its own, for its 3 networks .* judge val"):
        predict_members(members_of(reader), records, "train", FEED)


def test_views_are_averaged(records: Path, reader: RecordReader) -> None:
    run = run_of(reader, 0)
    plain = predict_members([run], records, "train", FEED).predictions[LOGIT_COLUMNS[0]]
    found = predict_members([run], records, "train", FEED, ("flip",)).predictions[LOGIT_COLUMNS[0]]
    assert (plain - found).abs().max() > 1e-3
    whole = predict_members([run], records, "train", FEED, ("flip", "crop")).predictions[LOGIT_COLUMNS[0]]
    assert (whole - found).abs().max() > 1e-4


def test_members_are_the_folds_of_a_k_fold_run_or_the_run_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "load_run", lambda run, which: (run, which))
    assert load_members(tmp_path, "last") == ((tmp_path, "last"),)
    (tmp_path / "config.json").write_text(json.dumps({"folds": 2, "fold": -1}))
    (tmp_path / "fold-0").mkdir()
    (tmp_path / "fold-0" / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="expected 2 finished folds, found 1; train the others"):
        load_members(tmp_path)
    (tmp_path / "fold-1").mkdir()
    (tmp_path / "fold-1" / "run.json").write_text("{}")
    assert load_members(tmp_path) == ((tmp_path / "fold-0", "best"), (tmp_path / "fold-1", "best"))


def test_logit_that_is_not_finite_names_the_slice() -> None:
    index = pd.DataFrame(
        {name: ["a", "b"] for name in ("sop_uid", "study_uid", "patient_id")} | dict.fromkeys(LABELS, 0)
    )
    bad = np.array([[0.5] * 6, [np.nan] * 6])
    with pytest.raises(FastichError, match="not finite for 1 slices, first a"):
        prediction_table(index, np.array([1, 0]), bad)
