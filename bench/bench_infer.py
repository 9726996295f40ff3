"""Probabilities of slices: int16 HU of 512 px in, preprocessing, DenseNet121 and class maps, for every backend.

    python bench/bench_infer.py [--records DIR] [--size 256] [--quick] [--json FILE]

A backend is one line of BACKENDS: a name, a function of this module that opens it, and its arguments. Each must give
the probabilities of torch in float32 within its tolerance. FLOPs and bytes a slice are counted (``traffic.py``).
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from case import Case
from contest import Contender, Work, WrongOutputError
from model import exported, trained
from numpy.typing import NDArray
from traffic import count

from fastich import ops
from fastich.checkpoint import load_run
from fastich.models.serving import Front, ServingModel
from fastich.records.reader import RecordReader
from fastich.serve import openvino_backend
from fastich.serve.session import open_session
from fastich.training.environment import num_cores, torch_threads

STAGE = "infer"
EAGER = "torch eager, float32"
CHANNELS_LAST = "torch eager, float32, channels_last"
INT8 = 0.1
"""Of a probability of this network, which has hardly learned anything; AUC is compared where it has (README)."""
Backend = tuple[str, str, dict[str, Any]]
Answer = Callable[[NDArray[np.int16]], NDArray[np.float32]]

BACKENDS: tuple[Backend, ...] = (
    (EAGER, "torch_eager", {}),
    (CHANNELS_LAST, "torch_eager", {"channels_last": True}),
    ("torch eager, bfloat16, channels_last", "torch_eager", {"channels_last": True, "amp": True, "tolerance": 0.05}),
    ("ONNX Runtime, float32", "session", {}),
    ("ONNX Runtime, int8", "session", {"precision": "int8", "tolerance": INT8}),
    ("OpenVINO, float32", "session", {"backend": "openvino"}),
    ("OpenVINO, bfloat16", "session", {"backend": "openvino", "precision": "bfloat16", "tolerance": 0.05}),
    ("OpenVINO, int8", "session", {"backend": "openvino", "precision": "int8", "tolerance": INT8}),
)
CUDA_BACKENDS: tuple[Backend, ...] = (
    ("torch compiled, bfloat16, channels_last", "torch_eager",
     {"channels_last": True, "amp": True, "compiled": True, "tolerance": 0.05}),
    ("ONNX Runtime CUDA, float16", "session", {"precision": "float16", "tolerance": 0.02}),
)  # fmt: skip


def contenders(case: Case) -> list[Contender]:
    batch = 128 if case.device == "cuda" else 8 if case.quick else 16
    return [
        Contender(
            name=name,
            make=f"bench_infer:{function}",
            arguments={"case": case, "batch": batch, **arguments},
            limit="the network's operators, each by itself",
            baseline=name == CHANNELS_LAST,
            ceiling="cuda" if case.device == "cuda" else "all cores",
        )
        for name, function, arguments in (*BACKENDS, *(CUDA_BACKENDS if case.device == "cuda" else ()))
    ]


@contextlib.contextmanager
def torch_eager(
    case: Case,
    batch: int,
    channels_last: bool = False,
    amp: bool = False,
    compiled: bool = False,
    tolerance: float = 1e-3,
) -> Iterator[Work]:
    """The serving graph in torch, all cores."""
    graph = serving_graph(case)
    device = torch.device(case.device)
    graph.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    run_graph: Any = torch.compile(graph) if compiled else graph

    def answer(hu: NDArray[np.int16]) -> NDArray[np.float32]:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
            found = run_graph(torch.from_numpy(hu).to(device))[0]
        return np.asarray(found.float().cpu().numpy())

    with torch_threads(num_cores()):
        yield infer_work(case, answer, batch, tolerance, "bfloat16" if amp else "float32")


def serving_graph(case: Case) -> ServingModel:
    """Preprocessing and network of the trained run, contiguous."""
    loaded = load_run(trained(case), "best")
    model = loaded.model.to(memory_format=torch.contiguous_format)
    return ServingModel(Front(loaded.size, loaded.windows, loaded.adjacent), model)


@contextlib.contextmanager
def session(
    case: Case, batch: int, backend: str = "onnxruntime", precision: str = "float32", tolerance: float = 1e-3
) -> Iterator[Work]:
    """The exported files through ``fastich.serve.session``.

    Raises:
        ModuleNotFoundError: OpenVINO is not installed.
    """
    if backend == "openvino" and openvino_backend.WHY_NO_OPENVINO:
        raise ModuleNotFoundError(openvino_backend.WHY_NO_OPENVINO)
    folder = exported(case, precision if precision in ("int8", "float16") else "")
    device = "cpu" if backend == "openvino" or precision == "int8" else case.device
    opened = open_session(folder, device, backend=backend, precision=precision)
    yield infer_work(case, lambda hu: opened.run(hu).probability, batch, tolerance, precision)


def infer_work(case: Case, answer: Answer, batch: int, tolerance: float, precision: str) -> Work:
    """One pass is one batch of slices."""
    with RecordReader(case.half) as reader:
        hu = np.stack([reader.hu(row) for row in range(min(batch, len(reader)))])

    def run() -> int:
        return len(answer(hu))

    def check() -> str:
        return compare(answer(hu[:4]), reference(case, hu[:4]), tolerance)

    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    flop, moved = count(case.size, training=False, dtype=dtype)
    facts = {"precision": precision, "ours": True, "ops": ops.backend(), "batch": len(hu), "flop": flop, "bytes": moved}
    if precision == "int8":  # at the least: not every tensor is
        moved /= 2
    return Work(run=run, check=check, moved_bytes=moved, flop=flop, facts=facts)


def reference(case: Case, hu: NDArray[np.int16]) -> NDArray[np.float32]:
    """Probabilities of torch in float32 on the CPU."""
    with torch.inference_mode():
        return np.asarray(serving_graph(case)(torch.from_numpy(hu))[0].numpy())


def compare(found: NDArray[np.float32], truth: NDArray[np.float32], tolerance: float) -> str:
    """The tolerance in words.

    Raises:
        WrongOutputError: a probability is further away.
    """
    if found.shape != truth.shape:
        raise WrongOutputError(f"probabilities are {list(found.shape)}, expected {list(truth.shape)}")
    worst = float(np.abs(found - truth).max())
    if not worst <= tolerance:
        raise WrongOutputError(f"a probability differs by {worst:.3g} from torch in float32, tolerance {tolerance:g}")
    return f"{tolerance:g} of a probability"


def prepare(case: Case) -> Path:
    """Train and export before the first process needs it."""
    return exported(case)


if __name__ == "__main__":
    from throughput import alone

    alone(STAGE)
