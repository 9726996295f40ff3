import dataclasses
import json
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
from toy_model import toy_onnx, write_model
from toy_study import add_study, sequence_model

from fastich import artifact as contract
from fastich import conformal, recalibrate_study, score
from fastich.artifact import ONNX_FILE, PRECISION_FILES, TORCHSCRIPT_FILE, FileEntry, Thresholds, load_artifact
from fastich.calibration import Calibration, LabelCalibration, fit
from fastich.calibration_graph import with_calibration
from fastich.errors import ArtifactError, UsageError
from fastich.files import sha256_file
from fastich.labels import LABELS
from fastich.model_card import MARKDOWN_FILE
from fastich.models.study_onnx import study_onnx_bytes
from fastich.phantom import PhantomConfig, generate
from fastich.recalibrate import RecalibrateConfig, main, recalibrate, table
from fastich.recalibrate_study import LENGTHS, PAIR, sequences
from fastich.serve.study_session import open_study_session
from fastich.study_contract import STUDY_FILE, StudyPart, from_document, to_document

OF_SLICES = Calibration(method="platt", of_label=(LabelCalibration(method="platt", scale=0.5, bias=-1.0),) * 6)
WRONG = Calibration(method="platt", of_label=(LabelCalibration(method="platt", scale=0.1, bias=2.0),) * 6)
OF_STUDIES = Calibration(method="platt", of_label=(LabelCalibration(method="platt", scale=0.8, bias=0.5),) * 6)
TRIAGE = conformal.fit([0.2, 0.8] * 30, [0, 1] * 30, alpha_miss=0.2, alpha_alarm=0.1).to_document()
HALF = PRECISION_FILES["float16"]
SEQUENCE = sequence_model(1024)
CONTENT = study_onnx_bytes(SEQUENCE, OF_SLICES, OF_STUDIES)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder of a toy network with stand-ins for a variant and model.ts, and a calibrated sequence model."""
    folder = tmp_path / "model"
    artifact = write_model(folder)
    for name, content in ((HALF, toy_onnx(scale=2)), (TORCHSCRIPT_FILE, b"script")):
        (folder / name).write_bytes(content)
        entry = FileEntry(sha256=sha256_file(folder / name), size_bytes=len(content), role="stand-in")
        artifact = dataclasses.replace(artifact, files={**artifact.files, name: entry})
    contract.write_manifest(folder, dataclasses.replace(artifact, triage=TRIAGE, metrics={"split": "val"}))
    add_study(
        folder,
        SEQUENCE,
        content=CONTENT,
        slice_calibration=OF_SLICES.to_document(),
        study_calibration=OF_STUDIES.to_document(),
        slice_thresholds=Thresholds(values=(0.3,) * 6, rule="max-f1 on val"),
        study_thresholds=Thresholds(values=(0.4,) * 6, rule="youden on val"),
        triage=TRIAGE,
        metrics={"split": "test"},
    )
    return folder


def study_logits() -> np.ndarray:
    """Of the study head: above the largest slice by another amount in each study."""
    largest = site()[0].reshape(NUM_STUDIES, SLICES, 6).max(axis=1)
    return largest + np.random.default_rng(5).uniform(0, 2, (NUM_STUDIES, 1))


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(score_document(study_logits(), study_weights_sha256="ef" * 32)))
    return path


def run(model: Path, outcomes: Path, scores: Path, out: Path, **options: Any) -> dict[str, Any]:
    return recalibrate(RecalibrateConfig(model=model, outcomes=outcomes, scores=scores, out=out, **options))


def part_of(folder: Path) -> StudyPart:
    document = load_artifact(folder).study
    assert document is not None
    return from_document(document, str(folder))


def answers(folder: Path) -> Any:
    """What study.onnx says of nine slices in which ``any`` alone is likely, so that it is not raised to a subtype."""
    session = open_study_session(folder)
    assert session is not None
    logit = np.full((9, 6), -8, np.float32)
    logit[:, 5] = np.linspace(-3, 1, 9)
    return session.run(np.random.default_rng(0).random((9, 1024), dtype=np.float32), logit, np.full(9, np.nan))


def test_outcomes_of_slices_recalibrate_the_slices_of_the_sequence_model(
    model: Path, scores: Path, tmp_path: Path
) -> None:
    report = run(model, slice_outcomes(tmp_path / "o.csv"), scores, tmp_path / "new")
    old, new = part_of(model), part_of(tmp_path / "new")
    calibration = Calibration.from_document(new.slice_calibration)
    wanted = fit(*site(), "platt")
    assert [calibration.of_label[i] for i in (4, 5)] == [wanted.of_label[i] for i in (4, 5)]
    assert calibration.of_label[:4] == OF_SLICES.of_label[:4]
    was, now = answers(model), answers(tmp_path / "new")
    np.testing.assert_array_equal(now.slice_logit, was.slice_logit)
    np.testing.assert_allclose(now.slice_probability, calibration.probability(now.slice_logit), atol=1e-6)
    assert np.abs(now.slice_probability - was.slice_probability).max() > 0.05
    np.testing.assert_array_equal(now.study_probability, was.study_probability)
    assert new.slice_thresholds.values[:4] == (0.3,) * 4
    assert new.slice_thresholds.values[4] == report["labels"]["subdural"]["threshold"] != 0.3
    assert new.slice_thresholds.rule.startswith("max-f1 on slice outcomes ")
    assert (new.study_calibration, new.study_thresholds) == (old.study_calibration, old.study_thresholds)
    assert new.triage == TRIAGE
    assert report["triage"] == "kept: it looks at raw logits, which do not change"


def test_outcomes_of_studies_recalibrate_the_study_head_and_choose_the_triage(
    model: Path, scores: Path, tmp_path: Path
) -> None:
    outcomes = study_outcomes(tmp_path / "o.csv")
    report = run(model, outcomes, scores, tmp_path / "new", least=10)
    old, new, truth = part_of(model), part_of(tmp_path / "new"), study_truth(outcomes)
    calibration = Calibration.from_document(new.study_calibration)
    assert calibration.of_label[5] == fit(study_logits(), truth, "platt").of_label[5]
    was, now = answers(model), answers(tmp_path / "new")
    np.testing.assert_allclose(now.study_probability, calibration.probability(now.study_logit[None])[0], atol=1e-6)
    assert np.abs(now.study_probability[5] - was.study_probability[5]) > 0.01
    np.testing.assert_array_equal(now.study_logit, was.study_logit)
    np.testing.assert_array_equal(now.slice_probability, was.slice_probability)
    assert new.study_thresholds.rule.startswith("youden on study outcomes ")
    assert new.study_thresholds.values[5] == report["labels"]["any"]["threshold"] != 0.4
    assert (new.slice_calibration, new.slice_thresholds) == (old.slice_calibration, old.slice_thresholds)
    score_S = 1 / (1 + np.exp(-study_logits().max(axis=1)))
    patients = [f"P{i}" for i in range(NUM_STUDIES)]
    wanted = conformal.fit(score_S, truth[:, 5], patients, alpha_miss=0.2, alpha_alarm=0.1)
    assert new.triage == wanted.to_document() | {"score": conformal.SCORE}
    assert report["triage"] == "chosen again on the outcomes"


@pytest.mark.parametrize("unit", ["slice", "study"])
def test_rule_keep_leaves_the_decisions_of_the_sequence_model_as_they_were(
    unit: str, model: Path, scores: Path, tmp_path: Path
) -> None:
    outcomes = (slice_outcomes if unit == "slice" else study_outcomes)(tmp_path / "o.csv")
    middle = float(np.median(OF_STUDIES.probability(study_logits())[:, 5]))
    cuts = Thresholds(values=(middle,) * 6, rule="youden on val")
    artifact = contract.read_manifest(model)
    study = to_document(dataclasses.replace(part_of(model), study_thresholds=cuts))
    contract.write_manifest(model, dataclasses.replace(artifact, study=study))
    run(model, outcomes, scores, tmp_path / "new", rule="keep", least=10)
    old, new = part_of(model), part_of(tmp_path / "new")
    logit = {"slice": site()[0], "study": study_logits()}
    for each in ("slice", "study"):
        was, now = (
            Calibration.from_document(getattr(part, f"{each}_calibration")).of_label[5].probability(logit[each][:, 5])
            >= getattr(part, f"{each}_thresholds").values[5]
            for part in (old, new)
        )
        assert (was == now).all()
        assert 0 < was.sum() < len(was)
        has_moved = getattr(old, f"{each}_thresholds") != getattr(new, f"{each}_thresholds")
        assert has_moved == (each == unit)


def test_other_files_stay_byte_for_byte_and_the_report_says_what_that_means(
    model: Path, scores: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    report = run(model, slice_outcomes(tmp_path / "o.csv"), scores, tmp_path / "new")
    for name in (ONNX_FILE, HALF, TORCHSCRIPT_FILE):
        assert (tmp_path / "new" / name).read_bytes() == before[name]
    assert (tmp_path / "new" / STUDY_FILE).read_bytes() != before[STUDY_FILE]
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert report["left_out"] == []
    assert (
        "recalibrated: study.onnx, its slice probabilities; as before: model.fp16.onnx, model.onnx, model.ts, "
        "whose own probabilities are not what scoring shows"
    ) in list(table(report))


def test_manifest_says_how_from_what_and_what_was_before(model: Path, scores: Path, tmp_path: Path) -> None:
    outcomes = slice_outcomes(tmp_path / "o.csv")
    run(model, outcomes, scores, tmp_path / "new")
    old, new, part = load_artifact(model), load_artifact(tmp_path / "new"), part_of(tmp_path / "new")
    assert part.slice_calibration["source"] == "outcomes of a site"
    assert part.slice_calibration["outcomes_sha256"] == sha256_file(outcomes)
    assert part.slice_calibration["previous"] == OF_SLICES.to_document()
    assert part.metrics == {"split": "test", "measured_with": "the calibration before this one"}
    assert (new.calibration, new.thresholds, new.triage) == (old.calibration, old.thresholds, old.triage)
    assert new.metrics == {"split": "val"}
    assert {name for name in new.files if new.files[name] != old.files[name]} == {STUDY_FILE}
    assert new.parity[PAIR]["num_slices"] == sum(LENGTHS)
    assert new.parity[PAIR]["num_studies"] == len(LENGTHS)
    assert new.parity[PAIR]["max_abs_logit"] == 0
    assert new.parity[PAIR]["max_abs_probability"] < 1e-6
    card = (tmp_path / "new" / MARKDOWN_FILE).read_text()
    assert "Figures of the sequence model were measured with the calibration before this one" in card
    assert "the network's own slices were measured" not in card


def test_both_kinds_of_outcomes_may_follow_each_other(model: Path, scores: Path, tmp_path: Path) -> None:
    run(model, slice_outcomes(tmp_path / "o.csv"), scores, tmp_path / "a")
    run(tmp_path / "a", study_outcomes(tmp_path / "p.csv"), scores, tmp_path / "b", least=10)
    first, both = part_of(tmp_path / "a"), part_of(tmp_path / "b")
    assert both.slice_calibration == first.slice_calibration
    assert both.study_calibration["unit"] == "study"
    said = answers(tmp_path / "b")
    for name, found in (("slice", said.slice_probability), ("study", said.study_probability[None])):
        calibration = Calibration.from_document(getattr(both, f"{name}_calibration"))
        logit = np.atleast_2d(getattr(said, f"{name}_logit"))
        np.testing.assert_allclose(found, calibration.probability(logit), atol=1e-6)


@pytest.mark.parametrize("unit", ["slice", "study"])
def test_file_that_does_not_say_what_it_should_is_not_written(
    unit: str, model: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_half(content: bytes, calibration: Calibration, *, prefix: str, where: str) -> bytes:
        right = with_calibration(content, calibration, prefix=prefix, where=where)
        return with_calibration(right, WRONG, prefix=f"{unit}_", where=where)

    monkeypatch.setattr(recalibrate_study, "with_calibration", wrong_half)
    with pytest.raises(ArtifactError, match=r"study\.onnx recalibrated vs numpy: expected max_abs_prob.*nothing was"):
        run(model, slice_outcomes(tmp_path / "o.csv"), scores, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("keys", "found"),
    [({}, "none"), ({"study_weights_sha256": "12" * 32}, "1212"), ({"study_sha256": "34" * 32}, "3434")],
)
def test_scores_of_another_sequence_model_are_refused(
    keys: dict[str, str], found: str, model: Path, scores: Path, tmp_path: Path
) -> None:
    scores.write_text(json.dumps(score_document(study_logits(), **keys)))
    with pytest.raises(UsageError, match=f"expected scores of sequence model efefefefefef, .*, found {found}"):
        run(model, slice_outcomes(tmp_path / "o.csv"), scores, tmp_path / "new")


def test_sequence_model_that_the_manifest_does_not_describe_is_refused(
    model: Path, scores: Path, tmp_path: Path
) -> None:
    contract.write_manifest(model, dataclasses.replace(contract.read_manifest(model), study=None))
    with pytest.raises(ArtifactError, match=r"names study\.onnx but does not describe it; export again"):
        run(model, slice_outcomes(tmp_path / "o.csv"), scores, tmp_path / "new")


def test_series_of_the_parity_check_have_known_and_unknown_gaps() -> None:
    made = list(sequences(7))
    assert [one[0].shape for one in made] == [(1, 7), (2, 7), (34, 7)]
    unknown = np.isnan(made[-1][2])
    assert unknown[0]
    assert 1 < unknown.sum() < 17


def test_recalibrated_folder_scores_dicom_with_the_sites_probabilities(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(PhantomConfig(out=tmp_path / "ct", studies=3, size=64, healthy=0.3, seed=5))
    dicom = str(tmp_path / "ct" / "stage_2_train")
    before = scored(model, dicom, capsys)
    (tmp_path / "scores.json").write_text(json.dumps(before))
    any_N = values(slices_of(before), "logit")[:, 5]
    bleeds = any_N + np.random.default_rng(0).normal(0, any_N.std(), len(any_N)) > np.median(any_N)
    rows: list[list[object]] = [
        [one["sop_uid"], int(bleed)] for one, bleed in zip(slices_of(before), bleeds, strict=True)
    ]
    outcomes = write_table(tmp_path / "o.csv", ["sop_uid", "any"], rows)
    flags = {"--model": model, "--outcomes": outcomes, "--scores": tmp_path / "scores.json", "--out": tmp_path / "new"}
    assert main([str(word) for pair in flags.items() for word in pair]) == 0
    assert (
        "recalibrated: study.onnx, its slice probabilities; as before: model.fp16.onnx, model.onnx"
        in capsys.readouterr().out
    )
    after = scored(tmp_path / "new", dicom, capsys)
    calibration = Calibration.from_document(part_of(tmp_path / "new").slice_calibration)
    logit = values(slices_of(after), "logit")
    np.testing.assert_array_equal(logit, values(slices_of(before), "logit"))
    found = values(slices_of(after), "probability")
    np.testing.assert_allclose(found, calibration.probability(logit), atol=1e-6)
    assert np.abs(found - values(slices_of(before), "probability")).max() > 0.01


def scored(folder: Path, dicom: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    score.main([dicom, "--model", str(folder), "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def slices_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    found = [one for study in report["studies"] for series in study["series"] for one in series["slices"]]
    return sorted(found, key=lambda one: str(one["sop_uid"]))


def values(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([[row[name][label] for label in LABELS] for row in rows])
