"""How slices get through a network outside training: device, batches, loader, threads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastich.checkpoint import LoadedRun
from fastich.loaders import LoaderConfig
from fastich.training.precision import Precision


@dataclass(frozen=True, kw_only=True)
class Feed:
    """How slices get through the network; none of it changes what is said by more than rounding.

    Attributes:
        precision: device and number format.
        batch_size: slices at a time.
        loader: which loader.
        threads: of the loader; on a CPU also the parts of a batch that go through the network at once.
    """

    precision: Precision
    batch_size: int = 64
    loader: str = "auto"
    threads: int = 1

    @property
    def num_replicas(self) -> int:
        """Parts of a batch that go through the network at once: one a thread on a CPU (``replicas.py``)."""
        return self.threads if self.precision.device.type == "cpu" else 1

    def loader_config(self, run: LoadedRun, records: Path, split: str, **changes: Any) -> LoaderConfig:
        """How slices of ``split`` are read for the network of ``run``; ``changes`` are other fields of the config."""
        fields: dict[str, Any] = {
            "batch_size": self.batch_size,
            "size": run.size,
            "windows": run.windows,
            "adjacent": run.adjacent,
            "backend": self.loader,
            "device": self.precision.device.type,
            "threads": self.threads,
        }
        return LoaderConfig(records=records, split=split, **(fields | changes))
