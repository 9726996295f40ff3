import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from study_records import loaded_cnn, write_studies

from fastich import checkpoint, evaluate, leakage, study_run, train_study
from fastich.calibration import Calibration
from fastich.errors import CheckpointError, UsageError
from fastich.evaluate import EvaluateConfig
from fastich.labels import LABELS
from fastich.records.reader import RecordReader
from fastich.report import pictures
from fastich.report.results import LOGIT_COLUMNS, PROBABILITY_COLUMNS
from fastich.report.trust import NO_GUARANTEE
from fastich.study_run import load_study_run
from fastich.subject import HEAD, headed, open_subject, study_folders
from fastich.training.feed import Feed
from fastich.training.precision import Precision
from fastich.training.study_config import StudyConfig

FEED = Feed(precision=Precision(dtype=torch.float32, device=torch.device("cpu")), loader="cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``records``, a ``cnn`` and a study run ``study`` that has learned to look at the neighbours."""
    made = tmp_path_factory.mktemp("subject")
    write_studies(made / "records")
    (made / "cnn").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for module in (train_study, study_run):
            patch.setattr(module, "load_run", lambda run, which: certified(made / "records", run))
        train_study.train_study(
            StudyConfig(
                run=made / "cnn", records=made / "records", out=made / "study", epochs=12, batch_size=4, lr=3e-2,
                hidden_size=8, projection_size=8, loader="cpu", device="cpu", threads=1, embedding_passes=0, members=2,
            )
        )  # fmt: skip
        yield made


def certified(records: Path, run: Path) -> object:
    """The toy CNN with a certificate of its records."""
    loaded = loaded_cnn(records, run)
    with RecordReader(records) as reader:
        loaded.meta["leakage_certificate"] = leakage.certify(reader)
    return loaded


def test_a_sequence_model_gives_slices_and_studies_with_the_heads_logits(base: Path) -> None:
    with RecordReader(base / "records") as reader:
        found = open_subject(base / "study", "best", reader, FEED).predict("test").tables
        assert found.slices["row"].tolist() == reader.rows("test").tolist()
    assert found.decision == HEAD
    largest = found.slices.groupby("study_uid", sort=False)[LOGIT_COLUMNS].max()
    assert found.studies["study_uid"].tolist() == list(largest.index)
    assert not np.allclose(found.studies[LOGIT_COLUMNS], largest)
    assert (found.studies["p_any"] >= found.studies[PROBABILITY_COLUMNS[:-1]].max(axis=1)).all()


def test_evaluation_of_a_sequence_model_says_what_validation_decided(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "draw", lambda *_: ({}, []))
    measured = evaluate.evaluate(
        EvaluateConfig(
            run=base / "study", records=base / "records", out=tmp_path / "out", loader="cpu", device="cpu", threads=1,
            bootstrap=20, rule="sensitivity:0.9", tta="reverse",
        )
    )  # fmt: skip
    assert measured["studies"]["decision"] == HEAD
    assert set(measured["studies"]["rules"]) == {HEAD, "max", "top-k mean", "noisy-or"}
    assert measured["thresholds"]["rule"] == "sensitivity:0.9"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"studies.parquet", "triage.json", "calibration.json", "study-calibration.json"} <= names
    triage = json.loads((tmp_path / "out" / "triage.json").read_text())
    assert triage["num_bleed"] + triage["num_without"] == 8
    assert "needs 9 calibration patients with a bleed" in " ".join(triage["outcomes"])
    assert measured["subgroups"][0]["factor"]
    for table, document in (("predictions", "calibration"), ("studies", "study-calibration")):
        made = pd.read_parquet(tmp_path / "out" / f"{table}.parquet")
        decided = Calibration.from_document(json.loads((tmp_path / "out" / f"{document}.json").read_text()))
        np.testing.assert_allclose(made[PROBABILITY_COLUMNS], decided.probability(made[LOGIT_COLUMNS]))


def test_a_study_run_holds_the_certificate_of_its_cnn(base: Path) -> None:
    found = checkpoint.read_meta(base / "study" / checkpoint.BEST)["leakage_certificate"]
    assert found is not None
    assert found == load_study_run(base / "study").cnn.meta["leakage_certificate"]


def test_a_sequence_model_takes_no_views_of_slices(base: Path) -> None:
    with RecordReader(base / "records") as reader, pytest.raises(UsageError, match="none or reverse for a sequence"):
        open_subject(base / "study", "best", reader, FEED, tta="flip")


