import dataclasses
import io
import json
import re
import runpy
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from toy_model import toy_onnx

from fastich import artifact as contract
from fastich import checkpoint, conformal, export
from fastich.artifact import (
    MANIFEST,
    ONNX_FILE,
    OUTPUTS,
    TORCHSCRIPT_FILE,
    Thresholds,
    has_external_data,
    load_artifact,
)
from fastich.calibration import Calibration, LabelCalibration
from fastich.checkpoint import weights_sha256
from fastich.errors import ArtifactError, UsageError
from fastich.export import (
    ExportConfig,
    export_onnx,
    export_torchscript,
    onnx_bytes,
)
from fastich.export_evaluation import EVALUATION_KEYS, read_evaluation, shipped_config
from fastich.labels import LABELS, enforce_any
from fastich.model_card import HTML_FILE, MARKDOWN_FILE
from fastich.models.classifier import build_model
from fastich.models.serving import Front, ServingModel, class_maps
from fastich.models.torchscript import load_torchscript, torchscript_bytes
from fastich.parity import batches_of, check_parity, parity, synthetic_heads
from fastich.serve.session import Session, open_session
from fastich.types import HuArray
from fastich.variants import VariantConfig
from fastich.windowing import DEFAULT_WINDOWS, preprocess, preprocess_adjacent

SIZE = 64
LOGIT_TOLERANCE = 3e-3
"""Logits here span -4 to 4; this random network enlarges float32 rounding by 100; another window moves them by 1."""
PROJECT = Path(__file__).resolve().parents[1]
CARDS = (MARKDOWN_FILE, HTML_FILE)
SHAPES = [(1, 64, 64), (3, 100, 70), (2, 61, 512), (5, 128, 128)]


def heads(shape: tuple[int, int, int], seed: int = 7) -> HuArray:
    """Heads cut and spread to ``shape``, each different."""
    whole = np.stack(synthetic_heads(2 * shape[0], seed)[: shape[0]])
    rows = np.linspace(0, 511, shape[1]).astype(int)
    columns = np.linspace(0, 511, shape[2]).astype(int)
    return np.ascontiguousarray(whole[:, rows][:, :, columns])


def spread_model(seed: int) -> nn.Module:
    """A random DenseNet121 whose probabilities differ from slice to slice and label to label, as trained ones do."""
    torch.manual_seed(seed)
    model = build_model(weights="none")
    images = torch.from_numpy(np.stack([preprocess(hu, SIZE) for hu in synthetic_heads(8)]))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the plain mean over the passes
        model.train()
        model(images)
        model.eval()
        logit = model(images)
        last = model.head[-1]
        scale = 2.0 / logit.std(dim=0)
        last.weight.mul_(scale.unsqueeze(1))
        last.bias.copy_((last.bias - logit.mean(dim=0)) * scale)
    return model


