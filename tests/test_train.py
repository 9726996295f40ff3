import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from loaders_data import damage, write_records

from fastich import checkpoint, ops, train, verb
from fastich.errors import CheckpointError, FastichError, RecordError, UsageError
from fastich.folds import run_rows
from fastich.labels import LABELS
from fastich.loaders import Batch, LoaderConfig
from fastich.records.index import DATASET_FILE, INDEX_FILE, read_index
from fastich.records.writer import ShardInfo, finish_dataset
from fastich.training import history, precision, run_folder, tensorboard
from fastich.training.config import ALL_FOLDS, TrainConfig, require_same
from fastich.training.early_stopping import EarlyStopping
from fastich.training.learner import Learner
from fastich.training.loss_watch import NotFiniteError
from fastich.training.schedule import learning_rate

needs_kernels = pytest.mark.skipif(not ops.KERNELS, reason="the native kernels are not built")
NUM_TRAIN, NUM_VAL, SIZE, BATCH = 32, 12, 32, 8


class ToyReader:
    """Stands for a records folder: uids, labels and splits, without files."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        subtypes = (rng.random((NUM_TRAIN + NUM_VAL, 5)) < 0.3).astype(np.int8)
        self.toy_labels = np.concatenate([subtypes, subtypes.max(axis=1, keepdims=True)], axis=1)
        uids = [f"ID_{row:08x}" for row in range(NUM_TRAIN + NUM_VAL)]
        ids = dict.fromkeys(("sop_uid", "study_uid", "series_uid", "pixel_sha1"), uids)
        patients = [f"p{row // 4}" for row in range(NUM_TRAIN + NUM_VAL)]
        splits = ["train"] * NUM_TRAIN + ["val"] * NUM_VAL
        self.index = pd.DataFrame({**ids, "patient_id": patients, "split": splits})
        self.folder = Path("toy")
        self.dataset_sha256 = "5e" * 32
        self.dataset = {"split": {"rule": "made up"}}

    def __len__(self) -> int:
        return len(self.index)

    def labels(self) -> np.ndarray:
        return self.toy_labels

    def is_blank(self, _: int) -> bool:
        return False

    def rows(self, split: str) -> np.ndarray:
        return np.arange(NUM_TRAIN) if split == "train" else np.arange(NUM_TRAIN, NUM_TRAIN + NUM_VAL)


class ToyLoader:
    """The loader's contract on made-up images whose brightness gives the labels away."""

    backend = "toy"

    def __init__(self, config: LoaderConfig, reader: ToyReader) -> None:
        self.config, self.reader = config, reader
        self.order = run_rows(cast(Any, reader), vars(config), config.split)
        self.num_slices = len(self.order)
        whole, rest = divmod(self.num_slices, config.batch_size)
        self.num_batches = whole + (rest > 0 and not config.drop_last)
        self.change: Callable[[int, torch.Tensor], None] = lambda position, images: None

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self.order)
        for number in range(start_batch, self.num_batches):
            rows = order[number * BATCH : (number + 1) * BATCH]
            labels = torch.from_numpy(self.reader.toy_labels[rows].astype(np.float32))
            noise = [torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(int(row))) for row in rows]
            images = torch.stack(noise) + labels[:, -1, None, None, None]
            self.change(epoch * self.num_batches + number, images)
            images = images.contiguous(memory_format=torch.channels_last)
            yield Batch(images=images, labels=labels, rows=torch.from_numpy(rows))

    def check(self) -> None:
        pass

    def close(self) -> None:
        pass


class Toy:
    """The records of one test, and what is done to their batches."""

    def __init__(self) -> None:
        self.reader = ToyReader()
        self.change: dict[str, Callable[[int, torch.Tensor], None]] = {}

    def open(self, config: LoaderConfig) -> ToyLoader:
        loader = ToyLoader(config, self.reader)
        loader.change = self.change.get(config.split, loader.change)
        return loader


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    made = Toy()
    monkeypatch.setattr(train, "open_loader", made.open)
    return made


def config(out: Path, **changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "records": Path("toy"),
        "out": out,
        "epochs": 2,
        "batch_size": BATCH,
        "size": SIZE,
        "weights": "none",
        "device": "cpu",
        "threads": 1,
    }
    return TrainConfig(**(values | changes))


