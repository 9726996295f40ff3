import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from study_records import changed, loaded_cnn, write_studies

from fastich import checkpoint, train_study
from fastich.checkpoint import LoadedRun
from fastich.errors import CheckpointError, FastichError, RecordError, UsageError
from fastich.training import history, study_epoch
from fastich.training.loss_watch import NotFiniteError
from fastich.training.study_config import StudyConfig

EPOCHS = 3


@dataclasses.dataclass
class Site:
    """A records folder and the CNN that ``load_run`` gives."""

    records: Path
    cnn: LoadedRun


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("train_study") / "records"
    write_studies(made)
    return made


@pytest.fixture
def site(records: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(records, loaded_cnn(records))
    monkeypatch.setattr(train_study, "load_run", lambda *_: made.cnn)
    return made


def config(site: Site, out: Path, **changes: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "run": Path("cnn"), "records": site.records, "out": out, "epochs": EPOCHS, "batch_size": 4, "lr": 1e-2,
        "hidden_size": 8, "projection_size": 8, "dropout": 0.1, "device": "cpu", "loader": "cpu", "threads": 1,
        "embedding_passes": 0, "members": 1,
    }  # fmt: skip
    return StudyConfig(**(values | changes))


def weights(run: Path, name: str = checkpoint.LAST) -> dict[str, torch.Tensor]:
    return checkpoint.load(run / name).part("model.")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("variant", "hidden_size", "lr", "share"),
    [("difference", 8, 1e-2, 0.2), ("gru", 24, 2e-2, 0.75)],
)
def test_context_makes_right_what_no_slice_shows(
    site: Site, tmp_path: Path, variant: str, hidden_size: int, lr: float, share: float
) -> None:
    flags = {"epochs": 40, "patience": 40, "subsample": 0.0, "dropout": 0.0, "lr": lr}
    (found,) = train_study.train_study(
        config(site, tmp_path / "run", variant=variant, hidden_size=hidden_size, **flags)
    )
    assert found["val"]["cnn_log_loss"] > 0.25
    assert found["val"]["log_loss"] < share * found["val"]["cnn_log_loss"]
    assert found["val"]["num_slices"] == 64


