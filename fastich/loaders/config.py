"""What a loader is asked for and what it gives: the two ends that every backend shares."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastich.errors import UsageError
from fastich.preprocess import NUM_ADJACENT
from fastich.windowing import DEFAULT_WINDOWS, Window

BACKENDS = ("auto", "native", "dali", "dali-stock", "cpu")
DEVICES = ("cpu", "cuda")
CACHES = ("none", "host", "device")


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """One loader over one split of a records folder.

    Attributes:
        records: the records folder.
        split: train, val or test (labelled rows only); empty for the unlabelled rows; ``all`` for every row.
        batch_size: slices a batch on this rank; the last batch of an epoch may be smaller.
        size: side of the square images, pixels.
        windows: one channel each; with ``adjacent`` only the first is used.
        adjacent: three channels are slices s-1, s, s+1 of one series (the edge slice repeated) in one window.
        augment: change each slice at random (``augment.py``).
        shuffle: permute the order every epoch.
        balanced: draw with replacement so that every kind of slice comes equally often (``order.balanced_weights``).
        folds: 0, or the folds that train and val are divided into instead (``folds.py``); ``fold`` is then val, and
            ``fold_seed`` the seed of the division.
        seed: with the epoch's number it fixes the order and every random change; >= 0.
        rank: this process among ``world_size``; all ranks make equally many, equally large batches.
        drop_last: leave out what does not fill a batch on every rank.
        backend: native (the compiled core), dali (with our operator where it is built), dali-stock (without it), cpu
            (the torch reference) or auto: on a GPU DALI, on a CPU the first of native, dali and cpu that is there.
        device: where DALI works and leaves the images. The torch backend works on the CPU and pins for ``cuda``.
        threads: threads that read, decode and resize.
        cache: keep the split, at the network's resolution and compressed, in memory (``cache.py``): none, host (RAM) or
            device (the GPU, which then also decodes). With ``augment`` the affine map runs at that resolution.

    Raises:
        UsageError: a value is out of range.
    """

    records: Path
    split: str
    batch_size: int
    size: int = 256
    windows: tuple[Window, ...] = DEFAULT_WINDOWS
    adjacent: bool = False
    augment: bool = False
    shuffle: bool = False
    balanced: bool = False
    folds: int = 0
    fold: int = 0
    fold_seed: int = 0
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False
    backend: str = "auto"
    device: str = "cpu"
    threads: int = 2
    cache: str = "none"

    def __post_init__(self) -> None:
        """Check every value once."""
        for name, least in (("batch_size", 1), ("size", 1), ("seed", 0), ("world_size", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"loader: {name} must be >= {least}, found {getattr(self, name)}")
        if not 0 <= self.rank < self.world_size:
            raise UsageError(f"loader: rank must be 0 to {self.world_size - 1}, found {self.rank}")
        if not self.windows:
            raise UsageError("loader: at least one window is needed")
        for name, choices in (("backend", BACKENDS), ("device", DEVICES), ("cache", CACHES)):
            if getattr(self, name) not in choices:
                raise UsageError(f"loader: {name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}")
        if self.cache == "device" and self.device != "cuda":
            raise UsageError("loader: cache device is the memory of a GPU, but the device is the CPU; use cache host")

    @property
    def num_channels(self) -> int:
        """Channels of an image."""
        return NUM_ADJACENT if self.adjacent else len(self.windows)


@dataclass(frozen=True, slots=True)
class Batch:
    """N slices ready for the network.

    Attributes:
        images: float32 [N, C, S, S] in channels_last memory format; on the GPU where DALI or the cache decodes there,
            else on the CPU.
        labels: float32 [N, 6] in the order of ``labels.LABELS``, -1 where unknown; on the GPU from a cache there, else
            on the CPU.
        rows: int64 [N], row numbers of the reader's index; on the CPU.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor
