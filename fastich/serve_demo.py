"""The triage server at work on synthetic studies: starts it, sends studies as a scanner would, shows the worklist.

Everything is the very command that a user would type: ``python -m fastich.serve`` with a TOML file, and DCMTK's
storescu, or pynetdicom where that is not installed. It ends with the worklist as a table, and goes on serving the page
until Ctrl-C.
"""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from csv import DictReader
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fastich import phantom
from fastich.errors import FastichError, UsageError
from fastich.phantom.as_sent import studies_as_sent
from fastich.phantom.dicom_bytes import legal_uid
from fastich.serve.config import Destination
from fastich.serve.outputs import dimse_client
from fastich.steps import clear
from fastich.verb import add_config_flags, config_from_args, option, parser, run, say

START_LIMIT_S = 120.0
FINAL = ("scored", "not evaluated", "failed")


@dataclass(frozen=True, kw_only=True)
class ServeDemoConfig:
    """What is served and sent."""

    model: Path = option(Path("runs/demo/model"), "model folder; the one that `make demo` ends with")
    out: Path = option(Path("runs/serve-demo"), "folder of everything the demo makes; replaced if it holds one")
    studies: int = option(10, "synthetic studies to send")
    size: int = option(512, "side of a slice, pixels")
    seed: int = option(77, "of the synthetic studies")
    pause_s: float = option(0.0, "seconds between two studies")
    quiet_s: float = option(2.0, "a study is complete when nothing came for so long")
    http_port: int = option(8080, "port of the page; 0 takes a free one")
    stay: bool = option(True, "go on serving until Ctrl-C")
    browser: bool = option(True, "open the page")

    def __post_init__(self) -> None:
        """Refuse what sends nothing."""
        if self.studies < 1:
            raise UsageError(f"--studies must be >= 1, found {self.studies}")


def main(argv: list[str]) -> int:
    """Run the verb."""
    made = parser("serve_demo", __doc__.split("\n\n")[0])
    add_config_flags(made, ServeDemoConfig)
    demo(config_from_args(made.parse_args(argv), ServeDemoConfig))
    return 0


def demo(config: ServeDemoConfig) -> list[dict[str, Any]]:
    """Serve, send, show; the rows of the worklist from the top."""
    if not (config.model / "model.json").is_file():
        raise FastichError(f"{config.model}: expected a model folder, found none; run `make demo` first")
    clear(config.out, "serve-demo")
    outbox, bleeds = _studies(config)
    with _serving(config) as (server, where):
        token = (config.out / "spool" / "admin.token").read_text(encoding="ascii").strip()
        for folder in outbox:
            _send(folder, int(where["dicom_port"]))
            time.sleep(config.pause_s)
        with httpx.Client(base_url=where["http_url"], headers={"Authorization": f"Bearer {token}"}) as api:
            rows = _final(api, len(outbox))
        print(table(rows, bleeds))
        say(f"the worklist: {where['http_url']}   token: {token}")
        if config.browser:
            webbrowser.open(where["http_url"])
        if config.stay:
            say("serving until Ctrl-C")
            with contextlib.suppress(KeyboardInterrupt):
                server.wait()
    return rows


def _studies(config: ServeDemoConfig) -> tuple[list[Path], dict[str, str]]:
    """A folder of DICOM files for each study, and by study UID which bleeds it has."""
    made = config.out / "phantom"
    phantom.generate(phantom.PhantomConfig(out=made, studies=config.studies, size=config.size, seed=config.seed))
    folders = []
    for number, files in enumerate(studies_as_sent(made / "stage_2_train")):
        folder = config.out / "outbox" / f"{number:03d}"
        folder.mkdir(parents=True)
        for at, data in enumerate(files):
            (folder / f"{at:03d}.dcm").write_bytes(data)
        folders.append(folder)
    with (made / "truth.csv").open(encoding="utf-8", newline="") as handle:
        return folders, {legal_uid(row["study_uid"]): _bleeds(row) for row in DictReader(handle)}


def _bleeds(row: dict[str, str]) -> str:
    """The bleeds of a study with their volumes."""
    found = [(name.removesuffix("_ml"), float(value)) for name, value in row.items() if name.endswith("_ml")]
    return ", ".join(f"{name} {volume:.1f} ml" for name, volume in found if volume > 0) or "none"


@contextlib.contextmanager
def _serving(config: ServeDemoConfig) -> Iterator[tuple["subprocess.Popen[bytes]", dict[str, Any]]]:
    """The server as a process, and where it listens."""
    settings = config.out / "fastich.toml"
    settings.write_text(_settings(config), encoding="utf-8")
    command = [sys.executable, "-m", "fastich.serve", "--config", str(settings)]
    say(f"$ python -m fastich.serve --config {settings}")
    server = subprocess.Popen(command)
    try:
        yield server, _where(server, config.out / "spool" / "serving.json")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def _settings(config: ServeDemoConfig) -> str:
    return f"""# What serve_demo runs; python -m fastich.serve --print-config shows every key.
[model]
folder = {json.dumps(str(config.model.resolve()))}

[spool]
folder = "spool"
min_free_mib = 200

[dicom]
port = 0

[http]
port = {config.http_port}

[scoring]
quiet_s = {config.quiet_s}
"""


def _where(server: "subprocess.Popen[bytes]", serving: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_LIMIT_S
    while not serving.is_file():
        if server.poll() is not None or time.monotonic() > deadline:
            raise FastichError("the server did not start; it has said why above")
        time.sleep(0.05)
    found: dict[str, Any] = json.loads(serving.read_text(encoding="utf-8"))
    return found


def _send(folder: Path, port: int) -> None:
    """Send one study over DICOM, by DCMTK where it is installed."""
    peer = shutil.which("storescu")
    if peer is None:
        server = Destination(name="fastich", host="127.0.0.1", port=port, ae_title="FASTICH")
        for path in sorted(folder.iterdir()):
            dimse_client.send(server, "SCANNER", path.read_bytes(), 30.0)
        return
    command = [peer, "-aet", "SCANNER", "-aec", "FASTICH", "127.0.0.1", str(port), "+sd", str(folder)]
    status = subprocess.run(command, check=False).returncode
    if status:
        raise FastichError(f"storescu ended with status {status} (see above)")


def _final(api: httpx.Client, count: int) -> list[dict[str, Any]]:
    """The worklist once every study has its final state."""
    while True:
        answer = api.get("studies").raise_for_status().json()
        rows: list[dict[str, Any]] = answer["studies"]
        if len(rows) >= count and all(row["state"] in FINAL for row in rows):
            return rows
        time.sleep(0.2)


def table(rows: list[dict[str, Any]], bleeds: dict[str, str]) -> str:
    """The worklist from the top, with the order of arrival and what is truly there beside it."""
    arrived = sorted(row["arrived_at"] for row in rows)
    lines = [("place", "came", "verdict", "p(any)", "after", "truly there")]
    for place, row in enumerate(rows, start=1):
        probability = row["probability"]
        took_s = None if row["final_at"] is None else row["final_at"] - row["last_at"]
        lines.append(
            (
                str(place),
                str(arrived.index(row["arrived_at"]) + 1),
                row["title"],
                "-" if probability is None else f"{probability['any']:.3f}",
                "-" if took_s is None else f"{took_s:.1f} s",
                bleeds.get(row["study_uid"], "?"),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


if __name__ == "__main__":
    run(main, sys.argv[1:])
