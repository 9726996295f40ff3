import functools
import re
import urllib.error
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import _api, densenet121

from fastich.artifact import IMAGE, INPUT
from fastich.checkpoint import BEST, LAST, Tensors, load, load_run, model_tensors, restore_optimizer, save
from fastich.errors import CheckpointError
from fastich.models.classifier import BACKBONES, DEFAULT_BACKBONE, Classifier, build_model, rename_old_key
from fastich.models.folding import fold_batch_norm
from fastich.models.onnx_graph import onnx_bytes
from fastich.models.serving import Front, ServingModel
from fastich.parity import synthetic_heads
from fastich.windowing import DEFAULT_WINDOWS, preprocess

SIZE = 64
EMBEDDING_SIZES = {
    "densenet121": 1024,
    "densenet169": 1664,
    "resnext50_32x4d": 2048,
    "efficientnet_b0": 1280,
    "convnext_tiny": 768,
}

HEADS = np.stack([head[::8, ::8] for head in synthetic_heads(8)[:4]])


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    return build_model(weights="none").eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_head_is_the_studys(model: Classifier) -> None:
    head = model.head
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert (head[0].in_features, head[0].out_features) == (1024, 512)
    assert head[2].p == 0.2
    assert (head[3].in_features, head[3].out_features) == (512, 6)
    assert all(parameter.requires_grad for parameter in model.parameters())


@functools.cache
def network(backbone: str) -> Classifier:
    """Random weights, batch norms as if trained: without statistics random features fade to nothing."""
    torch.manual_seed(0)
    made = build_model(backbone, weights="none")
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean over the passes
    with torch.no_grad():
        made.train()(torch.from_numpy(np.stack([preprocess(one, SIZE) for one in HEADS])))
    return made.eval()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_pooled_features_are_what_torchvisions_classifier_sees(backbone: str, images: torch.Tensor) -> None:
    torch.manual_seed(0)
    whole = BACKBONES[backbone].build(weights=None).eval()
    model = Classifier(BACKBONES[backbone].features(whole), EMBEDDING_SIZES[backbone]).eval()
    last = [module for module in whole.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        whole(images)
        embedding = model.embedding(images)
    if backbone == "convnext_tiny":  # there its LayerNorm follows the pooling, here it comes before (module docstring)
        embedding = nn.functional.layer_norm(model.features[:-1](images).mean((2, 3)), (768,), eps=1e-6)
    torch.testing.assert_close(embedding, seen[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_weight_learns(backbone: str, images: torch.Tensor) -> None:
    model = network(backbone)  # in eval mode: in training mode stochastic depth may leave a block out
    logits = model(images)
    assert logits.shape == (2, 6)
    assert model.embedding_size == model.head[0].in_features == EMBEDDING_SIZES[backbone]
    nn.functional.binary_cross_entropy_with_logits(logits, torch.ones(2, 6)).backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not silent
    assert torch.stack([p.grad.abs().max() for p in model.parameters() if p.grad is not None]).isfinite().all()
    stem = next(model.features.parameters())
    assert stem.grad is not None
    assert stem.grad.abs().max() > 0


def test_embedding_is_the_pooled_features_and_feeds_the_head(model: Classifier, images: torch.Tensor) -> None:
    with torch.no_grad():
        features, embedding = model.features(images), model.embedding(images)
        assert features.shape == (2, 1024, 2, 2)
        assert features.min() >= 0
        torch.testing.assert_close(embedding, features.mean((2, 3)))
        torch.testing.assert_close(model.head(embedding), model(images))


def test_equal_seeds_give_equal_random_weights() -> None:
    def first_weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return build_model(weights="none").head[3].weight

    assert torch.equal(first_weights(3), first_weights(3))
    assert not torch.equal(first_weights(3), first_weights(4))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_imagenet_without_network_names_the_ways_out(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(_api, "load_state_dict_from_url", refuse)
    with pytest.raises(CheckpointError, match=r"--weights none.*--weights FILE.*TORCH_HOME") as caught:
        build_model(backbone, weights="imagenet")
    assert BACKBONES[backbone].imagenet.url in str(caught.value)
    assert "\n" not in str(caught.value)


def test_imagenet_weights_in_their_published_names_land_in_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    published = densenet121(weights=None).state_dict()
    published = {key: value for key, value in published.items() if "num_batches_tracked" not in key}
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key): value for key, value in published.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: old)
    model = build_model(weights="imagenet")
    for key, value in published.items():
        if key.startswith("features."):
            assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("backbone", BACKBONES)
def test_imagenet_weights_reach_every_tensor_before_the_head(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    whole = BACKBONES[backbone].build(weights=None)
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: whole.state_dict())
    features = build_model(backbone, weights="imagenet").features.state_dict()
    for key, value in BACKBONES[backbone].features(whole).state_dict().items():
        assert torch.equal(features[key], value), key


def test_rename_leaves_present_names_alone() -> None:
    for key in densenet121(weights=None).state_dict():
        assert rename_old_key(key) == key


def test_weights_file_of_torchvision_loads_the_backbone(tmp_path: Path) -> None:
    torch.manual_seed(6)
    theirs = densenet121(weights=None).state_dict()
    torch.save(theirs, tmp_path / "densenet121.pth")
    model = build_model(weights=tmp_path / "densenet121.pth")
    assert torch.equal(model.features.conv0.weight, theirs["features.conv0.weight"])


def test_weights_file_of_ours_loads_the_head_too(tmp_path: Path, model: Classifier) -> None:
    path = tmp_path / "best.safetensors"
    save_file({f"model.{key}": value.contiguous() for key, value in model.state_dict().items()}, path)
    loaded = build_model(weights=str(path))
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pth", None, "no such file"),
        ("absent.safetensors", None, "no such file"),
        ("text.pth", b"hello", "expected a state dict saved by torch"),
        ("text.safetensors", b"hello", "cannot be read"),
    ],
)
def test_weights_file_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        build_model(weights=tmp_path / name)


