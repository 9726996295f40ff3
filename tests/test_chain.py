"""From DICOM to a score, through the files alone: what evaluation judged is what scoring says of the same DICOM."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fastich import evaluate, export, pack, score, train, train_study
from fastich.evaluate import EvaluateConfig
from fastich.labels import LABELS
from fastich.phantom import PhantomConfig, generate
from fastich.report import pictures
from fastich.serve.session import open_session
from fastich.serve.study_session import open_study_session
from fastich.training.config import TrainConfig
from fastich.training.study_config import StudyConfig

SIDE, SIZE = 64, 32


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dicom``, ``records``, ``cnn``, ``study``, both evaluated, and two model folders: one with study.onnx."""
    made = tmp_path_factory.mktemp("chain")
    generate(PhantomConfig(out=made / "dicom", studies=12, size=SIDE, seed=3))
    dicom = made / "dicom" / "stage_2_train"
    labels = made / "dicom" / "stage_2_train.csv"
    flags = ["--dicom", str(dicom), "--labels", str(labels), "--val", "0.25", "--test", "0.25"]
    pack.main([*flags, "--out", str(made / "records")])
    records: dict[str, Any] = {"records": made / "records", "device": "cpu", "loader": "cpu", "threads": 2}
    train.train(TrainConfig(out=made / "cnn", weights="none", size=SIZE, epochs=1, batch_size=32, lr=2e-3, **records))
    train_study.train_study(StudyConfig(run=made / "cnn", out=made / "study", epochs=2, embedding_passes=0, **records))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw", lambda *_: ({}, []))  # seconds that test_report spends
        for name in ("cnn", "study"):
            evaluate.evaluate(EvaluateConfig(run=made / name, bootstrap=20, rule="specificity:0.6", **records))
    export_all(made)
    return made


def export_all(made: Path) -> None:
    of_cnn = ["--run", str(made / "cnn"), "--evaluation", str(made / "cnn" / "evaluation-test")]
    of_study = ["--study", str(made / "study"), "--study-evaluation", str(made / "study" / "evaluation-test")]
    export.main([*of_cnn, "--out", str(made / "slices")], formats=("onnx",))
    export.main([*of_cnn, *of_study, "--out", str(made / "studies")], formats=("onnx",))


@pytest.mark.parametrize(("model", "run"), [("slices", "cnn"), ("studies", "study")])
def test_scoring_decides_what_evaluation_judged(base: Path, model: str, run: str) -> None:
    judged = pd.read_parquet(base / run / "evaluation-test" / "studies.parquet").set_index("study_uid")
    cut = json.loads((base / run / "evaluation-test" / "study-thresholds.json").read_text())["thresholds"]
    report = scored(base, model)
    assert {study["study_uid"] for study in report["studies"]} == set(judged.index)
    assert report["model"]["study_thresholds"] == pytest.approx(cut)
    for study in report["studies"]:
        row = judged.loc[study["study_uid"]]
        wanted = {label: row[f"p_{label}"] for label in LABELS}
        assert study["probability"] == pytest.approx(wanted, abs=2e-3)  # records keep embeddings in float16
        sure = {label for label in LABELS if abs(wanted[label] - cut[label]) > 4e-3}
        assert set(study["findings"]) & sure == {label for label in sure if wanted[label] >= cut[label]}
        assert study["triage"] in ("flag", "clear", "human first")


def scored(base: Path, model: str) -> dict[str, Any]:
    """What ``fastich.score --json`` prints of the DICOM files of the test split."""
    index = pd.read_parquet(base / "records" / "index.parquet")
    files = [base / "dicom" / "stage_2_train" / name for name in index.loc[index["split"] == "test", "source"]]
    config = score.ScoreConfig(model=base / model)
    return score.score(files, open_session(base / model), config, open_study_session(base / model))


def test_the_card_and_the_manifest_say_the_same_of_both(base: Path) -> None:
    for model in ("slices", "studies"):
        card = (base / model / "MODEL_CARD.md").read_text()
        document = json.loads((base / model / "model.json").read_text())
        assert "specificity:0.6 on val" in card
        assert document["leakage_certificate"]["clean"] is True
        assert "The splits share nothing." in card
        assert "not stated" not in [cell.strip() for cell in card.split("*splits*")[1].split("##")[0].split("|")]
    assert document["study"]["metrics"]["studies"]["decision"] == "study head"
    assert np.isfinite(document["study"]["metrics"]["log_loss"]["value"])
