"""What this machine can do at most, measured in the same run: memory copy, storage read, GEMM, host to device.

Copies are of 512 x 512 uint16 slices, 64 of them in turn, into one buffer: the pattern of a decoder that streams its
input and keeps its output. A rate in bytes counts what was copied once; a contender that reads R and writes W bytes a
slice can reach ``2 * rate / (R + W)`` slices/s. Storage is read with the page cache dropped where the kernel lets go of
it; where it does not, the row says "cached". GEMM is torch's, 2 n^3 operations, all cores.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

SLICE_SHAPE = (512, 512)
NUM_SLICES = 64
GEMM_SIDE, GEMM_SIDE_CUDA = 2048, 8192
READ_BLOCK = 2**20
TRANSFER_BYTES = 2**26


def measure(records: Path, device: str, seconds: float) -> dict[str, dict[str, Any]]:
    """Every ceiling by name: ``value`` (median of three), ``lowest``, ``highest``, ``unit`` and ``note``."""
    cores = len(os.sched_getaffinity(0))
    found = {
        "copy, one core": _of(lambda: copy_rate(1, seconds), "B/s"),
        "copy, all cores": _of(lambda: copy_rate(cores, seconds), "B/s", f"{cores} threads"),
        "storage read": storage(records),
    }
    for dtype in ("float32", "bfloat16", "int8"):
        found[f"GEMM {dtype}"] = _gemm(dtype, "cpu", seconds)
    if device == "cuda":
        for dtype in ("float32", "float16", "bfloat16"):
            found[f"GEMM {dtype}, GPU"] = _gemm(dtype, "cuda", seconds)
        found["copy, GPU"] = _of(lambda: device_copy_rate(seconds), "B/s", "global memory")
        found["host to device"] = _of(lambda: host_to_device_rate(seconds), "B/s", "pinned")
    return found


def _of(rate: Callable[[], float], unit: str, note: str = "") -> dict[str, Any]:
    rate()  # warms up
    rates = [rate() for _ in range(3)]
    return {"value": median(rates), "lowest": min(rates), "highest": max(rates), "unit": unit, "note": note}


def _gemm(dtype: str, device: str, seconds: float) -> dict[str, Any]:
    name = f"{GEMM_SIDE_CUDA if device == 'cuda' else GEMM_SIDE} a side"
    try:
        return _of(lambda: gemm_rate(dtype, device, seconds), "FLOP/s", name)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        first = str(error).splitlines()[0][:80]
        return {"value": None, "unit": "FLOP/s", "note": f"torch {torch.__version__} has none here: {first}"}


def repeated(work: Callable[[], None], amount: float, seconds: float) -> float:
    """``amount`` a second of ``work``, over at least ``seconds``."""
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        work()
        done += 1
    return done * amount / elapsed


def copy_rate(threads: int, seconds: float) -> float:
    """Bytes a second that ``threads`` threads copy, each from slices of its own."""
    rng = np.random.default_rng(0)
    slices = [rng.integers(0, 4096, (NUM_SLICES, *SLICE_SHAPE), np.uint16) for _ in range(threads)]
    targets = [np.empty(SLICE_SHAPE, np.uint16) for _ in range(threads)]

    def one(thread: int) -> float:
        def work() -> None:
            for pixels in slices[thread]:
                np.copyto(targets[thread], pixels)

        return repeated(work, slices[thread].nbytes, seconds)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(one, range(threads)))


def storage(records: Path) -> dict[str, Any]:
    """Sequential read of the shards, one thread, after their pages were dropped from the cache."""
    paths = sorted(records.glob("shard-*"))
    rates, cached = [], False
    for _ in range(3):
        dropped = [drop_cache(path) for path in paths]
        cached |= not all(dropped)
        started, size = time.perf_counter(), 0
        for path in paths:
            size += read_through(path)
        rates.append(size / (time.perf_counter() - started))
    note = "CACHED: the kernel kept the pages" if cached else "page cache dropped"
    return {"value": median(rates), "lowest": min(rates), "highest": max(rates), "unit": "B/s", "note": note}


def drop_cache(path: Path) -> bool:
    """Ask the kernel to forget a file's pages; True where a read would now have to wait for the storage."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(file.fileno(), [bytearray(1)], path.stat().st_size // 2, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def read_through(path: Path) -> int:
    """Read a file and return its size, bytes."""
    block, size = bytearray(READ_BLOCK), 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            size += count
    return size


def gemm_rate(dtype: str, device: str, seconds: float) -> float:
    """Operations a second of one square matrix product."""
    side = GEMM_SIDE_CUDA if device == "cuda" else GEMM_SIDE
    kind = getattr(torch, dtype)
    make = torch.ones if dtype == "int8" else torch.rand
    left, right = (make(side, side, device=device).to(kind) for _ in range(2))

    def work() -> None:
        _ = torch._int_mm(left, right) if dtype == "int8" else left @ right
        if device == "cuda":
            torch.cuda.synchronize()

    return repeated(work, 2.0 * side**3, seconds)


def host_to_device_rate(seconds: float) -> float:
    """Bytes a second from pinned memory to the GPU."""
    host = torch.empty(TRANSFER_BYTES, dtype=torch.uint8).pin_memory()
    target = torch.empty(TRANSFER_BYTES, dtype=torch.uint8, device="cuda")

    def work() -> None:
        target.copy_(host, non_blocking=True)
        torch.cuda.synchronize()

    return repeated(work, TRANSFER_BYTES, seconds)


def device_copy_rate(seconds: float) -> float:
    """Bytes a second copied within the GPU's memory."""
    source = torch.zeros(16 * TRANSFER_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def work() -> None:
        target.copy_(source)
        torch.cuda.synchronize()

    return repeated(work, source.numel(), seconds)
