"""A DenseNet small enough to export in seconds: torchvision's blocks, two of two layers, statistics as if trained."""

import hashlib
from pathlib import Path

import torch
from torch import nn
from torchvision.models import DenseNet

from fastich.artifact import ONNX_FILE, Artifact, FileEntry, write_manifest
from fastich.models.classifier import BACKBONES, Classifier
from fastich.windowing import DEFAULT_WINDOWS

SIZE = 32


class SmallDense(Classifier):
    """A Classifier of 32 features; some batch norm scales are negative, one is 0."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        whole = DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16)
        super().__init__(BACKBONES["densenet121"].features(whole), 32)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 0.8, 0.6)
                nn.init.normal_(module.bias, 0.2, 0.5)
                nn.init.normal_(module.running_mean, 0.0, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                module.weight.data[0], module.weight.data[1] = 0.0, -0.7
        self.eval()


def write_folder(folder: Path, content: bytes, *, adjacent: bool = False) -> Artifact:
    """``content`` as model.onnx of a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ONNX_FILE).write_bytes(content)
    entry = FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content), role="small")
    artifact = Artifact(
        windows=DEFAULT_WINDOWS[:1] if adjacent else DEFAULT_WINDOWS,
        size=SIZE,
        adjacent=adjacent,
        embedding_size=32,
        weights_sha256="ab" * 32,
        dataset_sha256="cd" * 32,
        epoch=1,
        config={"size": SIZE},
        files={ONNX_FILE: entry},
    )
    write_manifest(folder, artifact)
    return artifact
