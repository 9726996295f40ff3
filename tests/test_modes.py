import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastich.errors import UsageError
from fastich.models.classifier import build_model
from fastich.train import num_replicas
from fastich.training.config import TrainConfig
from fastich.training.modes import compiled, require_runnable
from fastich.training.precision import Precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(records=Path("records"), out=Path("run"), **changes)


def test_no_compiling_is_the_network_itself() -> None:
    model = build_model(weights="none")
    assert compiled(model, "none") is model


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_a_mode_is_handed_to_torch_for_one_shape(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(torch, "compile", lambda model, **how: seen.update(how))
    compiled(build_model(weights="none"), mode)
    assert seen == {"mode": mode, "dynamic": False}


def test_a_compiled_network_is_left_in_one_piece() -> None:
    assert num_replicas(config(compile="default", threads=4), CPU) == 1
    assert num_replicas(config(threads=4), CPU) == 4


@pytest.mark.parametrize(
    ("mode", "cuda_graph", "dtype", "device", "message"),
    [
        ("reduce-overhead", False, torch.float32, CPU, "--compile reduce-overhead records CUDA graphs, but the device"),
        ("none", True, torch.float32, CPU, "--cuda-graph needs a CUDA device, but the device is the CPU"),
        ("none", True, torch.float16, CUDA, "--cuda-graph does not take float16"),
    ],
)
def test_what_the_device_cannot_do_is_refused(
    mode: str, cuda_graph: bool, dtype: torch.dtype, device: torch.device, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        require_runnable(mode, cuda_graph, Precision(dtype=dtype, device=device))


def test_what_the_device_can_do_is_let_through() -> None:
    assert require_runnable("default", False, Precision(dtype=torch.float32, device=CPU)) is None
    assert require_runnable("max-autotune", False, Precision(dtype=torch.float32, device=CPU)) is None
    assert require_runnable("reduce-overhead", False, Precision(dtype=torch.float16, device=CUDA)) is None
    assert require_runnable("default", True, Precision(dtype=torch.bfloat16, device=CUDA)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compile": "fast"}, "--compile: expected one of none, default, reduce-overhead, max-autotune, found 'fast'"),
        ({"cache": "disk"}, "--cache: expected one of none, host, device, found 'disk'"),
        (
            {"cuda_graph": True, "compile": "max-autotune"},
            "--cuda-graph records the step itself; use --compile default",
        ),
        ({"cuda_graph": True, "profile": True}, "--profile cannot look into a step that is one graph"),
    ],
)
def test_modes_that_do_not_go_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config(**changes)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_network_learns_what_the_plain_one_learns() -> None:
    """For real, with torch's compiler; in a process of its own, since its warnings are not ours."""
    code = (
        "import torch\n"
        "from test_epoch import CPU, CountingLoader, TinyNet\n"
        "from fastich.training.learner import make_learner\n"
        "from fastich.training.precision import Precision\n"
        "def after(mode):\n"
        "    torch.manual_seed(0)\n"
        "    net = TinyNet()\n"
        "    net.layers[4].p = 0.0\n"
        "    made = make_learner(net, Precision(dtype=torch.float32, device=CPU), lr=1e-3, compile_mode=mode)\n"
        "    losses = [made.step(batch, 1e-3)[0] for batch in CountingLoader(5).epoch(0)]\n"
        "    return torch.stack(losses)\n"
        "torch.testing.assert_close(after('default'), after('none'), rtol=1e-4, atol=1e-5)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
