import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_dense import SIZE, SmallDense
from toy_model import write_model
from toy_study import sequence_model

from fastich import artifact as contract
from fastich import calibration, conformal, export, export_study
from fastich.artifact import Artifact, load_artifact, read_manifest
from fastich.checkpoint import LoadedRun, weights_sha256
from fastich.errors import ArtifactError, UsageError
from fastich.export import ExportConfig, load_network
from fastich.export_evaluation import EVALUATION_KEYS, STUDY_KEYS
from fastich.export_study import PAIR, PARITY_LENGTHS, add_study, sequences
from fastich.labels import LABELS
from fastich.model_card import HTML_FILE, MARKDOWN_FILE
from fastich.models.sequence import SequenceEnsemble
from fastich.models.study_onnx import study_onnx_bytes
from fastich.serve.study_session import open_study_session
from fastich.study_contract import STUDY_FILE, from_document
from fastich.study_run import LoadedStudyRun
from fastich.windowing import DEFAULT_WINDOWS

CONFIG = {"variant": "gru", "run": "/srv/secret/run", "records": "/srv/secret/records", "out": "/srv/secret/out"}


def loaded_run(seed: int = 0) -> LoadedRun:
    return LoadedRun(
        run=Path("run"),
        model=SmallDense(seed),
        config={"size": SIZE},
        dataset_sha256="cd" * 32,
        epoch=3,
        size=SIZE,
        windows=DEFAULT_WINDOWS,
        adjacent=False,
        meta={},
    )


def study_run(cnn: LoadedRun, variant: str = "gru", members: int = 1) -> LoadedStudyRun:
    made = [sequence_model(cnn.model.embedding_size, variant, 3 + number) for number in range(members)]
    sequence = made[0] if members == 1 else SequenceEnsemble(made).eval()
    return LoadedStudyRun(
        path=Path("studyrun"),
        sequence=sequence,
        cnn=cnn,
        config=CONFIG,
        dataset_sha256=cnn.dataset_sha256,
        epoch=7,
        embedding_size=sequence.embedding_size,
        meta={},
    )


def seen(cnn: LoadedRun) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    shape = (9, cnn.model.embedding_size)
    return random.random(shape).astype(np.float32), random.normal(-1, 2, (9, 6)).astype(np.float32)


@pytest.fixture
def cnn() -> LoadedRun:
    return loaded_run()


@pytest.fixture
def artifact(tmp_path: Path, cnn: LoadedRun) -> Artifact:
    made = write_model(tmp_path)
    made = dataclasses.replace(made, weights_sha256=weights_sha256(cnn.model), embedding_size=cnn.model.embedding_size)
    contract.write_manifest(tmp_path, made)
    return made


