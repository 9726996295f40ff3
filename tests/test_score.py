import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from toy_model import WEIGHTS, write_model

from fastich import score as verb_under_test
from fastich.errors import ArtifactError, FastichError, UsageError
from fastich.labels import LABELS
from fastich.score import Asked, ScoreConfig, main, run_series, score, table
from fastich.serve.session import Session, open_session

REAL_HEAD = Path(__file__).parents[2] / "shared" / "data" / "head_ct_tilt"


def write_slice(
    path: Path, *, study: str = "1.2.1", z_mm: float = 0.0, hu: int = 0, side: int = 32, modality: str = "CT"
) -> Path:
    """One CT slice of one value, as a DICOM file."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    uid = f"{study}.{abs(int(z_mm * 10))}.{side}.1" if z_mm >= 0 else f"{study}.{abs(int(z_mm * 10))}.{side}.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, study + ".9"
    dataset.PatientID, dataset.Modality = "P" + study, modality
    dataset.Rows = dataset.Columns = side
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, z_mm], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.5, 0.5]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 1, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = np.full((side, side), hu + 1024, dtype="<i2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def probability(hu: float, label: str = "any") -> float:
    return float(1 / (1 + np.exp(-hu * WEIGHTS[LABELS.index(label)])))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", threshold=0.9)
    return tmp_path / "model"


@pytest.fixture
def session(model: Path) -> Session:
    return open_session(model)


@pytest.fixture
def config(model: Path) -> ScoreConfig:
    return ScoreConfig(model=model)


def write_study(folder: Path, study: str, values: list[int]) -> None:
    """Slices of ``values`` HU from bottom to top; the file names run the other way."""
    for index, hu in enumerate(values):
        write_slice(folder / f"{study}-{99 - index}.dcm", study=study, z_mm=5.0 * index, hu=hu)


def test_study_is_scored_by_its_largest_slice(tmp_path: Path, session: Session, config: ScoreConfig) -> None:
    write_study(tmp_path / "in", "1.2.1", [0, 10, 40, 20])
    report = score([tmp_path / "in"], session, config)
    (study,) = report["studies"]
    assert study["study_uid"] == "1.2.1"
    assert study["patient_id"] == "P1.2.1"
    assert study["num_slices"] == 4
    assert study["probability"] == pytest.approx({label: probability(40, label) for label in LABELS})
    assert study["key_slice"] == {
        "sop_uid": "1.2.1.100.32.1",
        "path": str(tmp_path / "in" / "1.2.1-97.dcm"),
        "frame": 0,
        "z_mm": 10.0,
        "probability": pytest.approx(probability(40)),
    }
    assert study["top_k_mean"]["any"] == pytest.approx(np.mean([probability(hu) for hu in (40, 20, 10)]))
    assert study["flagged"]
    assert report["not_scored"] == []
    json.dumps(report, allow_nan=False)


def test_top_k_mean_of_a_short_study_is_its_mean(tmp_path: Path, session: Session, model: Path) -> None:
    write_study(tmp_path / "in", "1.2.1", [0, 10])
    (study,) = score([tmp_path / "in"], session, ScoreConfig(model=model, top_k=9))["studies"]
    assert study["top_k_mean"]["any"] == pytest.approx((probability(0) + probability(10)) / 2)


def test_slices_stand_in_slice_order_whatever_their_names(
    tmp_path: Path, session: Session, config: ScoreConfig
) -> None:
    write_study(tmp_path / "in", "1.2.1", [5, 6, 7])
    (series,) = score([tmp_path / "in"], session, config)["studies"][0]["series"]
    assert [row["z_mm"] for row in series["slices"]] == [0, 5, 10]
    assert [row["probability"]["any"] for row in series["slices"]] == pytest.approx([probability(v) for v in (5, 6, 7)])


def test_likeliest_bleed_comes_first_and_equals_go_by_uid(
    tmp_path: Path, session: Session, config: ScoreConfig
) -> None:
    for study, hu in (("1.2.4", 10), ("1.2.3", 50), ("1.2.2", 10), ("1.2.1", 30)):
        write_study(tmp_path / "in", study, [0, hu])
    report = score([tmp_path / "in"], session, config)
    assert [row["study_uid"] for row in report["studies"]] == ["1.2.3", "1.2.1", "1.2.2", "1.2.4"]


def test_key_slice_of_equals_is_the_first_in_order(tmp_path: Path, session: Session, config: ScoreConfig) -> None:
    write_study(tmp_path / "in", "1.2.1", [0, 40, 40])
    (study,) = score([tmp_path / "in"], session, config)["studies"]
    assert study["key_slice"]["z_mm"] == 5.0


@pytest.mark.parametrize(("threshold", "flagged"), [(0.5, True), (0.5001, False)])
def test_study_at_the_threshold_is_flagged(tmp_path: Path, threshold: float, flagged: bool) -> None:
    write_model(tmp_path / "model", threshold=threshold)
    write_study(tmp_path / "in", "1.2.1", [0])
    report = score([tmp_path / "in"], open_session(tmp_path / "model"), ScoreConfig(model=tmp_path / "model"))
    assert report["studies"][0]["flagged"] is flagged
    assert report["studies"][0]["threshold"] == threshold


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_batch_size_changes_no_score(tmp_path: Path, session: Session, model: Path, batch_size: int) -> None:
    write_study(tmp_path / "in", "1.2.1", [3, 1, 4, 1, 5])
    write_slice(tmp_path / "in" / "wide.dcm", study="1.2.2", side=48, hu=9)
    report = score([tmp_path / "in"], session, ScoreConfig(model=model, batch_size=batch_size))
    found = [row["probability"]["any"] for study in report["studies"] for row in study["series"][0]["slices"]]
    assert found == pytest.approx([probability(hu) for hu in (9, 3, 1, 4, 1, 5)])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 16])
def test_neighbours_cross_batches_but_never_a_series(tmp_path: Path, batch_size: int) -> None:
    write_model(tmp_path / "model", adjacent=True)
    write_study(tmp_path / "in", "1.2.1", [0, 10, 40, 20, 25])
    write_study(tmp_path / "in", "1.2.2", [30, 31])
    config = ScoreConfig(model=tmp_path / "model", batch_size=batch_size)
    report = score([tmp_path / "in"], open_session(tmp_path / "model"), config)
    found = {
        study["study_uid"]: [row["probability"]["any"] for row in study["series"][0]["slices"]]
        for study in report["studies"]
    }
    assert found["1.2.1"] == pytest.approx([probability(change) for change in (10, 40, 10, -15, 5)])
    assert found["1.2.2"] == pytest.approx([probability(change) for change in (1, 1)])


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_series_in_batches_equals_series_at_once(tmp_path: Path, batch_size: int) -> None:
    write_model(tmp_path, adjacent=True)
    session = open_session(tmp_path)
    hu = np.random.default_rng(0).integers(-40, 80, (7, 4, 4)).astype(np.int16)
    answers = run_series(hu, Asked(session=session, batch_size=batch_size, keep_embedding=False))
    np.testing.assert_allclose([one.probability for one in answers], session.run(hu).probability, rtol=1e-6)
    assert {one.embedding for one in answers} == {None}


def test_file_that_vanishes_between_order_and_scoring_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "model", adjacent=True)
    write_study(tmp_path / "in", "1.2.1", [0, 1])
    order = verb_under_test.group_studies

    def order_then_damage(headers: list[object]) -> object:
        found = order(headers)  # type: ignore[arg-type]
        (tmp_path / "in" / "1.2.1-99.dcm").write_bytes(b"")
        return found

    monkeypatch.setattr(verb_under_test, "group_studies", order_then_damage)
    with pytest.raises(FastichError, match=r"1\.2\.1-99\.dcm: changed while it was being scored"):
        score([tmp_path / "in"], open_session(tmp_path / "model"), ScoreConfig(model=tmp_path / "model"))


def test_what_is_not_scored_has_a_path_and_a_reason(tmp_path: Path, session: Session, config: ScoreConfig) -> None:
    write_study(tmp_path / "in", "1.2.1", [0])
    write_slice(tmp_path / "in" / "mr.dcm", study="1.2.7", modality="MR")
    (tmp_path / "in" / "empty").write_bytes(b"")
    (tmp_path / "in" / "note.txt").write_text("hello " * 100)
    copy = tmp_path / "in" / "zz-copy.dcm"
    copy.write_bytes((tmp_path / "in" / "1.2.1-99.dcm").read_bytes())
    report = score([tmp_path / "in"], session, config)
    found = {Path(left["path"]).name: left["reason"] for left in report["not_scored"]}
    assert found == {
        "mr.dcm": "not CT",
        "empty": "empty file",
        "note.txt": "not DICOM",
        "zz-copy.dcm": "duplicate instance",
    }
    assert all(left["path"].startswith(str(tmp_path)) and left["detail"] for left in report["not_scored"])
    assert report["studies"][0]["num_slices"] == 1


def test_file_named_twice_is_scored_once(tmp_path: Path, session: Session, config: ScoreConfig) -> None:
    path = write_slice(tmp_path / "in" / "a.dcm")
    report = score([path, tmp_path / "in", path], session, config)
    assert report["studies"][0]["num_slices"] == 1
    assert report["not_scored"] == []


def test_table_names_study_key_slice_and_reasons(tmp_path: Path, session: Session, config: ScoreConfig) -> None:
    write_study(tmp_path / "in", "1.2.1", [0, 60])
    write_study(tmp_path / "in", "1.2.2", [0])
    for index in range(7):
        (tmp_path / "in" / f"empty{index}").write_bytes(b"")
    lines = table(score([tmp_path / "in"], session, config)).splitlines()
    assert lines[0].split()[:5] == ["study", "series", "slices", "any", "EDH"]
    assert lines[1].split()[:5] == ["BLEED?", "1.2.1", "1", "2", f"{probability(60):.3f}"]
    assert lines[1].endswith("1.2.1-98.dcm (z 5.0 mm)")
    assert lines[2].split()[:4] == ["1.2.2", "1", "1", "0.500"]
    assert lines[3] == "study: largest slice probability (the model folder has no study.onnx)"
    assert "any >= 0.900 (made for a test)" in lines[4]
    assert "research use only, not a medical device" in lines[4]
    assert lines[5] == "not scored, empty file: 7"
    assert lines[-1] == "  and 2 more (--json names all)"


def test_control_characters_never_reach_the_terminal(tmp_path: Path, session: Session, config: ScoreConfig) -> None:
    path = write_slice(tmp_path / "in" / "a\x1b[31m.dcm")
    path.with_name("b\x1b]0;x\x07").write_bytes(b"")
    shown = table(score([tmp_path / "in"], session, config))
    assert "a?[31m.dcm" in shown
    assert not {char for char in shown if not char.isprintable()} - {"\n"}


def test_main_prints_json_and_returns_zero(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path / "in", "1.2.1", [0, 60])
    assert main(["--model", str(model), str(tmp_path / "in"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    ran = {name: report["model"][name] for name in ("backend", "precision", "provider")}
    assert ran == {"backend": "onnxruntime", "precision": "float32", "provider": "CPUExecutionProvider"}
    assert list(report["studies"][0]["probability"]) == list(LABELS)


def test_table_names_backend_and_precision(tmp_path: Path, session: Session, config: ScoreConfig) -> None:
    write_study(tmp_path / "in", "1.2.1", [0, 60])
    assert f"model {session.sha256[:12]}, onnxruntime float32;" in table(score([tmp_path / "in"], session, config))


def test_precision_and_backend_of_the_flags_are_what_is_opened(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []

    def opened(folder: Path, device: str, *, backend: str, precision: str) -> Session:
        asked.append((folder, device, backend, precision))
        return open_session(folder)

    monkeypatch.setattr(verb_under_test, "open_session", opened)
    write_study(tmp_path / "in", "1.2.1", [0])
    words = ["--model", str(model), str(tmp_path / "in")]
    main([*words, "--backend", "openvino", "--precision", "int8"])
    main(words)
    assert asked == [(model, "cpu", "openvino", "int8"), (model, "cpu", "auto", "float32")]


@pytest.mark.parametrize("words", [["--precision", "int4"], ["--backend", "tensorrt"]])
def test_unknown_precision_or_backend_is_bad_usage(model: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--model", str(model), "x.dcm", *words])


def test_nothing_scoreable_is_exit_one_with_one_line_and_json(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "empty").write_bytes(b"")
    assert main(["--model", str(model), str(tmp_path / "in"), "--json"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["not_scored"][0]["reason"] == "empty file"
    *before, last = shown.err.splitlines()
    assert last == f"error: {tmp_path / 'in'}: expected CT slices, found none among 1 files; nothing was scored"
    assert before in ([], ["backend: onnxruntime on cpu in float32"])  # said once in a process


def test_path_that_does_not_exist_is_named(tmp_path: Path, session: Session, config: ScoreConfig) -> None:
    with pytest.raises(FastichError, match="nowhere: expected a file or folder, found nothing"):
        score([tmp_path / "nowhere"], session, config)


@pytest.mark.parametrize("name", ["batch_size", "top_k"])
def test_counts_below_one_are_bad_usage(model: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"--{name.replace('_', '-')} must be >= 1, found 0"):
        ScoreConfig(model=model, **{name: 0})  # type: ignore[arg-type]


def test_model_folder_without_its_file_is_refused(tmp_path: Path, model: Path) -> None:
    (model / "model.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx: missing"):
        main(["--model", str(model), str(tmp_path)])


def test_score_imports_neither_torch_nor_dali_nor_pandas() -> None:
    code = (
        "import sys, fastich.score; print([m for m in ('torch', 'nvidia.dali', 'pandas', 'onnx') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.skipif(not REAL_HEAD.is_dir(), reason="needs shared/data/head_ct_tilt")
def test_real_tilted_head_is_one_study_with_every_slice(session: Session, config: ScoreConfig) -> None:
    report = score([REAL_HEAD], session, config)
    (study,) = report["studies"]
    assert study["num_slices"] == 28
    assert [left["reason"] for left in report["not_scored"]] == ["not DICOM"]
    places = [row["z_mm"] for row in study["series"][0]["slices"]]
    assert places == sorted(places)