def kill_at(step: int) -> Callable[[int, torch.Tensor], None]:
    def change(position: int, _: torch.Tensor) -> None:
        if position == step:
            raise Killed

    return change


def without_time(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_time(item) for key, item in value.items() if "second" not in key and "_per_s" not in key}
    return value


def assert_same_run(first: Path, second: Path) -> None:
    for name in (checkpoint.LAST, checkpoint.BEST):
        one, other = checkpoint.load(first / name), checkpoint.load(second / name)
        assert one.tensors.keys() == other.tensors.keys()
        different = [key for key, value in one.tensors.items() if not torch.equal(value, other.tensors[key])]
        assert different == []
        assert without_time(one.meta["position"]) == without_time(other.meta["position"])
    assert without_time_lines(first) == without_time_lines(second)


def without_time_lines(run: Path) -> list[Any]:
    return [without_time(line) for line in history.read(run)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whole run of two epochs, which the tests only look at."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "open_loader", Toy().open)
        train.train(config(out))
    return out


def test_run_folder_holds_all_that_is_promised(undisturbed: Path) -> None:
    names = {str(path.relative_to(undisturbed)) for path in undisturbed.rglob("*") if path.is_file()}
    curves = {f"curves/{name}.png" for name in ("precision", "recall", "auc", "loss")}
    assert names == {"config.json", "metrics.jsonl", "run.json", checkpoint.LAST, checkpoint.BEST, *curves}
    for curve in curves:
        assert (undisturbed / curve).read_bytes().startswith(b"\x89PNG")


def test_metrics_have_every_label_of_both_splits_each_epoch(undisturbed: Path) -> None:
    lines = history.read(undisturbed)
    assert [line["epoch"] for line in lines] == [0, 1]
    for line in lines:
        for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
            assert line[split]["num_slices"] == count
            assert math.isfinite(line[split]["loss"])
            for measure in ("precision", "recall", "auc"):
                assert set(line[split][measure]) == {*LABELS, "macro"}


def test_run_json_says_what_ran(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "run.json").read_text())
    assert summary["epochs_run"] == 2
    assert summary["device"] == "cpu"
    assert summary["amp"] is None
    assert summary["loader"] == "toy"
    assert (summary["cache"], summary["compile"], summary["cuda_graph"]) == ("none", "none", False)
    assert summary["ops"] == ops.backend()
    assert summary["dataset_sha256"] == "5e" * 32
    assert summary["num_parameters"] == 7_481_734
    assert summary["slices_per_s"]["train"] > 0
    assert {"python", "torch", "torchvision", "dali", "fastich"} <= set(summary["versions"])
    losses = [line["val"]["loss"] for line in history.read(undisturbed)]
    assert summary["best_epoch"] == losses.index(min(losses))
    assert summary["best"]["val"]["loss"] == min(losses)


def test_run_loads_with_its_config(undisturbed: Path) -> None:
    loaded = checkpoint.load_run(undisturbed)
    assert loaded.size == SIZE
    assert loaded.config["lr"] == 5e-4
    assert [window.center_hu for window in loaded.windows] == [40, 80, 600]
    assert loaded.epoch == json.loads((undisturbed / "run.json").read_text())["best_epoch"]


def test_training_learns(toy: Toy, tmp_path: Path) -> None:
    summary = train.train(config(tmp_path / "run", epochs=4, schedule="one-cycle", lr=2e-3))
    lines = history.read(tmp_path / "run")
    assert lines[-1]["train"]["loss"] < 0.8 * lines[0]["train"]["loss"]
    assert summary["best"]["val"]["auc"]["any"] > 0.9


@pytest.mark.parametrize("step", [1, 3, 6])
def test_killed_run_goes_on_to_the_same_weights(toy: Toy, undisturbed: Path, tmp_path: Path, step: int) -> None:
    toy.change["train"] = kill_at(step)
    with pytest.raises(Killed):
        train.train(config(tmp_path / "run", checkpoint_steps=2))
    assert not (tmp_path / "run" / "run.json").exists()
    toy.change.clear()
    train.train(config(tmp_path / "run", checkpoint_steps=2, resume="auto"))
    assert_same_run(undisturbed, tmp_path / "run")


