import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from site_outcomes import (
    NUM_STUDIES,
    SLICES,
    score_document,
    site,
    slice_outcomes,
    study_outcomes,
    study_truth,
    write_table,
)
from small_dense import SIZE, SmallDense, write_folder

from fastich import artifact as contract
from fastich import conformal, recalibrate
from fastich.artifact import (
    MANIFEST,
    ONNX_FILE,
    PRECISION_FILES,
    TORCHSCRIPT_FILE,
    FileEntry,
    Thresholds,
    load_artifact,
)
from fastich.calibration import Calibration, LabelCalibration, fit
from fastich.errors import ArtifactError, FastichError, UsageError
from fastich.files import sha256_file
from fastich.labels import LABELS
from fastich.model_card import HTML_FILE, MARKDOWN_FILE
from fastich.models.folding import fold_batch_norm
from fastich.models.onnx_graph import onnx_bytes
from fastich.models.serving import Front, ServingModel
from fastich.parity import synthetic_heads
from fastich.quantize import float16_graph
from fastich.recalibrate import RecalibrateConfig, main
from fastich.serve.session import open_session
from fastich.windowing import DEFAULT_WINDOWS

HALF = PRECISION_FILES["float16"]
BEFORE = Calibration(method="platt", of_label=(LabelCalibration(method="platt", scale=0.5, bias=-1.0),) * 6)


@pytest.fixture(scope="module")
def content() -> bytes:
    return onnx_bytes(ServingModel(Front(SIZE, DEFAULT_WINDOWS, False), fold_batch_norm(SmallDense()), BEFORE))


@pytest.fixture
def model(tmp_path: Path, content: bytes) -> Path:
    """A calibrated model folder with a variant in float16 and a triage."""
    folder = tmp_path / "model"
    artifact = write_folder(folder, content)
    half = float16_graph(content)
    (folder / HALF).write_bytes(half)
    entry = FileEntry(sha256=sha256_file(folder / HALF), size_bytes=len(half), role="half")
    triage = conformal.fit([0.2, 0.8] * 30, [0, 1] * 30, alpha_miss=0.2, alpha_alarm=0.2)
    finished = dataclasses.replace(
        artifact,
        files={**artifact.files, HALF: entry},
        calibration=BEFORE.to_document(),
        thresholds=Thresholds(values=(0.3,) * 6, rule="max-f1 on val"),
        triage=triage.to_document(),
        metrics={"split": "test"},
        parity={
            "model.ts vs torch": {"num_slices": 1},
            "model.fp16.onnx (onnxruntime) vs model.onnx": {"num_slices": 1},
        },
    )
    contract.write_manifest(folder, finished)
    return folder


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(score_document()))
    return path


@pytest.fixture
def outcomes(tmp_path: Path) -> Path:
    return slice_outcomes(tmp_path / "slices.csv")


def run(model: Path, outcomes: Path, scores: Path, out: Path, **options: Any) -> dict[str, Any]:
    return recalibrate.recalibrate(RecalibrateConfig(model=model, outcomes=outcomes, scores=scores, out=out, **options))


def words(model: Path, outcomes: Path, scores: Path, out: Path) -> list[str]:
    flags = ("--model", "--outcomes", "--scores", "--out")
    return [word for pair in zip(flags, map(str, (model, outcomes, scores, out)), strict=True) for word in pair]


