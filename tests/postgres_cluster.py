"""A PostgreSQL cluster of a test run's own: on a unix socket in a temporary folder, gone when the run ends."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

DEBIAN = "/usr/lib/postgresql/*/bin/initdb"
USERS = ("postgres", "nobody")
SETTINGS = (
    ("listen_addresses", "''"),
    ("fsync", "off"),
    ("shared_buffers", "16MB"),
    ("max_connections", "40"),
    ("dynamic_shared_memory_type", "mmap"),
)
"""``fsync`` is off for speed: no test of these cuts the power."""


def programs() -> Path | None:
    """The folder with ``initdb`` and ``pg_ctl``; Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    debian = sorted(Path("/").glob(DEBIAN.lstrip("/")))
    return debian[-1].parent if debian else None


def as_other(command: list[str]) -> list[str]:
    """``command`` as a user that PostgreSQL accepts: it refuses root."""
    return command if os.getuid() else ["runuser", "-u", owner(), "--", *command]


def owner() -> str:
    known = {line.split(":")[0] for line in Path("/etc/passwd").read_text().splitlines()}
    return next(user for user in USERS if user in known)


@contextmanager
def cluster() -> Iterator[str]:
    """The URL of a running cluster's database ``postgres``; ``{}`` in it stands for the name of a database."""
    bin_folder = programs()
    assert bin_folder is not None, "initdb: expected PostgreSQL, found none; deploy/install_peers.sh installs it"
    folder = Path(tempfile.mkdtemp(prefix="fastich-pg-", dir="/tmp"))  # a socket's path has 107 characters at most
    data, log = folder / "data", folder / "log"
    if not os.getuid():
        shutil.chown(folder, owner())
    _run(as_other([str(bin_folder / "initdb"), "-D", str(data), "-A", "trust", "-U", "fastich", "-E", "UTF8", "-N"]))
    options = f"-k {folder} " + " ".join(f"-c {name}={value}" for name, value in SETTINGS)
    control = [str(bin_folder / "pg_ctl"), "-D", str(data), "-w", "-t", "60"]
    _run(as_other([*control, "-l", str(log), "-o", options, "start"]))
    try:
        yield f"postgresql://fastich@/{{}}?host={folder}"
    finally:
        _run(as_other([*control, "-m", "immediate", "stop"]))
        shutil.rmtree(folder)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd="/", check=False)
    assert done.returncode == 0, f"{command[0]}: {done.stderr}"


def create_database(urls: str, name: str) -> str:
    """The URL of a new database ``name`` of the cluster."""
    with psycopg.connect(urls.format("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return urls.format(name)
