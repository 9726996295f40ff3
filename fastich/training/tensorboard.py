"""The same numbers as ``metrics.jsonl`` for TensorBoard, when asked for and installed."""

from pathlib import Path

from fastich.errors import UsageError
from fastich.training.history import Line

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:  # an extra, not part of fastich[train]: its absence is reported when it is asked for
    HAS_TENSORBOARD = False
else:
    HAS_TENSORBOARD = True

FOLDER = "tensorboard"


class Board:
    """Writes one run's event files; closed at the end of training."""

    def __init__(self, run: Path, first_epoch: int) -> None:
        """Open the event files; what an interrupted run wrote from ``first_epoch`` on is hidden.

        Raises:
            UsageError: tensorboard is not installed.
        """
        if not HAS_TENSORBOARD:
            raise UsageError("--tensorboard: the package is not installed; pip install 'fastich[tensorboard]'")
        self._writer = SummaryWriter(str(run / FOLDER), purge_step=first_epoch)

    def add(self, line: Line) -> None:
        """Write one epoch: loss, and each measure per label, for both splits."""
        for split in ("train", "val"):
            self._writer.add_scalar(f"loss/{split}", line[split]["loss"], line["epoch"])
            for measure in ("precision", "recall", "auc"):
                for label, value in line[split][measure].items():
                    if value is not None:
                        self._writer.add_scalar(f"{measure}/{split}/{label}", value, line["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the files."""
        self._writer.close()
