"""The server's settings: read strictly, checked at once, and the example says all of them."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from fastich.errors import UsageError
from fastich.serve import config_file
from fastich.serve.config import (
    Destination,
    DicomConfig,
    HttpConfig,
    ModelConfig,
    Peer,
    RetentionConfig,
    ScoringConfig,
    ServeConfig,
    SpoolConfig,
    TlsConfig,
    WebhookConfig,
)


def written(folder: Path, text: str) -> Path:
    path = folder / "fastich.toml"
    path.write_text(text, encoding="utf-8")
    return path


def sound(folder: Path, **changes: object) -> ServeConfig:
    model = ModelConfig(folder=folder)
    return dataclasses.replace(ServeConfig(model=model, spool=SpoolConfig(folder=folder)), **changes)


def test_an_empty_file_means_every_default(tmp_path: Path) -> None:
    assert config_file.read(written(tmp_path, "")) == ServeConfig()


def test_keys_of_tables_and_arrays_are_read_with_paths_beside_the_file(tmp_path: Path) -> None:
    text = """
    [spool]
    folder = "spool"
    [dicom]
    port = 0
    acse_timeout_s = 3
    [[dicom.peers]]
    ae_title = "CT1"
    [dicom.tls]
    certificate = "a.pem"
    [[destinations]]
    name = "pacs"
    host = "127.0.0.1"
    send = ["sr"]
    """
    found = config_file.read(written(tmp_path, text))
    assert found.spool.folder == tmp_path / "spool"
    assert found.dicom == DicomConfig(
        port=0, acse_timeout_s=3.0, peers=(Peer(ae_title="CT1"),), tls=TlsConfig(certificate=tmp_path / "a.pem")
    )
    assert found.destinations == (Destination(name="pacs", host="127.0.0.1", send=("sr",)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[dicom]\nprot = 1", r"fastich\.toml: dicom: prot: unknown key; expected one of enabled, host, port"),
        ("[dicom]\nport = '1'", r"dicom: port: expected int, found '1'"),
        ("[dicom]\nport = true", r"dicom: port: expected int, found True"),
        ("dicom = 3", r"dicom: expected a table, found int"),
        ("[http]\nallowed_hosts = 'a'", r"http: allowed_hosts: expected a list, found 'a'"),
        ("[http]\nallowed_hosts = [1]", r"http: allowed_hosts\[0\]: expected str, found 1"),
        ("[model]\ndevice = 'tpu'", r"model: device: expected one of cpu, cuda, found 'tpu'"),
        ("[spool]\nfolder = 3", r"spool: folder: expected a path, found 3"),
        ("[", r"expected TOML, found"),
    ],
)
def test_a_wrong_key_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config_file.read(written(tmp_path, text))


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: expected a TOML file, found none \(No such file"):
        config_file.read(tmp_path / "none.toml")


def test_sound_settings_have_no_problem(tmp_path: Path) -> None:
    assert config_file.problems(sound(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dicom": DicomConfig(enabled=False), "http": HttpConfig(enabled=False)}, "nothing listens"),
        ({"dicom": DicomConfig(port=70000)}, r"\[dicom\] port: expected 0 to 65535, found 70000"),
        ({"dicom": DicomConfig(ae_title="A" * 17)}, r"\[dicom\] ae_title: expected 1 to 16 ASCII characters"),
        ({"dicom": DicomConfig(ae_title=" ")}, r"\[dicom\] ae_title"),
        ({"dicom": DicomConfig(peers=(Peer(address="300.1"),))}, r"\[\[dicom.peers\]\] address: .* found '300.1'"),
        ({"scoring": ScoringConfig(quiet_s=0.0)}, r"\[scoring\] quiet_s: expected more than 0, found 0"),
        ({"scoring": ScoringConfig(quiet_s=float("nan"))}, r"\[scoring\] quiet_s: expected more than 0, found nan"),
        ({"retention": RetentionConfig(pixels_days=-1)}, r"\[retention\] pixels_days: expected 0 \(never\) or more"),
        ({"destinations": (Destination(host="h", ae_title="A"),)}, r"destinations\]\] 0: name: expected a name"),
        ({"destinations": (Destination(name="p", ae_title="A"),)}, r"\] p: host: expected a name or address"),
        ({"destinations": (Destination(name="p", host="h"),)}, r"\] p: ae_title: expected 1 to 16"),
        ({"destinations": (Destination(name="p", kind="stow", url="x"),)}, r"\] p: url: expected http"),
        (
            {"destinations": (Destination(name="p", host="h", ae_title="A", send=("rt",)),)},
            r"\] p: send: expected sr or sc, found 'rt'",
        ),
        ({"http": HttpConfig(proxy_addresses=("nginx",))}, r"\[http\] proxy_addresses: expected IP addresses"),
        ({"webhook": WebhookConfig(url="ftp://x")}, r"\[webhook\] url: expected http"),
        ({"webhook": WebhookConfig(url="http://x")}, r"\[webhook\] secret_file: expected a file with"),
        ({"model": ModelConfig()}, r"\[model\] folder: expected a model folder \(or --model\)"),
        ({"spool": SpoolConfig()}, r"\[spool\] folder: expected a folder \(or --spool\)"),
        ({"http": HttpConfig(tls=TlsConfig(certificate=Path("x")))}, r"\[http.tls\]: expected certificate and private"),
        ({"scoring": ScoringConfig(rules=Path("nowhere.toml"))}, r"\[scoring\] rules: expected a file, found none"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    found = config_file.problems(sound(tmp_path, **changes))
    assert any(re.search(message, line) for line in found), found


def test_the_example_names_every_key_and_means_the_defaults_when_uncommented(tmp_path: Path) -> None:
    example = config_file.example()
    assert config_file.read(written(tmp_path, example)) == ServeConfig()
    uncommented = "\n".join(
        line[2:] if re.match(r"# (\w+ = |\[\[?[a-z_.]+\]\]?$)", line) else line for line in example.splitlines()
    )
    found = config_file.read(written(tmp_path, uncommented))
    expected = ServeConfig(dicom=DicomConfig(peers=(Peer(),)), destinations=(Destination(),))
    assert found == expected
    keys = sum(len(table) for table in tomllib.loads(uncommented).values() if isinstance(table, dict))
    assert keys > 50
