"""``open_loader``: records in, batches for the network out, in an order that (seed, epoch) alone decides.

Three backends make the same tensors: the compiled core on threads (``native.py``), DALI with our operator
(``dali.py``) or its own (``dali_stock.py``), and the torch reference (``cpu.py``). The native one can also read a split
once and keep it in memory (``cache.py``), in RAM (``cached.py``) or on the GPU (``resident.py``). Which one runs is
said once, stands in ``Loader.backend``, and can be demanded.
"""

import functools
from collections.abc import Iterator

import torch

from fastich import ops, ops_cuda
from fastich.errors import UsageError
from fastich.loaders import cached, cpu, native
from fastich.loaders.cache import fill
from fastich.loaders.config import Batch, LoaderConfig
from fastich.loaders.order import Order
from fastich.loaders.resident import Resident
from fastich.loaders.source import Source
from fastich.ops_cuda import CudaDecodeWindow
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
        backend: what runs: ``native-cpu``, ``native-cuda``, ``dali-gpu``, ``dali-cpu``, ``dali-stock-gpu``,
            ``dali-stock-cpu`` or ``torch-cpu``.
        cache: the split in memory, where the config asks for it.
        num_slices: slices of the split, over all ranks.
        num_batches: batches of an epoch, the same on every rank.
    """

    def __init__(self, config: LoaderConfig, reader: RecordReader, backend: str, order: Order | None = None) -> None:
        """Choose the rows and fill the cache."""
        self.config, self.reader, self.backend = config, reader, backend
        self._source = Source(reader, config, order)
        kernels = ops.backend() + (f", {ops_cuda.backend()}" if config.device == "cuda" else "")
        _announce(backend, config.cache, kernels, _why(config, backend))
        self.cache = None
        if config.cache != "none":
            place = torch.device("cuda" if config.cache == "device" else "cpu")
            self.cache = fill(reader, self._source.order.rows, config.size, place, config.threads)
        self._resident = None
        if self.cache and backend == "native-cuda":
            decode = CudaDecodeWindow(config.windows, config.size, layout=ops.HWC)
            self._resident = Resident(self._source, self.cache, decode)
        self.num_slices = len(self._source.order.rows)
        self.num_batches = self._source.order.num_steps

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from number ``start_batch`` on (to resume: the number of batches already used).

        Raises:
            RecordError: a record is damaged; names file and byte offset. The batches before it come out first.
        """
        if self._resident:
            return self._resident.batches(epoch, start_batch)
        if self.cache:
            return cached.batches(self._source, self.cache, epoch, start_batch)
        if self.backend == "native-cpu":
            return native.batches(self._source, epoch, start_batch)
        if self.backend == "torch-cpu":
            return cpu.batches(self._source, epoch, start_batch)
        make = dali_stock.batches if self.backend.startswith("dali-stock") else dali.batches
        return make(self._source, epoch, start_batch)

    def check(self) -> None:
        """Make sure that every batch given so far was decoded from whole records: on a GPU one wait for it.

        Raises:
            RecordError: one was not; names file and byte offset.
        """
        if self._resident:
            self._resident.check()

    def close(self) -> None:
        """Let go of the records and of the cache."""
        self.reader.close()
        self.cache = self._resident = None


def open_loader(config: LoaderConfig, order: Order | None = None) -> Loader:
    """Open the records and choose the backend; with ``order`` its batches come instead of the split's.

    Raises:
        RecordError: the folder is not a complete records folder of this version.
        FastichError: the split does not hold a batch of slices.
        UsageError: the backend or device that was demanded is not there.
    """
    backend = choose_backend(config.backend, config.device, config.adjacent, config.cache)
    return Loader(config, RecordReader(config.records), backend, order)


def choose_backend(asked: str, device: str, adjacent: bool = False, cache: str = "none") -> str:
    """The name of the backend that will run: see ``Loader.backend``.

    Raises:
        UsageError: a backend or CUDA is demanded and absent.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("loader: device cuda was demanded, but torch finds no usable CUDA device; use device cpu")
    if asked.startswith("dali") and not HAS_DALI:
        why = f"cannot be imported ({WHY_NO_DALI})"
        raise UsageError(f"loader: backend {asked} was demanded but {why}; use cpu or auto")
    if cache != "none":
        return _choose_cached(asked, adjacent, cache)
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


def _choose_cached(asked: str, adjacent: bool, cache: str) -> str:
    if asked not in ("auto", "native"):
        raise UsageError(f"loader: cache {cache} is read by the native loader, but {asked} was demanded; use native")
    if not ops.KERNELS:
        raise UsageError(f"loader: cache {cache} needs the native kernels, which are not built; make setup builds them")
    if adjacent:
        raise UsageError(f"loader: cache {cache} does not take adjacent slices; use cache none")
    if cache == "device" and ops_cuda.backend() == "absent":
        raise UsageError(
            "loader: cache device needs the CUDA kernels, which are not built; run make setup where nvcc is on PATH, "
            "or use cache host"
        )
    return "native-cuda" if cache == "device" else "native-cpu"


@functools.cache
def _announce(backend: str, cache: str, kernels: str, why: str) -> None:
    say(f"loader: {backend}; cache: {cache}; kernels: {kernels}" + (f" ({why})" if why else ""))
