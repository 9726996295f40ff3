"""Who may come in: bearer tokens, and the signed cookie that a browser gets for one. Files of the spool, mode 0600.

At first start two tokens are made, ``admin.token`` and ``viewer.token``, and ``session.key``, which signs cookies (they
outlive a restart; a token that is taken away ends its cookies). ``tokens.json`` may name more by their SHA-256 only:
``[{"name": "ris", "role": "viewer", "sha256": "..."}]``, from ``printf %s "$TOKEN" | sha256sum``; it is read again when
it changes, and while what is there then cannot be used, the list before it holds. Comparison takes the same time
whatever was guessed.
"""

import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
import threading
from dataclasses import dataclass
from pathlib import Path

from fastich.errors import FastichError
from fastich.verb import one_line

LOG = logging.getLogger(__name__)
ROLES = ("viewer", "admin")
TOKEN_BYTES = 32
SESSION_S = 12 * 3600.0
"""A shift."""
KEY_FILE, MORE_FILE = "session.key", "tokens.json"
NAME_CHARACTERS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who asks: ``user`` for the audit trail and beside comments, ``role`` viewer or admin."""

    user: str
    role: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One token by its hash."""

    name: str
    role: str
    sha256: str


class Tokens:
    """The tokens of one spool.

    Args:
        folder: the spool.

    Raises:
        FastichError: a file is readable by others, damaged, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._more_path = folder / MORE_FILE
        self._lock = threading.Lock()
        self._own = tuple(
            Token(name=role, role=role, sha256=_sha256(_secret(folder / f"{role}.token"))) for role in ROLES
        )
        self._key = _secret(folder / KEY_FILE).encode()
        self._stamp: tuple[int, ...] | None = None
        self._more: tuple[Token, ...] = ()
        check(folder)
        self._known()

    def find(self, secret: str) -> Token | None:
        """The token whose text is ``secret``."""
        asked, found = _sha256(secret), None
        for token in self._known():
            if hmac.compare_digest(asked, token.sha256):
                found = token
        return found

    def cookie(self, token: Token, user: str, now: float) -> str:
        """A signed session of ``user`` with the role of ``token``, for ``SESSION_S``."""
        body = json.dumps([token.name, token.sha256[:16], user, int(now + SESSION_S)], ensure_ascii=True).encode()
        return f"{_encode(body)}.{_encode(self._sign(body))}"

    def open_cookie(self, value: str, now: float) -> Caller | None:
        """Who a cookie belongs to; None where it is forged, out of date, or its token is gone."""
        body, mark = (_decode(part) for part in [*value.split("."), ""][:2])
        if not body or not hmac.compare_digest(self._sign(body), mark):
            return None
        name, start, user, ends = json.loads(body)
        alive = [token for token in self._known() if token.name == name and token.sha256[:16] == start]
        return Caller(user=user, role=alive[0].role) if alive and now < ends else None

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")

    def _known(self) -> tuple[Token, ...]:
        """All tokens; tokens.json is read where it changed, and the last sound one holds."""
        with self._lock:
            try:
                status = self._more_path.stat()
            except FileNotFoundError:
                self._more, self._stamp = (), None
                return self._own
            stamp = (status.st_mtime_ns, status.st_ctime_ns, status.st_size)  # ctime: chmod is a change too
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._more = _read_more(self._more_path)
                except FastichError as error:
                    LOG.error("the tokens before it still hold: %s", one_line(error))
            return (*self._own, *self._more)


def check(folder: Path) -> None:
    """Look at the secrets that are there, and make none.

    Raises:
        FastichError: as ``Tokens``.
    """
    for name in (*(f"{role}.token" for role in ROLES), KEY_FILE):
        if (folder / name).exists():
            _secret(folder / name)
    if (folder / MORE_FILE).exists():
        _read_more(folder / MORE_FILE)


def _read_more(path: Path) -> tuple[Token, ...]:
    """The tokens of tokens.json."""
    _refuse_open(path)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = tuple(Token(name=str(row["name"]), role=row["role"], sha256=row["sha256"].lower()) for row in rows)
        sound = all(one.role in ROLES and len(bytes.fromhex(one.sha256)) == 32 for one in found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise FastichError(f"{path}: expected a list of name, role, sha256, found {type(error).__name__}") from error
    if not sound:
        raise FastichError(f"{path}: expected role viewer or admin and sha256 of 64 hex digits, found others")
    return found


def _secret(path: Path) -> str:
    """The text of a secret's file, which is made where it is absent."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        _refuse_open(path)
        text = path.read_text(encoding="ascii").strip()
        if len(text) < TOKEN_BYTES:
            raise FastichError(f"{path}: expected a secret, found {len(text)} characters; remove the file") from None
        return text
    except OSError as error:
        raise FastichError(f"{path}: cannot be written ({error.strerror})") from error
    with os.fdopen(handle, "w", encoding="ascii") as file:
        text = secrets.token_urlsafe(TOKEN_BYTES)
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    return text


def _refuse_open(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise FastichError(f"{path}: expected mode 600, found {mode:o}: others can read it; chmod 600, or remove it")


def user_name(typed: str, token: Token) -> str:
    """Who is shown beside what was done: the token's name, behind any that was typed, which proves nothing."""
    kept = "".join(character for character in typed if character.isprintable()).strip()[:NAME_CHARACTERS]
    return f"{kept} ({token.name})" if kept else token.name


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""
