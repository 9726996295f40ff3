"""The verb: unlabelled records and a run in, the challenge's file out."""

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loaders_data import write_records
from torch import nn

from fastich import metrics, submit
from fastich.checkpoint import LoadedRun
from fastich.errors import LabelError, RecordError, UsageError
from fastich.labels import ANY, LABELS
from fastich.records.reader import RecordReader
from fastich.windowing import DEFAULT_WINDOWS

NUM_SLICES, SIZE = 12, 32
REJECTED = "ID_6431af929"


class Brightness(nn.Module):
    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logit = images[:, 0].mean(dim=(1, 2)) + self.shift
        return torch.stack([logit] * 5 + [logit - 1], dim=1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``test`` records; of the second, whose slices have no split, one file was rejected."""
    made = tmp_path_factory.mktemp("submit")
    write_records(made / "train", [(40, 40)] * 18)
    write_records(made / "test", [(40, 40)] * NUM_SLICES, split="")
    (made / "test" / "rejects.csv").write_text(f"path,reason,detail\n{REJECTED}.dcm,damaged pixels,short\n")
    return made


@pytest.fixture
def members(base: Path, monkeypatch: pytest.MonkeyPatch) -> list[LoadedRun]:
    """What the run folder is taken to hold: one network; a test may add more."""
    with RecordReader(base / "train") as reader:
        sha256 = reader.dataset_sha256
    model: Any = Brightness(0)
    run = LoadedRun(
        run=base / "run",
        model=model,
        config={"records": str(base / "train")},
        dataset_sha256=sha256,
        epoch=1,
        size=SIZE,
        windows=DEFAULT_WINDOWS,
        adjacent=False,
        meta={},
    )
    made = [run]
    monkeypatch.setattr(submit, "load_members", lambda *_: tuple(made))
    rejects = {"rejects": "rejects.csv"}
    real = submit.RecordReader

    def with_rejects(folder: Path) -> RecordReader:
        reader = real(folder)
        reader.dataset = reader.dataset | (rejects if folder.name == "test" else {})
        return reader

    monkeypatch.setattr(submit, "RecordReader", with_rejects)
    return made


def flags(base: Path, out: Path, *more: str) -> list[str]:
    given = {"run": base / "run", "records": base / "test", "out": out, "loader": "cpu", "device": "cpu", "threads": 1}
    return [*(text for name, value in given.items() for text in (f"--{name}", str(value))), *more]


def rows_of(path: Path) -> dict[str, float]:
    with path.open(newline="", encoding="utf-8") as handle:
        return {line["ID"]: float(line["Label"]) for line in csv.DictReader(handle)}


@pytest.mark.usefixtures("members")
def test_every_slice_of_the_records_is_in_the_file_and_rejected_ones_get_the_prevalence(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main(flags(base, tmp_path / "a.csv")) == 0
    found = rows_of(tmp_path / "a.csv")
    with RecordReader(base / "test") as reader:
        ids = [*reader.index["sop_uid"], REJECTED]
        assert set(reader.index["split"]) == {""}
    assert list(found) == [f"{name}_{label}" for name in ids for label in LABELS]
    assert all(0 < value < 1 for name, value in found.items() if not name.startswith(REJECTED))
    assert all(found[f"{name}_any"] >= max(found[f"{name}_{label}"] for label in LABELS[:ANY]) for name in ids)
    with RecordReader(base / "train") as reader:
        shares = metrics.prevalence(reader.labels()[reader.rows("train")])
    assert {label: found[f"{REJECTED}_{label}"] for label in LABELS} == pytest.approx(shares)
    assert shares["any"] > 0
    said = capsys.readouterr().err
    assert f"1 slices could not be packed and get the training prevalence: {REJECTED}" in said
    assert f"submission: {tmp_path / 'a.csv'}, 78 rows of 13 slices" in said


@pytest.mark.usefixtures("members")
def test_sample_decides_rows_and_order(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RecordReader(base / "test") as reader:
        names = [f"{name}_{label}" for name in reversed(reader.index["sop_uid"]) for label in reversed(LABELS)]
    sample = tmp_path / "sample.csv"
    sample.write_text("ID,Label\n" + "".join(f"{name},0.5\n" for name in names))
    submit.main(flags(base, tmp_path / "a.csv", "--sample-submission", str(sample)))
    assert "training prevalence" not in capsys.readouterr().err, "the sample does not ask for the rejected slice"
    submit.main(flags(base, tmp_path / "b.csv"))
    found, plain = rows_of(tmp_path / "a.csv"), rows_of(tmp_path / "b.csv")
    assert list(found) == names
    assert all(plain[name] == value for name, value in found.items())
    sample.write_text("ID,Label\n" + "".join(f"{name},0.5\n" for name in names[6:]))
    with pytest.raises(LabelError, match="found none for ID_00000000b; is it another set's"):
        submit.main(flags(base, tmp_path / "c.csv", "--sample-submission", str(sample)))


def test_folds_and_views_are_averaged(base: Path, tmp_path: Path, members: list[LoadedRun]) -> None:
    submit.main(flags(base, tmp_path / "one.csv"))
    other: Any = Brightness(2)
    members.append(dataclasses.replace(members[0], model=other))
    submit.main(flags(base, tmp_path / "two.csv", "--tta", "flip,crop"))
    submit.main(flags(base, tmp_path / "flat.csv", "--tta", "flip"))
    one, two, flat = (rows_of(tmp_path / name) for name in ("one.csv", "two.csv", "flat.csv"))
    name = "ID_000000000_subdural"
    odds = {key: np.log(rows[name] / (1 - rows[name])) for key, rows in (("one", one), ("two", two), ("flat", flat))}
    assert odds["flat"] == pytest.approx(odds["one"] + 1, abs=1e-5), "a flip does not change a mean"
    assert odds["two"] != pytest.approx(odds["flat"], abs=1e-3)


def test_training_records_that_are_gone_or_others_are_named(
    base: Path, tmp_path: Path, members: list[LoadedRun]
) -> None:
    with pytest.raises(RecordError, match=r"the training prevalence is needed: give --training-records"):
        submit.main(flags(base, tmp_path / "a.csv", "--training-records", str(tmp_path / "gone")))
    members[0] = dataclasses.replace(members[0], dataset_sha256="ab" * 32)
    with pytest.raises(RecordError, match=r"was trained on \(abababababab\), found .*; give --training-records"):
        submit.main(flags(base, tmp_path / "a.csv"))
    assert not (tmp_path / "a.csv").exists()


@pytest.mark.usefixtures("members")
def test_file_that_is_there_is_kept(base: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(UsageError, match=r"a\.csv: exists; remove it, or choose another --out"):
        submit.main(flags(base, tmp_path / "a.csv"))
    with pytest.raises(UsageError, match="--batch-size must be >= 1, found 0"):
        submit.main(flags(base, tmp_path / "b.csv", "--batch-size", "0"))
