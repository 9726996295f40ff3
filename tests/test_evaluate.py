import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from fastich import checkpoint, evaluate, leakage, metrics, operating_points, ops, subject
from fastich.errors import CheckpointError, RecordError, UsageError
from fastich.evaluate import EvaluateConfig
from fastich.labels import ANY, LABELS
from fastich.models.classifier import build_model
from fastich.records import codec
from fastich.records.index import index_frame, shard_name
from fastich.records.reader import RecordReader
from fastich.records.writer import ShardWriter, finish_dataset
from fastich.report import figures, pictures
from fastich.report.results import LOGIT_COLUMNS, PROBABILITY_COLUMNS
from fastich.training.config import ALL_FOLDS
from fastich.training.prediction import Pass
from fastich.windowing import DEFAULT_WINDOWS

SIZE = 32
SPLITS = ("train", "val", "val", "val", "test", "test", "test", "test")
"""Of each study; every study is a patient of six slices, of which the middle two bleed in every second study."""


class Brightness(nn.Module):
    """A network that knows the toy's secret: bleeding slices are brighter. p(any) comes out below p(subdural)."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logit = (images[:, 0].mean(dim=(1, 2)) - 0.5) * 6
        return torch.stack([logit] * 5 + [logit - 1], dim=1)


def write_records(path: Path, *, unlabelled_row: int = -1, salt: str = "", same_patients: bool = False) -> None:
    """Eight studies of six slices, 40 x 40 pixels, uniform brain in noise; ``salt`` makes other studies of others."""
    path.mkdir()
    rng = np.random.default_rng(len(salt))
    rows: list[dict[str, Any]] = []
    with ShardWriter(path / shard_name(0, 1)) as writer:
        for study, split in enumerate(SPLITS):
            for z in range(6):
                bleeds = study % 2 == 1 and z in (2, 3)
                labels = [-1] * 6 if len(rows) == unlabelled_row else [0, int(bleeds), 0, 0, int(bleeds), int(bleeds)]
                hu = rng.normal(58 if bleeds else 45, 4) + rng.normal(0, 3, (40, 40))
                stored = (hu + 1024).astype(np.uint16)
                place = writer.append(codec.encode(stored), 40, 40, labels, f"ID_{len(rows):09x}")
                uids = {"sop_uid": f"ID_{len(rows):09x}", "study_uid": f"s{study}{salt}"}
                uids["series_uid"] = uids["study_uid"] + ".1"
                spacing = dict.fromkeys(("row_spacing_mm", "col_spacing_mm", "slice_spacing_mm"), 5.0)
                rows.append(
                    uids
                    | {
                        "patient_id": f"p{study}" + ("" if same_patients else salt),
                        "z_mm": 5.0 * z,
                        "tilt_deg": 0.0,
                        "height": 40,
                        "width": 40,
                        "shard": 0,
                    }
                    | spacing
                    | {name: getattr(place, name) for name in place.__slots__}
                    | {"pixel_sha1": hashlib.sha1(stored.tobytes()).hexdigest(), "split": split}
                    | dict(zip(LABELS, labels, strict=True))
                    | {"encoding": "toy", "source": f"{len(rows)}.dcm"}
                )
    meta = {"codec": "lbp", "size": None, "split": {}, "shards": [writer.close()], "rejects": None, "versions": {}}
    finish_dataset(path, index_frame(rows), meta)


def write_run(path: Path, dataset_sha256: str, certificate: dict[str, Any] | None = None) -> None:
    """A run folder with a random network in it."""
    torch.manual_seed(0)
    windows = [{"center_hu": win.center_hu, "width_hu": win.width_hu} for win in DEFAULT_WINDOWS]
    meta = {
        "epoch": 2,
        "config": {"size": SIZE, "lr": 5e-4},
        "input": {"size": SIZE, "windows": windows, "adjacent": False},
        "dataset_sha256": dataset_sha256,
        "leakage_certificate": certificate,
    }
    checkpoint.save(path / checkpoint.BEST, meta, checkpoint.model_tensors(build_model(weights="none")))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``records`` and a ``run`` that was trained on them."""
    made = tmp_path_factory.mktemp("evaluate")
    write_records(made / "records")
    with RecordReader(made / "records") as reader:
        write_run(made / "run", reader.dataset_sha256, leakage.certify(reader))
    return made


