"""When to stop: no lower validation loss for ``patience`` epochs in a row. A value, so a checkpoint can hold it."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """The best epoch so far (from 0; -1 before the first) and how many epochs have passed since."""

    best_loss: float | None = None
    best_epoch: int = -1
    num_stale: int = 0

    def after(self, epoch: int, loss: float) -> "EarlyStopping":
        """The state after ``epoch`` ended with validation ``loss``; an equal loss is no improvement."""
        if self.best_loss is None or loss < self.best_loss:
            return EarlyStopping(best_loss=loss, best_epoch=epoch)
        return dataclasses.replace(self, num_stale=self.num_stale + 1)

    def newest(self, epoch: int, loss: float) -> "EarlyStopping":
        """The state after ``epoch`` where it is the best as long as it undercuts the first loss; nothing is stale."""
        assert self.best_loss is not None, "a first loss, of before the first epoch, must be known"
        return dataclasses.replace(self, best_epoch=epoch) if loss < self.best_loss else self

    def is_over(self, patience: int) -> bool:
        """Whether ``patience`` epochs in a row brought nothing."""
        return self.num_stale >= patience
