"""HTTP as a client, for STOW-RS and the webhook: time limits, no redirects, answers judged in one place."""

from collections.abc import Mapping
from pathlib import Path

import httpx

from fastich.errors import FastichError
from fastich.serve.config import TlsConfig
from fastich.serve.outputs.send_error import SendError
from fastich.serve.outputs.tls import client_context

PERMANENT = frozenset({400, 405, 406, 410, 413, 415, 422})
"""The peer understood and will not take it. 401, 403 and 404 are not here: a person may mend a token or a path."""
MAX_ANSWER_BYTES = 2**20


def post(name: str, url: str, body: bytes, headers: Mapping[str, str], tls: TlsConfig, timeout_s: float) -> bytes:
    """Post ``body``; the answer's body where it was 2xx. ``name`` is what errors call the peer.

    Redirects are not followed: what is posted is meant for one host. Proxies of the environment are not used.

    Raises:
        SendError: it was not taken, as far as is known.
    """
    verify = client_context(tls) if url.startswith("https:") else False
    try:
        with (
            httpx.Client(verify=verify, timeout=timeout_s, follow_redirects=False, trust_env=False) as client,
            client.stream("POST", url, content=body, headers=dict(headers)) as answer,
        ):
            found = _read(answer)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SendError(f"{name}: no answer ({type(error).__name__})") from error
    if answer.is_redirect:
        raise SendError(f"{name}: answered {answer.status_code}, a redirect, which is not followed; correct the URL")
    if not answer.is_success:
        raise RefusedError(name, answer.status_code, found)
    return found


class RefusedError(SendError):
    """An answer that is not 2xx; ``body`` may say why."""

    def __init__(self, name: str, status: int, body: bytes) -> None:
        super().__init__(f"{name}: answered {status}", permanent=status in PERMANENT)
        self.status, self.body = status, body


def _read(answer: httpx.Response) -> bytes:
    """At most ``MAX_ANSWER_BYTES`` of an answer."""
    found = b""
    for chunk in answer.iter_bytes():
        found += chunk
        if len(found) > MAX_ANSWER_BYTES:
            break
    return found[:MAX_ANSWER_BYTES]


def read_secret(path: Path | None, what: str) -> str:
    """The one line of a file with a secret.

    Raises:
        FastichError: there is none. The secret is never in the message.
    """
    if path is None:
        raise FastichError(f"{what}: expected the path of a file, found none")
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FastichError(f"{what}: {path}: cannot be read ({type(error).__name__})") from error
    if not secret:
        raise FastichError(f"{what}: {path}: expected one line, found an empty file")
    return secret
