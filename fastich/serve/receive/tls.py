"""TLS for DICOM and HTTP: one server context, TLS 1.2 or newer, forward secrecy and authenticated encryption only.

Source: PS3.15 B.10 (non-downgrading BCP 195 profile), RFC 9325 section 4.2 (cipher suites).
"""

import ssl
from pathlib import Path

from fastich.errors import FastichError
from fastich.serve.config import TlsConfig

CIPHERS = ":".join(
    f"ECDHE-{key}-{cipher}" for cipher in ("AES128-GCM-SHA256", "AES256-GCM-SHA384") for key in ("ECDSA", "RSA")
)
"""Of TLS 1.2, RFC 9325 section 4.2; those of TLS 1.3 are all of this kind."""


def server_context(config: TlsConfig, where: str) -> ssl.SSLContext | None:
    """The context of a listening socket, None where no certificate is set; ``where`` names the table in messages.

    With ``client_ca`` a caller without a certificate of that CA does not get through the handshake.

    Raises:
        FastichError: a file is missing, unreadable or does not fit.
    """
    if config.certificate is None:
        if config.private_key or config.client_ca:
            raise FastichError(f"{where}: expected certificate beside private_key and client_ca, found none; set it")
        return None
    if config.private_key is None:
        raise FastichError(f"{where}: expected private_key beside certificate, found none; set it")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    for path in (config.certificate, config.private_key):
        _require(path, where)
    try:
        context.load_cert_chain(config.certificate, config.private_key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise FastichError(
            f"{where}: {config.certificate} and {config.private_key}: expected a PEM certificate chain and its "
            f"unencrypted key, found {_words(error)}; check both with openssl"
        ) from error
    if config.client_ca is not None:
        _require(config.client_ca, where)
        _demand_clients(context, config.client_ca, where)
    return context


def _demand_clients(context: ssl.SSLContext, authority: Path, where: str) -> None:
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(authority)
    except ssl.SSLError as error:
        raise FastichError(f"{where}: {authority}: expected CA certificates in PEM, found {_words(error)}") from error


def _no_password() -> str:
    """In place of OpenSSL's prompt, which would wait for a terminal."""
    raise ValueError("an encrypted key")


def _require(path: Path, where: str) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise FastichError(f"{where}: {path}: expected a PEM file, found {error.strerror}") from error


def _words(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error).lower().replace("_", " ")
