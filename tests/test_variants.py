import json
from pathlib import Path

import numpy as np
import pytest
from records_data import make_dataset, make_rows
from small_dense import SIZE, SmallDense, write_folder

from fastich import variants
from fastich.artifact import MANIFEST, ONNX_FILE, PRECISION_FILES, Artifact, Thresholds, load_artifact
from fastich.errors import ArtifactError, RecordError, UsageError
from fastich.hu import to_record
from fastich.labels import LABELS
from fastich.model_card import HTML_FILE, MARKDOWN_FILE
from fastich.models.folding import fold_batch_norm
from fastich.models.onnx_graph import onnx_bytes
from fastich.models.serving import Front, ServingModel
from fastich.parity import Answer, synthetic_heads
from fastich.records.reader import RecordReader
from fastich.serve import openvino_backend
from fastich.serve.session import open_session
from fastich.types import HuArray
from fastich.variants import VariantConfig, check, compare, write_variant
from fastich.windowing import DEFAULT_WINDOWS

needs_openvino = pytest.mark.skipif(bool(openvino_backend.WHY_NO_OPENVINO), reason="OpenVINO is not installed")
INT8 = PRECISION_FILES["int8"]


@pytest.fixture(scope="module")
def content() -> bytes:
    return onnx_bytes(ServingModel(Front(SIZE, DEFAULT_WINDOWS, False), fold_batch_norm(SmallDense())))


