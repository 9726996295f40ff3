"""The server as users start it: ``python -m fastich.serve`` as a process, its settings in a TOML file."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastich.serve.store import Store, open_store

START_LIMIT_S = 60.0


@dataclass
class Served:
    """One spool, one settings file, and the process that serves them now."""

    folder: Path
    settings: str
    process: subprocess.Popen[bytes] | None = None
    log: list[Path] = field(default_factory=list)

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def start(self) -> dict[str, Any]:
        """Start and return what ``serving.json`` says."""
        config = self.folder / "fastich.toml"
        config.write_text(self.settings, encoding="utf-8")
        serving = self.spool / "serving.json"
        serving.unlink(missing_ok=True)
        self.log.append(self.folder / f"log-{len(self.log)}.txt")
        with self.log[-1].open("wb") as target:
            command = [sys.executable, "-m", "fastich.serve", "--config", str(config)]
            self.process = subprocess.Popen(command, stdout=target, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_LIMIT_S
        while not serving.is_file():
            assert self.process.poll() is None, self.words()
            assert time.monotonic() < deadline, self.words()
            time.sleep(0.02)
        found: dict[str, Any] = json.loads(serving.read_text(encoding="utf-8"))
        return found

    def words(self) -> str:
        """What the newest process said."""
        return self.log[-1].read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def stop(self, limit_s: float = 60.0) -> int:
        """SIGTERM, as systemd does; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(limit_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.process = None

    def store(self) -> Store:
        """The tables, beside the running process."""
        return open_store(self.spool / "fastich.db")


@contextmanager
def served(folder: Path, model: Path, *, tables: str = "", scoring: str = "quiet_s = 0.5") -> Iterator[Served]:
    """A server on ports of its own choosing; killed at the end if it still runs."""
    settings = f"""
[model]
folder = {json.dumps(str(model))}
[spool]
folder = "spool"
min_free_mib = 1
[dicom]
port = 0
[http]
port = 0
[scoring]
{scoring}
{tables}
"""
    made = Served(folder=folder, settings=settings)
    try:
        yield made
    finally:
        if made.process is not None:
            made.kill()


def until(true: Callable[[], bool], limit_s: float = 30.0, why: Callable[[], str] = str) -> None:
    """Wait until ``true()``, or fail with ``why()``."""
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, why() or "waited in vain"
        time.sleep(0.05)


def environment() -> dict[str, str]:
    """The environment of a child process that imports this tree."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