def save_run(run: Path, model: nn.Module) -> Path:
    windows = [{"center_hu": win.center_hu, "width_hu": win.width_hu} for win in DEFAULT_WINDOWS]
    meta = {
        "config": {"size": SIZE, "records": "/srv/secret/records", "out": str(run), "weights": "/srv/secret/w.pth"},
        "dataset_sha256": "12" * 32,
        "leakage_certificate": {"clean": True, "splits": {}},
        "epoch": 4,
        "input": {"size": SIZE, "windows": windows, "adjacent": False},
    }
    checkpoint.save(run / checkpoint.BEST, meta, checkpoint.model_tensors(model))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("run"), spread_model(0))


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return save_run(tmp_path_factory.mktemp("other"), build_model(weights="none"))


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder that both export commands filled, once for this module."""
    out = tmp_path_factory.mktemp("model") / "made" / "by export"
    export_onnx(run, out, parity_slices=4)
    export_torchscript(run, out, parity_slices=4)
    return out


@pytest.fixture(scope="module")
def session(folder: Path) -> Session:
    return open_session(folder)


@pytest.fixture(scope="module")
def network(run: Path) -> nn.Module:
    return checkpoint.load_run(run).model


def torchscript(folder: Path, hu: HuArray) -> list[np.ndarray]:
    with torch.inference_mode():
        return [
            value.numpy() for value in load_torchscript((folder / TORCHSCRIPT_FILE).read_bytes())(torch.from_numpy(hu))
        ]


def test_checker_accepts_the_file_and_names_are_those_of_the_contract(folder: Path) -> None:
    model = onnx.load(folder / ONNX_FILE)
    onnx.checker.check_model(model, full_check=True)
    axes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    side = SIZE // 32
    assert axes == {
        "hu": ["N", "H", "W"],
        "probability": ["N", 6],
        "logit": ["N", 6],
        "embedding": ["N", 1024],
        "cam": ["N", 6, side, side],
    }
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    assert {entry.domain for entry in model.opset_import} == {""}


def test_graph_holds_no_batch_normalization_and_names_where_the_network_begins(folder: Path) -> None:
    nodes = onnx.load(folder / ONNX_FILE).graph.node
    assert "BatchNormalization" not in {node.op_type for node in nodes}
    first = next(node for node in nodes if node.op_type == "Conv")
    assert first.input[0] == contract.IMAGE


def test_file_is_self_contained(folder: Path) -> None:
    content = (folder / ONNX_FILE).read_bytes()
    assert not has_external_data(content)
    assert len(content) > 28_000_000
    assert sorted(path.name for path in folder.iterdir()) == sorted([MANIFEST, *CARDS, ONNX_FILE, TORCHSCRIPT_FILE])


@pytest.mark.parametrize("shape", SHAPES)
def test_both_files_equal_the_network_behind_numpy_preprocessing(
    folder: Path, session: Session, network: Any, shape: tuple[int, int, int]
) -> None:
    hu = heads(shape)
    with torch.inference_mode():
        images = torch.from_numpy(np.stack([preprocess(one, SIZE) for one in hu]))
        logit, embedding = network(images).numpy(), network.embedding(images).numpy()
    probability = enforce_any(1 / (1 + np.exp(-logit)))
    found = session.run(hu)
    for name, expected in (("logit", logit), ("embedding", embedding), ("probability", probability)):
        np.testing.assert_allclose(getattr(found, name), expected, atol=LOGIT_TOLERANCE, err_msg=f"{ONNX_FILE} {name}")
    for spec, value in zip(OUTPUTS, torchscript(folder, hu), strict=True):
        np.testing.assert_allclose(
            value, getattr(found, spec.name), atol=LOGIT_TOLERANCE, err_msg=f"{TORCHSCRIPT_FILE} {spec.name}"
        )


def test_scores_of_the_fixture_differ_enough_to_prove_anything(session: Session) -> None:
    probability = session.run(heads((5, 128, 128))).probability
    assert probability.std(axis=0).max() > 0.02
    assert probability.std(axis=1).max() > 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_class_maps_average_to_the_logit(session: Session, shape: tuple[int, int, int]) -> None:
    scores = session.run(heads(shape))
    np.testing.assert_allclose(scores.cam.mean(axis=(2, 3)), scores.logit, atol=1e-4)
    assert scores.cam.std(axis=(2, 3)).min() > 1e-3


def test_any_is_at_least_the_largest_subtype(session: Session) -> None:
    probability = session.run(heads((5, 128, 128))).probability
    assert (probability[:, 5] >= probability[:, :5].max(axis=1)).all()
    assert (probability[:, 5] == probability[:, :5].max(axis=1)).any()


def test_padding_below_air_counts_as_air(session: Session) -> None:
    hu = heads((1, 64, 64))
    padded = np.where(hu < -900, np.int16(-3024), hu)
    np.testing.assert_allclose(
        session.run(padded).logit, session.run(np.maximum(padded, np.int16(-1024))).logit, atol=1e-5
    )


def test_class_map_is_the_logits_gradient_times_the_features() -> None:
    torch.manual_seed(0)
    model = build_model(weights="none").eval()
    features = torch.rand(2, 1024, 3, 3)
    embedding = features.mean(dim=(2, 3)).requires_grad_()
    logit = model.head(embedding)
    with torch.no_grad():
        maps = class_maps(model, features, embedding)
    for label in range(6):
        (weight,) = torch.autograd.grad(logit[:, label].sum(), embedding, retain_graph=True)
        constant = logit[:, label] - (weight * embedding).sum(dim=1)
        expected = torch.einsum("nc,nchw->nhw", weight, features) + constant[:, None, None]
        torch.testing.assert_close(maps[:, label], expected, atol=1e-5, rtol=1e-4, check_stride=False)


def test_nothing_names_the_exporting_machine(folder: Path, run: Path) -> None:
    names = [str(PROJECT), str(run), "/srv/secret", sys.prefix, "site-packages", "stack_trace", '.py"']
    contents = {path.name: [path.read_bytes()] for path in folder.iterdir()}
    with zipfile.ZipFile(folder / TORCHSCRIPT_FILE) as archive:
        contents[TORCHSCRIPT_FILE] += [archive.read(name) for name in archive.namelist()]
    for file, parts in contents.items():
        for name in names:
            assert not any(name.encode() in part for part in parts), f"{file} names {name}"


def test_manifest_tells_the_run_and_the_parity_of_every_pair(folder: Path, run: Path, network: nn.Module) -> None:
    artifact = load_artifact(folder)
    assert artifact.dataset_sha256 == "12" * 32
    assert artifact.leakage_certificate == {"clean": True, "splits": {}}
    assert artifact.epoch == 4
    assert artifact.weights_sha256 == weights_sha256(network)
    assert artifact.config == {"size": SIZE, "weights": "w.pth"}
    assert artifact.thresholds == Thresholds(values=(0.5,) * 6, rule="default 0.5")
    assert set(artifact.parity) == {"model.onnx vs torch", "model.ts vs torch", "model.ts vs model.onnx"}
    for found in artifact.parity.values():
        assert found["num_slices"] == 4
        assert 0 < found["max_abs_logit"] < LOGIT_TOLERANCE
        assert found["flips_at_half"] == found["flips_at_thresholds"] == 0
        assert found["input"] == "synthetic heads"
    assert artifact.versions["opset"] == 18


class Tiny(nn.Module):
    """A network with Classifier's interface that exports in two seconds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 3, stride=4)
        self.head = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 6))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(images))


