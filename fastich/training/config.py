"""What a training run is asked to do; the defaults are the study's. Flags are made from it, checkpoints hold it."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastich.errors import CheckpointError, UsageError
from fastich.loaders import LoaderConfig
from fastich.loaders.config import BACKENDS, CACHES
from fastich.models.classifier import BACKBONES, DEFAULT_BACKBONE
from fastich.training.distributed import ALONE, World, cores_a_process
from fastich.training.losses import CLASS_WEIGHTS, FOCAL_GAMMA, LOSSES
from fastich.training.modes import COMPILE_MODES, GRAPH_MODES
from fastich.training.schedule import SCHEDULES
from fastich.verb import option, plain, required
from fastich.windowing import Window, parse_windows

NUM_CHANNELS = 3
SMALLEST_SIZE = 32
"""Every backbone halves five times."""

FREE_ON_RESUME = frozenset(
    {"records", "out", "resume", "threads", "tensorboard", "checkpoint_steps", "loader", "cache", "device"}
    | {"compile", "cuda_graph", "profile", "allow_leakage"}
)
"""What may change when a run goes on: where things are and what computes. Equal weights need equal threads on a CPU,
where each takes a part of the batch through the network (``replicas.py``), and an equal cache with ``augment`` or where
it rounds (``loaders/planes.py``); the number of processes is no option at all and may change. Whatever a step computes
(loss, weights, EMA, clipping, accumulation, schedule) may not."""


ALL_FOLDS = -1
"""The value of ``fold`` that stands for each of them in turn."""


def fold_number(text: str) -> int:
    """The value of ``--fold``: a number, or ``all``."""
    return ALL_FOLDS if text == "all" else int(text)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    records: Path = required("folder of packed records")
    out: Path = required("run folder to make: checkpoints, metrics.jsonl, curves, run.json")
    epochs: int = option(30, "most epochs")
    patience: int = option(8, "stop after this many epochs without a lower validation loss")
    batch_size: int = option(64, "slices a batch, over all processes together")
    size: int = option(256, "side of the network's input, pixels")
    windows: str = option("brain,subdural,bone", "the three channels: windows by name or as center/width in HU")
    adjacent: str | None = option(None, "instead of --windows: slices s-1, s, s+1 through this one window")
    backbone: str = option(DEFAULT_BACKBONE, "the network before its head", choices=tuple(BACKBONES))
    folds: int = option(0, "divide train and val by patient into this many folds (0: take the splits of the records)")
    fold: int = option(0, "which fold validates, 0 to N-1, or all: each in turn, into OUT/fold-0 ...", read=fold_number)
    fold_seed: int = option(0, "seed of the division into folds")
    weights: str = option("imagenet", "start from imagenet, none (random) or FILE (torchvision .pth, our .safetensors)")
    lr: float = option(5e-4, "learning rate of Adam; the peak under one-cycle and cosine")
    schedule: str = option("constant", "learning rate over the run", choices=SCHEDULES)
    warmup_epochs: float = option(0.0, "epochs over which --schedule cosine first rises to --lr")
    loss: str = option("bce", "binary cross entropy, or its focal form, which turns easy slices down", choices=LOSSES)
    focal_gamma: float = option(FOCAL_GAMMA, "how far --loss focal turns easy slices down")
    class_weights: str = option(
        "none",
        "weights in the loss: challenge (any counts twice) or inverse (positives by inverse prevalence, at most 50)",
        choices=CLASS_WEIGHTS,
    )
    ema: float = option(0.0, "judge and keep a moving average of the weights with this decay, as 0.999 (0: none)")
    clip_norm: float = option(0.0, "largest norm of a step's gradient over all weights (0: any)")
    accumulate: int = option(1, "batches to one step of the optimiser")
    augment: bool = option(False, "flip, rotate, scale, shift and vary the intensity of training slices")
    balanced: bool = option(False, "draw slices so that rare labels are seen more often")
    amp: bool = option(False, "mixed precision: bfloat16 where the device has it, else float16 with a scaler")
    compile: str = option("none", "compile the network with torch.compile", choices=COMPILE_MODES, bare="default")
    cuda_graph: bool = option(False, "replay the whole step as one CUDA graph (CUDA only)")
    profile: bool = option(False, "write RUN/profile: a trace of a few steps and where the time of a step goes")
    loader: str = option("auto", "which loader feeds the network", choices=BACKENDS)
    cache: str = option("none", "keep the splits in memory at --size: none, host (RAM) or device (GPU)", choices=CACHES)
    device: str = option("auto", "where the network runs", choices=("auto", "cpu", "cuda"))
    resume: str = option("no", "auto: go on from OUT's last checkpoint if there is one", choices=("no", "auto"))
    checkpoint_steps: int = option(0, "also save a checkpoint every this many batches (0: at the end of an epoch only)")
    threads: int = option(0, "CPU threads of the loader and of the network, of each process (0: all cores)")
    seed: int = option(0, "seed of weights, order, augmentation and dropout")
    allow_leakage: bool = option(False, "train although patients or images stand in two splits")
    tensorboard: bool = option(False, "also write OUT/tensorboard (needs the tensorboard package)")

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything is opened."""
        for name in ("epochs", "patience", "batch_size", "lr", "focal_gamma", "accumulate"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{flag(name)} must be > 0, found {getattr(self, name)}")
        for name in ("checkpoint_steps", "threads", "seed", "fold_seed", "warmup_epochs", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{flag(name)} must be >= 0, found {getattr(self, name)}")
        if self.folds < 0 or self.folds == 1:
            raise UsageError(f"--folds must be 0 (none) or at least 2, found {self.folds}")
        if self.fold and not self.folds:
            raise UsageError(
                f"--fold {'all' if self.fold == ALL_FOLDS else self.fold} needs --folds, the number of them"
            )
        if self.folds and not ALL_FOLDS <= self.fold < self.folds:
            raise UsageError(f"--fold must be 0 to {self.folds - 1} or all, found {self.fold}")
        if self.size < SMALLEST_SIZE:
            raise UsageError(f"--size must be at least {SMALLEST_SIZE} pixels, found {self.size}")
        for name, choices in (
            ("backbone", tuple(BACKBONES)),
            ("compile", COMPILE_MODES),
            ("cache", CACHES),
            ("schedule", SCHEDULES),
            ("loss", LOSSES),
            ("class_weights", CLASS_WEIGHTS),
        ):
            if getattr(self, name) not in choices:
                raise UsageError(f"{flag(name)}: expected one of {', '.join(choices)}, found {getattr(self, name)!r}")
        if self.cuda_graph and self.compile in GRAPH_MODES:
            raise UsageError(f"--cuda-graph records the step itself; use --compile default or none, not {self.compile}")
        if self.cuda_graph and self.profile:
            raise UsageError("--profile cannot look into a step that is one graph; profile without --cuda-graph")
        self._check_recipe()
        wanted = 1 if self.adjacent else NUM_CHANNELS
        if len(self.channel_windows) != wanted:
            name = "--adjacent" if self.adjacent else "--windows"
            raise UsageError(f"{name}: expected {wanted} windows, found {len(self.channel_windows)}")

    def _check_recipe(self) -> None:
        """Refuse options of the loss, the schedule and the weights that mean nothing together."""
        if not self.ema < 1 or self.ema < 0:
            raise UsageError(f"--ema must be >= 0 and below 1, found {self.ema}")
        if self.warmup_epochs and self.schedule != "cosine":
            raise UsageError(f"--warmup-epochs belongs to --schedule cosine, found {self.schedule}")
        if self.warmup_epochs >= self.epochs:
            raise UsageError(f"--warmup-epochs must be below --epochs {self.epochs}, found {self.warmup_epochs}")
        if self.focal_gamma != FOCAL_GAMMA and self.loss != "focal":
            raise UsageError(f"--focal-gamma belongs to --loss focal, found {self.loss}")
        if self.cuda_graph and self.accumulate > 1:
            raise UsageError("--cuda-graph records one step that is always the same; leave it or --accumulate out")

    @property
    def channel_windows(self) -> tuple[Window, ...]:
        """Three windows, or the one of ``adjacent``."""
        return parse_windows(self.adjacent or self.windows)

    @property
    def num_threads(self) -> int:
        """Threads of this process, with 0 resolved."""
        return self.threads or cores_a_process()

    def loader_config(self, split: str, device: str, world: World = ALONE) -> LoaderConfig:
        """How a rank reads ``split``: training shuffled and augmented as asked, others in order and as they are."""
        training = split == "train"
        return LoaderConfig(
            records=self.records,
            split=split,
            batch_size=world.share(self.batch_size),
            size=self.size,
            windows=self.channel_windows,
            adjacent=self.adjacent is not None,
            augment=training and self.augment,
            shuffle=training,
            balanced=training and self.balanced,
            folds=self.folds,
            fold=self.fold,
            fold_seed=self.fold_seed,
            seed=self.seed,
            rank=world.rank,
            world_size=world.size,
            drop_last=training,
            backend=self.loader,
            device=device,
            threads=self.num_threads,
            cache=self.cache,
        )

    def resolved(self) -> dict[str, Any]:
        """The config as JSON values, as in config.json and checkpoints."""
        values: dict[str, Any] = plain(self)
        return values

    def network_input(self) -> dict[str, Any]:
        """What evaluation and export must feed the network: size, windows, adjacent."""
        windows = [{"center_hu": win.center_hu, "width_hu": win.width_hu} for win in self.channel_windows]
        return {"size": self.size, "windows": windows, "adjacent": self.adjacent is not None}


def flag(name: str) -> str:
    """The command line's name of a field."""
    return "--" + name.replace("_", "-")


def require_same(old: dict[str, Any], config: TrainConfig, where: Path) -> None:
    """Refuse to go on with a run under another config; what an older release did not know was at its default.

    More epochs are welcome while the learning rate is constant; under a schedule they would change the past. A flag
    that is younger than the checkpoint had its default.

    Raises:
        CheckpointError: names the first flag that differs.
    """
    free = FREE_ON_RESUME | ({"epochs"} if config.schedule == "constant" else frozenset())
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    for name, now in config.resolved().items():
        before = old.get(name, defaults[name])
        if name not in free and before != now:
            raise CheckpointError(
                f"{where}: the run was started with {flag(name)} {before}, now {now}; "
                "give the old value, or start a new --out"
            )