@pytest.fixture
def folder(tmp_path: Path, content: bytes) -> Path:
    write_folder(tmp_path / "model", content)
    return tmp_path / "model"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads whose scores differ, three of them in the test split: one healthy, one each of two bleeds."""
    out = tmp_path_factory.mktemp("records")
    heads = [head[::4, ::4] for head in synthetic_heads(14)[:10]]
    make_dataset(
        out,
        pixels=[to_record(head) for head in heads],
        rows=[
            row | dict(zip(("height", "width"), head.shape, strict=True))
            for row, head in zip(make_rows(), heads, strict=True)
        ],
    )
    return out


def asked(precision: str, records: Path) -> VariantConfig:
    return VariantConfig(precision=precision, records=records, calibration_slices=8, variant_slices=100)


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_backend, "openvino", None)
    monkeypatch.setattr(openvino_backend, "WHY_NO_OPENVINO", "No module named 'openvino'")


@pytest.mark.usefixtures("without_openvino")
@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_variant_lies_beside_the_model_with_its_hash_and_its_comparison(
    folder: Path, records: Path, precision: str
) -> None:
    name = PRECISION_FILES[precision]
    before = (folder / ONNX_FILE).read_bytes()
    write_variant(folder, load_artifact(folder), asked(precision, records))
    artifact = load_artifact(folder)
    assert set(artifact.files) == {ONNX_FILE, name}
    assert artifact.files[name].size_bytes == (folder / name).stat().st_size < len(before)
    assert (folder / ONNX_FILE).read_bytes() == before
    (found,) = artifact.parity.values()
    assert set(artifact.parity) == {f"{name} (onnxruntime) vs {ONNX_FILE}"}
    assert found["num_slices"] == 3
    assert found["num_positive"] == {
        "epidural": 0,
        "intraparenchymal": 1,
        "intraventricular": 1,
        "subarachnoid": 0,
        "subdural": 0,
        "any": 2,
    }
    assert {label for label, change in found["auc_change"].items() if change is None} == {
        "epidural",
        "subarachnoid",
        "subdural",
    }
    assert found["reference_sha256"] == artifact.files[ONNX_FILE].sha256
    assert found["max_abs_logit"] > 0
    assert "NaN" not in (folder / MANIFEST).read_text()


@needs_openvino
def test_int8_is_compared_by_both_engines(folder: Path, records: Path) -> None:
    artifact = write_variant(folder, load_artifact(folder), asked("int8", records))
    assert set(artifact.parity) == {f"{INT8} ({engine}) vs {ONNX_FILE}" for engine in ("onnxruntime", "openvino int8")}
    onnx, openvino = (artifact.parity[f"{INT8} ({one}) vs {ONNX_FILE}"] for one in ("onnxruntime", "openvino int8"))
    assert openvino["engine"].startswith("OpenVINO ")
    assert openvino["max_abs_logit"] == pytest.approx(onnx["max_abs_logit"], rel=0.5)


@needs_openvino
def test_bfloat16_is_compared_and_makes_no_file(folder: Path, records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_backend, "HINTS", openvino_backend.HINTS | {"bfloat16": "f32"})
    monkeypatch.setattr(openvino_backend, "_require", lambda precision: None)  # this CPU may have no bfloat16
    artifact = write_variant(folder, load_artifact(folder), asked("bfloat16", records))
    assert set(artifact.parity) == {f"{ONNX_FILE} (openvino bfloat16) vs {ONNX_FILE}"}
    assert sorted(path.name for path in folder.iterdir()) == sorted([MANIFEST, MARKDOWN_FILE, ONNX_FILE, HTML_FILE])


@pytest.mark.usefixtures("without_openvino")
def test_bfloat16_without_openvino_is_an_error(folder: Path, records: Path) -> None:
    with pytest.raises(ArtifactError, match="backend openvino: demanded, but it cannot be imported"):
        write_variant(folder, load_artifact(folder), asked("bfloat16", records))


@pytest.mark.usefixtures("without_openvino")
def test_int8_variant_is_scored_by_a_session(folder: Path, records: Path) -> None:
    write_variant(folder, load_artifact(folder), asked("int8", records))
    session = open_session(folder, precision="int8")
    hu = np.stack(synthetic_heads(4)[:2])
    assert session.sha256 == session.artifact.files[INT8].sha256
    assert np.abs(session.run(hu).logit - open_session(folder).run(hu).logit).max() > 0


@pytest.mark.usefixtures("without_openvino")
def test_damaged_variant_is_refused_when_opened(folder: Path, records: Path) -> None:
    write_variant(folder, load_artifact(folder), asked("int8", records))
    damaged = bytearray((folder / INT8).read_bytes())
    damaged[200] ^= 1
    (folder / INT8).write_bytes(damaged)
    for precision in ("float32", "int8"):
        with pytest.raises(ArtifactError, match=r"model\.int8\.onnx: expected SHA-256"):
            open_session(folder, precision=precision)


@pytest.mark.usefixtures("without_openvino")
def test_a_kill_while_a_variant_is_made_again_leaves_a_model_that_opens(
    folder: Path, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_variant(folder, load_artifact(folder), asked("int8", records))
    named: list[set[str]] = []
    write = variants.contract.write_manifest

    def killed_before_the_last(where: Path, artifact: Artifact) -> None:
        named.append(set(artifact.files))
        if len(named) == 2:
            raise KeyboardInterrupt
        write(where, artifact)

    monkeypatch.setattr(variants.contract, "write_manifest", killed_before_the_last)
    with pytest.raises(KeyboardInterrupt):
        write_variant(folder, load_artifact(folder), asked("int8", records))
    assert named == [{ONNX_FILE}, {ONNX_FILE, INT8}]
    open_session(folder)


def test_file_of_that_name_that_nobody_named_is_never_overwritten(folder: Path, records: Path) -> None:
    (folder / INT8).write_bytes(b"somebody's")
    with pytest.raises(UsageError, match=r"model\.int8\.onnx exists, but model\.json does not name it"):
        write_variant(folder, load_artifact(folder), asked("int8", records))
    assert (folder / INT8).read_bytes() == b"somebody's"


@pytest.mark.parametrize(
    ("split", "why"), [("val", "int8 is calibrated on it"), ("test", "a variant is compared on it")]
)
def test_records_without_a_split_are_bad_usage(
    folder: Path, records: Path, monkeypatch: pytest.MonkeyPatch, split: str, why: str
) -> None:
    rows = RecordReader.rows
    monkeypatch.setattr(RecordReader, "rows", lambda self, one: rows(self, one)[: 0 if one == split else None])
    with pytest.raises(UsageError, match=rf"expected slices in the {split} split \({why}\), found none"):
        write_variant(folder, load_artifact(folder), asked("int8", records))


class Shifted:
    """An engine that adds to every logit what the test says, those of the probabilities included: ranks stay."""

    provider = "shifted"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __init__(self, engine: object, by: float) -> None:
        self._engine, self._by = engine, by

    def run(self, hu: HuArray) -> list[np.ndarray]:
        probability, logit = self._engine.run(hu)[:2]  # type: ignore[attr-defined]
        odds = probability / (1 - probability) * np.exp(np.float32(self._by))
        return [odds / (1 + odds), logit + np.float32(self._by)]


@pytest.mark.usefixtures("without_openvino")
@pytest.mark.parametrize(
    ("by", "message"),
    [
        (-30.0, r"expected up to 1% of 18 decisions flipped, found \d+; nothing was written"),
        (float("nan"), "expected finite scores, found NaN or infinity; nothing was written"),
    ],
)
def test_variant_that_disagrees_is_not_written(
    folder: Path, records: Path, monkeypatch: pytest.MonkeyPatch, by: float, message: str
) -> None:
    honest = variants.engines
    monkeypatch.setattr(
        variants, "engines", lambda *made: {name: Shifted(engine, by) for name, engine in honest(*made).items()}
    )
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(ArtifactError, match=message):
        write_variant(folder, load_artifact(folder), asked("int8", records))
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, ONNX_FILE]
    assert (folder / MANIFEST).read_bytes() == before


def answer(any_logit: list[float]) -> Answer:
    logit = np.zeros((len(any_logit), len(LABELS)), dtype=np.float32)
    logit[:, -1] = any_logit
    return 1 / (1 + np.exp(-logit)), logit


def labels(of_any: list[int]) -> np.ndarray:
    found = np.zeros((len(of_any), len(LABELS)), dtype=np.int8)
    found[:, -1] = of_any
    return found


def test_change_of_auc_is_counted_in_pairs_and_undefined_is_null() -> None:
    found = compare(answer([-2, -1, 1, 2]), answer([-2, 1.5, 1, 2]), labels([0, 0, 1, 1]), Thresholds(), "x")
    assert found["auc"]["any"] == 1
    assert found["auc_change"]["any"] == pytest.approx(-1 / 4)
    assert found["auc_change"]["epidural"] is None
    assert found["num_positive"]["any"] == 2
    assert found["flips_at_thresholds"] == 1
    assert not found["within_auc_limit"]
    json.dumps(found, allow_nan=False)


def test_labels_that_are_all_positive_leave_auc_undefined() -> None:
    found = compare(answer([1, 2]), answer([1, 2]), labels([1, 1]), Thresholds(), "x")
    assert set(found["auc_change"].values()) == {None}
    assert found["within_auc_limit"]
    check({"a vs b": found})


def report(change: float | None, flips: int = 0, *, within: bool = True) -> dict[str, dict[str, object]]:
    found = {"auc_change": {"any": change}, "num_slices": 100, "flips_at_thresholds": flips, "within_auc_limit": within}
    return {"a vs b": found}


@pytest.mark.parametrize("change", [0.0101, -0.0101])
def test_change_of_auc_any_over_its_hard_limit_is_refused(change: float) -> None:
    check(report(0.0099))
    with pytest.raises(
        ArtifactError, match=r"parity a vs b: expected a change of AUC any up to 0\.01, found [+-]0\.0101"
    ):
        check(report(change))


def test_too_many_flipped_decisions_are_refused() -> None:
    check(report(None, flips=6))
    with pytest.raises(ArtifactError, match="expected up to 1% of 600 decisions flipped, found 7; nothing was written"):
        check(report(0.0, flips=7))


def test_change_over_the_soft_limit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    check(report(0.001, within=False))
    assert "warning: parity a vs b: an AUC changes by more than 0.002" in capsys.readouterr().err


def test_slice_of_an_adjacent_model_is_asked_with_its_neighbours(records: Path) -> None:
    def first_last(hu: HuArray) -> Answer:
        level = hu.astype(np.float32).mean(axis=(1, 2))[:, None]
        before, after = np.concatenate([level[:1], level[:-1]]), np.concatenate([level[1:], level[-1:]])
        return np.repeat(before, 6, axis=1), np.repeat(after, 6, axis=1)

    with RecordReader(records) as reader:
        rows = reader.rows("test")
        level = {row: np.float32(reader.hu(row).mean(dtype=np.float64)) for row in rows.tolist()}
        found = variants.ask({"m": first_last}, variants.batches(reader, rows, adjacent=True), adjacent=True)["m"]
    a, b, c = level.values()
    np.testing.assert_allclose(found[0][:, 0], [a, a, b], rtol=1e-5)
    np.testing.assert_allclose(found[1][:, 0], [b, c, c], rtol=1e-5)


def test_neighbours_of_another_size_are_refused(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RecordReader(records) as reader:
        rows = reader.rows("test")
        whole = reader.hu
        monkeypatch.setattr(reader, "hu", lambda row: whole(row)[: 20 if row == rows[0] else None])
        with pytest.raises(RecordError, match=rf"slices beside row {rows[0]} are of another size than it, \(20, "):
            list(variants.batches(reader, rows, adjacent=True))


def test_slices_are_spread_over_the_split(records: Path) -> None:
    with RecordReader(records) as reader:
        train = reader.rows("train")
        assert variants.evenly(reader, "train", 2, "").tolist() == [train[0], train[-1]]
        assert variants.evenly(reader, "train", 99, "").tolist() == train.tolist()
