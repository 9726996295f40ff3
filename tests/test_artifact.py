import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_model import toy_onnx, write_model

from fastich.artifact import (
    MANIFEST,
    ONNX_FILE,
    has_external_data,
    load_artifact,
    parse_thresholds,
    read_manifest,
    read_verified,
    write_manifest,
)
from fastich.errors import ArtifactError
from fastich.labels import LABELS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    return tmp_path / "model"


def change(folder: Path, **values: object) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(document | values))


def test_what_was_written_is_what_is_loaded(tmp_path: Path) -> None:
    written = write_model(tmp_path / "model", threshold=0.25)
    assert load_artifact(tmp_path / "model") == written


@pytest.mark.parametrize(("adjacent", "order"), [(False, "any"), (True, "series")])
def test_manifest_says_whether_slices_must_be_in_order(tmp_path: Path, adjacent: bool, order: str) -> None:
    write_model(tmp_path, adjacent=adjacent)
    assert json.loads((tmp_path / MANIFEST).read_text())["input"]["order"] == order
    assert read_manifest(tmp_path).input_order == order


def test_equal_artifacts_give_equal_bytes(folder: Path) -> None:
    before = (folder / MANIFEST).read_bytes()
    write_manifest(folder, read_manifest(folder))
    assert (folder / MANIFEST).read_bytes() == before


def test_manifest_states_intended_use_and_every_label(folder: Path) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    assert document["intended_use"] == "research use only, not a medical device"
    assert document["labels"] == list(LABELS) == list(document["thresholds"]["values"])


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere: expected a model folder, found none; export one"):
        load_artifact(tmp_path / "nowhere")


def test_missing_manifest_is_named(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"model\.json: missing"):
        load_artifact(folder)


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "\x00", "[" * 100_000])
def test_manifest_that_is_not_json_is_refused(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"model\.json: expected JSON"):
        load_artifact(folder)


def test_manifest_of_before_there_was_triage_is_read(folder: Path) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    assert document.pop("triage") is None
    (folder / MANIFEST).write_text(json.dumps(document))
    assert load_artifact(folder).triage is None


def test_triage_is_written_and_read(folder: Path) -> None:
    change(folder, triage={"clear": 0.1})
    assert load_artifact(folder).triage == {"clear": 0.1}


def test_manifest_of_a_newer_format_is_refused(folder: Path) -> None:
    change(folder, format_version=2)
    with pytest.raises(ArtifactError, match=r"expected format_version up to 1, found 2, a newer one; update fastich"):
        load_artifact(folder)


@pytest.mark.parametrize("version", [None, "1", 0, True, 1.0])
def test_manifest_without_a_format_is_refused(folder: Path, version: object) -> None:
    change(folder, format_version=version)
    with pytest.raises(ArtifactError, match=r"expected format_version 1, found"):
        load_artifact(folder)


@pytest.mark.parametrize("field", ["labels", "input", "preprocessing", "thresholds", "training", "files", "parity"])
def test_manifest_without_a_field_is_refused(folder: Path, field: str) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    del document[field]
    (folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=rf"model\.json: damaged, KeyError '{field}'"):
        load_artifact(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("labels", list(reversed(LABELS)), "labels: expected"),
        ("files", {"../model.onnx": {"sha256": "", "size_bytes": 1, "role": ""}}, "expected a plain file name"),
        ("files", {}, "at least one model file"),
        ("files", [], "damaged"),
        ("thresholds", {"rule": "x", "values": {"any": 0.5}}, "found none for epidural"),
        ("preprocessing", {"windows": [{"center_hu": 1, "width_hu": 0}], "size": 1, "adjacent": False}, "width"),
        ("input", {"order": "series"}, "input order: expected 'any', found 'series'"),
    ],
)
def test_manifest_with_a_wrong_value_is_refused(folder: Path, field: str, value: object, message: str) -> None:
    change(folder, **{field: value})
    with pytest.raises(ArtifactError, match=message):
        load_artifact(folder)


def test_missing_model_file_is_named(folder: Path) -> None:
    (folder / ONNX_FILE).unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx: missing although model\.json names it"):
        load_artifact(folder)


def test_shorter_model_file_is_refused(folder: Path) -> None:
    content = (folder / ONNX_FILE).read_bytes()
    (folder / ONNX_FILE).write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=rf"expected {len(content)} bytes, found {len(content) - 1}"):
        load_artifact(folder)


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("position", [0, 500, -1])
def test_flipped_bit_in_the_model_file_is_refused(folder: Path, position: int, bit: int) -> None:
    content = bytearray((folder / ONNX_FILE).read_bytes())
    content[position] ^= 1 << bit
    (folder / ONNX_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx: expected SHA-256 \w{64}, found \w{64}"):
        load_artifact(folder)


def test_file_that_the_manifest_does_not_name_is_not_read(folder: Path) -> None:
    (folder / "other.onnx").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"expected other\.onnx among its files, found model\.onnx"):
        read_verified(folder, read_manifest(folder), "other.onnx")


def test_external_data_is_refused_even_with_the_right_hash(tmp_path: Path) -> None:
    write_model(tmp_path, toy_onnx(external=True))
    (tmp_path / "weights.bin").write_bytes(bytes(4096))
    with pytest.raises(ArtifactError, match=r"model\.onnx: expected one self-contained file, found external data"):
        load_artifact(tmp_path)


def test_self_contained_model_has_no_external_data() -> None:
    assert not has_external_data(toy_onnx())


@given(st.binary(max_size=200))
def test_any_bytes_are_scanned_or_refused(content: bytes) -> None:
    try:
        assert has_external_data(content) in (True, False)
    except ArtifactError as refused:
        assert "damaged bytes" in str(refused)  # noqa: PT017


@given(st.integers(min_value=1, max_value=len(toy_onnx()) - 1))
def test_truncated_model_is_scanned_or_refused(size: int) -> None:
    with contextlib.suppress(ArtifactError):
        assert not has_external_data(toy_onnx()[:size])


@pytest.mark.parametrize("content", [b"\x3a", b"\x3a\x05ab", b"\x3b", b"\xff" * 11])
def test_damaged_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"model\.onnx: expected an ONNX model, found damaged bytes"):
        has_external_data(content)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_threshold_outside_zero_to_one_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        parse_thresholds(dict.fromkeys(LABELS, value), "x")


def test_artifact_needs_neither_torch_nor_onnx() -> None:
    code = "import sys, fastich.artifact; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_manifest_states_the_width_of_the_embedding(folder: Path) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    assert {spec["name"]: spec["shape"] for spec in document["outputs"]}["embedding"] == ["N", 1024]
    document["outputs"][2]["shape"] = ["N", 768]
    change(folder, outputs=document["outputs"])
    assert read_manifest(folder).embedding_size == 768


def test_outputs_of_another_contract_are_refused(folder: Path) -> None:
    outputs = json.loads((folder / MANIFEST).read_text())["outputs"]
    change(folder, outputs=outputs[:3])
    with pytest.raises(ArtifactError, match="outputs: expected those of this version"):
        read_manifest(folder)
