"""What ran: versions and machine, for run.json and every checkpoint. Costs a few file reads."""

import contextlib
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch

from fastich import __version__

PACKAGES = ("torch", "torchvision", "numpy", "safetensors")
DALI_PACKAGES = ("nvidia-dali-cuda120", "nvidia-dali-cuda130")


def versions() -> dict[str, str | None]:
    """Versions of python, fastich and the packages that decide a run's numbers; None where not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "fastich": __version__}
    found |= {name: _version(name) for name in PACKAGES}
    found["dali"] = next((version for version in map(_version, DALI_PACKAGES) if version), None)
    found["cuda"] = torch.version.cuda if torch.cuda.is_available() else None
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let each torch operation use ``count`` threads, and put back what was set before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.processor())
    except OSError:
        return platform.processor()


def host() -> dict[str, Any]:
    """The machine without its name: processor, cores, memory in GiB, system."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_name(),
        "num_cores": num_cores(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