def fold_of(base: Path, out: Path, number: int) -> Path:
    """A finished fold of two: a copy of the study run whose slice head says more or less of everything."""
    shutil.copytree(base / "study", out / f"fold-{number}")
    for name in (checkpoint.BEST, checkpoint.LAST):
        saved = checkpoint.load(out / f"fold-{number}" / name)
        biases = [key for key in saved.tensors if key.endswith("slice_head.bias")]
        tensors = saved.tensors | {key: saved.tensors[key] + 2.0 * number for key in biases}
        meta = saved.meta | {"cnn": saved.meta["cnn"] | {"run": "../../cnn"}}
        checkpoint.save(out / f"fold-{number}" / name, meta, tensors)
    return out


@pytest.fixture
def folds(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A k-fold study run of two folds, whose CNN says which fold it is."""
    out = tmp_path / "a" / "folds"
    out.mkdir(parents=True)
    (tmp_path / "cnn").mkdir()
    for number in range(2):
        fold_of(base, out, number)
    (out / "config.json").write_text(json.dumps({"folds": 2, "fold": -1}))
    numbers = iter(range(2))

    def load(run: Path, which: str) -> object:
        one = certified(base / "records", run)
        config = {**one.config, "folds": 2, "fold": next(numbers), "fold_seed": 0}  # type: ignore[attr-defined]
        return dataclasses.replace(one, config=config)  # type: ignore[type-var]

    monkeypatch.setattr(study_run, "load_run", load)
    return out


def test_folders_of_a_run_are_told_apart(base: Path, folds: Path) -> None:
    assert study_folders(base / "study", "best") == [base / "study"]
    assert study_folders(base / "cnn", "best") == []
    assert study_folders(folds, "best") == [folds / "fold-0", folds / "fold-1"]
    (folds / "fold-1" / "run.json").unlink()
    with pytest.raises(CheckpointError, match="expected 2 finished folds, found 1"):
        study_folders(folds, "best")


def test_folds_are_averaged_on_the_test_split_and_validated_out_of_fold(base: Path, folds: Path) -> None:
    with RecordReader(base / "records") as reader:
        subject = open_subject(folds, "best", reader, FEED)
        test, val = (subject.predict(split).tables for split in ("test", "val"))
        learned = np.concatenate([reader.rows("train"), reader.rows("val")])
        assert val.slices["row"].tolist() == sorted(learned.tolist())
        assert test.slices["row"].tolist() == reader.rows("test").tolist()
    assert len(subject.weights_sha256) == 4
    assert isinstance(subject.epoch, list)
    assert val.studies["study_uid"].is_unique
    assert set(val.studies["study_uid"]) == set(val.slices["study_uid"])


def test_the_triage_of_an_ensemble_claims_no_guarantee_in_any_file(
    base: Path, folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "draw", lambda *_: ({}, []))
    measured = evaluate.evaluate(
        EvaluateConfig(
            run=folds, records=base / "records", out=tmp_path / "out", loader="cpu", device="cpu", threads=1,
            bootstrap=20, split="test",
        )
    )  # fmt: skip
    triage = json.loads((tmp_path / "out" / "triage.json").read_text())
    assert triage["guarantee"] == measured["triage"]["guarantee"] == NO_GUARANTEE


def test_the_mean_of_two_folds_lies_between_them(base: Path, folds: Path) -> None:
    with RecordReader(base / "records") as reader:
        both = open_subject(folds, "best", reader, FEED).predict("test").tables.slices
    shift = 1.0  # the second fold's slice head says 2 more of every label
    with pytest.MonkeyPatch.context() as patch, RecordReader(base / "records") as reader:
        patch.setattr(study_run, "load_run", lambda run, which: certified(base / "records", run))
        first = open_subject(folds / "fold-0", "best", reader, FEED).predict("test").tables.slices
    np.testing.assert_allclose(both[LOGIT_COLUMNS] - first[LOGIT_COLUMNS], shift, atol=1e-4)


def test_the_heads_logits_stand_beside_their_own_study() -> None:
    slices = pd.DataFrame(
        {"row": range(4), "sop_uid": list("abcd"), "study_uid": ["s", "s", "t", "t"], "patient_id": ["p"] * 4}
        | {label: [0, 1, 0, 0] for label in LABELS}
        | {name: [0.5] * 4 for name in PROBABILITY_COLUMNS}
        | {name: [0.0] * 4 for name in LOGIT_COLUMNS}
    )
    made = headed(slices, ["t", "s"], np.array([[1.0] * 6, [2.0] * 6]))
    assert made["study_uid"].tolist() == ["t", "s"]
    assert made["any"].tolist() == [0, 1]
    assert made["logit_any"].tolist() == [1.0, 2.0]
    assert made["num_slices"].tolist() == [2, 2]


def test_a_missing_run_is_named(base: Path) -> None:
    with RecordReader(base / "records") as reader, pytest.raises(CheckpointError, match="no such run folder"):
        open_subject(base / "none", "best", reader, FEED)
