import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from toy_study import sequence_model

from fastich import calibration
from fastich.artifact import has_external_data
from fastich.calibration import BIAS, SCALE, Calibration
from fastich.calibration_graph import with_calibration
from fastich.errors import ArtifactError
from fastich.labels import ANY
from fastich.models import study_onnx
from fastich.models.sequence import VARIANTS, SequenceEnsemble, SequenceModel
from fastich.models.study_onnx import study_onnx_bytes
from fastich.study_contract import STUDY_INPUTS, STUDY_OUTPUTS

CHANNELS = 20
TOLERANCE = 1e-5
PROJECT = Path(__file__).resolve().parents[1]
NAN = float("nan")


def model(variant: str) -> SequenceModel:
    return sequence_model(CHANNELS, variant)


def study(length: int, channels: int = CHANNELS, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    gap = torch.rand(length, generator=made) * 70 - 5  # some are negative, some beyond the cap
    gap[0] = NAN
    gap[2::5] = NAN
    embedding = torch.rand(length, channels, generator=made) * 2
    return embedding, torch.randn(length, 6, generator=made) * 3 - 2, gap


def run(content: bytes, embedding: torch.Tensor, logit: torch.Tensor, gap: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    given = {"embedding": embedding.numpy(), "logit": logit.numpy(), "gap_mm": gap.numpy()}
    names = [spec.name for spec in STUDY_OUTPUTS]
    return dict(zip(names, session.run(names, given), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [1, 2, 3, 34, 800])
def test_graph_equals_the_network(variant: str, length: int) -> None:
    made, (embedding, logit, gap) = model(variant), study(length)
    with torch.inference_mode():
        expected = made(embedding[None], logit[None], gap[None], torch.ones(1, length, dtype=torch.bool))
    found = run(study_onnx_bytes(made), embedding, logit, gap)
    np.testing.assert_allclose(found["slice_logit"], expected.slices[0].numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(found["study_logit"], expected.study[0].numpy(), atol=TOLERANCE)
    assert np.abs(found["slice_logit"] - logit.numpy()).max() > 0.1, "the heads of this model must say something"


@pytest.mark.parametrize("variants", [("difference",) * 4, ("gru", "difference", "gru")])
@pytest.mark.parametrize("length", [1, 2, 34])
def test_graph_of_an_ensemble_is_the_mean_of_its_members(variants: tuple[str, ...], length: int) -> None:
    members = [sequence_model(CHANNELS, variant, seed) for seed, variant in enumerate(variants)]
    embedding, logit, gap = study(length)
    given = embedding[None], logit[None], gap[None], torch.ones(1, length, dtype=torch.bool)
    made = SequenceEnsemble(members).eval()
    with torch.inference_mode():
        expected, first = made(*given), members[0](*given)
    content = study_onnx_bytes(made)
    found = run(content, embedding, logit, gap)
    np.testing.assert_allclose(found["slice_logit"], expected.slices[0].numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(found["study_logit"], expected.study[0].numpy(), atol=TOLERANCE)
    assert np.abs(found["slice_logit"] - first.slices[0].numpy()).max() > 0.01, "the members must differ"
    graph = onnx.load_from_string(content).graph
    assert [node.op_type for node in graph.node].count("GRU") == len(variants)
    assert {tensor.name for tensor in graph.initializer} <= {name for node in graph.node for name in node.input}


@pytest.mark.parametrize("variant", VARIANTS)
def test_graph_equals_the_network_where_no_gap_is_known(variant: str) -> None:
    made, (embedding, logit, _) = model(variant), study(9)
    gap = torch.full((9,), NAN)
    with torch.inference_mode():
        expected = made(embedding[None], logit[None], gap[None], torch.ones(1, 9, dtype=torch.bool))
    found = run(study_onnx_bytes(made), embedding, logit, gap)
    np.testing.assert_allclose(found["slice_logit"], expected.slices[0].numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(found["study_logit"], expected.study[0].numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_model_of_the_usual_size_says_what_the_cnn_says(variant: str) -> None:
    embedding, logit, gap = study(34, channels=1024)
    found = run(study_onnx_bytes(SequenceModel(1024, variant=variant).eval()), embedding, logit, gap)
    np.testing.assert_array_equal(found["slice_logit"], logit.numpy())
    np.testing.assert_array_equal(found["study_logit"], logit.numpy().max(axis=0))


def test_any_is_at_least_the_largest_subtype_for_slices_and_study() -> None:
    found = run(study_onnx_bytes(model("gru")), *study(50))
    raw = 1 / (1 + np.exp(-found["slice_logit"].astype(np.float64)))
    assert (raw[:, ANY] < raw[:, :ANY].max(axis=1)).any(), "the raw logits must break the rule somewhere"
    for name in ("slice_probability", "study_probability"):
        probability = np.atleast_2d(found[name])
        assert (probability[:, ANY] >= probability[:, :ANY].max(axis=1)).all(), name
    np.testing.assert_allclose(found["slice_probability"][:, :ANY], raw[:, :ANY], atol=1e-6)


def fitted(method: str, seed: int) -> Calibration:
    random = np.random.default_rng(seed)
    logit = random.normal(0, 3, (400, 6))
    labels = (random.random((400, 6)) < 1 / (1 + np.exp(-0.6 * logit + 1))).astype(np.int64)
    labels[:, 0] = 0 if seed else labels[:, 0]  # without a positive: this label keeps the sigmoid
    return calibration.fit(logit, labels, method)


@pytest.mark.parametrize("study_method", ["none", "temperature", "platt", "isotonic"])
@pytest.mark.parametrize("slice_method", ["none", "platt", "isotonic"])
def test_probabilities_are_those_of_the_calibrations(slice_method: str, study_method: str) -> None:
    of_slices, of_study = fitted(slice_method, 0), fitted(study_method, 1)
    found = run(study_onnx_bytes(model("gru"), of_slices, of_study), *study(200))
    expected = of_slices.probability(found["slice_logit"])
    np.testing.assert_allclose(found["slice_probability"], expected, atol=2e-6)
    np.testing.assert_allclose(
        found["study_probability"], of_study.probability(found["study_logit"][None])[0], atol=2e-6
    )
    raw = run(study_onnx_bytes(model("gru")), *study(200))
    np.testing.assert_array_equal(found["slice_logit"], raw["slice_logit"])
    assert (slice_method == "none") == bool(
        np.allclose(found["slice_probability"], raw["slice_probability"], atol=1e-3)
    )


def test_constants_of_the_calibrations_can_be_found_by_name() -> None:
    graph = onnx.load_from_string(study_onnx_bytes(model("gru"), fitted("platt", 0), fitted("isotonic", 0))).graph
    names = {tensor.name for tensor in graph.initializer if "calibration" in tensor.name}
    of_study = set(calibration.constants(fitted("isotonic", 0)))
    assert names == {f"slice_{name}" for name in (SCALE, BIAS)} | {f"study_{name}" for name in of_study}


def test_a_site_can_put_its_own_constants_in_place() -> None:
    content = study_onnx_bytes(model("gru"), fitted("platt", 0), fitted("platt", 1))
    own = fitted("platt", 2)
    changed = run(with_calibration(content, own, prefix="study_", where="study.onnx"), *study(20))
    expected = own.probability(changed["study_logit"][None])[0]
    np.testing.assert_allclose(changed["study_probability"], expected, atol=2e-6)
    before = run(content, *study(20))
    np.testing.assert_array_equal(changed["slice_probability"], before["slice_probability"])
    assert np.abs(changed["study_probability"] - before["study_probability"]).max() > 1e-3


def test_graph_holds_one_gru_whatever_the_length() -> None:
    graph = onnx.load_from_string(study_onnx_bytes(model("difference"))).graph
    assert [node.op_type for node in graph.node].count("GRU") == 1
    assert len(graph.node) < 75


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", ["none", "isotonic"])
def test_every_tensor_is_used(variant: str, method: str) -> None:
    graph = onnx.load_from_string(study_onnx_bytes(model(variant), fitted(method, 0))).graph
    assert {tensor.name for tensor in graph.initializer} <= {name for node in graph.node for name in node.input}


def test_names_axes_and_opset_are_those_of_the_contract() -> None:
    made = onnx.load_from_string(study_onnx_bytes(model("gru")))
    onnx.checker.check_model(made, full_check=True)
    found = {
        value.name: tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (*made.graph.input, *made.graph.output)
    }
    expected = {spec.name: spec.shape for spec in (*STUDY_INPUTS, *STUDY_OUTPUTS)}
    assert found == expected | {"embedding": ("L", CHANNELS)}
    assert [(entry.domain, entry.version) for entry in made.opset_import] == [("", 18)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_models_give_equal_bytes_that_name_no_machine(variant: str) -> None:
    content = study_onnx_bytes(model(variant))
    assert content == study_onnx_bytes(model(variant))
    assert not has_external_data(content)
    for name in (str(PROJECT), sys.prefix, "site-packages", ".py"):
        assert name.encode() not in content


def test_export_leaves_the_model_as_it_was() -> None:
    made = model("gru")
    before = {key: value.clone() for key, value in made.state_dict().items()}
    study_onnx_bytes(made)
    assert all(torch.equal(before[key], value) for key, value in made.state_dict().items())


def test_a_graph_that_the_checker_refuses_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_onnx, "SQUEEZE", "study_probability = Nonsense (study_probability_1K)")
    with pytest.raises(ArtifactError, match=r"study\.onnx: onnx\.checker refused the graph: .*Nonsense"):
        study_onnx_bytes(model("gru"))
