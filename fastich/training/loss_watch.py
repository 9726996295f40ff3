"""Stops a run whose loss is no longer a number, and names the step and slices, without waiting for the GPU each step.

Losses stay on the device for ``EVERY`` steps and are looked at together: one wait in twenty steps. Several processes
look at the losses of all of them, so that all stop at the same step.
"""

import math
from collections.abc import Callable

import torch

from fastich.errors import FastichError
from fastich.training.distributed import ALONE, World

EVERY = 20
NUM_NAMED = 8
"""How many slices the one-line message names; the file beside it has all."""


class NotFiniteError(FastichError):
    """A loss or a weight became NaN or infinite.

    Attributes:
        step: the first step, from 0, whose loss was not finite.
        sop_uids: the slices of that step's batch; of several processes, those of the ones whose loss it was.
    """

    def __init__(self, message: str, step: int, sop_uids: list[str]) -> None:
        super().__init__(message)
        self.step = step
        self.sop_uids = sop_uids


class LossWatch:
    """Holds the last few losses and the rows they came from."""

    def __init__(self, name_rows: Callable[[torch.Tensor], list[str]], world: World = ALONE) -> None:
        """Args: name_rows gives the SOP instance UIDs of row numbers; world shares the losses."""
        self._name_rows, self._world = name_rows, world
        self._recent: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def add(self, step: int, loss: torch.Tensor, rows: torch.Tensor) -> None:
        """Remember a step's ``loss`` (scalar, on any device) and its ``rows`` int64 [N]."""
        self._recent.append((step, loss.detach(), rows))

    @property
    def is_due(self) -> bool:
        """Whether it is time to look."""
        return len(self._recent) >= EVERY

    def check(self) -> float | None:
        """The mean loss since the last look (None if there was no step), after one wait for the device.

        Raises:
            NotFiniteError: a loss was NaN or infinite.
        """
        if not self._recent:
            return None
        losses = torch.stack([loss for _, loss, _ in self._recent])
        by_rank: list[list[float]] = torch.stack(self._world.gather(losses)).tolist()
        for number, (step, _, rows) in enumerate(self._recent):
            bad = [rank for rank, found in enumerate(by_rank) if not math.isfinite(found[number])]
            if bad:
                theirs = torch.cat([self._world.gather(rows)[rank] for rank in bad])
                raise self._error(step, by_rank[bad[0]][number], theirs)
        self._recent.clear()
        return sum(map(sum, by_rank)) / (len(losses) * len(by_rank))

    def _error(self, step: int, loss: float, rows: torch.Tensor) -> NotFiniteError:
        uids = self._name_rows(rows)
        named = ", ".join(uids[:NUM_NAMED]) + (f" and {len(uids) - NUM_NAMED} more" if len(uids) > NUM_NAMED else "")
        return NotFiniteError(
            f"loss is {loss} at step {step}, on slices {named}; the last checkpoint is intact: "
            "look at these slices, or go on from it with a lower --lr or without --amp",
            step,
            uids,
        )


def require_finite(model: torch.nn.Module, step: int) -> None:
    """Refuse weights that are not numbers, so that no checkpoint holds them (one wait for the device).

    Raises:
        NotFiniteError: a weight or running statistic is NaN or infinite.
    """
    floats = [value for value in model.state_dict().values() if value.is_floating_point()]
    if not bool(torch.stack([value.isfinite().all() for value in floats]).all()):
        raise NotFiniteError(
            f"weights are not finite after step {step}; the last checkpoint is intact: go on from it with a lower --lr",
            step,
            [],
        )
