"""``open_loader``: records in, batches for the network out, in an order that (seed, epoch) alone decides.

Three backends make the same tensors: the compiled core on threads (``native.py``), DALI with our operator
(``dali.py``) or its own (``dali_stock.py``), and the torch reference (``cpu.py``). Which one runs is said once, stands
in ``Loader.backend``, and can be demanded.
"""

import functools
from collections.abc import Iterator

import torch

from fastich import ops
from fastich.errors import UsageError
from fastich.loaders import cpu, native
from fastich.loaders.config import Batch, LoaderConfig
from fastich.loaders.source import Source
from fastich.records.reader import RecordReader
from fastich.verb import say

try:
    from fastich.loaders import dali, dali_stock
except ImportError as error:  # an optional dependency: its absence is reported when a loader is opened
    HAS_DALI = False
    WHY_NO_DALI = str(error)
else:
    HAS_DALI = True
    WHY_NO_DALI = ""

__all__ = ["Batch", "Loader", "LoaderConfig", "open_loader"]


class Loader:
    """Batches of one split, epoch by epoch; made by ``open_loader``.

    Attributes:
        config: what was asked for.
        reader: the open records.
        backend: what runs: ``native-cpu``, ``dali-gpu``, ``dali-cpu``, ``dali-stock-gpu``, ``dali-stock-cpu`` or
            ``torch-cpu``.
        num_slices: slices of the split, over all ranks.
        num_batches: batches of an epoch, the same on every rank.
    """

    def __init__(self, config: LoaderConfig, reader: RecordReader, backend: str) -> None:
        self.config, self.reader, self.backend = config, reader, backend
        self._source = Source(reader, config)
        self.num_slices = len(self._source.order.rows)
        self.num_batches = self._source.order.num_steps

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from number ``start_batch`` on (to resume: the number of batches already used).

        Raises:
            RecordError: a record is damaged; names file and byte offset. The batches before it come out first.
        """
        if self.backend == "native-cpu":
            return native.batches(self._source, epoch, start_batch)
        if self.backend == "torch-cpu":
            return cpu.batches(self._source, epoch, start_batch)
        make = dali_stock.batches if self.backend.startswith("dali-stock") else dali.batches
        return make(self._source, epoch, start_batch)

    def close(self) -> None:
        """Let go of the records."""
        self.reader.close()


def open_loader(config: LoaderConfig) -> Loader:
    """Open the records and choose the backend.

    Raises:
        RecordError: the folder is not a complete records folder of this version.
        FastichError: the split does not hold a batch of slices.
        UsageError: the backend or device that was demanded is not there.
    """
    backend = choose_backend(config.backend, config.device, config.adjacent)
    loader = Loader(config, RecordReader(config.records), backend)
    _announce(backend, ops.backend(), _why(config, backend))
    return loader


def choose_backend(asked: str, device: str, adjacent: bool = False) -> str:
    """The name of the backend that will run: see ``Loader.backend``.

    Raises:
        UsageError: a backend or CUDA is demanded and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("loader: device cuda was demanded, but torch finds no usable CUDA device; use device cpu")
    if asked.startswith("dali") and not HAS_DALI:
        why = f"cannot be imported ({WHY_NO_DALI})"
        raise UsageError(f"loader: backend {asked} was demanded but {why}; use cpu or auto")
    if asked == "native" and (not ops.KERNELS or adjacent):
        why = "it does not take adjacent slices" if ops.KERNELS else "the kernels are not built; make setup builds them"
        raise UsageError(f"loader: backend native was demanded, but {why}; use cpu, dali or auto")
    if asked == "native" or (asked == "auto" and device == "cpu" and ops.KERNELS and not adjacent):
        return "native-cpu"
    if asked == "cpu" or not HAS_DALI:
        return "torch-cpu"
    stock = asked == "dali-stock" or adjacent or not dali.has_operator(device)
    return ("dali-stock-" if stock else "dali-") + ("gpu" if device == "cuda" else "cpu")


def _why(config: LoaderConfig, backend: str) -> str:
    """Why something slower runs than could; empty where it was asked for."""
    if backend == "torch-cpu" and config.backend == "auto":
        return f"no DALI: {WHY_NO_DALI}"
    if backend.startswith("dali-stock") and config.backend != "dali-stock" and not config.adjacent:
        return f"stock operators: {dali.WHY_NO_OPERATOR or 'decode_window was built without CUDA'}"
    return ""


@functools.cache
def _announce(backend: str, kernels: str, why: str) -> None:
    say(f"loader: {backend}; kernels: {kernels}" + (f" ({why})" if why else ""))
