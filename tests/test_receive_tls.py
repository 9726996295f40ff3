"""TLS of the DICOM port: only with a certificate that was asked for, only TLS 1.2 and newer, only good ciphers."""

import contextlib
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority, Pair, private_pem
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from peers import needs
from receive_data import Port, associate_rq, ct_bytes, dicom_port, is_closed_within, scu, stored_files

from fastich.errors import FastichError
from fastich.serve.config import TlsConfig
from fastich.serve.receive.tls import server_context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pair:
    return authority.issue("server")


@pytest.fixture(scope="module")
def client(authority: Authority) -> Pair:
    return authority.issue("client")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Authority(tmp_path_factory.mktemp("other"), "other-ca").issue("stranger")


@contextlib.contextmanager
def tls_port(folder: Path, server: Pair, client_ca: Path | None) -> Iterator[Port]:
    tls = TlsConfig(certificate=server.certificate, private_key=server.private_key, client_ca=client_ca)
    with dicom_port(folder, tls=tls) as port:
        yield port


def client_context(authority: Authority, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.certificate)
    context.check_hostname = False
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.private_key)
    return context


def is_associated(port: int, context: ssl.SSLContext) -> bool:
    """Whether an association comes about; in TLS 1.3 a client learns of its refusal when it reads."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        try:
            with context.wrap_socket(plain) as peer:
                peer.sendall(associate_rq())
                return peer.recv(1) == b"\x02"
        except (ssl.SSLError, ConnectionError):
            return False


@needs("storescu")
def test_storescu_with_a_certificate_of_the_ca_stores_over_mutual_tls(
    tmp_path: Path, authority: Authority, server: Pair, client: Pair
) -> None:
    (tmp_path / "one.dcm").write_bytes(ct_bytes())
    with tls_port(tmp_path / "spool", server, authority.certificate) as port:
        with_tls = ["+tls", client.private_key, client.certificate, "+cf", authority.certificate]
        command = ["storescu", *with_tls, "-aec", "FASTICH", "127.0.0.1", port.number, tmp_path / "one.dcm"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(stored_files(port.ingest)) == 1


@needs("echoscu")
def test_echoscu_without_tls_or_without_a_certificate_is_refused(
    tmp_path: Path, authority: Authority, server: Pair
) -> None:
    with tls_port(tmp_path, server, authority.certificate) as port:
        for options in ([], ["+tla", "+cf", str(authority.certificate)]):
            command = ["echoscu", *options, "-to", "5", "-aec", "FASTICH", "127.0.0.1", str(port.number)]
            assert subprocess.run(command, capture_output=True, timeout=30, check=False).returncode != 0
        assert not port.of("accepted")


def test_pynetdicom_talks_tls_both_ways(tmp_path: Path, authority: Authority, server: Pair, client: Pair) -> None:
    tls_args = (client_context(authority, client), "127.0.0.1")
    with (
        tls_port(tmp_path, server, authority.certificate) as port,
        scu(port.number, tls_args=tls_args) as association,
    ):
        assert association.is_established
        assert association.send_c_echo().Status == 0


def test_only_a_client_of_the_ca_gets_through(
    tmp_path: Path, authority: Authority, server: Pair, client: Pair, stranger: Pair
) -> None:
    with tls_port(tmp_path, server, authority.certificate) as port:
        assert is_associated(port.number, client_context(authority, client))
        assert not is_associated(port.number, client_context(authority))
        assert not is_associated(port.number, client_context(authority, stranger))
        assert port.wait_for("cut")["reason"].startswith("connection: ")


def test_without_a_client_ca_any_client_may_come_but_none_in_clear(
    tmp_path: Path, authority: Authority, server: Pair
) -> None:
    with tls_port(tmp_path, server, None) as port:
        assert is_associated(port.number, client_context(authority))
        with socket.create_connection(("127.0.0.1", port.number)) as plain:
            plain.sendall(associate_rq())
            assert is_closed_within(plain, 1.0)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_old_tls_is_refused(tmp_path: Path, authority: Authority, server: Pair) -> None:
    context = client_context(authority)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with tls_port(tmp_path, server, None) as port:
        assert is_associated(port.number, context)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        assert not is_associated(port.number, context)


@pytest.mark.parametrize("cipher", ["aNULL", "eNULL", "AES128-SHA", "AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA256"])
def test_a_cipher_without_identity_secrecy_or_authentication_is_refused(
    tmp_path: Path, authority: Authority, server: Pair, cipher: str
) -> None:
    context = client_context(authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    with tls_port(tmp_path, server, None) as port:
        assert not is_associated(port.number, context)


def test_a_client_that_never_shakes_hands_is_cut_and_holds_nobody_up(
    tmp_path: Path, authority: Authority, server: Pair
) -> None:
    with tls_port(tmp_path, server, None) as port, socket.create_connection(("127.0.0.1", port.number)) as silent:
        start = time.monotonic()
        assert is_associated(port.number, client_context(authority))
        assert time.monotonic() - start < 1
        silent.sendall(b"\x16")
        assert is_closed_within(silent, 3.0), "acse_timeout_s is 1"


def test_a_peer_over_tls_that_stops_in_the_middle_is_cut(tmp_path: Path, authority: Authority, server: Pair) -> None:
    context = client_context(authority)
    with tls_port(tmp_path, server, None) as port, socket.create_connection(("127.0.0.1", port.number)) as plain:
        with context.wrap_socket(plain) as peer:
            peer.sendall(associate_rq()[:20])
            assert is_closed_within(peer, 3.0)
        assert port.wait_for("cut")["reason"] == "no association within 1 s"


def test_no_certificate_means_no_tls() -> None:
    assert server_context(TlsConfig(), "http.tls") is None


def test_files_that_do_not_fit_are_one_line(tmp_path: Path, authority: Authority, server: Pair, client: Pair) -> None:
    text, locked, absent = tmp_path / "text.pem", tmp_path / "locked.key", tmp_path / "absent.pem"
    text.write_text("no PEM")
    key = load_pem_private_key(server.private_key.read_bytes(), None)
    locked.write_bytes(private_pem(key, b"secret"))  # type: ignore[arg-type]
    fits = {"certificate": server.certificate, "private_key": server.private_key}
    for changes, message in (
        ({"private_key": server.private_key}, "expected certificate beside private_key and client_ca, found none"),
        ({"certificate": server.certificate}, "expected private_key beside certificate, found none"),
        ({**fits, "certificate": absent}, f"{absent}: expected a PEM file, found No such file"),
        ({**fits, "private_key": client.private_key}, "its unencrypted key, found key values mismatch"),
        ({**fits, "private_key": locked}, "its unencrypted key, found an encrypted key"),
        ({**fits, "certificate": text}, "expected a PEM certificate chain"),
        ({**fits, "client_ca": text}, "expected CA certificates in PEM, found no certificate or crl found"),
        ({**fits, "client_ca": absent}, "expected a PEM file, found No such file"),
    ):
        with pytest.raises(FastichError, match="dicom.tls: .*" + re.escape(message)):
            server_context(TlsConfig(**changes), "dicom.tls")
