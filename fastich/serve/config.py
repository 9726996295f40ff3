"""What the triage server can be told: one TOML file, every key with its default, checked once before anything starts.

Unknown keys, wrong types and values that mean nothing are one line each, naming file and key. Secrets stand in files of
their own, never in this one.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastich.artifact import FLOAT32, PRECISIONS
from fastich.serve.session import BACKENDS


def key(default: Any, help: str, *, choices: tuple[str, ...] = ()) -> Any:
    """A key of the TOML file, with what it means."""
    made = {"help": help, "choices": choices}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=made)
    return dataclasses.field(default=default, metadata=made)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """[model]: what scores."""

    folder: Path | None = key(None, "model folder that export/to_onnx.py wrote (or --model)")
    device: str = key("cpu", "where it runs; cuda demanded and absent is an error", choices=("cpu", "cuda"))
    backend: str = key("auto", "what runs it", choices=(*BACKENDS, "auto"))
    precision: str = key(FLOAT32, "of the network; int8 and float16 need their file", choices=PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class SpoolConfig:
    """[spool]: where everything that was taken in lives."""

    folder: Path | None = key(None, "folder of objects, database and token (or --spool)")
    min_free_mib: int = key(2048, "below this much free disk nothing is taken in (0xA700, 507 and 503)")
    max_object_mib: int = key(512, "largest object that is taken in, MiB")
    max_waiting: int = key(20_000, "instances that may wait for scoring; beyond it senders are told to come back")


@dataclass(frozen=True, kw_only=True)
class DatabaseConfig:
    """[database]: SQLite in the spool, or PostgreSQL."""

    url: str = key("", "postgresql://user@host/name (password in ~/.pgpass); empty: SQLite in the spool")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """[[dicom.peers]]: who may send. Without any, every caller is taken."""

    ae_title: str = key("", "calling AE title; empty: any")
    address: str = key("", "IP address or network (192.0.2.0/24); empty: any")


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """[dicom.tls], [http.tls]: certificate and key, PEM; with ``client_ca`` callers need a certificate of that CA."""

    certificate: Path | None = key(None, "certificate chain, PEM; empty: no TLS")
    private_key: Path | None = key(None, "its private key, PEM")
    client_ca: Path | None = key(None, "CA whose certificates callers must show, PEM")


@dataclass(frozen=True, kw_only=True)
class DicomConfig:
    """[dicom]: the storage SCP."""

    enabled: bool = key(True, "listen for C-STORE and C-ECHO")
    host: str = key("127.0.0.1", "address to listen on; 0.0.0.0 for every interface")
    port: int = key(11112, "port; 0 takes a free one")
    ae_title: str = key("FASTICH", "called AE title; others are rejected")
    peers: tuple[Peer, ...] = key((), "who may send")
    tls: TlsConfig = key(TlsConfig, "TLS")
    max_associations: int = key(20, "associations at a time")
    max_sockets_per_address: int = key(8, "open connections of one address")
    acse_timeout_s: float = key(5.0, "seconds that a connection may stay without an association")
    dimse_timeout_s: float = key(30.0, "seconds between messages of an association")
    min_bytes_per_s: int = key(1024, "a sender slower than this is cut off")


@dataclass(frozen=True, kw_only=True)
class HttpConfig:
    """[http]: page, API, STOW-RS, uploads."""

    enabled: bool = key(True, "listen for HTTP")
    host: str = key("127.0.0.1", "address to listen on")
    port: int = key(8080, "port; 0 takes a free one")
    allowed_hosts: tuple[str, ...] = key(("127.0.0.1", "localhost"), "names that the Host header may hold")
    tls: TlsConfig = key(TlsConfig, "TLS")
    auth: str = key("token", "token: tokens of the spool; proxy: a reverse proxy's headers", choices=("token", "proxy"))
    proxy_addresses: tuple[str, ...] = key(("127.0.0.1",), "addresses of the reverse proxy whose headers are believed")
    proxy_user_header: str = key("X-Forwarded-User", "header with the user's name")
    proxy_role_header: str = key("X-Forwarded-Role", "header with viewer or admin")
    max_connections_per_address: int = key(
        128, "open connections of one address; a proxy's with auth proxy: any number"
    )
    max_body_mib: int = key(2048, "largest request body, MiB")
    max_parts: int = key(5000, "instances in one STOW-RS request or files in one zip")
    max_uploads: int = key(16, "bodies that are taken in at a time; beyond it senders are told to come back")
    body_timeout_s: float = key(30.0, "seconds that a body may stand still; its rate is taken over as many")
    min_bytes_per_s: int = key(1024, "a body that comes slower than this is cut off")


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """[watch]: a folder whose files are taken in."""

    folder: Path | None = key(None, "files are taken in once they stop growing, then moved to done/ or refused/")
    interval_s: float = key(1.0, "seconds between looks")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """[scoring]: when and how."""

    batch_size: int = key(8, "slices a run of the model")
    max_wait_ms: int = key(20, "how long a slice waits for others to fill its batch")
    decode_workers: int = key(2, "slices decoded at once")
    quiet_s: float = key(5.0, "a study is complete when nothing came for so long")
    lease_s: float = key(120.0, "work that was taken and not finished is taken again after this")
    max_attempts: int = key(3, "tries before an instance or study counts as failed")
    top_k: int = key(3, "slices of the top-k mean")
    rules: Path | None = key(None, "TOML of the eligibility rules; empty: the built-in ones (fastich.gate --show)")


@dataclass(frozen=True, kw_only=True)
class Destination:
    """[[destinations]]: where results go."""

    name: str = key("", "a name of your own, unique")
    kind: str = key("dimse", "C-STORE or STOW-RS", choices=("dimse", "stow"))
    host: str = key("", "of the DICOM peer")
    port: int = key(104, "of the DICOM peer")
    ae_title: str = key("", "called AE title of the peer")
    url: str = key("", "STOW-RS base, e.g. https://pacs.example/dicom-web")
    token_file: Path | None = key(None, "file with a bearer token for STOW-RS")
    tls: TlsConfig = key(TlsConfig, "TLS; client_ca verifies the peer")
    use_tls: bool = key(False, "DICOM over TLS")
    send: tuple[str, ...] = key(("sr", "sc"), "what it gets: sr, sc")
    only_raised: bool = key(False, "only studies that are flagged or human first")


@dataclass(frozen=True, kw_only=True)
class WebhookConfig:
    """[webhook]: a signed POST for each result."""

    url: str = key("", "where to; empty: none")
    secret_file: Path | None = key(None, "file with the key of the HMAC-SHA256 signature")
    body: str = key("json", "json: our own; fhir: a DiagnosticReport", choices=("json", "fhir"))
    only_raised: bool = key(True, "only studies that are flagged or human first")


@dataclass(frozen=True, kw_only=True)
class DeliveryConfig:
    """[delivery]: how results are tried again."""

    first_retry_s: float = key(5.0, "wait after the first failure; doubles each time")
    max_retry_s: float = key(600.0, "longest wait between tries")
    max_attempts: int = key(200, "tries before a message is a dead letter (200 at 600 s: more than a day)")
    timeout_s: float = key(30.0, "of one try")


@dataclass(frozen=True, kw_only=True)
class RetentionConfig:
    """[retention]: what is deleted, and when."""

    pixels_days: float = key(7.0, "objects of finished studies are deleted after this; 0: never")
    studies_days: float = key(90.0, "studies with their results are deleted after this; 0: never")


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """[audit]: who did what, as JSON lines and, where asked, as syslog messages of PS3.15 A.5."""

    file: Path | None = key(None, "JSON lines; empty: audit.jsonl in the spool")
    syslog_host: str = key("", "audit record repository; empty: none")
    syslog_port: int = key(514, "its UDP port")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """[log]: what the process says, on stderr."""

    level: str = key("info", "least severe level", choices=("debug", "info", "warning", "error"))
    format: str = key("text", "text, or JSON lines", choices=("text", "json"))


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Everything."""

    model: ModelConfig = key(ModelConfig, "what scores")
    spool: SpoolConfig = key(SpoolConfig, "where everything lives")
    database: DatabaseConfig = key(DatabaseConfig, "the store")
    dicom: DicomConfig = key(DicomConfig, "the storage SCP")
    http: HttpConfig = key(HttpConfig, "page and API")
    watch: WatchConfig = key(WatchConfig, "a watched folder")
    scoring: ScoringConfig = key(ScoringConfig, "scoring")
    destinations: tuple[Destination, ...] = key((), "where results go")
    webhook: WebhookConfig = key(WebhookConfig, "a signed POST")
    delivery: DeliveryConfig = key(DeliveryConfig, "retries")
    retention: RetentionConfig = key(RetentionConfig, "deletion")
    audit: AuditConfig = key(AuditConfig, "audit trail")
    log: LogConfig = key(LogConfig, "log")
