import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from study_records import LENGTH, NUM_STUDIES, changed, loaded_cnn, write_studies

from fastich import checkpoint, study_run, train_study
from fastich.errors import CheckpointError, FastichError
from fastich.models.sequence import members_of
from fastich.records.reader import RecordReader
from fastich.study_run import load_study_run, predict_studies
from fastich.training.feed import Feed
from fastich.training.precision import Precision
from fastich.training.study_config import StudyConfig

FEED = Feed(precision=Precision(dtype=torch.float32, device=torch.device("cpu")), loader="cpu")
TEST_ROWS = np.arange(LENGTH * (NUM_STUDIES["train"] + NUM_STUDIES["val"]), LENGTH * sum(NUM_STUDIES.values()))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``records``, a ``cnn`` folder and a study run ``study``; ``load_run`` gives the toy CNN, by its folder."""
    made = tmp_path_factory.mktemp("study_run")
    write_studies(made / "records")
    (made / "cnn").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for module in (train_study, study_run):
            patch.setattr(module, "load_run", lambda run, which: loaded_cnn(made / "records", run))
        train_study.train_study(
            StudyConfig(
                run=made / "cnn", records=made / "records", out=made / "study", epochs=2, batch_size=4, lr=3e-2,
                hidden_size=8, projection_size=8, loader="cpu", device="cpu", threads=1, embedding_passes=0, members=2,
            )
        )  # fmt: skip
        yield made


def test_the_network_that_was_best_comes_back_with_its_cnn(base: Path) -> None:
    run = load_study_run(base / "study")
    saved = checkpoint.load(base / "study" / checkpoint.BEST)
    assert all(torch.equal(value, saved.tensors["model." + key]) for key, value in run.sequence.state_dict().items())
    assert not run.sequence.training
    assert len(members_of(run.sequence)) == 2
    assert run.cnn.run.resolve() == (base / "cnn").resolve()
    assert (run.embedding_size, run.config["hidden_size"], run.epoch) == (4, 8, saved.meta["epoch"])


def test_every_slice_of_the_split_is_predicted_with_its_study(base: Path) -> None:
    run = load_study_run(base / "study")
    with RecordReader(base / "records") as reader:
        found = predict_studies(run, reader, "test", FEED)
    assert found.rows.tolist() == TEST_ROWS.tolist()
    assert found.study_uid == [f"s{study:03d}" for study in range(32, 40)]
    assert found.slice_study.tolist() == np.repeat(np.arange(8), LENGTH).tolist()
    assert found.slice_logit.shape == (64, 6)
    assert found.study_logit.shape == (8, 6)
    assert np.isfinite(found.slice_logit).all()
    assert not np.array_equal(found.slice_logit, found.cnn_logit)


def test_reversal_is_another_answer(base: Path) -> None:
    run = load_study_run(base / "study", "last")
    with RecordReader(base / "records") as reader:
        plain, mean = (predict_studies(run, reader, "test", FEED, reverse=turn) for turn in (False, True))
    assert not np.allclose(plain.slice_logit, mean.slice_logit)
    assert np.corrcoef(plain.slice_logit[:, 1], mean.slice_logit[:, 1])[0, 1] > 0.3


def test_another_cnn_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = changed(loaded_cnn(base / "records", base / "cnn"))
    monkeypatch.setattr(study_run, "load_run", lambda *_: other)
    with pytest.raises(CheckpointError, match=r"cnn: expected the CNN with weights \w{12} that .* was trained with"):
        load_study_run(base / "study")


def test_both_folders_can_be_moved_and_the_cnn_can_be_named(base: Path, tmp_path: Path) -> None:
    for name in ("study", "cnn"):
        shutil.copytree(base / name, tmp_path / name)
    assert load_study_run(tmp_path / "study").cnn.run.resolve() == (tmp_path / "cnn").resolve()
    assert load_study_run(tmp_path / "study", cnn=base / "cnn").cnn.run == base / "cnn"


def test_what_is_no_study_run_is_named(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such run folder; expected the --out folder of .*train_study"):
        load_study_run(tmp_path / "none")
    checkpoint.save(tmp_path / checkpoint.BEST, {"epoch": 1}, {"model.x": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="expected a study run's checkpoint, found a CNN's"):
        load_study_run(tmp_path)


def test_an_empty_split_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_run, "rows_of", lambda *_: np.arange(0))
    with (
        RecordReader(base / "records") as reader,
        pytest.raises(FastichError, match="no labelled slices in split 'test'"),
    ):
        predict_studies(load_study_run(base / "study"), reader, "test", FEED)


def test_end_to_end_the_cnn_is_the_one_that_learned(base: Path, tmp_path: Path) -> None:
    saved = checkpoint.load(base / "study" / checkpoint.BEST)
    tuned = changed(loaded_cnn(base / "records")).model
    tensors = saved.tensors | {f"cnn.{key}": value for key, value in tuned.state_dict().items()}
    meta = {**saved.meta, "cnn": {**saved.meta["cnn"], "run": str(base / "cnn")}}
    checkpoint.save(tmp_path / checkpoint.BEST, meta, tensors)
    run = load_study_run(tmp_path)
    assert checkpoint.weights_sha256(run.cnn.model) == checkpoint.weights_sha256(tuned)
    assert not run.cnn.model.training
    with RecordReader(base / "records") as reader:
        found = predict_studies(run, reader, "test", FEED)
        untuned = predict_studies(load_study_run(base / "study"), reader, "test", FEED)
    assert not np.allclose(found.slice_logit, untuned.slice_logit)