@pytest.mark.parametrize("place", ["save_last", "save_best"])
def test_run_killed_between_the_files_of_an_epoch_is_repaired(
    toy: Toy, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, place, kill)
        with pytest.raises(Killed):
            train.train(config(tmp_path / "run"))
    train.train(config(tmp_path / "run", resume="auto"))
    assert_same_run(undisturbed, tmp_path / "run")


def test_resume_of_a_finished_run_changes_nothing(toy: Toy, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in (checkpoint.LAST, history.NAME)}
    summary = train.train(config(tmp_path / "run", resume="auto"))
    assert summary["epochs_run"] == 2
    assert before == {name: (tmp_path / "run" / name).read_bytes() for name in before}


def test_every_checkpoint_holds_the_certificate(undisturbed: Path) -> None:
    for name in (checkpoint.BEST, checkpoint.LAST):
        found = checkpoint.read_meta(undisturbed / name)["leakage_certificate"]
        assert (found["clean"], found["rule"], found["dataset_sha256"]) == (True, "made up", "5e" * 32)
        assert [found["splits"][split]["patients"] for split in ("train", "val")] == [NUM_TRAIN // 4, NUM_VAL // 4]


def test_splits_that_share_a_patient_are_not_trained_on_unless_meant(toy: Toy, tmp_path: Path) -> None:
    toy.reader.index.loc[[0, NUM_TRAIN], "patient_id"] = "ID_twice"
    with pytest.raises(RecordError, match=r"found 1 patients in both train and val; .* or --allow-leakage"):
        train.train(config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    train.train(config(tmp_path / "run", epochs=1, allow_leakage=True))
    assert checkpoint.read_meta(tmp_path / "run" / checkpoint.BEST)["leakage_certificate"]["clean"] is False


def test_existing_run_is_not_written_over(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists; go on with --resume auto, or choose another --out"):
        train.train(config(tmp_path))
    with pytest.raises(UsageError, match=r"is not a run folder: it has no config\.json"):
        train.train(config(tmp_path, resume="auto"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_resume_with_another_config_names_the_flag(toy: Toy, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"started with --lr 0.0005, now 0.001"):
        train.train(config(tmp_path / "run", resume="auto", lr=1e-3))
    assert (tmp_path / "run" / "run.json").exists()


def test_flag_that_is_younger_than_the_checkpoint_had_its_default(tmp_path: Path) -> None:
    now = config(tmp_path, resume="auto")
    before = {name: value for name, value in now.resolved().items() if name != "backbone"}
    require_same(before, now, tmp_path)
    with pytest.raises(CheckpointError, match="started with --backbone densenet121, now convnext_tiny"):
        require_same(before, config(tmp_path, resume="auto", backbone="convnext_tiny"), tmp_path)


def test_backbone_is_trained_and_found_again(toy: Toy, tmp_path: Path) -> None:
    train.train(config(tmp_path / "run", epochs=1, backbone="efficientnet_b0", threads=2))
    loaded = checkpoint.load_run(tmp_path / "run")
    assert loaded.config["backbone"] == "efficientnet_b0"
    assert loaded.model.embedding_size == 1280


@pytest.fixture
def seen_rows(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> dict[Path, tuple[set[int], set[int]]]:
    """Rows that each run trained on and was judged on, by its folder."""
    seen: dict[Path, tuple[set[int], set[int]]] = {}
    real = train.start_learner

    def start(config: TrainConfig, *rest: Any, **named: Any) -> Learner:
        opened = [toy.open(config.loader_config(split, "cpu")) for split in ("train", "val")]
        seen[config.out] = (set(opened[0].order.tolist()), set(opened[1].order.tolist()))
        return real(config, *rest, **named)

    monkeypatch.setattr(train, "start_learner", start)
    return seen


def test_every_fold_is_trained_into_a_run_of_its_own(
    tmp_path: Path, seen_rows: dict[Path, tuple[set[int], set[int]]]
) -> None:
    out = tmp_path / "run"
    summary = train.train(config(out, epochs=1, folds=3, fold=ALL_FOLDS))
    assert list(seen_rows) == [out / f"fold-{number}" for number in range(3)]
    everything = set(range(NUM_TRAIN + NUM_VAL))
    assert sorted(row for _, judged in seen_rows.values() for row in judged) == sorted(everything)
    assert all(learned == everything - judged for learned, judged in seen_rows.values())
    for number in range(3):
        one = out / f"fold-{number}"
        assert checkpoint.load_run(one).config["fold"] == number
        assert summary["folds"][number]["best"] == json.loads((one / "run.json").read_text())["best"]
    assert run_folder.num_folds(out) == 3
    assert run_folder.num_folds(out / "fold-0") == 0


def test_folds_go_on_with_the_first_that_is_unfinished(
    toy: Toy, tmp_path: Path, seen_rows: dict[Path, tuple[set[int], set[int]]]
) -> None:
    wanted = config(tmp_path / "run", epochs=1, folds=3, fold=ALL_FOLDS, resume="auto")
    train.train(wanted)
    shutil.rmtree(tmp_path / "run" / "fold-2")
    (tmp_path / "run" / "fold-1" / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"expected 3 finished folds, found 1; train the others"):
        run_folder.num_folds(tmp_path / "run")
    first = (tmp_path / "run" / "fold-0" / checkpoint.LAST).stat().st_mtime_ns
    seen_rows.clear()
    train.train(wanted)
    assert [path.name for path in seen_rows] == ["fold-1", "fold-2"]
    assert (tmp_path / "run" / "fold-0" / checkpoint.LAST).stat().st_mtime_ns == first
    with pytest.raises(CheckpointError, match=r"started with --lr 0\.0005, now 0\.01"):
        train.train(dataclasses.replace(wanted, lr=0.01))
    with pytest.raises(UsageError, match="exists; go on with --resume auto"):
        train.train(dataclasses.replace(wanted, resume="no"))


def test_one_fold_trains_as_an_ordinary_run(tmp_path: Path, seen_rows: dict[Path, tuple[set[int], set[int]]]) -> None:
    train.train(config(tmp_path / "run", epochs=1, folds=3, fold=2))
    ((learned, judged),) = seen_rows.values()
    assert learned
    assert judged
    assert (tmp_path / "run" / checkpoint.BEST).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "--folds must be 0 .none. or at least 2, found 1"),
        ({"folds": 3, "fold": 3}, "--fold must be 0 to 2 or all, found 3"),
        ({"fold": ALL_FOLDS}, "--fold all needs --folds"),
        ({"fold": 2}, "--fold 2 needs --folds"),
        ({"fold_seed": -1}, "--fold-seed must be >= 0, found -1"),
    ],
)
def test_folds_without_meaning_are_refused(tmp_path: Path, changes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config(tmp_path, **changes)


def test_fold_flag_takes_a_number_or_all() -> None:
    made = verb.parser("train", "")
    verb.add_config_flags(made, TrainConfig)
    given = ["--records", "a", "--out", "b", "--folds", "4", "--fold"]
    assert verb.config_from_args(made.parse_args([*given, "all"]), TrainConfig).fold == ALL_FOLDS
    assert verb.config_from_args(made.parse_args([*given, "3"]), TrainConfig).fold == 3
    with pytest.raises(SystemExit):
        made.parse_args([*given, "some"])


def test_backbone_that_is_none_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--backbone: expected one of densenet121, densenet169, .*, found 'vgg16'"):
        config(tmp_path, backbone="vgg16")


def test_resume_on_other_records_is_refused(toy: Toy, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    toy.reader.dataset_sha256 = "77" * 32
    with pytest.raises(CheckpointError, match="trained on records 5e5e5e5e5e5e, toy is 777777777777"):
        train.train(config(tmp_path / "run", resume="auto"))


def test_resume_of_a_damaged_checkpoint_is_refused(toy: Toy, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    last = tmp_path / "run" / checkpoint.LAST
    last.write_bytes(last.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"last\.safetensors: damaged"):
        train.train(config(tmp_path / "run", resume="auto"))


def test_resume_without_the_last_checkpoint_keeps_the_best(toy: Toy, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    (tmp_path / "run" / checkpoint.LAST).unlink()
    with pytest.raises(CheckpointError, match=r"last.safetensors: missing although best.safetensors is there"):
        train.train(config(tmp_path / "run", resume="auto"))
    assert (tmp_path / "run" / checkpoint.BEST).exists()
    assert (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(("threads", "batch_size", "replicas"), [(2, 32, 2), (16, 32, 8), (64, 64, 16), (8, 3, 1)])
def test_a_batch_is_never_split_into_more_parts_than_it_fills(
    tmp_path: Path, threads: int, batch_size: int, replicas: int
) -> None:
    asked = config(tmp_path / "run", threads=threads, batch_size=batch_size)
    assert train.num_replicas(asked, torch.device("cpu")) == replicas


def test_more_epochs_may_be_asked_for_on_resume(toy: Toy, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    assert train.train(config(tmp_path / "run", resume="auto", epochs=3))["epochs_run"] == 3
    assert without_time_lines(tmp_path / "run")[:2] == without_time_lines(undisturbed)


def test_bad_pixels_stop_the_run_with_step_and_slices(toy: Toy, tmp_path: Path) -> None:
    def spoil(position: int, images: torch.Tensor) -> None:
        if position == 5:
            images[3] = float("nan")

    toy.change["train"] = spoil
    with pytest.raises(NotFiniteError, match=r"loss is nan at step 5, on slices ID_") as caught:
        train.train(config(tmp_path / "run"))
    order = np.random.default_rng([0, 1]).permutation(NUM_TRAIN)[BATCH : 2 * BATCH]
    expected = [f"ID_{row:08x}" for row in order]
    assert caught.value.sop_uids == expected
    assert all(uid in str(caught.value) for uid in expected)
    assert json.loads((tmp_path / "run" / "nonfinite.json").read_text()) == {"step": 5, "sop_uids": expected}
    saved = checkpoint.load(tmp_path / "run" / checkpoint.LAST)
    assert all(bool(value.isfinite().all()) for value in saved.tensors.values() if value.is_floating_point())
    assert saved.meta["position"]["epoch"] == 1
    assert saved.meta["ops"] == ops.backend()


def test_checkpoint_never_holds_weights_that_are_not_finite(toy: Toy, tmp_path: Path) -> None:
    """The loss of a step is finite although its update is not: the next checkpoint must see it."""

    def enlarge(position: int, images: torch.Tensor) -> None:
        if position == 1:
            images *= 1e37

    toy.change["train"] = enlarge
    with pytest.raises(NotFiniteError, match=r"not finite after step 1|loss is nan at step 1"):
        train.train(config(tmp_path / "run", checkpoint_steps=2))
    assert not (tmp_path / "run" / checkpoint.LAST).exists()


def test_early_stopping_counts_epochs_without_a_lower_loss() -> None:
    state = EarlyStopping()
    for epoch, loss in enumerate([0.5, 0.4, 0.4, 0.6]):
        assert not state.is_over(patience=2)
        state = state.after(epoch, loss)
    assert state == EarlyStopping(best_loss=0.4, best_epoch=1, num_stale=2)
    assert state.is_over(patience=2)


def test_training_stops_early_and_keeps_the_best(toy: Toy, tmp_path: Path) -> None:
    toy.reader.toy_labels[NUM_TRAIN:] = 1 - toy.reader.toy_labels[NUM_TRAIN:]
    summary = train.train(config(tmp_path / "run", epochs=12, patience=1))
    assert summary["stopped_early"]
    assert summary["epochs_run"] == summary["best_epoch"] + 2
    assert checkpoint.load_run(tmp_path / "run").epoch == summary["best_epoch"]


def test_slices_without_labels_are_refused(toy: Toy, tmp_path: Path) -> None:
    toy.reader.toy_labels[3] = -1
    with pytest.raises(FastichError, match="1 slices in split 'train' have no label"):
        train.train(config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_empty_validation_split_is_refused(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = toy.reader.rows
    monkeypatch.setattr(toy.reader, "rows", lambda split: everything(split)[: 0 if split == "val" else None])
    with pytest.raises(FastichError, match="no slices in split 'val'"):
        train.train(config(tmp_path / "run"))


def test_batch_larger_than_the_split_is_refused(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(FastichError, match=r"32 slices in split 'train' do not fill one batch; lower --batch-size 64"):
        train.train(config(tmp_path / "run", batch_size=64))


def test_amp_on_a_cpu_is_bfloat16_and_said(toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = train.train(config(tmp_path / "run", epochs=1, amp=True))
    assert summary["amp"] == "bfloat16"
    assert "amp: bfloat16" in capsys.readouterr().err
    weights = checkpoint.load_run(tmp_path / "run").model.features.conv0.weight
    assert weights.dtype == torch.float32


@pytest.mark.parametrize(("has_bfloat16", "name"), [(True, "bfloat16"), (False, "float16")])
def test_amp_on_a_gpu_follows_the_device(monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bfloat16)
    chosen = precision.choose_precision(True, torch.device("cuda"))
    assert (chosen.name, chosen.needs_scaler) == (name, not has_bfloat16)
    assert precision.choose_precision(False, torch.device("cuda")).name == "float32"


def test_cuda_demanded_and_absent_is_an_error(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FastichError, match="--device cuda: torch finds no CUDA device"):
        train.train(config(tmp_path / "run", device="cuda"))
    assert precision.choose_device("auto") == torch.device("cpu")


def test_compile_wraps_the_network_and_every_batch_has_one_shape(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = set()

    def compile(model: torch.nn.Module, mode: str, dynamic: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(images: torch.Tensor) -> torch.Tensor:
            shapes.add(tuple(images.shape))
            assert images.is_contiguous(memory_format=torch.channels_last)
            return model(images)

        return forward

    monkeypatch.setattr(torch, "compile", compile)
    assert train.train(config(tmp_path / "run", epochs=1, compile="max-autotune"))["compile"] == "max-autotune"
    assert shapes == {(BATCH, 3, SIZE, SIZE)}


def test_one_cycle_warms_up_and_cools_down() -> None:
    rates = [learning_rate("one-cycle", 1e-3, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(4e-5)
    assert max(rates) == rates[20] == 1e-3
    assert rates[99] < 4e-6
    assert np.all(np.diff(rates[:21]) > 0)
    assert np.all(np.diff(rates[20:]) < 0)
    assert {learning_rate("constant", 1e-3, step, 100) for step in range(100)} == {1e-3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": "brain"}, "--windows: expected 3 windows, found 1"),
        ({"adjacent": "brain,bone"}, "--adjacent: expected 1 windows, found 2"),
        ({"windows": "brian,bone,soft"}, "window 'brian'"),
        ({"size": 16}, "--size must be at least 32"),
        ({"batch_size": 0}, "--batch-size must be > 0"),
        ({"lr": float("nan")}, "--lr must be > 0"),
        ({"checkpoint_steps": -1}, "--checkpoint-steps must be >= 0"),
    ],
)
def test_config_that_cannot_run_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_defaults_are_the_studys() -> None:
    defaults = TrainConfig(records=Path("records"), out=Path("run"))
    assert (defaults.lr, defaults.patience, defaults.schedule) == (5e-4, 8, "constant")
    assert defaults.weights == "imagenet"
    assert not defaults.augment
    assert not defaults.balanced


def test_optimizer_is_the_studys_adam_and_nothing_is_frozen() -> None:
    learner = train.start_learner(config(Path("run")), precision.choose_precision(False, torch.device("cpu")))
    (group,) = learner.optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (5e-4, (0.9, 0.999), 1e-8, 2e-5)
    assert sum(parameter.numel() for parameter in group["params"]) == 7_481_734


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ([], "none"),
        (["--compile"], "default"),
        (["--no-compile"], "none"),
        (["--compile", "max-autotune"], "max-autotune"),
        (["--compile", "--device", "cpu"], "default"),
        (["--compile", "none"], "none"),
    ],
)
def test_compile_is_a_flag_that_may_name_a_mode(given: list[str], mode: str) -> None:
    made = verb.parser("train", "")
    verb.add_config_flags(made, TrainConfig)
    args = made.parse_args(["--records", "x", "--out", "y", *given])
    assert verb.config_from_args(args, TrainConfig).compile == mode


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--compile", "fast"], "invalid choice: 'fast'"),
        (["--cache", "disk"], "invalid choice: 'disk'"),
        (["--cuda-graph"], "error: --cuda-graph needs a CUDA device, but the device is the CPU; leave it out"),
        (["--compile", "reduce-overhead"], "error: --compile reduce-overhead records CUDA graphs, but the device is"),
        (["--cache", "device"], "error: loader: cache device is the memory of a GPU, but the device is the CPU"),
    ],
)
def test_modes_that_the_machine_lacks_are_bad_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    argv = ["--records", "toy", "--out", str(tmp_path / "run"), "--weights", "none", "--device", "cpu", *given]
    with pytest.raises(SystemExit) as caught:
        verb.run(train.main, argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seen", ["exit 0", "exit 1", "exit 2"])
def test_command_line_exits_as_every_verb(
    toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str], seen: str
) -> None:
    argv = f"--records toy --out {tmp_path / 'run'} --weights none --size 32 --batch-size 8 --epochs 1 --threads 1"
    if seen == "exit 1":
        toy.reader.toy_labels[:] = -1
    if seen == "exit 2":
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "something").touch()
    with pytest.raises(SystemExit) as caught:
        verb.run(train.main, argv.split())
    assert f"exit {caught.value.code}" == seen
    lines = capsys.readouterr().err.splitlines()
    assert (lines[-1].startswith("error: ")) == (seen != "exit 0")
    if seen == "exit 0":
        assert any(line.startswith("epoch 1/1  loss ") for line in lines)


def test_tensorboard_writes_events(toy: Toy, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train.train(config(tmp_path / "run", epochs=1, tensorboard=True))
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))


def test_tensorboard_that_is_not_installed_is_said(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "HAS_TENSORBOARD", False)
    with pytest.raises(UsageError, match=r"--tensorboard: the package is not installed"):
        train.train(config(tmp_path / "run", epochs=1, tensorboard=True))


def write_split_records(folder: Path) -> None:
    """Real records of 40 slices, the last two of their seven studies for validation."""
    write_records(folder, [(64, 64)] * 40)
    frame = read_index((folder / INDEX_FILE).read_bytes())
    labelled = frame["split"] == "train"
    frame.loc[labelled & (frame.index >= 30), "split"] = "val"
    meta = json.loads((folder / DATASET_FILE).read_text())
    kept = {key: meta[key] for key in ("codec", "size", "split", "rejects", "versions")}
    finish_dataset(folder, frame, kept | {"shards": [ShardInfo(**shard) for shard in meta["shards"]]})


@pytest.mark.parametrize(("loader", "cache"), [("cpu", "none"), pytest.param("native", "host", marks=needs_kernels)])
def test_killed_run_on_real_records_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str, cache: str
) -> None:
    write_split_records(tmp_path / "records")
    changes = {"records": tmp_path / "records", "epochs": 1, "loader": loader, "cache": cache}
    changes |= {"augment": True, "checkpoint_steps": 1}
    train.train(config(tmp_path / "whole", **changes))
    step = Learner.step

    def kill(learner: Learner, *given: Any) -> Any:
        if len(taken) == 2:
            raise Killed
        taken.append(0)
        return step(learner, *given)

    taken: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", kill)
        with pytest.raises(Killed):
            train.train(config(tmp_path / "killed", **changes))
    summary = train.train(config(tmp_path / "killed", resume="auto", **changes))
    assert summary["loader"] == {"cpu": "torch-cpu", "native": "native-cpu"}[loader]
    assert summary["cache"] == summary["config"]["cache"] == cache
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@needs_kernels
def test_a_cache_changes_no_weight_where_records_have_the_networks_side(tmp_path: Path) -> None:
    """Flat records of the network's side are kept as they are, so that even the warp is the same."""
    write_split_records(tmp_path / "records")
    changes = {"records": tmp_path / "records", "size": 64, "epochs": 1, "augment": True, "loader": "native"}
    for cache in ("none", "host"):
        train.train(config(tmp_path / cache, cache=cache, **changes))
    assert_same_run(tmp_path / "none", tmp_path / "host")


@needs_kernels
def test_a_damaged_record_stops_a_cached_run_before_the_first_step(tmp_path: Path) -> None:
    write_split_records(tmp_path / "records")
    offset = damage(tmp_path / "records", 3)
    with pytest.raises(RecordError, match=rf"shard-.*tfrecord:{offset}: checksum of the payload of row 3"):
        train.train(config(tmp_path / "run", records=tmp_path / "records", cache="host"))
    assert not (tmp_path / "run").exists()
