"""Would a server start with these settings? Asked by ``--check-config``, at each start, and before a restart in place.

``config_file.problems`` looks at the settings by themselves. Here what they name is opened as the server will open it,
and nothing is made: a server that works must not be ended for settings that do not. A port that is taken is not seen,
for the one who asks may be the one who holds it.
"""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from fastich.errors import FastichError
from fastich.gate_rules import load_rules
from fastich.serve import config_file
from fastich.serve.config import Destination, ServeConfig
from fastich.serve.outputs.http_client import read_secret
from fastich.serve.outputs.policy import names_of
from fastich.serve.outputs.tls import client_context
from fastich.serve.receive.tls import server_context
from fastich.serve.receive.watch import DONE, REFUSED
from fastich.serve.store import postgres
from fastich.serve.web import tokens
from fastich.verb import one_line


def problems(config: ServeConfig) -> list[str]:
    """What cannot work, one line each; what the settings name is looked at once they are sound by themselves."""
    return config_file.problems(config) or [*_listening(config), *_leaving(config), *_kept(config)]


def _tried(where: str, action: Callable[[], object]) -> Iterator[str]:
    """The message of ``action``, where it raises one."""
    try:
        action()
    except FastichError as error:
        yield f"{where}: {one_line(error)}"
    except OSError as error:
        yield f"{where}: {error.filename or ''}: {error.strerror}"


def _listening(config: ServeConfig) -> Iterator[str]:
    if config.dicom.enabled:
        yield from _tried("[dicom.tls]", lambda: server_context(config.dicom.tls, "dicom.tls"))
        yield from _place("dicom", config.dicom.host, config.dicom.port)
    if config.http.enabled:
        yield from _tried("[http.tls]", lambda: server_context(config.http.tls, "http.tls"))
        yield from _place("http", config.http.host, config.http.port)
    if config.watch.folder is not None:
        yield from _folder("[watch] folder", config.watch.folder)
        for below in (DONE, REFUSED):
            yield from _folder("[watch] folder", config.watch.folder / below, absent_is_fine=True)


def _place(section: str, host: str, port: int) -> Iterator[str]:
    """An address that is not ours, or a port that is not allowed to us."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                yield f"[{section}] {host}:{port}: cannot listen ({error.strerror})"


def _leaving(config: ServeConfig) -> Iterator[str]:
    yield from _tried("destinations", lambda: names_of(config))
    for one in config.destinations:
        yield from _destination(one)
    hook = config.webhook
    if hook.url and hook.secret_file is not None:
        yield from _tried("[webhook]", lambda: read_secret(hook.secret_file, "secret_file"))


def _destination(one: Destination) -> Iterator[str]:
    where = f"[[destinations]] {one.name}"
    if one.use_tls or one.url.startswith("https:"):
        yield from _tried(where, lambda: client_context(one.tls))
    if one.token_file is not None:
        yield from _tried(where, lambda: read_secret(one.token_file, "token_file"))


def _kept(config: ServeConfig) -> Iterator[str]:
    """Rules, spool, tokens, audit trail, database."""
    folder = config.spool.folder
    assert folder is not None, "config_file.problems was asked"
    yield from _tried("[scoring] rules", lambda: load_rules(config.scoring.rules))
    yield from _folder("[spool] folder", folder, absent_is_fine=True)
    yield from _tried("[spool] folder", lambda: tokens.check(folder))
    audit = config.audit.file or folder / "audit.jsonl"
    if audit.exists() and not (audit.is_file() and os.access(audit, os.W_OK)):
        yield f"[audit] file: expected a file that can be written, found another at {audit}"
    elif config.audit.file is not None and not audit.exists():
        yield from _folder("[audit] file", audit.parent)
    yield from _database(config.database.url)


def _database(url: str) -> Iterator[str]:
    if url and not postgres.is_url(url):
        yield f"[database] url: expected {postgres.SCHEMES[0]}user@host/name, found another form"
    elif url:
        yield from _tried("[database] url", lambda: _connect(url))


def _connect(url: str) -> None:
    """Connect and leave; tables are left as they are."""
    timeout_s = float(postgres.CONNECT_TIMEOUT_S)
    postgres.PostgresConnection(url, postgres.place_of(url), timeout_s).close()


def _folder(where: str, path: Path, *, absent_is_fine: bool = False) -> Iterator[str]:
    """A folder that can be written or, where it is made at start, one that can be made."""
    found = path
    while absent_is_fine and not found.exists() and found != found.parent:
        found = found.parent
    if not found.is_dir():
        yield f"{where}: expected a folder, found none at {found}"
    elif not os.access(found, os.W_OK | os.X_OK):
        yield f"{where}: expected a folder that can be written, found another at {found}"
