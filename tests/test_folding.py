import copy

import onnx
import pytest
import torch
from small_dense import SIZE, SmallDense
from torch import nn

from fastich.models.classifier import BACKBONES, build_model
from fastich.models.folding import fold_batch_norm, multiply_add
from fastich.models.onnx_graph import onnx_bytes
from fastich.models.serving import Front, ServingModel
from fastich.windowing import DEFAULT_WINDOWS


@pytest.fixture(scope="module")
def small() -> SmallDense:
    return SmallDense()


def test_folded_network_says_the_same(small: SmallDense) -> None:
    images = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        expected, found = small(images), fold_batch_norm(small)(images)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_folding_leaves_the_network_itself_as_it_was(small: SmallDense) -> None:
    before = copy.deepcopy(small.state_dict())
    fold_batch_norm(small)
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())


def test_norm_behind_a_convolution_vanishes_into_it(small: SmallDense) -> None:
    features = fold_batch_norm(small).features
    assert isinstance(features.norm0, nn.Identity)
    assert isinstance(features.denseblock1.denselayer1.norm2, nn.Identity)
    assert features.conv0.bias is not None


def test_norm_before_a_convolution_becomes_one_multiply_add_a_channel() -> None:
    norm = nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 0.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.5, 1.0, 0.0]))
        norm.running_mean.copy_(torch.tensor([1.0, 7.0, -2.0]))
        norm.running_var.copy_(torch.tensor([4.0 - 1e-5, 1.0, 1.0 - 1e-5]))
    made = multiply_add(norm)
    torch.testing.assert_close(made.weight.flatten(), torch.tensor([1.0, 0.0, -1.0]))
    torch.testing.assert_close(made.bias, torch.tensor([-0.5, 1.0, -2.0]))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_whole_network_holds_no_batch_norm(backbone: str) -> None:
    folded = fold_batch_norm(build_model(backbone, weights="none"))
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize("backbone", ["resnext50_32x4d", "efficientnet_b0"])
def test_every_norm_behind_a_convolution_vanishes_into_it(backbone: str) -> None:
    model = build_model(backbone, weights="none")
    count = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    folded = fold_batch_norm(model)
    assert sum(isinstance(module, nn.Conv2d) for module in folded.modules()) == count, "no multiply-add was needed"


def test_onnx_graph_holds_no_batch_normalization(small: SmallDense) -> None:
    serving = ServingModel(Front(SIZE, DEFAULT_WINDOWS, False), fold_batch_norm(small))
    kinds = [node.op_type for node in onnx.load_from_string(onnx_bytes(serving)).graph.node]
    assert "Conv" in kinds
    assert "BatchNormalization" not in kinds
