import contextlib
import json

import httpx
import pytest
from starlette.testclient import TestClient
from web_data import BASE, bearer, open_site, phantom_files, receive, score, small_model, uid
from web_server import serving

from fastich.serve.web import events
from fastich.serve.web.app import build_app


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def site(tmp_path, model):
    with contextlib.closing(open_site(tmp_path, model)) as made:
        yield made


@pytest.fixture
def address(site):
    with serving(build_app(site.parts())) as made:
        yield made


@contextlib.contextmanager
def listening(address: str, headers: dict[str, str], query: str = ""):
    with (
        httpx.Client(timeout=20) as client,
        client.stream("GET", f"{address}/events{query}", headers=headers) as answer,
    ):
        yield answer, answer.iter_lines()


def next_event(lines) -> dict[str, str]:
    """The fields of the next event that is one."""
    found: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            found[name] = value
        elif "data" in found:
            return found
        else:
            found = {}
    raise AssertionError("the stream ended")


def test_change_is_told_at_once_and_names_nobody(address, site):
    with listening(address, bearer(site)) as (answer, lines):
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        receive(site, uid(1), phantom_files(uid(1))[:1])
        found = next_event(lines)
    assert found["event"] == "study"
    assert json.loads(found["data"])["study_uid"] == uid(1)
    assert "Doe" not in found["data"]


def test_stream_goes_on_where_it_was_cut(address, site):
    receive(site, uid(1), phantom_files(uid(1))[:1])
    first = site.store.last_event_id()
    score(site, uid(1), triage="flag")
    with listening(address, bearer(site) | {"Last-Event-ID": str(first)}) as (_, lines):
        assert int(next_event(lines)["id"]) == first + 1
    with listening(address, bearer(site), f"?after={first}") as (_, lines):
        assert int(next_event(lines)["id"]) == first + 1


def test_odd_places_to_go_on_from_are_now(address, site):
    receive(site, uid(1), phantom_files(uid(1))[:1])
    last = site.store.last_event_id()
    for place in ("x", "-1", "99999999999"):
        with listening(address, bearer(site) | {"Last-Event-ID": place}) as (_, lines):
            site.store.add_comment(uid(1), "kim", place)
            found = next_event(lines)
        assert int(found["id"]) > last
        last = site.store.last_event_id()


def test_silence_is_broken_by_a_heartbeat(address, site, monkeypatch):
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.1)
    with listening(address, bearer(site)) as (_, lines):
        assert next(line for line in lines if line.startswith(":")) == ": still here"


def test_streams_are_counted_and_bounded(site, monkeypatch):
    monkeypatch.setattr(events, "MAX_CLIENTS", 0)
    with TestClient(build_app(site.parts()), base_url=BASE) as client:
        answer = client.get("/events", headers=bearer(site))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")


def test_stream_ends_when_the_server_stops(address, site):
    with listening(address, bearer(site)) as (_, lines):
        next(lines)
        site.stopping.set()
        assert not [line for line in lines if line.startswith("data")]


def test_stream_ends_after_its_time_so_that_a_cookie_is_shown_again(address, site, monkeypatch):
    monkeypatch.setattr(events, "MAX_STREAM_S", 0.5)
    with listening(address, bearer(site)) as (_, lines):
        assert not [line for line in lines if line.startswith("data")]
