"""One training step of DenseNet121: on tensors in memory, and fed by the loader; float32 and mixed precision.

    python bench/bench_train.py [--records DIR] [--size 256] [--quick] [--json FILE]

In memory the same batch is learned from again and again: the network alone. With the loader each step takes the next
batch of an epoch. The share of the loader is what the second lacks of the first. Weights are random: speed does not
depend on them. FLOPs and bytes a slice are counted (``traffic.py``), forward and backward, nothing kept in a cache.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from case import Case
from contest import Contender, Work, WrongOutputError
from traffic import count

from fastich import ops
from fastich.loaders import Batch, open_loader
from fastich.train import num_replicas, start_learner
from fastich.training.config import TrainConfig
from fastich.training.environment import num_cores, torch_threads
from fastich.training.precision import choose_device, choose_precision
from fastich.training.prefetch import on_device

STAGE = "train"
MEMORY = "in memory"
LR = 1e-4
CUDA_STEPS = 20
"""Of a pass: training waits for the GPU as often."""


def contenders(case: Case) -> list[Contender]:
    def one(name: str, **arguments: Any) -> Contender:
        batch = 64 if case.device == "cuda" else 8 if case.quick else 16
        known = {"records": case.half, "size": case.size, "batch": batch, "device": case.device, **arguments}
        return Contender(
            name=name,
            make="bench_train:steps",
            arguments=known,
            limit="the network's operators, each by itself",
            baseline=name == f"float32, {MEMORY}",
            ceiling="cuda" if case.device == "cuda" else "all cores",
        )

    kinds: list[tuple[str, dict[str, Any]]] = [("float32", {}), ("amp", {"amp": True})]
    if case.device == "cuda":
        kinds.append(("amp, compiled", {"amp": True, "compiled": True}))
    return [
        one(f"{name}, {place}", loaded=place != MEMORY, **more)
        for name, more in kinds
        for place in (MEMORY, "with the loader")
        if not (case.quick and name == "float32" and place != MEMORY)
    ]


@contextlib.contextmanager
def steps(
    records: Path, size: int, batch: int, device: str, loaded: bool, amp: bool = False, compiled: bool = False
) -> Iterator[Work]:
    """A learner as training makes it, and a source of batches."""
    config = TrainConfig(
        records=records, out=Path("unused"), weights="none", size=size, amp=amp, device=device,
        batch_size=batch, compile="default" if compiled else "none",
    )  # fmt: skip
    precision = choose_precision(amp, choose_device(device))
    replicas = num_replicas(config, precision.device)
    where = precision.device.type
    loader = open_loader(config.loader_config("all", where))
    with contextlib.closing(loader), torch_threads(1 if replicas > 1 else num_cores()):
        learner = start_learner(config, precision, replicas)
        learner.model.train()
        first = next(iter(loader.epoch(0)))
        kept = Batch(first.images.to(where), first.labels.to(where).clamp(min=0), first.rows)
        endless = (known(one) for epoch in itertools.count() for one in loader.epoch(epoch))
        batches = on_device(endless, precision.device) if loaded else None

        def run() -> int:
            done = 0
            for _ in range(1 if where == "cpu" else CUDA_STEPS):
                used = kept if batches is None else next(batches)
                loss, _ = learner.step(used, LR)
                done += len(used.rows)
            float(loss)  # waits for the device, once a pass as training does
            return done

        def check() -> str:
            losses = [float(learner.step(kept, LR)[0]) for _ in range(1 if where == "cpu" else CUDA_STEPS)]
            if not all(loss == loss and 0 < loss < 10 for loss in losses):
                raise WrongOutputError(f"losses {losses}: expected finite ones")
            return "finite loss"

        flop, moved = count(size, training=True, dtype=precision.dtype)
        yield Work(
            run=run,
            check=check,
            moved_bytes=moved,
            flop=flop,
            facts={
                "precision": precision.name, "ours": True, "backend": loader.backend, "ops": ops.backend(),
                "batch": batch, "replicas": replicas, "compile": compiled, "flop": flop, "bytes": moved,
                "device_peak_mib": torch.cuda.max_memory_allocated() // 2**20 if where == "cuda" else None,
            },
        )  # fmt: skip
        learner.close()


def known(batch: Batch) -> Batch:
    """The batch with unknown labels as zeros: rows of every split are used here, and only speed is looked at."""
    return Batch(batch.images, batch.labels.clamp(min=0), batch.rows)


def loader_share(in_memory: float, with_loader: float) -> float:
    """Share of a step's time that the loader adds, 0 to 1."""
    return max(0.0, 1 - with_loader / in_memory)


if __name__ == "__main__":
    from throughput import alone

    alone(STAGE)
