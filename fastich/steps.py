"""A chain of commands, each the very one that a user would type: printed, run as a process of its own, timed.

What ``demo`` and ``experiment`` are made of, so that what they show is what the README's commands do.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fastich.errors import FastichError, UsageError
from fastich.verb import say


def clear(out: Path, made_by: str) -> None:
    """Start from an empty folder, but delete only what ``made_by`` (``demo``, ``experiment``) made before.

    Raises:
        UsageError: the folder holds something else.
    """
    mark = out / f".fastich-{made_by}"
    if out.exists() and any(out.iterdir()):
        if not mark.exists():
            raise UsageError(f"{out} exists and was not made by the {made_by}; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    mark.touch()


def step(verb: str, *arguments: object, stdout: Any = None, shown: str | None = None) -> float:
    """Run ``python -m fastich.<verb>``, its progress on this terminal; the seconds it took.

    Args:
        verb: its name.
        arguments: its command line.
        stdout: where its result goes, instead of here.
        shown: what is printed instead of the command line, where that is long.

    Raises:
        FastichError: it failed; it has said why on stderr.
    """
    words = [str(word) for word in arguments]
    command = [sys.executable, "-m", f"fastich.{verb}", *words]
    return run(command, shown=shown or f"python -m fastich.{verb} {' '.join(words)}", stdout=stdout)


def run(command: list[str], *, shown: str, stdout: Any = None) -> float:
    """Run one command as ``step`` does."""
    say(f"$ {shown}")
    started = time.monotonic()
    status = subprocess.run(command, stdout=stdout, check=False).returncode
    if status:
        raise FastichError(f"this stops here: {shown.split('  ')[0]} ended with status {status} (see above)")
    return time.monotonic() - started
