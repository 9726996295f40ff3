import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_model import toy_onnx, write_model
from toy_study import add_study, sequence_model

from fastich.artifact import read_manifest, write_manifest
from fastich.errors import ArtifactError
from fastich.models.study_onnx import study_onnx_bytes
from fastich.serve.study_session import open_study_session
from fastich.study_contract import STUDY_FILE

CHANNELS = 1024  # the toy model's
MODEL = sequence_model(CHANNELS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path)
    add_study(tmp_path, MODEL)
    return tmp_path


def series(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(length)
    gap_mm = np.r_[np.nan, random.uniform(1, 6, length - 1)].astype(np.float32)
    embedding = random.normal(size=(length, CHANNELS)).astype(np.float32)
    return embedding, random.normal(size=(length, 6)).astype(np.float32), gap_mm


@pytest.mark.parametrize("length", [1, 2, 40])
def test_scores_are_those_of_the_network(folder: Path, length: int) -> None:
    given = series(length)
    session = open_study_session(folder)
    assert session is not None
    found = session.run(*given)
    with torch.inference_mode():
        tensors = (torch.from_numpy(value)[None] for value in given)
        expected = MODEL(*tensors, torch.ones(1, length, dtype=torch.bool))
    np.testing.assert_allclose(found.slice_logit, expected.slices[0], atol=1e-5)
    np.testing.assert_allclose(found.study_logit, expected.study[0], atol=1e-5)
    assert found.slice_probability.shape == (length, 6)
    assert found.study_probability.shape == (6,)


def test_session_says_what_it_runs(folder: Path) -> None:
    session = open_study_session(folder)
    assert session is not None
    assert session.part.variant == "gru"
    assert session.sha256 == read_manifest(folder).files[STUDY_FILE].sha256


def test_a_folder_without_a_sequence_model_has_no_session(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert open_study_session(tmp_path) is None


def test_a_file_that_is_not_described_is_refused(folder: Path) -> None:
    write_manifest(folder, dataclasses.replace(read_manifest(folder), study=None))
    with pytest.raises(ArtifactError, match=r"model\.json: names study\.onnx but does not describe it; export again"):
        open_study_session(folder)


def test_a_sequence_model_of_another_network_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    add_study(tmp_path, MODEL, cnn="99" * 32)
    with pytest.raises(ArtifactError, match="a sequence model over network abababababab, found one over 999999999999"):
        open_study_session(tmp_path)


def test_flipped_bit_is_refused(folder: Path) -> None:
    content = bytearray((folder / STUDY_FILE).read_bytes())
    content[200] ^= 1
    (folder / STUDY_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"study\.onnx: expected SHA-256"):
        open_study_session(folder)


def test_missing_file_is_named(folder: Path) -> None:
    (folder / STUDY_FILE).unlink()
    with pytest.raises(ArtifactError, match=r"study\.onnx: missing although model\.json names it"):
        open_study_session(folder)


def test_another_interface_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    add_study(tmp_path, MODEL, content=toy_onnx())
    with pytest.raises(
        ArtifactError, match=r"study\.onnx: expected input \['embedding tensor\(float\) rank 2', .*found"
    ):
        open_study_session(tmp_path)


def test_another_embedding_size_than_the_networks_is_refused(folder: Path) -> None:
    artifact = read_manifest(folder)
    assert artifact.study is not None
    write_manifest(folder, dataclasses.replace(artifact, study={**artifact.study, "embedding_size": 4}))
    with pytest.raises(ArtifactError, match=r"model\.json: expected a sequence model of 1024 features, found one of 4"):
        open_study_session(folder)


def test_another_embedding_size_than_described_fails_the_trial(tmp_path: Path) -> None:
    write_model(tmp_path)
    add_study(tmp_path, MODEL, content=study_onnx_bytes(sequence_model(5)))
    with pytest.raises(ArtifactError, match=r"study\.onnx: the model failed on 3 slices"):
        open_study_session(tmp_path)


def test_nan_weights_are_refused_when_opened(tmp_path: Path) -> None:
    write_model(tmp_path)
    broken = sequence_model(CHANNELS)
    torch.nn.init.constant_(broken.slice_head.bias, float("nan"))
    add_study(tmp_path, broken)
    with pytest.raises(ArtifactError, match="expected finite slice_probability, found NaN or infinity"):
        open_study_session(tmp_path)


@pytest.mark.parametrize(
    ("rows", "channels", "logits", "gaps"),
    [(0, CHANNELS, 6, 0), (2, 4, 6, 2), (2, CHANNELS, 5, 2), (2, CHANNELS, 6, 3)],
)
def test_shapes_that_do_not_fit_are_refused(folder: Path, rows: int, channels: int, logits: int, gaps: int) -> None:
    session = open_study_session(folder)
    assert session is not None
    with pytest.raises(
        ValueError, match=r"expected embedding \[L, 1024\], logit \[L, 6\] and gap_mm \[L\], L at least 1"
    ):
        session.run(np.zeros((rows, channels), np.float32), np.zeros((rows, logits), np.float32), np.zeros(gaps))
