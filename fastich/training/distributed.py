"""Several processes that train one network, started by ``torchrun``: who is who, and what they tell each other.

torch's DistributedDataParallel adds up the gradients: NCCL on GPUs (not run on a GPU), gloo on CPUs. Each process takes
its share of the one global order (``loaders/order.py``), so a step learns from the very slices that one process would
have; each normalises over its own slices, and the running statistics of batch norm are averaged before they are used.
Rank 0 writes and speaks. A world of one, the ordinary run, opens nothing here and sends nothing.

A process that dies takes the others with it: ``torchrun`` ends them, gloo sees the closed connection, and what waits
for longer than ``TIMEOUT_S`` gives up. With two processes a sum of gradients has one order, so runs repeat bit by bit;
with more a resumed run may differ by the rounding of sums, as torch regroups gradients after the first step.

Shapes: R ranks, n values on each.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fastich.errors import UsageError
from fastich.training.environment import num_cores

TIMEOUT_S = 45.0
"""How long one rank waits for another in a step: longer than rank 0 needs to save and to count, below a minute."""
COMPILING_TIMEOUT_S = 900.0
"""The same where every rank compiles at its first step, one perhaps from a warm cache."""
START_TIMEOUT_S = 3600.0
"""How long the first rank waits for the last to have opened its records and filled its cache."""
LET_GO_S = 0.2
"""Given to gloo's threads before the end: each lets go of its last tensor under the interpreter's lock, and destroying
the group waits for them while it holds that lock (seen with torch 2.10: two ends in seven hung).
Source: github.com/pytorch/pytorch, issue 56297."""
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What ``torchrun`` tells its processes."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those that train together: ``rank`` of ``size``, ``local_rank`` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_writer(self) -> bool:
        """Whether this process writes the run folder and speaks."""
        return self.rank == 0

    def seed(self, seed: int) -> int:
        """The seed of this rank's dropout: that of the run on rank 0, another one on each of the others."""
        return int(np.random.SeedSequence([seed, self.rank]).generate_state(1)[0]) if self.rank else seed

    def share(self, batch_size: int) -> int:
        """Slices of a global batch that fall to each rank.

        Raises:
            UsageError: they cannot be shared out evenly.
        """
        if batch_size % self.size:
            raise UsageError(
                f"--batch-size {batch_size} is that of all {self.size} processes together and must be a multiple of "
                f"{self.size}; give {batch_size // self.size * self.size or self.size}"
            )
        return batch_size // self.size

    @contextlib.contextmanager
    def joined(self, device: torch.device, timeout_s: float) -> Iterator[None]:
        """Be connected with the others inside; an error leaves the connection to the process's end.

        Raises:
            UsageError: the others compute on another kind of device.
        """
        if self.size == 1:
            yield
            return
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=START_TIMEOUT_S)))
        self._wait_for_all(store, device.type)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=PrefixStore("fastich", store),
            rank=self.rank,
            world_size=self.size,
            timeout=timedelta(seconds=timeout_s),
        )
        yield
        self.meet()
        time.sleep(LET_GO_S)
        dist.destroy_process_group()

    def _wait_for_all(self, store: Store, device: str) -> None:
        keys = [f"fastich/ready/{rank}" for rank in range(self.size)]
        store.set(keys[self.rank], device)
        store.wait(keys, timedelta(seconds=START_TIMEOUT_S))
        found = [store.get(key).decode() for key in keys]
        if len(set(found)) > 1:
            raise UsageError(
                f"process {found.index('cpu')} of {self.size} finds no GPU of its own, process {found.index('cuda')} "
                "does; lower --nproc-per-node, or give --device cpu"
            )

    def gather(self, value: Tensor) -> list[Tensor]:
        """``value`` of every rank in order of rank; it has one shape everywhere."""
        if self.size == 1:
            return [value]
        values = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(values, value.contiguous())
        return values

    def interleaved(self, value_n: Tensor) -> Tensor:
        """Rows of all ranks [R * n, ...] as they stand in the epoch: position p belongs to rank p % R."""
        return value_n if self.size == 1 else torch.stack(self.gather(value_n), dim=1).flatten(0, 1)

    def average(self, values: list[Tensor]) -> None:
        """Replace float32 tensors by their mean over the ranks, in place."""
        if self.size == 1 or not values:
            return
        flat = torch.cat([value.flatten() for value in values])
        dist.all_reduce(flat)
        flat /= self.size
        for value, mean in zip(values, torch.split(flat, [value.numel() for value in values]), strict=True):
            value.copy_(mean.view_as(value))

    def of_writer(self, value: float) -> float:
        """Rank 0's ``value``, so that what is decided by it is decided alike."""
        return value if self.size == 1 else float(self.gather(torch.tensor([value], dtype=torch.float64))[0])

    def meet(self) -> None:
        """Wait until every rank is here."""
        self.gather(torch.zeros(1))


ALONE = World()
"""The world of an ordinary run."""


def find_world(environment: Mapping[str, str] = os.environ) -> World:
    """The world that ``torchrun`` made, or ``ALONE``.

    Raises:
        UsageError: there are several processes but the environment does not say who this one is.
    """
    if int(environment.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    missing = [name for name in VARIABLES if name not in environment]
    if missing:
        raise UsageError(f"WORLD_SIZE is {environment['WORLD_SIZE']} but {missing[0]} is not set; start with torchrun")
    rank, size, local_rank = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return World(rank=rank, size=size, local_rank=local_rank)


def take_gpu(world: World, environment: MutableMapping[str, str] = os.environ) -> None:
    """Leave only the GPU of ``world.local_rank`` visible, so that it is the current one on every thread.

    To be called before anything touches CUDA, which looks at the environment once.
    """
    if world.size == 1:
        return
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    mine = slice(world.local_rank, world.local_rank + 1)
    environment["CUDA_VISIBLE_DEVICES"] = (
        str(world.local_rank) if visible is None else ",".join(visible.split(",")[mine])
    )


def timeout_s(compile_mode: str) -> float:
    """How long one rank waits for another in a step."""
    return TIMEOUT_S if compile_mode == "none" else COMPILING_TIMEOUT_S


def cores_a_process(environment: Mapping[str, str] = os.environ) -> int:
    """Cores for this process: those that it may use, shared with the others that ``torchrun`` started beside it."""
    return max(1, num_cores() // int(environment.get("LOCAL_WORLD_SIZE", "1")))
