"""TLS as a client: the peer's certificate is checked, against a CA of the site where one is named."""

import ssl
from pathlib import Path

from fastich.errors import FastichError
from fastich.serve.config import TlsConfig


def client_context(config: TlsConfig) -> ssl.SSLContext:
    """TLS 1.2 or newer; ``client_ca`` (else the system's CAs) must have signed the peer, whose name must fit.

    Raises:
        FastichError: a file cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=config.client_ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if config.certificate is not None:
            context.load_cert_chain(config.certificate, config.private_key)
    except (OSError, ssl.SSLError) as error:
        raise FastichError(f"tls: {_files(config)}: cannot be used ({error}); give PEM files") from error
    return context


def _files(config: TlsConfig) -> str:
    files: tuple[Path | None, ...] = (config.certificate, config.private_key, config.client_ca)
    return ", ".join(str(path) for path in files if path is not None)