def test_new_folder_computes_the_sites_calibration_in_every_file(
    model: Path, outcomes: Path, scores: Path, tmp_path: Path
) -> None:
    report = run(model, outcomes, scores, tmp_path / "new")
    artifact = load_artifact(tmp_path / "new")
    calibration = Calibration.from_document(artifact.calibration)
    logit, labels = site()
    assert calibration.of_label[5] == fit(logit, labels, "platt").of_label[5]
    assert calibration.of_label[4] == fit(logit, labels, "platt").of_label[4]
    assert calibration.of_label[:4] == BEFORE.of_label[:4]
    hu = np.ascontiguousarray(np.stack(synthetic_heads(12)[:8])[:, ::4, ::4])
    old, new = (open_session(folder).run(hu) for folder in (model, tmp_path / "new"))
    np.testing.assert_array_equal(old.logit, new.logit)
    np.testing.assert_allclose(new.probability, calibration.probability(new.logit), atol=1e-6)
    assert np.abs(new.probability - old.probability).max() > 0.05
    assert set(artifact.files) == {ONNX_FILE, HALF}
    assert report["labels"]["epidural"]["kept"] == "needs 20 positives and negatives, found 7 and 593"
    assert report["labels"]["any"]["kept"] is None


def test_manifest_says_how_from_what_and_what_was_before(
    model: Path, outcomes: Path, scores: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    report = run(model, outcomes, scores, tmp_path / "new")
    artifact = load_artifact(tmp_path / "new")
    assert artifact.calibration["method"] == "platt"
    assert artifact.calibration["unit"] == "slice"
    assert artifact.calibration["outcomes_sha256"] == sha256_file(outcomes)
    assert artifact.calibration["num_rows"] == NUM_STUDIES * SLICES
    assert artifact.calibration["num_patients"] == NUM_STUDIES
    assert artifact.calibration["previous"] == BEFORE.to_document()
    assert artifact.metrics == {"split": "test", "measured_with": "the calibration before this one"}
    assert artifact.triage == load_artifact(model).triage is not None
    assert report["triage"] == "kept: it looks at raw logits, which do not change"
    assert report["unchanged"] == report["left_out"] == []
    assert set(artifact.parity) == {
        f"{HALF} (onnxruntime) vs {ONNX_FILE}",
        f"{ONNX_FILE} recalibrated vs numpy",
        f"{HALF} recalibrated vs numpy",
    }
    assert str(tmp_path) not in (tmp_path / "new" / MANIFEST).read_text()
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


def test_figures_get_better_and_thresholds_follow_the_stored_rule(
    model: Path, outcomes: Path, scores: Path, tmp_path: Path
) -> None:
    report = run(model, outcomes, scores, tmp_path / "new")
    row = report["labels"]["subdural"]
    assert row["after"]["ece"] < row["before"]["ece"]
    assert row["after"]["brier"] < row["before"]["brier"]
    artifact = load_artifact(tmp_path / "new")
    assert artifact.thresholds.values[:4] == (0.3,) * 4
    assert artifact.thresholds.values[4] == row["threshold"] != 0.3
    assert artifact.thresholds.rule.startswith("max-f1 on slice outcomes ")


def test_outcomes_of_studies_calibrate_the_largest_slice_and_the_triage(
    model: Path, scores: Path, tmp_path: Path
) -> None:
    path = study_outcomes(tmp_path / "studies.csv")
    report = run(model, path, scores, tmp_path / "new", least=10)
    artifact = load_artifact(tmp_path / "new")
    largest = site()[0].reshape(NUM_STUDIES, SLICES, 6).max(axis=1)
    wanted = fit(largest, study_truth(path), "platt").of_label[5]
    assert Calibration.from_document(artifact.calibration).of_label[5] == wanted
    assert artifact.calibration["unit"] == "study"
    bleed = study_truth(path)[:, 5]
    patients = [f"P{i}" for i in range(NUM_STUDIES)]
    made = conformal.fit(1 / (1 + np.exp(-largest.max(axis=1))), bleed, patients, alpha_miss=0.2, alpha_alarm=0.2)
    assert artifact.triage == made.to_document() | {"score": conformal.SCORE}
    assert report["triage"].startswith("chosen again on the outcomes")


def with_study_cuts(model: Path) -> Thresholds:
    cuts = Thresholds(values=(0.41, 0.42, 0.43, 0.44, 0.45, 0.76), rule="sensitivity:0.9 on val")
    contract.write_manifest(model, dataclasses.replace(load_artifact(model), study_thresholds=cuts))
    return cuts


def found(folder: Path, cuts: Thresholds, label: int) -> list[bool]:
    """Which studies of the site a folder finds a label in, by their largest logit."""
    calibration = Calibration.from_document(load_artifact(folder).calibration)
    largest = site()[0].reshape(NUM_STUDIES, SLICES, 6).max(axis=1)
    return (calibration.of_label[label].probability(largest[:, label]) >= cuts.values[label]).tolist()


@pytest.mark.parametrize("rule", ["stored", "keep", "youden"])
def test_outcomes_of_slices_leave_the_decisions_of_studies_as_they_were(
    model: Path, outcomes: Path, scores: Path, tmp_path: Path, rule: str
) -> None:
    old = with_study_cuts(model)
    report = run(model, outcomes, scores, tmp_path / "new", rule=rule)
    new = load_artifact(tmp_path / "new").study_thresholds
    assert new is not None
    for label in range(6):
        before = found(model, old, label)
        assert found(tmp_path / "new", new, label) == before
        assert 0 < sum(before) < NUM_STUDIES
    assert new.values[5] != old.values[5]
    assert report["other_thresholds"]["unit"] == "study"
    assert report["other_thresholds"]["values"] == dict(zip(LABELS, new.values, strict=True))
    assert any(line.startswith("thresholds of each study, where") for line in recalibrate.table(report))


def test_folder_without_cuts_of_studies_keeps_cutting_them_where_it_did(
    model: Path, outcomes: Path, scores: Path, tmp_path: Path
) -> None:
    old = load_artifact(model)
    assert old.study_thresholds is None
    run(model, outcomes, scores, tmp_path / "new")
    new = load_artifact(tmp_path / "new").study_thresholds
    assert new is not None
    assert found(tmp_path / "new", new, 5) == found(model, old.thresholds, 5)


def test_outcomes_of_studies_choose_the_cuts_of_studies_and_leave_the_decisions_on_slices(
    model: Path, scores: Path, tmp_path: Path
) -> None:
    old = with_study_cuts(model)
    report = run(model, study_outcomes(tmp_path / "studies.csv"), scores, tmp_path / "new", least=10)
    artifact = load_artifact(tmp_path / "new")
    assert artifact.study_thresholds is not None
    assert artifact.study_thresholds.rule.startswith("sensitivity:0.9 on study outcomes ")
    assert artifact.study_thresholds.values[5] == report["labels"]["any"]["threshold"] != old.values[5]
    assert report["labels"]["any"]["threshold_before"] == old.values[5]
    before, after = (Calibration.from_document(load_artifact(at).calibration) for at in (model, tmp_path / "new"))
    logit = site()[0][:, 5]
    was = before.of_label[5].probability(logit) >= 0.3
    assert ((after.of_label[5].probability(logit) >= artifact.thresholds.values[5]) == was).all()
    assert artifact.thresholds.rule == "max-f1 on val, the same slice logits after recalibration"


def test_outcomes_of_studies_with_the_rule_keep_leave_every_decision_as_it_was(
    model: Path, scores: Path, tmp_path: Path
) -> None:
    old = with_study_cuts(model)
    path = study_outcomes(tmp_path / "studies.csv")
    report = run(model, path, scores, tmp_path / "new", least=10, rule="keep")
    new = load_artifact(tmp_path / "new")
    assert new.study_thresholds is not None
    for label in range(6):
        before = found(model, old, label)
        assert found(tmp_path / "new", new.study_thresholds, label) == before
        assert 0 < sum(before) < NUM_STUDIES
    assert new.study_thresholds.values[5] == report["labels"]["any"]["threshold"] != old.values[5]
    assert new.study_thresholds.rule == "sensitivity:0.9 on val, the same study logits after recalibration"
    logit = site()[0][:, 5]
    was, now = (Calibration.from_document(load_artifact(at).calibration) for at in (model, tmp_path / "new"))
    cut = new.thresholds.values[5]
    assert ((now.of_label[5].probability(logit) >= cut) == (was.of_label[5].probability(logit) >= 0.3)).all()


def test_scores_that_name_no_precision_are_refused(model: Path, outcomes: Path, tmp_path: Path) -> None:
    document = score_document()
    del document["model"]["precision"]
    path = tmp_path / "unnamed.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"expected scores in float32, .* found no precision; score with this version"):
        run(model, outcomes, path, tmp_path / "new")


def test_scores_in_another_precision_are_refused(model: Path, outcomes: Path, tmp_path: Path) -> None:
    document = score_document()
    document["model"]["precision"] = "int8"
    path = tmp_path / "int8.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=r"expected scores in float32, .* found int8; score without --precision int8"):
        run(model, outcomes, path, tmp_path / "new")


def test_model_may_be_recalibrated_again(model: Path, outcomes: Path, scores: Path, tmp_path: Path) -> None:
    run(model, outcomes, scores, tmp_path / "new")
    run(tmp_path / "new", outcomes, scores, tmp_path / "newer")
    first, second = (load_artifact(tmp_path / name) for name in ("new", "newer"))
    assert first.files == second.files
    assert second.thresholds == first.thresholds
    assert second.calibration["previous"] == first.calibration


def test_torchscript_is_left_out_and_said(
    model: Path, outcomes: Path, scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_file(model, TORCHSCRIPT_FILE)
    assert main(words(model, outcomes, scores, tmp_path / "new")) == 0
    shown = capsys.readouterr().out
    assert "left out: model.ts, which holds the old calibration; only export can write it" in shown
    assert "model.ts vs torch" not in load_artifact(tmp_path / "new").parity
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(
        [HALF, MANIFEST, ONNX_FILE, HTML_FILE, MARKDOWN_FILE]
    )
    assert "epidural" in shown
    assert "keeps its calibration: needs 20 positives and negatives, found 7 and 593" in shown
    assert "600 outcomes by slice, 60 patients; 0 outcomes without a score; after: cross-fitted by patient" in shown
    assert "nan" not in shown.lower()


def add_file(model: Path, name: str) -> None:
    (model / name).write_bytes(b"x")
    artifact = contract.read_manifest(model)
    entry = FileEntry(sha256=sha256_file(model / name), size_bytes=1, role="x")
    contract.write_manifest(model, dataclasses.replace(artifact, files={**artifact.files, name: entry}))


def test_json_is_what_is_returned(
    model: Path, outcomes: Path, scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words(model, outcomes, scores, tmp_path / "new"), "--json", "--rule", "keep"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["labels"]) == list(LABELS)
    assert report["rule"] == "max-f1 on val, the same slice logits after recalibration"
    assert f"thresholds of each slice: {report['rule']}" in list(recalibrate.table(report))
    rows = report["labels"].values()
    assert {row["threshold"] for row in rows if row["kept"] is not None} == {0.3}
    assert 0.3 not in {row["threshold"] for row in rows if row["kept"] is None}
    assert report["num_without_score"] == 0


def test_file_of_another_kind_is_refused(model: Path, outcomes: Path, scores: Path, tmp_path: Path) -> None:
    add_file(model, "other.bin")
    with pytest.raises(UsageError, match=r"only model\.onnx, its variants and study\.onnx can be recal.*, found other"):
        run(model, outcomes, scores, tmp_path / "new")


def test_folder_in_use_is_never_written_into(model: Path, outcomes: Path, scores: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a folder that is new or empty, found it in use; choose another"):
        run(model, outcomes, scores, model)


def test_scores_of_another_network_are_refused(model: Path, outcomes: Path, scores: Path, tmp_path: Path) -> None:
    scores.write_text(scores.read_text().replace("ab" * 32, "cd" * 32))
    with pytest.raises(UsageError, match=r"expected scores of network abababababab, .*, found cdcdcdcdcdcd; sc"):
        run(model, outcomes, scores, tmp_path / "new")


@pytest.mark.parametrize("key", ["study_weights_sha256", "study_sha256"])
def test_scores_of_a_sequence_model_are_refused_where_the_folder_has_none(
    key: str, model: Path, outcomes: Path, scores: Path, tmp_path: Path
) -> None:
    scores.write_text(json.dumps(score_document(**{key: "ef" * 32})))
    with pytest.raises(UsageError, match=r"expected scores of sequence model none, .*, found efefefefefef; score with"):
        run(model, outcomes, scores, tmp_path / "new")


def test_new_folder_has_its_model_card(model: Path, outcomes: Path, scores: Path, tmp_path: Path) -> None:
    run(model, outcomes, scores, tmp_path / "new")
    text = (tmp_path / "new" / MARKDOWN_FILE).read_text()
    assert f"SHA-256 {sha256_file(tmp_path / 'new' / MANIFEST)}" in text
    assert "measured with the calibration before this one" in text


def test_damaged_triage_in_the_manifest_is_named(model: Path, outcomes: Path, scores: Path, tmp_path: Path) -> None:
    contract.write_manifest(model, dataclasses.replace(contract.read_manifest(model), triage={"clear": 1}))
    with pytest.raises(ArtifactError, match=r"model\.json: damaged, triage: expected alphas.*; export again"):
        run(model, outcomes, scores, tmp_path / "new")


def test_outcomes_that_join_nothing_write_nothing(model: Path, scores: Path, tmp_path: Path) -> None:
    strangers = write_table(tmp_path / "x.csv", ["sop_uid", "any"], [["9.9", 1]])
    with pytest.raises(FastichError, match=r"expected a slice that was scored, found none of 1, first 9\.9"):
        run(model, strangers, scores, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_damaged_calibration_in_the_manifest_is_named(
    model: Path, outcomes: Path, scores: Path, tmp_path: Path
) -> None:
    contract.write_manifest(model, dataclasses.replace(contract.read_manifest(model), calibration={"method": "x"}))
    with pytest.raises(ArtifactError, match=r"model\.json: damaged, calibration: expected a document.*; export again"):
        run(model, outcomes, scores, tmp_path / "new")


def test_file_that_does_not_say_what_it_should_is_not_written(
    model: Path, outcomes: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recalibrate, "with_calibration", lambda content, calibration, where: content)
    with pytest.raises(ArtifactError, match=r"recalibrated vs numpy: expected max_abs_probability up to .*nothing was"):
        run(model, outcomes, scores, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_torchscript_alone_cannot_be_recalibrated(model: Path, outcomes: Path, scores: Path, tmp_path: Path) -> None:
    add_file(model, TORCHSCRIPT_FILE)
    artifact = contract.read_manifest(model)
    alone = {TORCHSCRIPT_FILE: artifact.files[TORCHSCRIPT_FILE]}
    contract.write_manifest(model, dataclasses.replace(artifact, files=alone))
    with pytest.raises(ArtifactError, match=r"expected an ONNX file, found model\.ts alone; export model\.onnx"):
        run(model, outcomes, scores, tmp_path / "new")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "best"}, "threshold rule: expected max-f1, youden, sensitivity or specificity, found 'best'"),
        ({"least": 0}, "--least must be >= 1, found 0"),
        ({"folds": 1}, "--folds must be >= 2, found 1"),
        ({"seed": -1}, "--seed must be >= 0, found -1"),
    ],
)
def test_flags_that_mean_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecalibrateConfig(model=Path("m"), outcomes=Path("o"), scores=Path("s"), out=Path("n"), **options)


def test_recalibration_imports_no_torch() -> None:
    code = "import sys, fastich.recalibrate; print([m for m in ('torch', 'nvidia.dali') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
