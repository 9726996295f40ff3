import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from small_dense import SIZE, SmallDense, write_folder
from toy_model import write_model
from toy_study import add_study, sequence_model

from fastich import calibration
from fastich.artifact import Thresholds, read_manifest, write_manifest
from fastich.calibration import Calibration
from fastich.checkpoint import weights_sha256
from fastich.conformal import Triage
from fastich.dicom import group_studies, read_folder
from fastich.errors import ArtifactError
from fastich.labels import LABELS
from fastich.models.onnx_graph import onnx_bytes
from fastich.models.serving import Front, ServingModel
from fastich.models.study_onnx import study_onnx_bytes
from fastich.phantom import PhantomConfig, generate
from fastich.score import ScoreConfig, main, score, table
from fastich.serve.session import open_session
from fastich.serve.study_session import open_study_session
from fastich.study_rule import HEAD_RULE, MAX_RULE
from fastich.types import HuArray, Slice, SliceHeader
from fastich.windowing import DEFAULT_WINDOWS, preprocess

NETWORK = SmallDense()
SEQUENCE = sequence_model(NETWORK.embedding_size)
STUDY_THRESHOLDS = Thresholds(values=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7), rule="made for a test")
TRIAGE = Triage(alpha_miss=0.1, alpha_alarm=0.2, num_bleed=30, num_without=30, clear=0.6, flag=0.9)
TOLERANCE = 1e-4


def fitted() -> Calibration:
    random = np.random.default_rng(0)
    logit = random.normal(0, 3, (300, 6))
    return calibration.fit(logit, (random.random((300, 6)) < 1 / (1 + np.exp(1 - logit / 2))).astype(int), "platt")