@pytest.fixture(scope="module")
def evaluated(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one evaluation with the network that knows the secret."""
    out = tmp_path_factory.mktemp("out") / "evaluation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject, "load_members", lambda *_: (loaded(base),))
        patch.setattr(pictures, "draw", no_pictures)
        evaluate.evaluate(config(base, out))
    return out


def no_pictures(*_: Any) -> tuple[dict[str, bytes], list[Any]]:
    """Pictures cost seconds; test_report draws them all."""
    return {}, []


def loaded(base: Path) -> checkpoint.LoadedRun:
    run = checkpoint.load_run(base / "run")
    return checkpoint.LoadedRun(**{**vars(run), "model": Brightness()})


def config(base: Path, out: Path | None, **changes: Any) -> EvaluateConfig:
    values: dict[str, Any] = {"batch_size": 4, "loader": "cpu", "device": "cpu", "threads": 1, "bootstrap": 50}
    return EvaluateConfig(run=base / "run", records=base / "records", out=out, **(values | changes))


def test_every_slice_of_the_split_is_predicted_once_in_row_order(base: Path, evaluated: Path) -> None:
    table = pd.read_parquet(evaluated / "predictions.parquet")
    with RecordReader(base / "records") as reader:
        assert table["row"].tolist() == reader.rows("test").tolist()
        same = reader.index.loc[table["row"]].reset_index(drop=True)
    names = ["sop_uid", "study_uid", "patient_id", *LABELS]
    assert list(table.columns) == ["row", *names, *PROBABILITY_COLUMNS, *LOGIT_COLUMNS]
    pd.testing.assert_frame_equal(table[names], same[names], check_dtype=False)


def test_any_is_raised_to_the_largest_subtype(evaluated: Path) -> None:
    scores = pd.read_parquet(evaluated / "predictions.parquet")[PROBABILITY_COLUMNS].to_numpy()
    assert scores.dtype == np.float64
    assert (scores[:, ANY] == scores[:, :ANY].max(axis=1)).all()


def test_metrics_json_holds_the_numbers_of_the_predictions(evaluated: Path) -> None:
    measured = json.loads((evaluated / "metrics.json").read_text())
    table = pd.read_parquet(evaluated / "predictions.parquet")
    truth, scores = table[list(LABELS)].to_numpy(), table[PROBABILITY_COLUMNS].to_numpy()
    assert {label: found["value"] for label, found in measured["auc"].items()} == metrics.roc_auc(truth, scores)
    assert measured["auc"]["any"]["value"] > 0.9
    assert (measured["num_patients"], measured["auc"]["any"]["low"]) == (4, None)
    assert measured["auc"]["any"]["note"] == "no interval: 2 patients, fewer than 6"
    assert measured["auc"]["epidural"]["value"] is None
    assert measured["log_loss"]["value"] == pytest.approx(metrics.log_loss_weighted(truth, scores))
    assert (measured["num_slices"], measured["num_studies"], measured["num_patients"]) == (24, 4, 4)
    assert measured["prevalence"]["any"] == pytest.approx(4 / 24)
    assert measured["dataset"]["same_as_training"] is True
    assert measured["dataset"]["leakage"]["clean"] is True
    assert measured["machine"]["loader"] == "torch-cpu"
    assert measured["machine"]["ops"] == ops.backend()
    assert measured["slices_per_s"] > 0
    assert measured["config"] == {"size": SIZE, "lr": 5e-4}


def test_thresholds_json_is_what_validation_alone_gives(evaluated: Path) -> None:
    chosen = json.loads((evaluated / "thresholds.json").read_text())
    table = pd.read_parquet(evaluated / "predictions-val.parquet")
    wanted = operating_points.choose(table[list(LABELS)], table[PROBABILITY_COLUMNS])
    assert list(chosen["thresholds"].values()) == pytest.approx(wanted.tolist())
    assert chosen["split"] == "val"
    assert chosen["fallback_labels"] == ["epidural", "intraventricular", "subarachnoid"]


def test_verb_runs_a_real_network_and_prints_json(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "draw_all", lambda *_: {"roc_any": b"drawn for real in test_report"})
    (base / "run" / "curves").mkdir()
    (base / "run" / "curves" / "loss.png").write_bytes(b"\x89PNG training curve")
    flags = ["--run", str(base / "run"), "--records", str(base / "records"), "--bootstrap", "20", "--threads", "1"]
    assert evaluate.main([*flags, "--loader", "cpu", "--device", "cpu", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    folder = base / "run" / "evaluation-test"
    assert printed == json.loads((folder / "metrics.json").read_text())
    assert (folder / "figures" / "roc_any.png").exists()
    assert 'alt="loss by epoch"' in (folder / "report.html").read_text()
    with pytest.raises(UsageError, match="give --overwrite, or choose another --out"):
        evaluate.main(flags)


def test_overwrite_touches_nothing_before_run_and_records_are_known_good(base: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "records", salt="x")
    (tmp_path / "old" / "figures").mkdir(parents=True)
    for name in ("metrics.json", "figures/a.png"):
        (tmp_path / "old" / name).write_text("old")
    flags = {**vars(config(base, tmp_path / "old")), "overwrite": True}
    with pytest.raises(RecordError, match="--other-dataset"):
        evaluate.evaluate(EvaluateConfig(**(flags | {"records": tmp_path / "records"})))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        evaluate.evaluate(EvaluateConfig(**(flags | {"run": tmp_path / "empty"})))
    assert (tmp_path / "old" / "metrics.json").exists()
    assert (tmp_path / "old" / "figures" / "a.png").exists()


def test_records_of_another_data_set_are_refused_unless_meant(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "draw", no_pictures)
    write_records(tmp_path / "records", salt="x")
    other = {"records": tmp_path / "records"}
    flags = {**vars(config(base, tmp_path / "out")), **other}
    with pytest.raises(RecordError, match=r"expected the records that .* was trained on .* --other-dataset"):
        evaluate.evaluate(EvaluateConfig(**flags))
    measured = evaluate.evaluate(EvaluateConfig(**{**flags, "other_dataset": True}))
    assert measured["dataset"]["same_as_training"] is False
    assert measured["dataset"]["leakage"]["clean"] is True
    assert measured["dataset"]["leakage"]["told_by"] == "certificate"
    assert "Another data set than the one trained on" in (tmp_path / "out" / "report.html").read_text()


def test_patients_that_the_run_has_seen_are_refused_unless_meant(base: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "records", salt="x", same_patients=True)
    index = RecordReader(tmp_path / "records").index
    index.loc[index["patient_id"] == "p4", "patient_id"] = "p1"  # of the run's validation split
    flags = {**vars(config(base, tmp_path / "out")), "records": tmp_path / "records", "other_dataset": True}
    run = loaded(base)
    with RecordReader(tmp_path / "records") as reader:
        reader.index = index
        with pytest.raises(RecordError, match=r"nothing of split 'test' .* found 1 patients of its val split"):
            evaluate._compare_datasets(EvaluateConfig(**flags), run, reader)
        found = evaluate._compare_datasets(EvaluateConfig(**flags | {"allow_leakage": True}), run, reader)
    assert found["leakage"]["clean"] is False
    assert sum(row["patients"] for row in found["leakage"]["shared"]) == 1


def test_images_that_the_run_has_seen_are_refused_under_other_ids(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "records", tmp_path / "records")
    with RecordReader(tmp_path / "records") as reader:
        for column in ("study_uid", "series_uid", "patient_id"):
            reader.index[column] += "x"
        reader.index["split"] = "test"
        reader.dataset_sha256 = "0" * 64
        with pytest.raises(RecordError, match=r"1 copied studies of its train split; 3 .* of its val split \(told"):
            leakage.require_apart(loaded(base), reader, "test", allow=False)


def test_run_without_a_certificate_is_not_taken_for_clean(base: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "records", salt="x")
    write_run(tmp_path / "run", "ab" * 32)
    run = checkpoint.load_run(tmp_path / "run")
    with RecordReader(tmp_path / "records") as reader:
        with pytest.raises(CheckpointError, match="expected a leakage certificate in its checkpoint, found none"):
            leakage.require_apart(run, reader, "test", allow=False)
        assert leakage.require_apart(run, reader, "test", allow=True)["clean"] is None


def test_splits_that_leak_are_not_judged_unless_meant(base: Path) -> None:
    with RecordReader(base / "records") as reader:
        split = reader.index["split"].replace("", "test").to_numpy(object)
        split[0] = "test"
        run = loaded(base)
        run.meta["leakage_certificate"] = leakage.certify(reader, split)
        with pytest.raises(RecordError, match=r"found 1 patients, 1 studies, 1 series in both train and test"):
            leakage.require_apart(run, reader, "test", allow=False)
        assert leakage.require_apart(run, reader, "test", allow=True)["clean"] is False


def test_validation_split_can_be_judged_and_is_predicted_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real = subject.predict_members

    def spy(*args: Any) -> Pass:
        seen.append(args[2])
        return real(*args)

    monkeypatch.setattr(subject, "load_members", lambda *_: (loaded(base),))
    monkeypatch.setattr(subject, "predict_members", spy)
    monkeypatch.setattr(pictures, "draw", no_pictures)
    evaluate.evaluate(config(base, tmp_path / "out", split="val"))
    assert seen == ["val"]
    assert "optimistic" in (tmp_path / "out" / "report.html").read_text()


def test_k_fold_run_judges_validation_out_of_fold_and_the_test_split_with_all_networks(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def member(fold: int) -> checkpoint.LoadedRun:
        one = loaded(base)
        folds = {"folds": 2, "fold": fold, "fold_seed": 0}
        return dataclasses.replace(one, config={**one.config, **folds}, epoch=fold + 3)

    monkeypatch.setattr(subject, "load_members", lambda *_: (member(0), member(1)))
    monkeypatch.setattr(pictures, "draw", no_pictures)
    measured = evaluate.evaluate(config(base, tmp_path / "out", tta="flip,crop"))
    judged, validation = (
        pd.read_parquet(tmp_path / "out" / name) for name in ("predictions.parquet", "predictions-val.parquet")
    )
    with RecordReader(base / "records") as reader:
        assert judged["row"].tolist() == reader.rows("test").tolist()
        assert validation["row"].tolist() == [*reader.rows("train"), *reader.rows("val")]
    assert measured["model"]["epoch"] == [3, 4]
    assert measured["config"]["fold"] == ALL_FOLDS
    with pytest.raises(UsageError, match="split train: a k-fold run has none of its own"):
        evaluate.evaluate(config(base, tmp_path / "train", split="train"))


def test_slices_without_a_label_are_refused(base: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "records", unlabelled_row=len(SPLITS) * 6 - 1, salt="x")
    flags = {**vars(config(base, tmp_path / "out")), "records": tmp_path / "records", "other_dataset": True}
    with pytest.raises(RecordError, match="split 'test', found 1 without"):
        evaluate.evaluate(EvaluateConfig(**flags))
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_missing_run_is_named_and_leaves_nothing_behind(base: Path, tmp_path: Path) -> None:
    flags = {**vars(config(base, None)), "run": tmp_path / "run"}
    with pytest.raises(CheckpointError, match="no such run folder"):
        evaluate.evaluate(EvaluateConfig(**flags))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["batch_size", "bootstrap"])
def test_values_without_meaning_are_refused(base: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} must be >= 1, found 0"):
        config(base, None, **{name: 0})
