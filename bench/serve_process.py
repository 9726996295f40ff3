"""A server for one measurement: ``python -m fastich.serve`` on loopback, ports of its own choosing, a new spool."""

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory import tree_bytes

from fastich.errors import FastichError

COMMAND = (sys.executable, "-m", "fastich.serve")
HOST = "127.0.0.1"
START_LIMIT_S, STOP_LIMIT_S = 180.0, 90.0
WATCH_S = 0.5
MANY = 256
"""One machine stands for many senders, which the server's caps would otherwise tell apart."""


@dataclass
class Served:
    """A running server; ``peak_bytes`` is what it and its children held at most, None where the kernel does not say."""

    pid: int
    dicom_port: int
    http_port: int
    token: str
    peak_bytes: int | None = None

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of a GET; status 0 where nobody answers, None where the answer is no JSON."""
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=30)
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json"}
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        except OSError:
            return 0, None
        finally:
            connection.close()
        try:
            return answer.status, json.loads(body)
        except ValueError:
            return answer.status, None


def settings(model: Path, spool: Path, *, precision: str, quiet_s: float) -> str:
    """The TOML of the server."""
    return f"""
[model]
folder = {json.dumps(str(model.resolve()))}
precision = {json.dumps(precision)}
[spool]
folder = {json.dumps(str(spool.resolve()))}
min_free_mib = 64
[dicom]
port = 0
max_associations = {MANY}
max_sockets_per_address = {MANY}
[http]
port = 0
[scoring]
quiet_s = {quiet_s}
[log]
level = "warning"
"""


@contextlib.contextmanager
def served(folder: Path, text: str, *, command: Sequence[str]) -> Iterator[Served]:
    """A server of the settings ``text``, whose spool is ``folder / "spool"``; stopped as systemd does it.

    Raises:
        FastichError: it does not start, or did not stop by itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, log = folder / "fastich.toml", folder / "log.txt"
    config.write_text(text, encoding="utf-8")
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--config", str(config)], stdout=out, stderr=out)
    stopped = threading.Event()
    try:
        made = _started(process, folder / "spool", log)
        watch = threading.Thread(target=_watch, args=(made, stopped))
        watch.start()
        try:
            yield made
        finally:
            stopped.set()
            watch.join()
        process.send_signal(signal.SIGTERM)
        status = process.wait(STOP_LIMIT_S)
        if status != 0:
            raise FastichError(
                f"{' '.join(command)}: expected exit status 0 when asked to stop, found {status}{said(log)}"
            )
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _started(process: "subprocess.Popen[bytes]", spool: Path, log: Path) -> Served:
    """The server once it is ready."""
    deadline, serving = time.monotonic() + START_LIMIT_S, spool / "serving.json"
    made: Served | None = None
    while made is None or made.get("/health/ready")[0] != 200:
        if process.poll() is not None or time.monotonic() > deadline:
            state = "still not ready" if process.poll() is None else f"ended with status {process.returncode}"
            raise FastichError(f"the server did not start: {state}{said(log)}")
        if made is None and serving.is_file():
            where = json.loads(serving.read_text(encoding="utf-8"))
            port = int(where["http_url"].rstrip("/").rpartition(":")[2])
            token = (spool / "admin.token").read_text(encoding="utf-8").strip()
            made = Served(pid=process.pid, dicom_port=where["dicom_port"], http_port=port, token=token)
        time.sleep(0.05)
    return made


def _watch(server: Served, stopped: threading.Event) -> None:
    while not stopped.wait(WATCH_S):
        held = tree_bytes(server.pid)
        if held is not None:
            server.peak_bytes = max(server.peak_bytes or 0, held)


def said(log: Path) -> str:
    """The last line of a log, for a message."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f": {lines[-1][:300]}" if lines else ""