def test_run_folder_holds_what_was_asked_and_what_came_of_it(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (found,) = train_study.train_study(config(site, out))
    assert json.loads((out / "run.json").read_text()) == json.loads(json.dumps(found))
    assert json.loads((out / "config.json").read_text())["hidden_size"] == 8
    lines = history.read(out)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    best = [line for line in lines if line["val_log_loss"] < found["val"]["cnn_log_loss"]][-1]
    assert found["best_epoch"] == best["epoch"]
    assert found["val"]["log_loss"] == pytest.approx(best["val_log_loss"])
    meta = checkpoint.load(out / checkpoint.BEST).meta
    assert (meta["kind"], meta["epoch"], meta["cnn"]["epoch"]) == ("study", best["epoch"], 3)
    assert meta["cnn"]["weights_sha256"] == checkpoint.weights_sha256(site.cnn.model)
    assert meta["dataset_sha256"] == site.cnn.dataset_sha256
    assert set(found["val"]["study_auc"]) >= {"cnn_max", "sequence_head"}


def test_what_is_kept_is_never_worse_than_the_cnn(site: Site, tmp_path: Path) -> None:
    (found,) = train_study.train_study(config(site, tmp_path / "run", lr=3.0, epochs=2))
    assert found["best_epoch"] == -1
    assert found["val"]["log_loss"] == pytest.approx(found["val"]["cnn_log_loss"], rel=1e-6)
    assert checkpoint.load(tmp_path / "run" / checkpoint.BEST).meta["epoch"] == -1


def test_early_stopping_ends_a_run_that_brings_nothing(site: Site, tmp_path: Path) -> None:
    flags = {"keep": "best", "lr": 3.0, "epochs": 9, "patience": 1}
    (found,) = train_study.train_study(config(site, tmp_path / "run", **flags))
    assert (found["epochs_run"], found["stopped_early"]) == (1, True)


@pytest.mark.parametrize(("keep", "kept"), [("last", 3), ("best", 1)])
def test_what_is_kept_is_the_newest_or_the_lowest_below_the_cnn(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, kept: int
) -> None:
    losses = iter([0.3, 0.29, 0.1, 0.4, 0.2, 0.5])  # the CNN's, then those of five epochs
    given: list[float] = []

    def loss(*_: Any) -> tuple[float, float]:
        given.append(next(losses, 0.0))
        return given[-1], 0.3

    for module in (train_study, study_epoch):
        monkeypatch.setattr(module, "slice_loss", loss)
    (found,) = train_study.train_study(config(site, tmp_path / "run", epochs=5, patience=9, keep=keep))
    assert found["best_epoch"] == kept
    assert checkpoint.load(tmp_path / "run" / checkpoint.BEST).meta["epoch"] == kept


def test_a_seed_gives_one_run(site: Site, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_study.train_study(config(site, tmp_path / name, epochs=2))
    train_study.train_study(config(site, tmp_path / "c", epochs=2, seed=1))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize(("at", "members"), [("save_last", 1), ("save_best", 1), ("save_last", 2)])
def test_a_killed_run_goes_on_to_equal_weights(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, members: int
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_study.train_study(config(site, whole, members=members))
    folder = train_study.StudyFolder
    saves: list[int] = []

    def killed(self: Any, *args: Any) -> None:
        saves.append(1)
        if len(saves) == 2:
            raise Killed
        real(self, *args)

    real = getattr(folder, at)
    monkeypatch.setattr(folder, at, killed)
    with pytest.raises(Killed):
        train_study.train_study(config(site, cut, members=members))
    monkeypatch.undo()
    monkeypatch.setattr(train_study, "load_run", lambda *_: site.cnn)
    assert not (cut / "run.json").exists()
    train_study.train_study(config(site, cut, resume="auto", members=members))
    for name in (checkpoint.LAST, checkpoint.BEST):
        assert same(weights(whole, name), weights(cut, name))
    wanted, found = ([line["val_log_loss"] for line in history.read(run)] for run in (whole, cut))
    assert wanted == found


def test_a_member_learns_as_it_would_alone(site: Site, tmp_path: Path) -> None:
    for members in (1, 3):
        train_study.train_study(config(site, tmp_path / str(members), members=members, dropout=0.0))
    alone, saved = weights(tmp_path / "1"), weights(tmp_path / "3")
    for key, value in alone.items():
        assert torch.equal(saved[f"members.0.{key}"], value), key
    assert not torch.allclose(saved["members.1.project.weight"], saved["members.0.project.weight"], atol=0.01)
    moved = saved["members.2.slice_head.weight"].abs().amax()
    assert moved > 1e-3, "every member must learn"


def test_several_members_do_not_go_on_as_one(site: Site, tmp_path: Path) -> None:
    train_study.train_study(config(site, tmp_path / "run", members=2, epochs=1))
    with pytest.raises(CheckpointError, match="started with --members 2, now 1; give the old value"):
        train_study.train_study(config(site, tmp_path / "run", members=1, epochs=1, resume="auto"))


def test_a_finished_run_may_be_asked_to_go_on(site: Site, tmp_path: Path) -> None:
    (first,) = train_study.train_study(config(site, tmp_path / "run"))
    (again,) = train_study.train_study(config(site, tmp_path / "run", resume="auto"))
    assert again["history"] == first["history"]
    assert again["val"] == first["val"]


def test_the_network_is_not_run_again_by_a_second_run(site: Site, tmp_path: Path) -> None:
    train_study.train_study(config(site, tmp_path / "a", epochs=1, embedding_passes=1))
    calls = site.cnn.model.num_calls
    train_study.train_study(config(site, tmp_path / "b", epochs=1, embedding_passes=1))
    assert site.cnn.model.num_calls == calls


def test_another_config_cnn_or_data_set_does_not_go_on(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_study.train_study(config(site, out, epochs=1))
    with pytest.raises(CheckpointError, match="started with --hidden-size 8, now 9; give the old value"):
        train_study.train_study(config(site, out, epochs=1, resume="auto", hidden_size=9))
    with pytest.raises(CheckpointError, match="started with --epochs 1, now 2"):
        train_study.train_study(config(site, out, epochs=2, resume="auto"))
    site.cnn = changed(site.cnn)
    with pytest.raises(CheckpointError, match=r"trained on the CNN \w{12}, found \w{12} now; give the same"):
        train_study.train_study(config(site, out, epochs=1, resume="auto"))


def test_more_epochs_are_welcome_at_a_constant_rate(site: Site, tmp_path: Path) -> None:
    flags = {"schedule": "constant", "patience": 9}
    train_study.train_study(config(site, tmp_path / "a", epochs=1, **flags))
    train_study.train_study(config(site, tmp_path / "a", epochs=2, resume="auto", **flags))
    train_study.train_study(config(site, tmp_path / "b", epochs=2, **flags))
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_records_of_another_data_set_are_refused(site: Site, tmp_path: Path) -> None:
    site.cnn = dataclasses.replace(site.cnn, dataset_sha256="ef" * 32)
    with pytest.raises(RecordError, match=r"expected the records that cnn was trained on \(efefefefefef\), found"):
        train_study.train_study(config(site, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_an_output_that_exists_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="exists; go on with --resume auto, or choose another"):
        train_study.train_study(config(site, tmp_path))
    with pytest.raises(UsageError, match=r"is not a run folder: it has no config\.json"):
        train_study.train_study(config(site, tmp_path, resume="auto"))


def test_a_loss_that_is_no_number_stops_the_run(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_epoch, "total_loss", lambda *_, **__: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(NotFiniteError, match=r"loss is nan at step 0, in the study of row \d+; .* lower --lr"):
        train_study.train_study(config(site, tmp_path / "run"))


def test_each_fold_gets_its_own_model(site: Site, tmp_path: Path) -> None:
    for number in range(11):
        folder = tmp_path / "cnn" / f"fold-{number}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"folds": 11, "fold": number}))
        (folder / "run.json").write_text("{}")
    found = train_study.one_a_fold(config(site, tmp_path / "out", run=tmp_path / "cnn"))
    assert [(one.run.name, one.out.name) for one in found] == [(f"fold-{n}", f"fold-{n}") for n in range(11)]
    (tmp_path / "cnn" / "fold-7" / "run.json").unlink()
    with pytest.raises(CheckpointError, match="expected 11 finished folds, found 10; train the others"):
        train_study.one_a_fold(config(site, tmp_path / "out", run=tmp_path / "cnn"))
    (tmp_path / "cnn" / "checkpoints").mkdir()
    plain = config(site, tmp_path / "out", run=tmp_path / "cnn")
    assert train_study.one_a_fold(plain) == [plain]


def test_several_processes_are_refused(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = ("0", "2", "0", "2", "localhost", "1")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name, value in zip(names, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="train_study is one process: start it without torchrun"):
        train_study.train_study(config(site, tmp_path / "run"))


def test_a_split_without_slices_is_refused(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = train_study.rows_of
    monkeypatch.setattr(
        train_study, "rows_of", lambda reader, run, split: real(reader, run, split)[: 0 if split == "val" else None]
    )
    with pytest.raises(FastichError, match="no labelled slices in split 'val'; pack more patients"):
        train_study.train_study(config(site, tmp_path / "run"))


def test_verb_says_what_came_of_it(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--run", "cnn", "--records", str(site.records), "--out", str(tmp_path / "run"), "--epochs", "1"]
    small = ["--hidden-size", "4", "--embedding-passes", "0", "--device", "cpu", "--threads", "1", "--loader", "cpu"]
    assert train_study.main([*flags, *small]) == 0
    said = capsys.readouterr().err
    assert "studies: 24 series to train, 8 to validate" in said
    assert "CNN alone" in said


END_TO_END = {"end_to_end": True, "batch_size": 2, "cnn_lr": 0.05, "schedule": "constant", "epochs": 2, "patience": 9}


def test_end_to_end_both_networks_learn_and_are_kept(site: Site, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in site.cnn.model.state_dict().items()}
    (found,) = train_study.train_study(config(site, tmp_path / "run", **END_TO_END))
    assert found["best_epoch"] >= 0
    assert found["val"]["log_loss"] < 0.29
    saved = checkpoint.load(tmp_path / "run" / checkpoint.BEST)
    kept = saved.part("cnn.")
    assert kept.keys() == before.keys()
    assert not same(kept, before)
    assert saved.meta["cnn"]["weights_sha256"] == checkpoint.weights_sha256(loaded_cnn(site.records).model)


def test_end_to_end_a_killed_run_goes_on_to_equal_weights(site: Site, tmp_path: Path) -> None:
    for name, epochs in (("whole", (2,)), ("cut", (1, 2))):
        for number in epochs:
            site.cnn = loaded_cnn(site.records)
            train_study.train_study(config(site, tmp_path / name, **{**END_TO_END, "epochs": number, "resume": "auto"}))
    for part in ("model.", "cnn."):
        whole, cut = (checkpoint.load(tmp_path / name / checkpoint.LAST).part(part) for name in ("whole", "cut"))
        assert same(whole, cut)
