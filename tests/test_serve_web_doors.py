"""Who is let in, and what every answer carries: FACTS 6, item 24, and never more than one line of an error."""

import contextlib
import json
import re
from pathlib import Path
from urllib.parse import unquote

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from web_data import BASE, bearer, log_in, open_site, phantom_files, receive, small_model, uid

from fastich.serve.config import HttpConfig
from fastich.serve.web.app import build_app
from fastich.serve.web.auth import COOKIE
from fastich.serve.web.guards import SMALL_BODY_BYTES, host_name
from fastich.serve.web.limits import MAX_FAILURES

WEB = Path(__file__).parents[1] / "fastich" / "serve" / "web"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def site(tmp_path, model):
    with contextlib.closing(open_site(tmp_path, model)) as made:
        yield made


@pytest.fixture
def client(site):
    with TestClient(build_app(site.parts()), base_url=BASE, client=("127.0.0.1", 5000)) as made:
        yield made


PAGES = ["/", "/studies", "/events", "/worklist", "/drift", "/v2/models/ich", "/studies/1.2/slices/0.png", "/nowhere"]


@pytest.mark.parametrize("path", PAGES)
def test_facts_24_without_a_token_nothing_is_told(client, path):
    answer = client.get(path)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert "expected a token" in answer.json()["error"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost:8080@evil", "[::1]"])
def test_facts_24_other_hosts_are_refused(client, site, host):
    answer = client.get("/studies", headers=bearer(site) | {"Host": host})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("Host: not a name of this server")


def test_hosts_of_the_list_are_served_with_any_port(client, site):
    for host in ("127.0.0.1", "localhost:8080", "LOCALHOST"):
        assert client.get("/studies", headers=bearer(site) | {"Host": host}).status_code == 200
    assert host_name("[::1]:8080") == "::1"


def raw_get(app, raw_path: str, headers: list[tuple[str, str]]) -> int:
    """The status of a request whose path and headers no client has made tidy."""
    found: list[int] = []

    async def receive_nothing():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        if message["type"] == "http.response.start":
            found.append(message["status"])

    scope = {
        "type": "http",
        "method": "GET",
        "path": unquote(raw_path),
        "raw_path": raw_path.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "http_version": "1.1",
    }
    anyio.run(app, scope, receive_nothing, send)
    return found[0]


TRICKS = [
    "/static/../app.py",
    "/static/%2e%2e/app.py",
    "/static/..%2fapp.py",
    "/static/%252e%252e%252fapp.py",
    "/static/..\\app.py",
    "/static//etc/passwd",
    "/studies/..",
    "/studies/%00",
    "/studies/1.2%0d%0aSet-Cookie:x",
    "/studies/../../etc/passwd",
]


@pytest.mark.parametrize("path", TRICKS)
def test_facts_24_path_tricks_are_no_page(site, path):
    headers = [*bearer(site, "admin").items(), ("Host", "127.0.0.1")]
    assert raw_get(build_app(site.parts()), path, headers) == 404


def test_two_hosts_are_no_host(site):
    headers = [*bearer(site).items(), ("Host", "127.0.0.1"), ("Host", "127.0.0.1")]
    assert raw_get(build_app(site.parts()), "/studies", headers) == 400


def test_unknown_pages_and_methods_are_one_line(client, site):
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/studies/abc", 404), ("PUT", "/studies", 405)):
        answer = client.request(method, path, headers=bearer(site))
        assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_every_answer_carries_the_security_headers(client, site):
    answers = [client.get(path) for path in ("/studies", "/static/fastich.css", "/health/live", "/login")]
    for answer in [*answers, client.get("/studies", headers=bearer(site))]:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert re.fullmatch("[0-9a-f]{16}", answer.headers["X-Request-Id"])
    assert client.get("/studies", headers=bearer(site)).headers["Cache-Control"] == "no-store"
    assert client.get("/static/fastich.css").headers["Cache-Control"] == "no-cache"


def test_pages_hold_nothing_that_the_policy_forbids():
    for path in WEB.glob("templates/*.html"):
        text = path.read_text()
        assert not re.search(r"<script(?![^>]*(src=|application/json))", text), path.name
        assert not re.search(r"\s(style|on[a-z]+)=", text), path.name
        assert "<style" not in text, path.name
        assert "| safe" not in text, path.name
    for path in [*WEB.glob("templates/*.html"), *WEB.glob("static/*")]:
        assert not re.search(r"https?://(?!www\.w3\.org)", path.read_text()), path.name


def test_bodies_beyond_the_cap_are_refused_before_they_are_read(client, site):
    path = f"/studies/{uid(1)}/comments"
    said = client.post(path, headers=bearer(site) | {"Content-Length": str(4 * 2**30)}, content=b"")
    assert said.status_code == 413
    assert said.json()["error"] == f"body: expected at most {SMALL_BODY_BYTES} bytes, found more"
    assert client.post(path, headers=bearer(site) | {"Content-Length": "x"}, content=b"").status_code == 400
    chunks = iter([b"x" * 40_000] * 2)
    assert client.post(path, headers=bearer(site), content=chunks).status_code == 413


def test_internal_errors_are_one_line_and_the_log_holds_no_value(site, caplog):
    def breaks(request: Request) -> JSONResponse:
        raise RuntimeError("Doe^Jane is in here")

    parts = site.parts(extra_routes=[Route("/breaks", breaks)])
    with TestClient(build_app(parts), base_url=BASE) as client:
        answer = client.get("/breaks", headers=bearer(site))
    assert answer.status_code == 500
    assert re.fullmatch("internal error; the server's log has it under request [0-9a-f]{16}", answer.json()["error"])
    assert "RuntimeError at" in caplog.text
    assert "Doe" not in caplog.text


def test_login_gives_a_cookie_that_scripts_cannot_read(client, site):
    fields = {"token": site.token(), "name": "Kim"}
    answer = client.post("/login", data=fields, headers={"Origin": BASE}, follow_redirects=False)
    cookie = answer.headers["Set-Cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert site.token().lower() not in cookie
    page = client.get("/", headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert "Kim" in page.text


def test_browser_without_a_session_gets_the_form(client):
    answer = client.get("/", headers={"Accept": "text/html"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/login")
    assert 'name="token"' in client.get("/login").text


def test_sessions_end_and_can_be_ended(client, site):
    log_in(client, site.token())
    assert client.get("/studies").status_code == 200
    assert client.post("/logout", headers={"Origin": "https://evil.example"}).status_code == 403
    client.post("/logout", headers={"Origin": BASE})
    assert client.get("/studies").status_code == 401
    log_in(client, site.token())
    site.clock.now += 13 * 3600
    assert client.get("/studies").status_code == 401


def test_forged_cookies_are_nobody(client):
    client.cookies.set(COOKIE, "WyJhZG1pbiJd.AAAA")
    assert client.get("/studies").status_code == 401


def test_requests_of_other_sites_change_nothing(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:1])
    log_in(client, site.token())
    path = f"/studies/{uid(1)}/acknowledge"
    for headers in ({}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        answer = client.post(path, headers=headers)
        assert answer.status_code == 403, headers
        assert "expected a request of our own page" in answer.json()["error"]
    assert client.post(path, headers={"Origin": BASE}, json={"score_id": None}).json() == {"changed": True}
    assert client.request("DELETE", path, headers={"Sec-Fetch-Site": "same-origin"}).json() == {"changed": True}


def test_wrong_tokens_are_limited_and_then_right_ones_wait_too(client, site):
    for _ in range(MAX_FAILURES):
        assert client.get("/studies", headers={"Authorization": "Bearer wrong"}).status_code == 401
    answer = client.get("/studies", headers=bearer(site))
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "60")
    form = client.post("/login", data={"token": site.token()}, headers={"Origin": BASE})
    assert (form.status_code, "too many wrong tokens" in form.text) == (429, True)
    site.clock.now += 61
    assert client.get("/studies", headers=bearer(site)).status_code == 200


def test_wrong_token_in_the_form_is_told_and_audited(client, site):
    answer = client.post("/login", data={"token": "wrong"}, headers={"Origin": BASE})
    assert answer.status_code == 401
    assert "not known here" in answer.text
    last = json.loads((site.folder / "spool" / "audit.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["outcome"]) == ("login", "failure")


def test_tokens_in_addresses_are_worth_nothing(client, site):
    assert client.get(f"/studies?token={site.token()}&access_token={site.token()}").status_code == 401


ADMINS = [
    ("GET", "/dead-letters"),
    ("POST", "/deliveries/1/requeue"),
    ("POST", f"/studies/{uid(1)}/expect"),
    ("POST", "/studies"),
    ("POST", "/dicom-web/studies"),
]


@pytest.mark.parametrize(("method", "path"), ADMINS)
def test_viewers_do_not_administer(client, site, method, path):
    answer = client.request(method, path, headers=bearer(site))
    assert (answer.status_code, answer.json()["error"]) == (403, "expected the role admin, found viewer")
    assert client.request(method, path, headers=bearer(site, "admin")).status_code != 403


def test_receivers_learn_who_sends(site):
    def takes(request: Request) -> JSONResponse:
        return JSONResponse({"user": request.state.user})

    parts = site.parts(extra_routes=[Route("/studies", takes, methods=["POST"])])
    with TestClient(build_app(parts), base_url=BASE) as client:
        assert client.post("/studies", headers=bearer(site, "admin")).json() == {"user": "admin"}
        assert client.get("/studies", headers=bearer(site)).json()["studies"] == []


@pytest.fixture
def proxied(tmp_path, model):
    http = HttpConfig(auth="proxy", proxy_addresses=("192.0.2.0/24",))
    with contextlib.closing(open_site(tmp_path, model, http=http)) as made:
        yield made


def through(site, address: str, headers: dict[str, str], method: str = "GET", path: str = "/studies"):
    with TestClient(build_app(site.parts()), base_url=BASE, client=(address, 5000)) as client:
        return client.request(method, path, headers=headers)


def test_proxy_is_believed_from_its_address_only(proxied):
    said = {"X-Forwarded-User": "kim", "X-Forwarded-Role": "viewer"}
    assert through(proxied, "192.0.2.9", said).status_code == 200
    assert through(proxied, "198.51.100.1", said).status_code == 401
    assert through(proxied, "192.0.2.9", {}).status_code == 401
    assert through(proxied, "192.0.2.9", said | {"X-Forwarded-Role": "root"}).status_code == 403
    assert through(proxied, "192.0.2.9", bearer(proxied)).status_code == 401
    assert through(proxied, "192.0.2.9", {"Accept": "text/html"}).status_code == 401
    assert through(proxied, "192.0.2.9", {"Accept": "text/html"}, path="/login").status_code == 404


def test_headers_of_a_proxy_mean_nothing_where_none_is(client):
    said = {"X-Forwarded-User": "kim", "X-Forwarded-Role": "admin"}
    assert client.get("/studies", headers=said).status_code == 401


def test_what_changes_something_behind_a_proxy_is_ours(proxied):
    said = {"X-Forwarded-User": "kim", "X-Forwarded-Role": "admin"}
    path = "/deliveries/1/requeue"
    assert through(proxied, "192.0.2.9", said | {"Origin": "https://evil.example"}, "POST", path).status_code == 403
    assert through(proxied, "192.0.2.9", said | {"Origin": BASE}, "POST", path).status_code == 404


def test_a_flood_of_wrong_logins_is_ten_lines_of_the_audit_trail(client, site):
    headers = {"Origin": BASE}
    statuses = [client.post("/login", data={"token": "wrong"}, headers=headers).status_code for _ in range(30)]
    strange = [client.post("/login", data={"token": "x"}, headers={"Origin": "http://evil"}) for _ in range(5)]
    assert statuses == [401] * 10 + [429] * 20
    assert {answer.status_code for answer in strange} == {403}
    trail = (site.folder / "spool" / "audit.jsonl").read_text().splitlines()
    assert len([line for line in trail if json.loads(line)["event"] == "login"]) == 10