@pytest.fixture(scope="module")
def adjacent() -> tuple[Any, bytes, bytes]:
    tiny: Any = Tiny().eval()
    serving = ServingModel(Front(32, DEFAULT_WINDOWS[:1], True), tiny)
    return tiny, onnx_bytes(serving), torchscript_bytes(serving, export.example())


def test_equal_graphs_give_equal_bytes(adjacent: tuple[Any, bytes, bytes]) -> None:
    again = ServingModel(Front(32, DEFAULT_WINDOWS[:1], True), adjacent[0])
    assert onnx_bytes(again) == adjacent[1]
    assert code_and_tensors(torchscript_bytes(again, export.example())) == code_and_tensors(adjacent[2])


def code_and_tensors(archive: bytes) -> tuple[list[bytes], list[bytes]]:
    """What a TorchScript archive holds, without torch's counts of classes and values in this process."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        code = b"".join(opened.read(name) for name in opened.namelist() if name.endswith(".py"))
        tensors = [opened.read(name) for name in opened.namelist() if name.startswith("archive/data/")]
    return sorted(re.sub(rb"___torch_mangle_\d+\.|\b_\d+\b", b"", code).splitlines()), tensors


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_adjacent_graph_makes_neighbours_and_repeats_the_edge(adjacent: tuple[Any, bytes, bytes], count: int) -> None:
    tiny, as_onnx, as_torchscript = adjacent
    hu = heads((count, 50, 40))
    images = [
        preprocess_adjacent([hu[max(i - 1, 0)], hu[i], hu[min(i + 1, count - 1)]], 32, DEFAULT_WINDOWS[0])
        for i in range(count)
    ]
    with torch.inference_mode():
        expected = tiny.head(tiny.features(torch.from_numpy(np.stack(images))).mean(dim=(2, 3))).numpy()
    for name, content in ((ONNX_FILE, as_onnx), (TORCHSCRIPT_FILE, as_torchscript)):
        np.testing.assert_allclose(export.file_runner(name, content)(hu)[1], expected, atol=1e-5, err_msg=name)


def test_another_run_never_overwrites_a_model(folder: Path, other_run: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UsageError, match=r"model\.json: expected weights \w{12}, found \w{12}, another model"):
        export_onnx(other_run, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_file_without_manifest_is_never_overwritten(other_run: Path, tmp_path: Path) -> None:
    (tmp_path / ONNX_FILE).write_bytes(b"somebody's")
    with pytest.raises(UsageError, match=r"model\.onnx exists without model\.json"):
        export_onnx(other_run, tmp_path)
    assert (tmp_path / ONNX_FILE).read_bytes() == b"somebody's"


def test_damaged_manifest_is_never_overwritten(other_run: Path, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(UsageError, match=r"model\.json: expected JSON.*or choose another --out"):
        export_onnx(other_run, tmp_path)
    assert (tmp_path / MANIFEST).read_text() == "{"


def test_file_that_disagrees_with_the_network_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "onnx_bytes", lambda serving: toy_onnx())
    with pytest.raises(ArtifactError, match=r"parity model\.onnx vs torch: expected max_abs_\w+ up to .*; nothing was"):
        export_onnx(run, tmp_path, parity_slices=2)
    assert list(tmp_path.iterdir()) == []


def test_parity_counts_flips_at_both_thresholds() -> None:
    low = np.full((2, 6), 0.4, dtype=np.float32)
    high = low.copy()
    high[0, 0], high[1, 1] = 0.6, 0.3
    runners = {"torch": lambda hu: (low, low * 2), "other": lambda hu: (high, high * 2)}
    thresholds = Thresholds(values=(0.5, 0.35, *[0.5] * 4))
    found = parity(runners, [np.zeros((2, 4, 4), dtype=np.int16)], thresholds)["other vs torch"]
    assert found["num_slices"] == 2
    assert found["flips_at_half"] == 1
    assert found["flips_at_thresholds"] == 2
    assert found["max_abs_probability"] == pytest.approx(0.2)
    assert found["max_abs_logit"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_abs_probability", 1.1e-3), ("max_abs_logit", 1.1e-2), ("max_abs_probability", float("nan"))],
)
def test_parity_over_its_limit_is_refused(key: str, value: float) -> None:
    fine = {"max_abs_probability": 0.0, "max_abs_logit": 0.0, "num_slices": 3}
    check_parity({"a vs b": fine})
    with pytest.raises(ArtifactError, match=rf"parity a vs b: expected {key} up to .* on 3 slices"):
        check_parity({"a vs b": fine | {key: value}})


def test_batches_keep_order_and_hold_one_size() -> None:
    slices = [np.full((side, 4), index, dtype=np.int16) for index, side in enumerate([4] * 9 + [5, 4])]
    found = list(batches_of(slices))
    assert [batch.shape for batch in found] == [(8, 4, 4), (1, 4, 4), (1, 5, 4), (1, 4, 4)]
    assert [int(one[0, 0]) for batch in found for one in batch] == list(range(11))


def test_synthetic_heads_span_every_window_and_two_sizes() -> None:
    slices = synthetic_heads(8)
    assert {hu.shape for hu in slices} == {(512, 512), (400, 340)}
    assert all(hu.dtype == np.int16 and hu.min() < -900 and hu.max() > 1000 for hu in slices)
    assert ((slices[0] > 20) & (slices[0] < 60)).mean() > 0.1
    np.testing.assert_array_equal(slices[3], synthetic_heads(8)[3])


def test_parity_is_measured_on_the_test_split_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reader:
        dataset_sha256 = "ef" * 32

        def __init__(self, folder: Path) -> None:
            assert folder == Path("records")

        def __enter__(self) -> "Reader":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def rows(self, split: str) -> np.ndarray:
            assert split == "test"
            return np.arange(100, 200)

        def hu(self, row: int) -> HuArray:
            return np.full((4, 4), row, dtype=np.int16)

    monkeypatch.setattr(export, "RecordReader", Reader)
    batches, source = export.parity_input(
        ExportConfig(run=Path("r"), out=Path("o"), records=Path("records"), parity_slices=4)
    )
    assert [int(one[0, 0]) for one in batches[0]] == [100, 133, 166, 199]
    assert [batch.shape[1:] for batch in batches[1:]] == [(512, 512), (400, 340)]
    assert source == "test split of records efefefefefef and 4 synthetic heads"


def write_evaluation(folder: Path, run: Path, **changed: object) -> checkpoint.LoadedRun:
    loaded = checkpoint.load_run(run)
    thresholds = {"rule": "max-f1", "split": "val", "thresholds": {label: 0.1 * i for i, label in enumerate(LABELS)}}
    metrics: dict[str, object] = dict.fromkeys(EVALUATION_KEYS, 1)
    metrics |= {
        "dataset": {"dataset_sha256": "34" * 32, "trained_on_sha256": "12" * 32, "records": "/srv/secret"},
        "model": {"epoch": 4},
        "config": loaded.config,
        "machine": {"device_name": "secret", "precision": "float32"},
    }
    (folder / "thresholds.json").write_text(json.dumps(thresholds))
    (folder / "metrics.json").write_text(json.dumps(metrics | changed))
    return loaded


def test_evaluation_brings_thresholds_and_metrics(tmp_path: Path, run: Path) -> None:
    found = read_evaluation(tmp_path, write_evaluation(tmp_path, run), run)
    assert found.thresholds.values == pytest.approx((0, 0.1, 0.2, 0.3, 0.4, 0.5))
    assert found.thresholds.rule == "max-f1 on val"
    assert set(found.metrics) == {*EVALUATION_KEYS, "dataset_sha256", "precision", "leakage", "leakage_of_validation"}
    assert "secret" not in str(found.metrics)


def test_an_evaluation_in_another_precision_than_the_graphs_is_said(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read_evaluation(tmp_path, write_evaluation(tmp_path, run), run)
    assert capsys.readouterr().err == ""
    loaded = write_evaluation(tmp_path, run, machine={"precision": "bfloat16"})
    assert read_evaluation(tmp_path, loaded, run).metrics["precision"] == "bfloat16"
    assert "judged in bfloat16, and the graphs compute in float32" in capsys.readouterr().err


@pytest.mark.parametrize("changed", [{"model": {"epoch": 3}}, {"config": {"size": SIZE}}])
def test_evaluation_of_another_network_is_refused(tmp_path: Path, run: Path, changed: dict[str, object]) -> None:
    loaded = write_evaluation(tmp_path, run, **changed)
    with pytest.raises(UsageError, match=r"metrics\.json: expected an evaluation of .*, epoch 4, found one of another"):
        read_evaluation(tmp_path, loaded, run)


def platt(bias: float) -> Calibration:
    each = tuple(LabelCalibration(method="platt", scale=0.5 + 0.1 * i, bias=bias) for i in range(6))
    return Calibration(method="platt", of_label=each)


def write_calibration(folder: Path, calibration: Calibration) -> dict[str, object]:
    document = calibration.to_document() | {"dataset_sha256": "12" * 32, "split": "val"}
    (folder / "calibration.json").write_text(json.dumps(document))
    return document


def test_evaluation_brings_calibration_and_triage_where_it_has_them(tmp_path: Path, run: Path) -> None:
    loaded = write_evaluation(tmp_path, run)
    found = read_evaluation(tmp_path, loaded, run)
    assert (found.calibration, found.triage) == ({"method": "none"}, None)
    document = write_calibration(tmp_path, platt(1.0))
    triage = conformal.fit([0.1, 0.9] * 20, [0, 1] * 20, alpha_miss=0.1, alpha_alarm=0.1).to_document()
    (tmp_path / "triage.json").write_text(json.dumps(triage))
    found = read_evaluation(tmp_path, loaded, run)
    assert (found.calibration, found.triage) == (document, triage)


@pytest.mark.parametrize("name", ["calibration.json", "triage.json"])
@pytest.mark.parametrize("text", ["{", "{}", '{"method": "platt"}', "[]"])
def test_calibration_and_triage_that_hold_none_are_refused(tmp_path: Path, run: Path, name: str, text: str) -> None:
    loaded = write_evaluation(tmp_path, run)
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=rf"{name}: expected what fastich\.evaluate writes"):
        read_evaluation(tmp_path, loaded, run)


def test_export_puts_the_evaluations_calibration_into_graph_manifest_and_parity(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ServingModel] = []
    monkeypatch.setattr(export, "onnx_bytes", lambda serving: seen.append(serving) or b"onnx")
    monkeypatch.setattr(contract, "has_external_data", lambda content, where: False)
    loaded = write_evaluation(tmp_path, run)
    calibrated = export.torch_runner(loaded, platt(1.0))
    monkeypatch.setattr(export, "file_runner", lambda name, content: calibrated)
    document = write_calibration(tmp_path, platt(1.0))
    out = tmp_path / "m"
    export_onnx(run, out, evaluation=tmp_path, parity_slices=1)
    assert seen[0].calibrator.calibration_scale.tolist() == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert seen[0].calibrator.calibration_bias.tolist() == [1.0] * 6
    artifact = load_artifact(out)
    assert artifact.calibration == document
    assert artifact.parity["model.onnx vs torch"]["max_abs_probability"] == 0
    monkeypatch.setattr(export, "file_runner", lambda name, content: export.torch_runner(loaded))
    with pytest.raises(ArtifactError, match=r"parity model\.onnx vs torch: expected max_abs_probability"):
        export_onnx(run, out, evaluation=tmp_path, parity_slices=1)


def test_files_of_two_calibrations_never_lie_in_one_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "onnx_bytes", lambda serving: b"onnx")
    monkeypatch.setattr(contract, "has_external_data", lambda content, where: False)
    loaded = write_evaluation(tmp_path, run)
    out = tmp_path / "m"
    for bias in (1.0, 2.0):  # the one file of the folder may be written again
        write_calibration(tmp_path, platt(bias))
        runner = export.torch_runner(loaded, platt(bias))
        monkeypatch.setattr(export, "file_runner", lambda name, content, runner=runner: runner)
        export_onnx(run, out, evaluation=tmp_path, parity_slices=1)
    write_calibration(tmp_path, platt(3.0))
    message = (
        r"calibration\.json: expected the calibration inside model\.onnx of .*, found another; choose another --out"
    )
    with pytest.raises(UsageError, match=message):
        export_torchscript(run, out, evaluation=tmp_path, parity_slices=1)
    for precision in ("int8", "bfloat16"):
        with pytest.raises(UsageError, match=message):
            export.export_variant(
                ExportConfig(run=run, out=out, evaluation=tmp_path, records=Path("r"), precision=precision)
            )


def test_runner_of_the_network_is_calibrated_and_its_logit_raw(run: Path) -> None:
    loaded = checkpoint.load_run(run)
    probability, logit = export.torch_runner(loaded, platt(1.0))(heads((2, 64, 64)))
    np.testing.assert_array_equal(logit, export.torch_runner(loaded)(heads((2, 64, 64)))[1])
    np.testing.assert_allclose(probability, platt(1.0).probability(logit), atol=1e-7)


@pytest.mark.parametrize("name", ["thresholds.json", "metrics.json"])
def test_incomplete_evaluation_is_named(tmp_path: Path, run: Path, name: str) -> None:
    loaded = write_evaluation(tmp_path, run)
    (tmp_path / name).unlink()
    with pytest.raises(UsageError, match=rf"{name}: expected what fastich\.evaluate writes"):
        read_evaluation(tmp_path, loaded, run)


def test_second_export_keeps_what_the_first_was_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "torchscript_bytes", lambda serving, example: b"script")
    monkeypatch.setattr(export, "onnx_bytes", lambda serving: b"onnx")
    monkeypatch.setattr(export, "file_runner", lambda name, content: export.torch_runner(checkpoint.load_run(run)))
    write_evaluation(tmp_path, run)
    export_torchscript(run, tmp_path / "m", evaluation=tmp_path, parity_slices=1)
    first = (tmp_path / "m" / MANIFEST).read_text()
    monkeypatch.setattr(contract, "has_external_data", lambda content, where: False)
    export_onnx(run, tmp_path / "m", parity_slices=1)
    artifact = load_artifact(tmp_path / "m")
    assert set(artifact.files) == {ONNX_FILE, TORCHSCRIPT_FILE}
    assert artifact.thresholds.rule == "max-f1 on val"
    assert artifact.metrics == json.loads(first)["metrics"]
    assert set(artifact.parity) == {"model.ts vs torch", "model.onnx vs torch", "model.ts vs model.onnx"}


def test_shipped_config_has_no_paths() -> None:
    config = {"records": "/a/b", "out": "/c", "weights": "/d/e.pth", "windows": "brain,40/380", "lr": 1e-3}
    assert shipped_config(config) == {"weights": "e.pth", "windows": "brain,40/380", "lr": 1e-3}


def test_weights_identity_sees_one_changed_number(network: nn.Module) -> None:
    before = weights_sha256(network)
    with torch.no_grad():
        value = network.head[-1].bias  # type: ignore[union-attr,index]
        kept = value.clone()
        value[0] += 1e-3
        assert weights_sha256(network) != before
        value.copy_(kept)
    assert weights_sha256(network) == before


def test_parity_on_no_slices_is_bad_usage() -> None:
    with pytest.raises(ValueError, match="--parity-slices: expected at least 1, found 0"):
        ExportConfig(run=Path("r"), out=Path("o"), parity_slices=0)


@pytest.mark.parametrize("name", ["calibration_slices", "variant_slices"])
def test_variant_on_no_slices_is_bad_usage(name: str) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}: expected at least 1, found 0"):
        ExportConfig(run=Path("r"), out=Path("o"), **{name: 0})


@pytest.mark.parametrize("precision", ["int8", "float16", "bfloat16"])
def test_variant_without_records_is_bad_usage(precision: str) -> None:
    with pytest.raises(
        UsageError, match=rf"--precision {precision}: expected --records, found none; int8 is calibrated"
    ):
        ExportConfig(run=Path("r"), out=Path("o"), precision=precision)


def test_unknown_precision_is_bad_usage() -> None:
    with pytest.raises(ValueError, match=r"--precision: expected one of float32, .*, found 'int4'"):
        ExportConfig(run=Path("r"), out=Path("o"), precision="int4")


def test_torchscript_has_no_variants() -> None:
    words = ["--run", "r", "--out", "m", "--records", "x", "--precision", "int8"]
    with pytest.raises(UsageError, match=r"--precision int8: a variant is an ONNX file; use export/to_onnx\.py"):
        export.main(words, formats=("torchscript",))


def test_variant_is_made_of_the_model_that_is_there(
    run: Path, folder: Path, other_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Path, set[str], VariantConfig]] = []
    monkeypatch.setattr(export, "write_variant", lambda out, made, how: asked.append((out, set(made.files), how)))
    monkeypatch.setattr(export, "export", lambda config, name: pytest.fail("model.onnx was exported again"))
    monkeypatch.setattr(export, "summary", lambda artifact, out: [])
    words = ["--out", str(folder), "--records", "x", "--precision", "int8", "--calibration-slices", "7"]
    export.main(["--run", str(run), *words], formats=("onnx",))
    how = VariantConfig(precision="int8", records=Path("x"), calibration_slices=7, variant_slices=2000)
    assert asked == [(folder, {ONNX_FILE, TORCHSCRIPT_FILE}, how)]
    with pytest.raises(UsageError, match=r"model\.json: expected weights \w{12}, found \w{12}, another model"):
        export.main(["--run", str(other_run), *words], formats=("onnx",))


def test_variant_exports_the_model_first_where_there_is_none(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load_artifact(folder)
    asked: list[object] = []
    monkeypatch.setattr(export, "export", lambda config, name: asked.append(name) or made)
    monkeypatch.setattr(export, "write_variant", lambda out, artifact, how: asked.append(artifact))
    export.export_variant(ExportConfig(run=run, out=tmp_path / "m", records=Path("x"), precision="float16"))
    assert asked == [ONNX_FILE, made]


def test_export_leaves_variants_out_of_its_own_parity(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "torchscript_bytes", lambda serving, example: b"script")
    monkeypatch.setattr(export, "file_runner", lambda name, content: export.torch_runner(checkpoint.load_run(run)))
    first = export_torchscript(run, tmp_path, parity_slices=1)
    entry = contract.FileEntry(sha256="ef" * 32, size_bytes=1, role="variant")
    contract.write_manifest(tmp_path, dataclasses.replace(first, files=dict(first.files) | {"model.int8.onnx": entry}))
    again = export_torchscript(run, tmp_path, parity_slices=1)
    assert set(again.parity) == {"model.ts vs torch"}
    assert again.files["model.int8.onnx"] == entry


def test_summary_tells_the_change_of_auc(folder: Path) -> None:
    found = {"max_abs_probability": 0.02, "max_abs_logit": 0.1, "flips_at_thresholds": 1, "num_slices": 9, "input": "x"}
    report = {"model.int8.onnx vs model.onnx": found | {"auc_change": {"epidural": None, "any": -0.00123}}}
    (line,) = [
        line
        for line in export.summary(dataclasses.replace(load_artifact(folder), parity=report), folder)
        if line.startswith("parity")
    ]
    assert line.endswith("1 flips on 9 slices (x); AUC epidural undefined, any -0.0012")


def test_torchscript_archive_keeps_tensors_aligned(folder: Path) -> None:
    content = (folder / TORCHSCRIPT_FILE).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for record in archive.infolist():
            name_size, extra_size = struct.unpack_from("<HH", content, record.header_offset + 26)
            assert (record.header_offset + 30 + name_size + extra_size) % 64 == 0
            assert record.date_time == (1980, 1, 1, 0, 0, 0)


def test_onnx_script_says_in_one_line_that_there_is_no_run(tmp_path: Path) -> None:
    script = PROJECT / "export" / "to_onnx.py"
    command = [sys.executable, str(script), "--run", str(tmp_path / "none"), "--out", str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no such run folder" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("script", "name"), [("to_onnx.py", ONNX_FILE), ("to_torchscript.py", TORCHSCRIPT_FILE)])
def test_each_script_exports_its_own_file(script: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, str]] = []
    monkeypatch.setattr(export, "export", lambda config, file: asked.append((config.out, file)))
    monkeypatch.setattr(export, "summary", lambda artifact, out: [])
    runpy.run_path(str(PROJECT / "export" / script))["main"](["--run", "r", "--out", "m"])
    assert asked == [(Path("m"), name)]
