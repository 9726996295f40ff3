"""What a training run of the sequence model is asked to do. Flags are made from it, checkpoints hold it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastich.errors import CheckpointError, UsageError
from fastich.loaders.config import BACKENDS
from fastich.models.sequence import VARIANTS, SequenceEnsemble, SequenceModel, SequenceNetwork
from fastich.training.config import flag
from fastich.training.environment import num_cores
from fastich.training.study_data import Changes
from fastich.verb import option, plain, required

FREE_ON_RESUME = frozenset({"run", "records", "out", "resume", "device", "loader", "threads", "embed_batch_size"})
"""What may change when a run goes on: where things are and what computes."""
LAST, BEST = "last", "best"
"""Which epoch's networks a run keeps."""
MOST_AT_ONCE = 4
"""Studies a step end to end; their activations must fit beside each other."""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """One training run of the sequence model."""

    run: Path = required("run folder of the CNN, that python -m fastich.train wrote")
    records: Path = required("records folder that the CNN was trained on; its side/ keeps the embeddings")
    out: Path = required("study run folder to make: checkpoints, metrics.jsonl, run.json")
    which: str = option("best", "which checkpoint of the CNN", choices=("best", "last"))
    variant: str = option(
        "difference", "gru: slices; difference: also what changes to their neighbours", choices=VARIANTS
    )
    members: int = option(3, "sequence models, each with weights of its own, whose mean logits are the answer")
    projection_size: int = option(8, "channels an embedding is projected to: 8 for tens of studies, 128 for thousands")
    hidden_size: int = option(96, "channels of the GRU, each way")
    dropout: float = option(0.3, "probability of dropout, before the projection and behind the GRU")
    epochs: int = option(40, "most epochs")
    keep: str = option(
        LAST,
        "which epoch: last, if it undercuts the CNN on validation; best: of the lowest validation log loss of slices",
        choices=(LAST, BEST),
    )
    patience: int = option(15, "with --keep best: stop after this many epochs without a lower log loss")
    batch_size: int = option(8, "studies a step")
    lr: float = option(3e-3, "learning rate of AdamW; the peak under one-cycle")
    weight_decay: float = option(1e-2, "weight decay of AdamW")
    schedule: str = option("one-cycle", "learning rate over the run", choices=("constant", "one-cycle"))
    auxiliary_weight: float = option(0.5, "weight of the loss of the slices' auxiliary output, made before the GRU")
    study_weight: float = option(0.3, "weight of the loss of the study output")
    subsample: float = option(0.5, "share of training studies that lose slices: every second one, or a random part")
    reverse: bool = option(True, "turn every second training study around")
    embedding_passes: int = option(1, "passes of the CNN over augmented training slices, to learn from")
    amp: bool = option(False, "mixed precision of the CNN: bfloat16 where the device has it, else float16")
    embed_batch_size: int = option(64, "slices at a time through the CNN")
    end_to_end: bool = option(False, "let the CNN learn too, study by study (--batch-size 1 or 2): no side store")
    cnn_lr: float = option(2e-5, "end to end: learning rate of the CNN; the peak under one-cycle")
    loader: str = option("auto", "which loader feeds the CNN", choices=BACKENDS)
    device: str = option("auto", "where both networks run", choices=("auto", "cpu", "cuda"))
    resume: str = option("no", "auto: go on from OUT's last checkpoint if there is one", choices=("no", "auto"))
    threads: int = option(0, "CPU threads of the loader and of the networks (0: all cores)")
    seed: int = option(0, "seed of weights, order, sub-sampling, reversal and dropout")

    def __post_init__(self) -> None:
        """Refuse what cannot run, before anything is opened."""
        for name in (
            "members",
            "epochs",
            "patience",
            "batch_size",
            "lr",
            "cnn_lr",
            "projection_size",
            "hidden_size",
            "embed_batch_size",
        ):
            if not getattr(self, name) > 0:
                raise UsageError(f"{flag(name)} must be > 0, found {getattr(self, name)}")
        for name in ("weight_decay", "auxiliary_weight", "study_weight", "embedding_passes", "threads", "seed"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{flag(name)} must be >= 0, found {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"--dropout must be from 0 to below 1, found {self.dropout}")
        if self.end_to_end and self.batch_size > MOST_AT_ONCE:
            raise UsageError(
                f"--end-to-end takes whole studies at once: --batch-size 1 to {MOST_AT_ONCE}, found {self.batch_size}"
            )
        if not 0 <= self.subsample <= 1:
            raise UsageError(f"--subsample must be from 0 to 1, found {self.subsample}")

    @property
    def num_threads(self) -> int:
        """Threads, with 0 resolved."""
        return self.threads or num_cores()

    @property
    def changes(self) -> Changes:
        """How training sequences are varied."""
        return Changes(subsample=self.subsample, reverse=self.reverse, seed=self.seed)

    def resolved(self) -> dict[str, Any]:
        """The config as JSON values, as in config.json and checkpoints."""
        values: dict[str, Any] = plain(self)
        return values


def build_sequence(config: dict[str, Any], embedding_size: int) -> SequenceNetwork:
    """The network of a resolved config, with random weights from torch's generator.

    A run that is older than ``--members`` has one.
    """
    made = [
        SequenceModel(
            embedding_size,
            variant=config["variant"],
            projection_size=config["projection_size"],
            hidden_size=config["hidden_size"],
            dropout=config["dropout"],
        )
        for _ in range(config.get("members", 1))
    ]
    return made[0] if len(made) == 1 else SequenceEnsemble(made)


def require_same(old: dict[str, Any], config: StudyConfig, where: Path) -> None:
    """Refuse to go on with a run under another config.

    More epochs are welcome while the learning rate is constant; under a schedule they would change the past. A flag
    that is younger than the checkpoint had its default.

    Raises:
        CheckpointError: names the first flag that differs.
    """
    free = FREE_ON_RESUME | ({"epochs"} if config.schedule == "constant" else frozenset())
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, now in config.resolved().items():
        before = old.get(name, defaults[name])
        if name not in free and before != now:
            raise CheckpointError(
                f"{where}: the run was started with {flag(name)} {before}, now {now}; "
                "give the old value, or start a new --out"
            )
