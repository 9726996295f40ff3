"""Who asks, and may they? Bearer tokens for programs, a login form and a signed cookie for browsers, or a proxy's word.

Rules, in the order in which they are looked at:

- ``/health/*``, ``/v2/health/*``, the login form and its style need nobody. ``/metrics`` needs nobody from loopback, as
  long as no header says that a proxy stands between; it holds no patient data.
- viewers read, score through KServe, acknowledge and comment; admins also send studies in (STOW-RS, zip), say how many
  instances are to come, look at dead letters and send them again.
- What changes something and was let in by a cookie or a proxy must come from our own pages (Origin, Sec-Fetch-Site).
- Ten wrong tokens from an address within a minute: it waits for the rest of that minute, whatever it says then.
"""

import ipaddress
import logging
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fastich.serve.config import HttpConfig
from fastich.serve.web.guards import error_answer
from fastich.serve.web.jinja import page
from fastich.serve.web.limits import FailedLogins
from fastich.serve.web.parts import Parts, parts_of
from fastich.serve.web.tokens import ROLES, SESSION_S, Caller, Tokens, user_name

LOG = logging.getLogger(__name__)
COOKIE = "fastich_session"
OPEN = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/login", "/logout", "/favicon.ico")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")


class Denied(Exception):
    """A request that is not let in: HTTP status, one line, seconds to wait."""

    def __init__(self, status: int, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.message, self.wait_s = status, message, wait_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Doorman:
    """Finds out who asks."""

    config: HttpConfig
    tokens: Tokens
    failures: FailedLogins
    clock: Callable[[], float]

    def caller(self, connection: HTTPConnection) -> Caller:
        """Who asks.

        Raises:
            Denied: nobody that is known (401), or too many wrong tokens (429).
        """
        if self.config.auth == "proxy":
            return self._from_proxy(connection)
        scheme, _, secret = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            token = self.check(secret.strip(), address(connection))
            return Caller(user=token.user, role=token.role)
        found = self.tokens.open_cookie(connection.cookies.get(COOKIE, ""), self.clock())
        if found is None:
            raise Denied(401, "expected a token (Authorization: Bearer ...) or a login, found none that is known")
        return found

    def check(self, secret: str, where: str, typed: str = "") -> "Login":
        """The login of a token's text.

        Raises:
            Denied: it is wrong, or ``where`` has been wrong too often.
        """
        wait_s = self.failures.wait_s(where)
        if wait_s > 0:
            raise Denied(429, f"too many wrong tokens; wait {wait_s:.0f} s", wait_s)
        token = self.tokens.find(secret)
        if token is None:
            self.failures.failed(where)
            LOG.warning("a wrong token from %s", where)
            raise Denied(401, "that token is not known here")
        user = user_name(typed, token)
        return Login(user=user, role=token.role, cookie=self.tokens.cookie(token, user, self.clock()))

    def _from_proxy(self, connection: HTTPConnection) -> Caller:
        if not is_among(address(connection), self.config.proxy_addresses):
            raise Denied(401, "expected the reverse proxy (http.proxy_addresses), found another address")
        user = connection.headers.get(self.config.proxy_user_header, "")
        role = connection.headers.get(self.config.proxy_role_header, "")
        if not user:
            raise Denied(401, f"expected a user in {self.config.proxy_user_header}, found none")
        if role not in ROLES:
            raise Denied(403, f"expected viewer or admin in {self.config.proxy_role_header}, found another role")
        return Caller(user="".join(filter(str.isprintable, user))[:64], role=role)


@dataclass(frozen=True, kw_only=True, slots=True)
class Login:
    """A token that was right, and the cookie for it."""

    user: str
    role: str
    cookie: str


class Auth:
    """The layer that lets requests through to the routes."""

    def __init__(self, app: ASGIApp, doorman: Doorman) -> None:
        self._app, self._doorman = app, doorman

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or say why not."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        connection = HTTPConnection(scope)
        try:
            needed = needed_role(scope["method"], scope["path"], connection)
            if needed is not None:
                self._admit(connection, needed, scope)
        except Denied as denied:
            return await refusal(connection, denied)(scope, receive, send)
        return await self._app(scope, receive, send)

    def _admit(self, connection: HTTPConnection, needed: str, scope: Scope) -> None:
        caller = self._doorman.caller(connection)
        if needed == "admin" and caller.role != "admin":
            raise Denied(403, "expected the role admin, found viewer")
        is_bearer = "authorization" in connection.headers and self._doorman.config.auth == "token"
        if scope["method"] not in SAFE_METHODS and not is_bearer:
            require_same_origin(connection.headers)
        scope.setdefault("state", {})
        scope["state"]["user"], scope["state"]["role"] = caller.user, caller.role


def needed_role(method: str, path: str, connection: HTTPConnection) -> str | None:
    """The least role for a request; None where nobody need be known."""
    if path in OPEN or path.startswith("/static/"):
        return None
    if path == "/metrics" and is_local(connection):
        return None
    sends = method == "POST" and (path == "/studies" or path.startswith("/dicom-web/") or path.endswith("/expect"))
    return "admin" if sends or path.startswith(("/dead-letters", "/deliveries")) else "viewer"


def refusal(connection: HTTPConnection, denied: Denied) -> Response:
    """The answer: the login form for a browser that looks for a page, else one line of JSON."""
    asks_for_page = connection.scope["method"] == "GET" and "text/html" in connection.headers.get("accept", "")
    if denied.status == 401 and asks_for_page and parts_of_scope(connection).config.http.auth == "token":
        return RedirectResponse("/login", status_code=303)
    headers = {"Retry_After": f"{denied.wait_s:.0f}"} if denied.wait_s else {}
    if denied.status == 401:
        headers["WWW_Authenticate"] = 'Bearer realm="fastich"'
    return error_answer(denied.status, denied.message, **headers)


def parts_of_scope(connection: HTTPConnection) -> Parts:
    """The parts of the application that a connection came to."""
    found: Parts = connection.scope["app"].state.parts
    return found


def require_same_origin(headers: Headers) -> None:
    """Let through what our own pages send; the scheme is left out, for TLS may end at a proxy.

    Raises:
        Denied: the request came from elsewhere, or a browser does not say where from.
    """
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is not None:
        _, _, place = origin.partition("://")
        is_ours = place != "" and place == headers.get("host", "")
    else:
        is_ours = site == "same-origin"
    if not is_ours:
        raise Denied(403, "expected a request of our own page (Origin), found another or none; programs use a token")


def address(connection: HTTPConnection) -> str:
    """The peer's IP address; "" where the server does not know it."""
    return connection.client.host if connection.client else ""


def is_among(text: str, networks: tuple[str, ...]) -> bool:
    """Tell whether an address is one of, or in one of, ``networks``."""
    try:
        found = ipaddress.ip_address(text)
        return any(found in ipaddress.ip_network(network, strict=False) for network in networks)
    except ValueError:
        return False


def is_local(connection: HTTPConnection) -> bool:
    """Tell whether a request comes from this machine and through no proxy."""
    told = any(name in connection.headers for name in FORWARDED)
    return is_among(address(connection), ("127.0.0.0/8", "::1/128")) and not told


async def login(request: Request) -> Response:
    """GET: the form. POST: a token and a name for a cookie and the worklist. No page behind a proxy that knows who."""
    if parts_of(request).config.http.auth == "proxy":
        return error_answer(404, "no such page")
    if request.method != "POST":
        return page(request, "login.html", error="")
    doorman: Doorman = request.app.state.doorman
    audit = parts_of(request).audit
    fields = parse_qs((await request.body()).decode("utf-8", "replace"))
    try:
        require_same_origin(request.headers)
        found = doorman.check(fields.get("token", [""])[0].strip(), address(request), fields.get("name", [""])[0])
    except Denied as denied:
        if denied.status == 401:  # ``FailedLogins`` lets an address have ten of them a minute, the others any number
            await run_in_threadpool(audit.record, "login", who=address(request), outcome="failure")
        return page(request, "login.html", status=denied.status, error=denied.message)
    await run_in_threadpool(audit.record, "login", who=found.user, outcome="success")
    answer = RedirectResponse("/", status_code=303)
    answer.set_cookie(
        COOKIE,
        found.cookie,
        max_age=int(SESSION_S),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


async def logout(request: Request) -> Response:
    """Forget the cookie."""
    try:
        require_same_origin(request.headers)
    except Denied as denied:
        return refusal(request, denied)
    answer = RedirectResponse("/login", status_code=303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
