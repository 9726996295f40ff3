"""The HTTP listener: starts, says where, speaks TLS by the same rules as DICOM, and lets go of its port."""

import socket
import ssl
from pathlib import Path

import httpx
import pytest
from certificates import Authority
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from fastich.errors import FastichError
from fastich.serve.config import HttpConfig, TlsConfig
from fastich.serve.web_server import WebServer

APP = Starlette(routes=[Route("/", lambda _: PlainTextResponse("here"))])


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