@pytest.fixture(scope="module")
def dicom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom")
    generate(PhantomConfig(out=out, studies=3, size=64, healthy=0.3, seed=5))
    return out / "stage_2_train"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a small network and a small sequence model, calibrated."""
    folder = tmp_path_factory.mktemp("model")
    made = write_folder(folder, onnx_bytes(ServingModel(Front(SIZE, DEFAULT_WINDOWS, False), NETWORK)))
    sha256 = weights_sha256(NETWORK)
    write_manifest(folder, dataclasses.replace(made, weights_sha256=sha256, embedding_size=NETWORK.embedding_size))
    add_study(
        folder,
        SEQUENCE,
        content=study_onnx_bytes(SEQUENCE, fitted(), fitted()),
        study_thresholds=STUDY_THRESHOLDS,
        triage=TRIAGE.to_document(),
    )
    return folder


def run(model: Path, paths: list[Path], **options: Any) -> dict[str, Any]:
    return score(paths, open_session(model), ScoreConfig(model=model, **options), open_study_session(model))


def by_torch(headers: tuple[SliceHeader, ...], z_mm: tuple[float, ...], hu: dict[str, HuArray]) -> tuple[Any, Any]:
    """Slice logits [L, 6] and study logit [6] of one series: numpy preprocessing, torch networks."""
    images = torch.from_numpy(np.stack([preprocess(hu[header.sop_uid], SIZE) for header in headers]))
    gap_mm = np.diff(z_mm, prepend=np.nan).astype(np.float32)
    with torch.inference_mode():
        embedding = NETWORK.embedding(images)
        given = embedding[None], NETWORK.head(embedding)[None], torch.from_numpy(gap_mm)[None]
        said = SEQUENCE(*given, torch.ones(1, len(images), dtype=torch.bool))
    return said.slices[0].numpy(), said.study[0].numpy()


def values(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([[row[name][label] for label in LABELS] for row in rows])


def test_score_equals_the_torch_pipeline_on_dicom(model: Path, dicom: Path) -> None:
    report = run(model, [dicom], batch_size=7)
    slices = [one for one in read_folder(dicom) if isinstance(one, Slice)]
    hu = {one.header.sop_uid: one.hu for one in slices}
    studies = {study.study_uid: study for study in group_studies([one.header for one in slices])}
    assert {row["study_uid"] for row in report["studies"]} == studies.keys()
    for row in report["studies"]:
        (series,) = studies[row["study_uid"]].series
        slice_logit, study_logit = by_torch(series.headers, series.geometry.z_mm, hu)
        (shown,) = row["series"]
        assert [one["sop_uid"] for one in shown["slices"]] == [header.sop_uid for header in series.headers]
        np.testing.assert_allclose(values(shown["slices"], "logit"), slice_logit, atol=TOLERANCE)
        expected = fitted().probability(slice_logit)
        np.testing.assert_allclose(values(shown["slices"], "probability"), expected, atol=TOLERANCE)
        np.testing.assert_allclose(values([row], "logit")[0], study_logit, atol=TOLERANCE)
        expected = fitted().probability(study_logit[None])
        np.testing.assert_allclose(values([row], "probability"), expected, atol=TOLERANCE)
    spread = np.concatenate([values(row["series"][0]["slices"], "logit") for row in report["studies"]]).std(axis=0)
    assert spread.min() > 100 * TOLERANCE, "the scores must differ enough to prove anything"


def test_report_says_which_rule_decided_and_at_which_thresholds(model: Path, dicom: Path) -> None:
    report = run(model, [dicom])
    assert report["study_rule"] == HEAD_RULE
    assert report["model"]["study_sha256"] == read_manifest(model).files["study.onnx"].sha256
    assert report["model"]["study_weights_sha256"] == "ef" * 32
    assert report["model"]["study_threshold_rule"] == "made for a test"
    for row in report["studies"]:
        found = {label: row["probability"][label] for label in LABELS}
        least = dict(zip(LABELS, STUDY_THRESHOLDS.values, strict=True))
        assert row["findings"] == [label for label in LABELS if found[label] >= least[label]]
        assert row["flagged"] == ("any" in row["findings"])
    json.dumps(report, allow_nan=False)


def test_triage_decides_on_the_raw_study_logit(model: Path, dicom: Path) -> None:
    report = run(model, [dicom])
    for row in report["studies"]:
        assert row["triage"] == TRIAGE.decide(1 / (1 + np.exp(-max(row["logit"].values()))))
    assert report["model"]["triage"]["guarantee"] == TRIAGE.guarantee
    counts = Counter(row["triage"] for row in report["studies"])
    (line,) = [line for line in table(report).splitlines() if line.startswith("triage: ")]
    assert all(f"{decision} {count}" in line for decision, count in counts.items())
    assert TRIAGE.guarantee in line


def test_without_a_sequence_model_the_largest_slice_decides_and_the_report_says_so(tmp_path: Path, dicom: Path) -> None:
    write_model(tmp_path)
    report = run(tmp_path, [dicom])
    assert report["study_rule"] == MAX_RULE
    assert report["model"]["study_sha256"] is report["model"]["study_weights_sha256"] is None
    for row in report["studies"]:
        assert row["triage"] is None
        each = values(row["series"][0]["slices"], "probability")
        np.testing.assert_array_equal(values([row], "probability")[0], each.max(axis=0))
        raw = 1 / (1 + np.exp(-values(row["series"][0]["slices"], "logit")))
        np.testing.assert_allclose(each, raw, atol=1e-4)


def changed(dicom: Path, out: Path, study_uid: str, change: Any) -> Path:
    """The files of one study, each changed; ``change`` gets the place in file order and the data set."""
    out.mkdir()
    mine = [path for path in sorted(dicom.iterdir()) if pydicom.dcmread(path).StudyInstanceUID == study_uid]
    for place, path in enumerate(mine):
        dataset = pydicom.dcmread(path)
        if change(place, dataset) is not False:
            dataset.save_as(out / path.name)
    return out


def without_position(place: int, dataset: pydicom.Dataset) -> None:
    del dataset.ImagePositionPatient


def at_one_place(place: int, dataset: pydicom.Dataset) -> None:
    dataset.ImagePositionPatient = [0, 0, float(place // 2)]


def first_only(place: int, dataset: pydicom.Dataset) -> bool:
    return place == 0


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # RSNA 2019's ids, as the phantom writes them
@pytest.mark.parametrize("change", [without_position, at_one_place, first_only])
def test_missing_positions_doubles_and_single_slices_are_scored(
    tmp_path: Path, model: Path, dicom: Path, change: Any
) -> None:
    study_uid = run(model, [dicom])["studies"][0]["study_uid"]
    report = run(model, [changed(dicom, tmp_path / "in", study_uid, change)])
    (row,) = report["studies"]
    assert row["num_slices"] == len(list((tmp_path / "in").iterdir()))
    assert all(0 <= value <= 1 for value in row["probability"].values())
    assert row["probability"]["any"] >= max(row["probability"][label] for label in LABELS[:-1])
    places = [one["z_mm"] for one in row["series"][0]["slices"]]
    assert (places[0] is None) == (change is without_position)
    json.dumps(report, allow_nan=False)


def test_damaged_triage_is_refused(tmp_path: Path, dicom: Path) -> None:
    artifact = write_model(tmp_path)
    write_manifest(tmp_path, dataclasses.replace(artifact, triage={"alpha_miss": 0.1}))
    with pytest.raises(
        ArtifactError, match=r"model\.json: damaged, triage: expected alphas, counts and two thresholds"
    ):
        run(tmp_path, [dicom])


def test_main_uses_the_sequence_model_of_the_folder(
    model: Path, dicom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(model), str(dicom), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["study_rule"] == HEAD_RULE
