"""``metrics.jsonl``: one JSON line an epoch, so a run can be followed with ``tail -f`` and cut back on resume."""

import json
from pathlib import Path
from typing import Any

from fastich.errors import CheckpointError
from fastich.files import write_text

NAME = "metrics.jsonl"
Line = dict[str, Any]


def read(run: Path) -> list[Line]:
    """All whole lines of a run's history, oldest first; a line that a kill cut short is left out."""
    path = run / NAME
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def append(run: Path, line: Line) -> None:
    """Add one line at the end."""
    with (run / NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


def cut(run: Path, num_epochs: int) -> None:
    """Keep the first ``num_epochs`` epochs: what came after them is going to be done again.

    Raises:
        CheckpointError: the history is shorter than the checkpoint says.
    """
    lines = read(run)
    if [line["epoch"] for line in lines[:num_epochs]] != list(range(num_epochs)):
        raise CheckpointError(
            f"{run / NAME}: expected epochs 0 to {num_epochs - 1}, found {[line['epoch'] for line in lines]}; "
            "the checkpoint is of another run: start a new --out"
        )
    write_text(run / NAME, "".join(json.dumps(line) + "\n" for line in lines[:num_epochs]))
