import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from certificates import Authority, Pair
from outputs_data import phantom_study
from pynetdicom import AE, evt

from fastich.errors import FastichError
from fastich.serve.config import Destination, TlsConfig
from fastich.serve.outputs import dimse_client, source, sr, stow_client
from fastich.serve.outputs.send_error import SendError
from fastich.serve.outputs.tls import client_context

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""pynetdicom drops the socket of a failed handshake without closing it; Python closes it, and says so."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def peer_pair(authority: Authority) -> Pair:
    return authority.issue("peer")


@pytest.fixture
def report(tmp_path: Path) -> bytes:
    study = phantom_study(tmp_path / "in")
    return source.to_bytes(sr.build(study.result, source.read_header(study.key_path), study.sop_classes))


def server_context(pair: Pair, client_ca: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.private_key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


@contextmanager
def tls_pacs(context: ssl.SSLContext) -> Iterator[tuple[int, list[str]]]:
    stored: list[str] = []

    def on_store(event: evt.Event) -> int:
        stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0

    entity = AE(ae_title="PACS")
    entity.add_supported_context(sr.SOP_CLASS)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=context, evt_handlers=[(evt.EVT_C_STORE, on_store)]
    )
    try:
        yield server.server_address[1], stored
    finally:
        server.shutdown()
        server.server_close()


def pacs(port: int, tls: TlsConfig) -> Destination:
    return Destination(name="pacs", host="localhost", port=port, ae_title="PACS", use_tls=True, tls=tls)


def test_report_travels_over_tls_with_certificates_on_both_sides(
    authority: Authority, peer_pair: Pair, report: bytes
) -> None:
    ours = authority.issue("fastich")
    tls = TlsConfig(certificate=ours.certificate, private_key=ours.private_key, client_ca=authority.certificate)
    with tls_pacs(server_context(peer_pair, authority.certificate)) as (port, stored):
        assert dimse_client.send(pacs(port, tls), "FASTICH", report, 5) == ""
    assert len(stored) == 1


def test_peer_of_another_authority_gets_nothing(tmp_path: Path, authority: Authority, report: bytes) -> None:
    stranger = Authority(tmp_path / "other", "other-ca").issue("peer")
    with (
        tls_pacs(server_context(stranger)) as (port, stored),
        pytest.raises(SendError, match="no association within 5 s"),
    ):
        dimse_client.send(pacs(port, TlsConfig(client_ca=authority.certificate)), "FASTICH", report, 5)
    assert stored == []


def test_peer_without_tls_gets_nothing(authority: Authority, report: bytes) -> None:
    entity = AE(ae_title="PACS")
    entity.add_supported_context(sr.SOP_CLASS)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    try:
        where = pacs(server.server_address[1], TlsConfig(client_ca=authority.certificate))
        with pytest.raises(SendError, match="no association within 2 s"):
            dimse_client.send(where, "FASTICH", report, 2)
    finally:
        server.shutdown()
        server.server_close()


def test_stow_trusts_the_authority_of_the_site_only(authority: Authority, peer_pair: Pair, tmp_path: Path) -> None:
    with https(server_context(peer_pair)) as (url, posted):
        good = Destination(name="cloud", kind="stow", url=url, tls=TlsConfig(client_ca=authority.certificate))
        assert stow_client.send(good, "2.25.1", b"data", 5) == ""
        other = Authority(tmp_path / "other", "other-ca")
        bad = Destination(name="cloud", kind="stow", url=url, tls=TlsConfig(client_ca=other.certificate))
        with pytest.raises(SendError, match=r"^cloud \(STOW-RS\): no answer \(ConnectError\)$"):
            stow_client.send(bad, "2.25.2", b"data", 5)
    assert posted == ["/studies"]


@contextmanager
def https(context: ssl.SSLContext) -> Iterator[tuple[str, list[str]]]:
    posted: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            posted.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A handshake that the client broke off."""

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}", posted
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_old_versions_of_tls_are_refused(authority: Authority) -> None:
    context = client_context(TlsConfig(client_ca=authority.certificate))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(FastichError, match=r"^tls: .*ca\.pem: cannot be used \(.*\); give PEM files$"):
        client_context(TlsConfig(client_ca=tmp_path / "ca.pem"))