def test_weights_file_cannot_run_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path(tmp_path / "harmed").touch, ())

    torch.save({"features.conv0.weight": Harm()}, tmp_path / "harm.pth")
    with pytest.raises(CheckpointError, match="expected a state dict"):
        build_model(weights=tmp_path / "harm.pth")
    assert not (tmp_path / "harmed").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    state = densenet121(weights=None).state_dict()
    del state["features.conv0.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors \(first: conv0.weight\)"):
        build_model(weights=tmp_path / "short.pth")
    state["features.conv0.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(state, tmp_path / "grey.pth")
    with pytest.raises(CheckpointError, match=r"conv0.weight: expected shape \[64, 3, 7, 7\], found \[64, 1, 7, 7\]"):
        build_model(weights=tmp_path / "grey.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="found list"):
        build_model(weights=tmp_path / "list.pth")
    torch.save(densenet121(weights=None).state_dict(), tmp_path / "densenet121.pth")
    with pytest.raises(CheckpointError, match=r"not the weights of this network.*--backbone must be the file's"):
        build_model("resnext50_32x4d", weights=tmp_path / "densenet121.pth")


def former_checkpoint(path: Path, model: Classifier) -> None:
    """Write what ``model``'s checkpoint was when the class was DenseNet121Classifier: no backbone, other names."""
    former = {"densenet." + key.replace("head.", "classifier."): value for key, value in model.state_dict().items()}
    tensors: Tensors = {f"model.{key}": value for key, value in former.items()}
    tensors |= {f"optimizer.exp_avg.{key}": torch.ones_like(value) for key, value in former.items() if "conv" in key}
    window = {"center_hu": 40.0, "width_hu": 80.0}
    inputs = {"size": SIZE, "windows": [window] * 3, "adjacent": False}
    save(path, {"epoch": 1, "config": {"size": SIZE}, "dataset_sha256": "ab" * 32, "input": inputs}, tensors)


def test_checkpoint_of_the_former_class_loads(tmp_path: Path, model: Classifier, images: torch.Tensor) -> None:
    former_checkpoint(tmp_path / BEST, model)
    names = load_file(tmp_path / BEST).keys()
    assert {"model.densenet.features.conv0.weight", "model.densenet.classifier.3.bias"} <= names
    with torch.no_grad():
        assert torch.equal(load_run(tmp_path).model(images), model(images))
        assert torch.equal(build_model(weights=tmp_path / BEST).eval()(images), model(images))


def test_optimizer_of_the_former_class_goes_on(tmp_path: Path, model: Classifier) -> None:
    former_checkpoint(tmp_path / LAST, model)
    optimizer = torch.optim.Adam(model.parameters())
    restore_optimizer(model, optimizer, load(tmp_path / LAST))
    assert optimizer.state[model.features.conv0.weight]["exp_avg"].unique().tolist() == [1.0]


def test_run_tells_its_backbone(tmp_path: Path) -> None:
    model = build_model("efficientnet_b0", weights="none")
    inputs = {"size": SIZE, "windows": [{"center_hu": 40.0, "width_hu": 80.0}], "adjacent": True}
    meta = {"epoch": 1, "config": {"backbone": "efficientnet_b0"}, "dataset_sha256": "ab" * 32, "input": inputs}
    save(tmp_path / BEST, meta, model_tensors(model))
    found = load_run(tmp_path).model
    assert all(torch.equal(value, found.state_dict()[key]) for key, value in model.state_dict().items())


def reaches_past_image(content: bytes) -> bool:
    """Whether an output of the graph depends on the input by a way that does not lead through ``image``."""
    graph = onnx.load_from_string(content).graph
    made_by = {name: node for node in graph.node for name in node.output}
    seen, waiting = {IMAGE}, [value.name for value in graph.output]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += made_by[name].input if name in made_by else []
    return INPUT.name in seen


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != DEFAULT_BACKBONE])
def test_exported_graph_agrees_and_its_class_maps_mean_the_logits(backbone: str) -> None:
    """The same of DenseNet121, which takes 15 s too, is in test_export.py."""
    model, hu = network(backbone), HEADS[:3]
    images = torch.from_numpy(np.stack([preprocess(one, SIZE) for one in hu]))
    content = onnx_bytes(ServingModel(Front(SIZE, DEFAULT_WINDOWS, False), fold_batch_norm(model)))
    with torch.no_grad():
        expected = model(images).numpy()
    assert not reaches_past_image(content), "OpenVINO cuts the graph there"
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    logit, embedding, cam = session.run(["logit", "embedding", "cam"], {"hu": hu})
    assert embedding.shape == (3, EMBEDDING_SIZES[backbone])
    assert np.ptp(expected, axis=0).max() > 1e-2, "the slices are told apart"
    np.testing.assert_allclose(logit, expected, atol=5e-4, rtol=1e-3)
    np.testing.assert_allclose(cam.mean(axis=(2, 3)), logit, atol=1e-5, rtol=1e-4)
