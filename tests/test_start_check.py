"""What would stop a start is said before: a server that works is not ended by settings that do not."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority

from fastich.serve import start_check
from fastich.serve.config import (
    AuditConfig,
    DatabaseConfig,
    Destination,
    DicomConfig,
    HttpConfig,
    ModelConfig,
    Peer,
    ScoringConfig,
    ServeConfig,
    SpoolConfig,
    TlsConfig,
    WatchConfig,
    WebhookConfig,
)


def sound(folder: Path, **changes: Any) -> ServeConfig:
    made = ServeConfig(
        model=ModelConfig(folder=folder),
        spool=SpoolConfig(folder=folder / "spool"),
        dicom=DicomConfig(port=0),
        http=HttpConfig(port=0),
    )
    return dataclasses.replace(made, **changes)


def wrote(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def mismatched(folder: Path) -> TlsConfig:
    authority = Authority(folder)
    one, other = authority.issue("one"), authority.issue("other")
    return TlsConfig(certificate=one.certificate, private_key=other.private_key)


def a_destination(**changes: Any) -> dict[str, Any]:
    values = {"name": "p", "host": "h", "ae_title": "A"} | changes
    return {"destinations": (Destination(**values),)}


def a_bad_ca(folder: Path) -> dict[str, Any]:
    return a_destination(use_tls=True, tls=TlsConfig(client_ca=wrote(folder / "ca.pem", "x")))


def an_empty_secret(folder: Path) -> dict[str, Any]:
    return {"webhook": WebhookConfig(url="http://x", secret_file=wrote(folder / "secret", ""))}


def open_tokens(folder: Path) -> dict[str, Any]:
    wrote(folder / "spool" / "tokens.json", "[]", 0o644)
    return {}


def a_file_for_a_spool(folder: Path) -> dict[str, Any]:
    return {"spool": SpoolConfig(folder=wrote(folder / "file", "") / "spool")}


WRONG: list[tuple[Callable[[Path], dict[str, Any]], str]] = [
    (lambda at: {"scoring": ScoringConfig(rules=wrote(at / "r.toml", "x ="))}, r"\[scoring\] rules: .*not TOML"),
    (lambda at: {"http": HttpConfig(port=0, tls=mismatched(at))}, r"\[http\.tls\]: .*key values mismatch"),
    (lambda at: {"dicom": DicomConfig(port=0, tls=mismatched(at))}, r"\[dicom\.tls\]: .*key values mismatch"),
    (lambda _: {"dicom": DicomConfig(port=0, peers=(Peer(address="192.0.2.10/24"),))}, r"peers\]\] address: expected"),
    (lambda _: {"dicom": DicomConfig(port=0, host="192.0.2.1")}, r"\[dicom\] 192\.0\.2\.1:0: cannot listen"),
    (lambda _: a_destination(name="webhook"), r"not 'webhook'\), found 'webhook'"),
    (a_bad_ca, r"\[\[destinations\]\] p: tls: .*ca\.pem: cannot be used"),
    (an_empty_secret, r"\[webhook\]: secret_file"),
    (lambda at: {"watch": WatchConfig(folder=at / "absent")}, r"\[watch\] folder: expected a folder, found none at"),
    (lambda at: {"audit": AuditConfig(file=at / "absent" / "a")}, r"\[audit\] file: expected a folder, found none at"),
    (lambda at: {"audit": AuditConfig(file=at)}, r"\[audit\] file: expected a file that can be written"),
    (open_tokens, r"tokens\.json: expected mode 600, found 644"),
    (a_file_for_a_spool, r"\[spool\] folder: expected a folder, found none at"),
    (lambda _: {"database": DatabaseConfig(url="mysql://x")}, r"\[database\] url: expected postgresql://"),
    (lambda _: {"database": DatabaseConfig(url="postgresql://u:SECRET@127.0.0.1:1/x")}, r"\[database\] url: "),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_would_stop_a_start_is_said_before_it(
    tmp_path: Path, changes: Callable[[Path], dict[str, Any]], message: str
) -> None:
    found = start_check.problems(sound(tmp_path, **changes(tmp_path)))
    assert len(found) == 1, found
    assert re.search(message, found[0]), found
    assert "SECRET" not in found[0]


def test_sound_settings_make_nothing(tmp_path: Path) -> None:
    assert start_check.problems(sound(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_the_settings_by_themselves_come_first(tmp_path: Path) -> None:
    found = start_check.problems(sound(tmp_path, dicom=DicomConfig(port=-1)))
    assert found == ["[dicom] port: expected 0 to 65535, found -1"]
