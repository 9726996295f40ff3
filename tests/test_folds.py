"""Folds over the rows of a records folder: who validates, who trains, and that the test split stays aside."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from loaders_data import write_records

from fastich import folds, ops
from fastich.errors import RecordError
from fastich.folds import fold_of_rows, pixel_keys, run_rows
from fastich.loaders import LoaderConfig, open_loader
from fastich.records.reader import RecordReader
from fastich.splits import assign_folds

NUM_PATIENTS, SLICES = 12, 3


class ToyReader:
    """Stands for records of 12 patients of 3 slices; the last two are the test split, two slices have no label."""

    folder = Path("toy")

    def __init__(self) -> None:
        patient = np.repeat(np.arange(NUM_PATIENTS), SLICES)
        self.index = pd.DataFrame(
            {"patient_id": [f"p{one}" for one in patient], "pixel_sha1": [f"{row:x}" for row in range(len(patient))]}
        )
        self.split = np.array(["train", "val", "test"], dtype=object)[(patient > 7) * 1 + (patient > 9) * 1]
        self.split[[4, 5]] = ""
        self.toy_labels = np.zeros((len(patient), 6), np.int8)
        self.toy_labels[np.isin(patient, [1, 3, 5, 8, 11]), 4:] = 1
        self.toy_labels[patient == 2, 0] = self.toy_labels[patient == 2, 5] = 1
        self.images: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.index)

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.split == split)

    def labels(self) -> np.ndarray:
        return self.toy_labels

    def stored(self, row: int) -> np.ndarray:
        return self.images[row]


@pytest.fixture
def reader() -> Any:
    return ToyReader()


def config(fold: int, num_folds: int = 3) -> dict[str, int]:
    return {"folds": num_folds, "fold": fold, "fold_seed": 7}


def test_folds_cover_train_and_val_once_and_leave_the_rest_aside(reader: Any) -> None:
    judged = [run_rows(reader, config(fold), "val") for fold in range(3)]
    learned = [run_rows(reader, config(fold), "train") for fold in range(3)]
    both = np.sort(np.concatenate([reader.rows("train"), reader.rows("val")]))
    assert np.sort(np.concatenate(judged)).tolist() == both.tolist()
    for one, other in zip(judged, learned, strict=True):
        assert sorted([*one, *other]) == both.tolist()
        patients = reader.index["patient_id"]
        assert not set(patients[one]) & set(patients[other])
        assert one.dtype == other.dtype == np.int64
    for split in ("test", ""):
        assert run_rows(reader, config(1), split).tolist() == reader.rows(split).tolist()
    assert (fold_of_rows(reader, num_folds=3, seed=7)[reader.rows("test")] == -1).all()


@pytest.mark.parametrize("plain", [{}, {"folds": 0, "fold": 0, "fold_seed": 0}, {"lr": 1e-3}])
def test_run_without_folds_takes_the_splits_of_the_records(reader: Any, plain: dict[str, Any]) -> None:
    for split in ("train", "val", "test", ""):
        assert run_rows(reader, plain, split).tolist() == reader.rows(split).tolist()


def test_folds_are_those_of_assign_folds(reader: Any) -> None:
    rows = np.sort(np.concatenate([reader.rows("train"), reader.rows("val")]))
    patients, keys = (reader.index[name].to_numpy(object)[rows] for name in ("patient_id", "pixel_sha1"))
    expected = assign_folds(patients, keys, reader.labels()[rows], num_folds=3, seed=7)
    assert fold_of_rows(reader, num_folds=3, seed=7)[rows].tolist() == expected.tolist()


def test_label_of_too_few_patients_is_named_once(reader: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folds._warn.cache_clear()
    for fold in range(3):
        run_rows(reader, config(fold), "val")
    said = capsys.readouterr().err.splitlines()
    assert "folds: epidural: 1 patients for 3 folds; some folds are judged without it" in said
    assert len(said) == len(set(said)) == 4, "epidural and the three labels that nobody has"


def test_more_folds_than_patients_are_refused(reader: Any) -> None:
    with pytest.raises(
        RecordError, match=r"toy: a fold too small: expected 2 to 10 folds, .* found 11; use fewer folds"
    ):
        run_rows(reader, config(0, num_folds=11), "val")


def test_image_that_two_patients_share_joins_them_unless_it_is_blank(reader: Any) -> None:
    reader.index.loc[[0, 9], "pixel_sha1"] = "air"
    reader.index.loc[[7, 12], "pixel_sha1"] = "brain"
    reader.images = {0: np.zeros((4, 4), np.uint16), 7: np.arange(1016, 1032, dtype=np.uint16).reshape(4, 4)}
    keys = pixel_keys(reader, np.arange(30))
    assert keys[[0, 9]].tolist() == ["", ""]
    assert keys[[7, 12]].tolist() == ["brain", "brain"]
    fold = fold_of_rows(reader, num_folds=3, seed=0)
    assert fold[7] == fold[12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("folds") / "records"
    write_records(made, [(64, 64)] * 24, series_length=4)
    return made


def loader_rows(folder: Path, split: str, **changes: Any) -> list[int]:
    wanted = LoaderConfig(records=folder, split=split, batch_size=4, size=32, **changes)
    loader = open_loader(wanted)
    rows = [row for batch in loader.epoch(0) for row in batch.rows.tolist()]
    if loader.cache:
        assert loader.cache.rows.tolist() == rows
    loader.close()
    return rows


@pytest.mark.skipif(not ops.KERNELS, reason="the native kernels are not built")
def test_cache_holds_the_rows_of_its_fold_alone(folder: Path) -> None:
    with RecordReader(folder) as reader:
        expected = run_rows(reader, config(2), "val").tolist()
    assert loader_rows(folder, "val", cache="host", **config(2)) == expected


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_loader_gives_the_rows_of_its_fold(folder: Path, backend: str) -> None:
    with RecordReader(folder) as reader:
        expected = {split: run_rows(reader, config(1), split).tolist() for split in ("train", "val")}
    for split, rows in expected.items():
        assert loader_rows(folder, split, backend=backend, **config(1)) == rows
    assert expected["val"]
    assert len(expected["train"]) > len(expected["val"])