def write_evaluation(folder: Path, **changed: Any) -> Path:
    folder.mkdir()
    random = np.random.default_rng(1)
    logit = random.normal(0, 3, (300, 6))
    labels = (random.random((300, 6)) < 1 / (1 + np.exp(1 - logit / 2))).astype(int)
    chosen = {"rule": "max-f1", "split": "val", "thresholds": {label: 0.1 * i for i, label in enumerate(LABELS)}}
    documents: dict[str, Any] = {
        "thresholds.json": chosen,
        "study-thresholds.json": chosen | {"rule": "youden"},
        "calibration.json": calibration.fit(logit, labels, "platt").to_document(),
        "study-calibration.json": calibration.fit(logit, labels, "isotonic").to_document(),
        "triage.json": conformal.fit(
            1 / (1 + np.exp(-logit[:, 5])), labels[:, 5], alpha_miss=0.1, alpha_alarm=0.2
        ).to_document(),
        "metrics.json": dict.fromkeys(EVALUATION_KEYS, 1)
        | {
            "dataset": {"dataset_sha256": "34" * 32, "trained_on_sha256": "cd" * 32},
            "model": {"epoch": 7},
            "machine": {"precision": "float32"},
            "config": CONFIG,
            "studies": dict.fromkeys(STUDY_KEYS) | {"reports": "long"},
        }
        | changed,
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(("variant", "members"), [("gru", 1), ("difference", 1), ("difference", 3)])
def test_folder_holds_a_sequence_model_that_opens(
    tmp_path: Path, cnn: LoadedRun, artifact: Artifact, variant: str, members: int
) -> None:
    loaded = study_run(cnn, variant, members)
    finished = add_study(tmp_path, artifact, loaded, None, seen(cnn))
    assert load_artifact(tmp_path) == read_manifest(tmp_path)
    assert finished.files.keys() == {"model.onnx", STUDY_FILE}
    session = open_study_session(tmp_path)
    assert session is not None
    assert session.part.variant == variant
    assert session.part.weights_sha256 == weights_sha256(loaded.sequence)
    assert session.part.config == {"variant": "gru"}
    assert "secret" not in (tmp_path / "model.json").read_text()


def test_parity_covers_one_slice_to_a_thin_series(tmp_path: Path, cnn: LoadedRun, artifact: Artifact) -> None:
    found = add_study(tmp_path, artifact, study_run(cnn), None, seen(cnn)).parity[PAIR]
    assert found["num_slices"] == sum(PARITY_LENGTHS)
    assert found["num_studies"] == len(PARITY_LENGTHS)
    assert 0 < found["max_abs_logit"] < 1e-5
    assert found["max_abs_probability"] < 1e-5
    assert found["flips_at_half"] == found["flips_at_thresholds"] == 0


def test_card_is_made_again_with_the_sequence_model(tmp_path: Path, cnn: LoadedRun, artifact: Artifact) -> None:
    add_study(tmp_path, artifact, study_run(cnn), None, seen(cnn))
    assert "| sequence model | gru |" in (tmp_path / MARKDOWN_FILE).read_text()
    assert STUDY_FILE in (tmp_path / HTML_FILE).read_text()


def test_evaluation_brings_thresholds_calibrations_triage_and_metrics(
    tmp_path: Path, cnn: LoadedRun, artifact: Artifact
) -> None:
    folder = write_evaluation(tmp_path / "evaluation")
    finished = add_study(tmp_path, artifact, study_run(cnn), folder, seen(cnn))
    assert finished.study is not None
    part = from_document(finished.study, "model.json")
    assert part.slice_thresholds.rule == "max-f1 on val"
    assert part.study_thresholds.rule == "youden on val"
    assert part.slice_thresholds.values == pytest.approx((0, 0.1, 0.2, 0.3, 0.4, 0.5))
    assert (part.slice_calibration["method"], part.study_calibration["method"]) == ("platt", "isotonic")
    assert part.triage is not None
    assert part.triage["alpha_miss"] == 0.1
    assert part.metrics is not None
    assert part.metrics["studies"] == dict.fromkeys(STUDY_KEYS)
    session = open_study_session(tmp_path)
    assert session is not None
    said = session.run(*seen(cnn), np.full(9, np.nan))
    expected = calibration.Calibration.from_document(part.slice_calibration).probability(said.slice_logit)
    np.testing.assert_allclose(said.slice_probability, expected, atol=2e-6)


def test_without_study_thresholds_a_study_is_cut_at_half_and_the_rule_says_so(
    tmp_path: Path, cnn: LoadedRun, artifact: Artifact
) -> None:
    folder = write_evaluation(tmp_path / "evaluation")
    (folder / "study-thresholds.json").unlink()
    finished = add_study(tmp_path, artifact, study_run(cnn), folder, seen(cnn))
    assert finished.study is not None
    assert from_document(finished.study, "").study_thresholds == contract.Thresholds()


def test_evaluation_of_another_study_run_is_refused(tmp_path: Path, cnn: LoadedRun, artifact: Artifact) -> None:
    folder = write_evaluation(tmp_path / "evaluation", model={"epoch": 6})
    with pytest.raises(UsageError, match="expected an evaluation of studyrun, epoch 7, found one of another network"):
        add_study(tmp_path, artifact, study_run(cnn), folder, seen(cnn))
    assert not (tmp_path / STUDY_FILE).exists()


def test_study_run_over_another_network_is_refused(tmp_path: Path, cnn: LoadedRun, artifact: Artifact) -> None:
    other = loaded_run(seed=1)
    with pytest.raises(UsageError, match=r"studyrun: expected a sequence model over network \w{12}, found one over \w"):
        add_study(tmp_path, artifact, study_run(other), None, seen(cnn))
    assert not (tmp_path / STUDY_FILE).exists()


def test_file_that_disagrees_with_torch_is_not_written(
    tmp_path: Path, cnn: LoadedRun, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = study_onnx_bytes(sequence_model(cnn.model.embedding_size, seed=9))
    monkeypatch.setattr(export_study, "study_onnx_bytes", lambda model, *calibrations: other)
    before = (tmp_path / "model.json").read_bytes()
    with pytest.raises(ArtifactError, match=r"parity study\.onnx vs torch: expected max_abs_\w+ up to .*nothing was"):
        add_study(tmp_path, artifact, study_run(cnn), None, seen(cnn))
    assert not (tmp_path / STUDY_FILE).exists()
    assert (tmp_path / "model.json").read_bytes() == before


def test_parity_series_have_known_and_unknown_gaps(cnn: LoadedRun) -> None:
    made = list(sequences(*seen(cnn)))
    assert [len(gap_mm) for _, _, gap_mm in made] == list(PARITY_LENGTHS)
    assert all(np.isnan(gap_mm[0]) for _, _, gap_mm in made)
    assert 0.1 < np.isnan(made[-1][2]).mean() < 0.3
    np.testing.assert_array_equal(made[-1][0], list(sequences(*seen(cnn)))[-1][0])


def test_study_run_brings_its_own_network(monkeypatch: pytest.MonkeyPatch, cnn: LoadedRun) -> None:
    monkeypatch.setattr(export, "load_study_run", lambda path, which, cnn=None: study_run(loaded_run()))
    found = load_network(ExportConfig(run=None, out=Path("o"), study=Path("s")))
    assert weights_sha256(found.model) == weights_sha256(cnn.model)


def test_run_beside_a_study_run_must_be_its_network(monkeypatch: pytest.MonkeyPatch, cnn: LoadedRun) -> None:
    monkeypatch.setattr(export, "load_study_run", lambda path, which, cnn=None: study_run(loaded_run()))
    monkeypatch.setattr(export, "load_run", lambda run, which: loaded_run(seed=int(run.name)))
    config = ExportConfig(run=Path("0"), out=Path("o"), study=Path("s"))
    assert weights_sha256(load_network(config).model) == weights_sha256(cnn.model)
    with pytest.raises(
        UsageError, match=r"s: expected a study run over 1 \(\w{12}\), found one over \w{12}; leave out"
    ):
        load_network(dataclasses.replace(config, run=Path("1")))


def test_export_of_nothing_is_bad_usage() -> None:
    with pytest.raises(UsageError, match="expected --run, or --study, found neither"):
        ExportConfig(out=Path("o"))
    with pytest.raises(UsageError, match="--study-evaluation: expected --study beside it, found none"):
        ExportConfig(run=Path("r"), out=Path("o"), study_evaluation=Path("e"))


def test_export_verb_writes_model_then_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "load_study_run", lambda path, which, cnn=None: study_run(loaded_run()))
    export.main(["--study", "s", "--out", str(tmp_path / "m"), "--parity-slices", "2"], formats=("onnx",))
    artifact = load_artifact(tmp_path / "m")
    assert set(artifact.files) == {"model.onnx", STUDY_FILE}
    assert set(artifact.parity) == {"model.onnx vs torch", PAIR}
    assert artifact.versions["opset"] == 18
    assert open_study_session(tmp_path / "m") is not None
    shown = capsys.readouterr().err
    assert f"parity {PAIR}: probability" in shown
    monkeypatch.setattr(export, "onnx_bytes", lambda serving: pytest.fail("model.onnx was exported again"))
    before = (tmp_path / "m" / STUDY_FILE).read_bytes()
    export.export_study(ExportConfig(out=tmp_path / "m", study=Path("s"), parity_slices=2))
    assert (tmp_path / "m" / STUDY_FILE).read_bytes() == before


def test_another_export_keeps_the_sequence_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cnn: LoadedRun, artifact: Artifact
) -> None:
    add_study(tmp_path, artifact, study_run(cnn), None, seen(cnn))
    monkeypatch.setattr(export, "torchscript_bytes", lambda serving, example: b"script")
    monkeypatch.setattr(export, "load_network", lambda config: dataclasses.replace(cnn, size=artifact.size))
    monkeypatch.setattr(export, "_measure", lambda *_: {})
    finished = export.export(ExportConfig(run=Path("r"), out=tmp_path), contract.TORCHSCRIPT_FILE)
    assert set(finished.files) == {"model.onnx", "model.ts", STUDY_FILE}
    assert PAIR in finished.parity
    assert open_study_session(tmp_path) is not None


def test_checkpoint_and_torch_are_left_as_they_were(tmp_path: Path, cnn: LoadedRun, artifact: Artifact) -> None:
    before = weights_sha256(cnn.model)
    add_study(tmp_path, artifact, study_run(cnn), None, seen(cnn))
    assert weights_sha256(cnn.model) == before
