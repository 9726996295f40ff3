import re
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import _api, densenet121

from fastich.errors import CheckpointError
from fastich.models.densenet import IMAGENET, DenseNet121Classifier, build_model, rename_old_key


@pytest.fixture(scope="module")
def model() -> DenseNet121Classifier:
    torch.manual_seed(0)
    return build_model(weights="none").eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_head_is_the_studys(model: DenseNet121Classifier) -> None:
    head = model.densenet.classifier
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert (head[0].in_features, head[0].out_features) == (1024, 512)
    assert head[2].p == 0.2
    assert (head[3].in_features, head[3].out_features) == (512, 6)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_forward_equals_torchvisions_network(model: DenseNet121Classifier, images: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(images), model.densenet(images), rtol=1e-5, atol=1e-6)


def test_embedding_is_the_pooled_features_and_feeds_the_head(
    model: DenseNet121Classifier, images: torch.Tensor
) -> None:
    with torch.no_grad():
        features, embedding = model.features(images), model.embedding(images)
        assert features.shape == (2, 1024, 2, 2)
        assert features.min() >= 0
        torch.testing.assert_close(embedding, features.mean((2, 3)))
        torch.testing.assert_close(model.head(embedding), model(images))


def test_equal_seeds_give_equal_random_weights() -> None:
    def first_weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return build_model(weights="none").densenet.classifier[3].weight

    assert torch.equal(first_weights(3), first_weights(3))
    assert not torch.equal(first_weights(3), first_weights(4))


def test_imagenet_without_network_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(_api, "load_state_dict_from_url", refuse)
    with pytest.raises(CheckpointError, match=r"--weights none.*--weights FILE.*TORCH_HOME") as caught:
        build_model(weights="imagenet")
    assert IMAGENET.url in str(caught.value)
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
            assert torch.equal(model.state_dict()["densenet." + key], value), key


def test_rename_leaves_present_names_alone() -> None:
    for key in densenet121(weights=None).state_dict():
        assert rename_old_key(key) == key


def test_weights_file_of_torchvision_loads_the_backbone(tmp_path: Path) -> None:
    torch.manual_seed(6)
    theirs = densenet121(weights=None).state_dict()
    torch.save(theirs, tmp_path / "densenet121.pth")
    model = build_model(weights=tmp_path / "densenet121.pth")
    assert torch.equal(model.densenet.features.conv0.weight, theirs["features.conv0.weight"])


def test_weights_file_of_ours_loads_the_head_too(tmp_path: Path, model: DenseNet121Classifier) -> None:
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
