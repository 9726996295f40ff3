import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastich import checkpoint
from fastich.errors import CheckpointError
from fastich.models.classifier import build_model
from fastich.windowing import WINDOWS

META = {"epoch": 3, "config": {"size": 64}, "dataset_sha256": "ab" * 32}


def small_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(2))
    network(torch.zeros(1, 3, 6, 6))
    return network.to(memory_format=torch.channels_last)


def learn(network: nn.Module, optimizer: torch.optim.Adam, steps: int) -> None:
    generator = torch.Generator().manual_seed(9)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 6, 6, generator=generator)).square().mean().backward()
        optimizer.step()


def adam(network: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), lr=0.01, fused=True)


def test_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.safetensors"
    tensors = {"model.a": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "rng.cpu": torch.arange(5)}
    checkpoint.save(path, META, tensors)
    loaded = checkpoint.load(path)
    assert loaded.meta == {"format_version": checkpoint.FORMAT_VERSION, **META}
    assert loaded.tensors.keys() == tensors.keys()
    assert all(torch.equal(loaded.tensors[key], value) for key, value in tensors.items())
    assert list(loaded.part("model.")) == ["a"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_optimizer_goes_on_bit_for_bit_after_a_checkpoint(tmp_path: Path) -> None:
    network = small_network(1)
    optimizer = adam(network)
    learn(network, optimizer, 3)
    tensors = checkpoint.model_tensors(network) | checkpoint.optimizer_tensors(network, optimizer)
    checkpoint.save(tmp_path / "last.safetensors", META, tensors)
    other = small_network(2)
    other_optimizer = adam(other)
    saved = checkpoint.load(tmp_path / "last.safetensors")
    checkpoint.restore_model(other, saved)
    checkpoint.restore_optimizer(other, other_optimizer, saved)
    for net, opt in ((network, optimizer), (other, other_optimizer)):
        learn(net, opt, 2)
    for key, value in network.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
    moment = other_optimizer.state[other[0].weight]["exp_avg"]
    assert moment.stride() == other[0].weight.stride(), "the fused kernel walks both in memory order"


def test_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, META, {"model.a": torch.zeros(3)})

    def full(to: Path, content: bytes) -> None:
        with to.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save(path, META, {"model.a": torch.ones(3)})
    assert torch.equal(checkpoint.load(path).tensors["model.a"], torch.zeros(3))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_meta_is_read_without_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    checkpoint.save(path, META, {"model.a": torch.zeros(3)})
    assert META.items() <= checkpoint.read_meta(path).items()
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CheckpointError, match=r"best\.safetensors: missing or not a safetensors file"):
        checkpoint.read_meta(path)


def test_missing_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"last.safetensors: no such checkpoint"):
        checkpoint.load(tmp_path / "last.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "last.safetensors"
    checkpoint.save(path, META, {"model.a": torch.zeros(300)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        checkpoint.load(path)


def test_a_flipped_bit_in_the_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {}, {"model.weight": torch.arange(64.0)})
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged: its tensors have SHA-256"):
        checkpoint.load(path)


def test_foreign_safetensors_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not a fastich checkpoint"):
        checkpoint.load(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("header", ["{", "[]", "{}"])
def test_header_that_is_not_ours_is_refused(tmp_path: Path, header: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata={checkpoint.HEADER_KEY: header})
    with pytest.raises(CheckpointError, match=r"odd\.safetensors: "):
        checkpoint.load(tmp_path / "odd.safetensors")


def test_other_format_version_is_refused(tmp_path: Path) -> None:
    header = {checkpoint.HEADER_KEY: json.dumps({"format_version": 99})}
    save_file({"a": torch.zeros(1)}, tmp_path / "new.safetensors", metadata=header)
    with pytest.raises(CheckpointError, match="expected checkpoint format 1, found 99"):
        checkpoint.load(tmp_path / "new.safetensors")


def test_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a.safetensors", META, checkpoint.model_tensors(nn.Linear(3, 2)))
    with pytest.raises(CheckpointError, match=r"weight: expected shape \[2, 4\], found \[2, 3\]"):
        checkpoint.restore_model(nn.Linear(4, 2), checkpoint.load(tmp_path / "a.safetensors"))
    with pytest.raises(CheckpointError, match="has unknown tensor bias"):
        checkpoint.restore_model(nn.Linear(3, 2, bias=False), checkpoint.load(tmp_path / "a.safetensors"))


def test_load_run_gives_the_network_in_eval_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(weights="none")
    window = {"center_hu": 40.0, "width_hu": 80.0}
    meta = META | {"input": {"size": 64, "windows": [window], "adjacent": True}}
    checkpoint.save(tmp_path / checkpoint.BEST, meta, checkpoint.model_tensors(model))
    loaded = checkpoint.load_run(tmp_path)
    assert not loaded.model.training
    assert (loaded.size, loaded.windows, loaded.adjacent, loaded.epoch) == (64, (WINDOWS["brain"],), True, 3)
    assert loaded.dataset_sha256 == META["dataset_sha256"]
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.model(images), model.eval()(images))


def test_load_run_of_nothing_says_what_it_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run folder"):
        checkpoint.load_run(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load_run(tmp_path)
