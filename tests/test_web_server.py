"""The HTTP listener: starts, says where, speaks TLS by the same rules as DICOM, and lets go of its port."""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from certificates import Authority
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from fastich.errors import FastichError
from fastich.serve import web_server
from fastich.serve.config import HttpConfig, TlsConfig
from fastich.serve.web_server import WebServer

APP = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])


@contextlib.contextmanager
def listening(**values: object) -> Iterator[WebServer]:
    server = WebServer(APP, HttpConfig(port=0, **values))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def half_sent(server: WebServer, source: str = "127.0.0.1") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", server.port), 20, source_address=(source, 0))
    made.sendall(b"GET / HTTP/1.1\r\nHost: 12")
    return made


def read_to(peer: socket.socket, end: bytes) -> bytes:
    """What comes until ``end`` did."""
    data = b""
    while not data.endswith(end) and (piece := peer.recv(4096)):
        data += piece
    return data


def ended(peer: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        return peer.recv(1) == b""
    return True


def test_one_address_cannot_stop_the_page_for_the_others() -> None:
    with listening() as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(half_sent(server, "127.0.0.2")) for _ in range(300)]
        assert ended(peers[-1])
        assert httpx.get(server.url).text == "here"
        assert server._socket._open["127.0.0.2"] == 128


def test_closed_connections_make_room_again() -> None:
    with listening(max_connections_per_address=2) as server:
        first, second, third = (half_sent(server) for _ in range(3))
        assert ended(third)
        for peer in (first, second, third):
            peer.close()
        until = time.monotonic() + 5
        while server._socket._open and time.monotonic() < until:
            time.sleep(0.01)
        assert httpx.get(server.url).text == "here"


def test_a_proxy_may_have_as_many_connections_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "MAX_SOCKETS", 4)
    with listening(max_connections_per_address=1, auth="proxy") as server, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(half_sent(server)) for _ in range(5)]
        assert ended(peers[4])
        peers[3].sendall(b"7.0.0.1\r\n\r\n")
        assert peers[3].recv(12) == b"HTTP/1.1 200"


def test_a_head_that_does_not_come_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "HEAD_LIMIT_S", 0.3)
    with listening() as server, contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
        slow = stack.enter_context(half_sent(server))
        again = stack.enter_context(half_sent(server))
        again.sendall(b"7.0.0.1\r\n\r\n")
        assert read_to(again, b"here").startswith(b"HTTP/1.1 200")
        again.sendall(b"GET /")
        assert all(ended(peer) for peer in (silent, slow, again))


def test_a_body_may_take_longer_than_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "HEAD_LIMIT_S", 0.2)

    async def length(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    server = WebServer(Starlette(routes=[Route("/", length, methods=["POST"])]), HttpConfig(port=0))
    server.start()
    try:
        with socket.create_connection(("127.0.0.1", server.port), 20) as peer:
            peer.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na")
            time.sleep(0.5)
            peer.sendall(b"b")
            assert read_to(peer, b"\r\n\r\n2").startswith(b"HTTP/1.1 200")
    finally:
        server.stop()


def test_it_answers_where_it_says_and_lets_go_of_the_port() -> None:
    server = WebServer(APP, HttpConfig(port=0))
    server.start()
    assert server.url == f"http://127.0.0.1:{server.port}/"
    answer = httpx.get(server.url)
    assert answer.text == "here"
    assert "server" not in answer.headers
    server.stop()
    socket.create_server(("127.0.0.1", server.port)).close()


def test_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FastichError, match=rf"\[http\] .*:{port}: cannot listen \(Address already in use"):
            WebServer(APP, HttpConfig(port=port))


def test_https_wants_a_client_certificate_where_a_ca_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ours, theirs = authority.issue("server"), authority.issue("client")
    tls = TlsConfig(certificate=ours.certificate, private_key=ours.private_key, client_ca=authority.certificate)
    server = WebServer(APP, HttpConfig(port=0, tls=tls))
    server.start()
    try:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(authority.certificate))
        context.check_hostname = False
        with httpx.Client(verify=context) as stranger, pytest.raises(httpx.TransportError):
            stranger.get(server.url)
        context.load_cert_chain(theirs.certificate, theirs.private_key)
        with httpx.Client(verify=context) as known:
            assert known.get(server.url).text == "here"
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        old.set_ciphers("AES128-SHA")
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with httpx.Client(verify=old) as weak, pytest.raises(httpx.TransportError):
            weak.get(server.url)
    finally:
        server.stop()


def test_a_damaged_certificate_is_one_line(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue("server")
    pair.certificate.write_text("no PEM", encoding="utf-8")
    with pytest.raises(FastichError, match=r"http\.tls"):
        WebServer(APP, HttpConfig(port=0, tls=TlsConfig(certificate=pair.certificate, private_key=pair.private_key)))
