"""How far a run has come, as a value: what a checkpoint's header holds and a resumed run starts from."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from fastich.training.early_stopping import EarlyStopping


@dataclass(frozen=True, kw_only=True)
class Position:
    """The next batch to learn from, and what has been counted up to it.

    Attributes:
        epoch: the epoch in progress or next to begin, from 0.
        batch: the next batch of that epoch, from 0.
        stopping: state of early stopping after ``epoch`` whole epochs.
        seconds: time spent in all sessions so far, training and validation.
        epoch_seconds: of those, the ones spent in the epoch in progress.
    """

    epoch: int = 0
    batch: int = 0
    stopping: EarlyStopping = field(default_factory=EarlyStopping)
    seconds: float = 0.0
    epoch_seconds: float = 0.0

    def after_epoch(self, loss: float, seconds: float) -> "Position":
        """The start of the next epoch, after this one ended with validation ``loss`` and took ``seconds``."""
        return self.after_stopping(self.stopping.after(self.epoch, loss), seconds)

    def after_stopping(self, stopping: EarlyStopping, seconds: float) -> "Position":
        """The same, where ``stopping`` has been decided."""
        return Position(epoch=self.epoch + 1, stopping=stopping, seconds=self.seconds + seconds)

    def at_batch(self, batch: int, seconds: float) -> "Position":
        """The same epoch at ``batch``, ``seconds`` of it spent."""
        return dataclasses.replace(self, batch=batch, epoch_seconds=seconds)

    def to_meta(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_meta(cls, values: dict[str, Any]) -> "Position":
        """Back from JSON values."""
        return cls(**{**values, "stopping": EarlyStopping(**values["stopping"])})
