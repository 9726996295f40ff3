"""What a hospital copies from deploy/ is right: parsed, compared with the code, and run by the programs it is for."""

import configparser
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from dicom_data import ct_file, slice_hu
from peers import needs

from fastich.serve import config_file
from fastich.serve.config import DicomConfig, HttpConfig
from fastich.serve.outputs.sender import DRAIN_S as SEND_DRAIN_S
from fastich.serve.receive.dimse import LAST_WAIT_S
from fastich.serve.server import DRAIN_S
from fastich.serve.web_server import GOODBYE_S, THREAD_LIMIT_S

PROJECT = Path(__file__).resolve().parents[1]
DEPLOY = PROJECT / "deploy"
MOST_EXPOSURE = 2.0
"""Of systemd-analyze security: 0 is sealed, 10 is open; a service without any setting has 9.6."""


def text(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


# --- settings ---


def test_example_settings_are_those_of_the_code() -> None:
    assert text("fastich.toml") == config_file.example(), "python -m fastich.serve --print-config > deploy/fastich.toml"


def test_example_settings_are_the_defaults_until_something_is_uncommented() -> None:
    assert not any(table for table in tomllib.loads(text("fastich.toml")).values() if not isinstance(table, dict))


# --- systemd ---


def unit() -> configparser.RawConfigParser:
    made = configparser.RawConfigParser(strict=False, delimiters="=", comment_prefixes="#")
    made.optionxform = str  # type: ignore[assignment,method-assign]
    made.read_string(text("fastich.service"))
    return made


def test_service_waits_longer_than_the_server_may_take_to_drain() -> None:
    """Receivers, HTTP, scoring and sending end one after the other (``Server.stop``)."""
    receivers, http, scoring, sending = DRAIN_S + LAST_WAIT_S, GOODBYE_S + THREAD_LIMIT_S, DRAIN_S, SEND_DRAIN_S
    limit_s = float(unit()["Service"]["TimeoutStopSec"])
    assert limit_s >= receivers + http + scoring + sending


def test_service_starts_the_server_as_a_user_of_its_own() -> None:
    service = unit()["Service"]
    words = service["ExecStart"].split()
    assert words[1:] == ["-m", "fastich.serve", "--config", "/etc/fastich/fastich.toml"]
    assert importlib.util.find_spec("fastich.serve") is not None
    assert service["User"] not in ("", "root")
    expected = {"Restart": "on-failure", "ProtectSystem": "strict", "NoNewPrivileges": "yes"}
    assert {name: service[name] for name in expected} == expected
    assert service["ReadWritePaths"] == "/var/lib/fastich"
    assert service["MemoryMax"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze: not installed")
def test_systemd_takes_the_service_and_finds_it_sealed(tmp_path: Path) -> None:
    path = tmp_path / "fastich.service"
    path.write_text(text("fastich.service").replace("/opt/fastich/bin/python", sys.executable), encoding="utf-8")
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--json=off", "--no-pager", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    exposure = re.search(r"exposure level for fastich\.service: ([0-9.]+)", found)
    assert exposure is not None, found[-500:]
    assert float(exposure[1]) <= MOST_EXPOSURE


# --- Docker ---


def instructions() -> list[tuple[str, str]]:
    """Instruction and its words, continued lines joined, comments left out."""
    lines = [line for line in text("Dockerfile").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined if line.strip()]


KNOWN = ("ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL",
         "ENTRYPOINT", "CMD")  # fmt: skip


def of(name: str, found: list[tuple[str, str]]) -> list[str]:
    return [words for instruction, words in found if instruction == name]


def test_dockerfile_has_instructions_that_docker_knows() -> None:
    found = instructions()
    assert {name for name, _ in found} <= set(KNOWN)
    stages = [words.split(" AS ")[1] for words in of("FROM", found) if " AS " in words]
    for words in of("FROM", found):
        assert words.split()[0] in ("${BASE}", *stages)
    for words in of("COPY", found):
        if words.startswith("--from="):
            assert words.split()[0].removeprefix("--from=") in stages


def test_what_the_image_copies_exists_and_is_let_through() -> None:
    ignore = text("Dockerfile.dockerignore").splitlines()
    assert ignore[1:2] == ["*"]
    for words in of("COPY", instructions()):
        for source in words.split()[:-1] if not words.startswith("--from=") else []:
            assert (PROJECT / source).exists(), source
            assert "!" + source.rstrip("/") in ignore
    assert "**/*.so" in ignore


def test_image_runs_the_server_without_root_and_asks_it_whether_it_is_ready() -> None:
    found = instructions()
    last = found[max(at for at, (name, _) in enumerate(found) if name == "FROM") :]
    assert of("USER", last) == ["fastich"]
    assert json.loads(of("ENTRYPOINT", last)[0]) == ["python", "-m", "fastich.serve"]
    assert json.loads(of("CMD", last)[0])[0] == "--config"
    assert f"127.0.0.1:{HttpConfig().port}/health/ready" in of("HEALTHCHECK", last)[0]
    assert of("EXPOSE", last) == [f"{DicomConfig().port} {HttpConfig().port}"]
    code = json.loads(of("HEALTHCHECK", last)[0].split("CMD ", 1)[1])[2]
    compile(code, "HEALTHCHECK", "exec")


def test_image_holds_no_secret_and_installs_extras_that_exist() -> None:
    found = instructions()
    for words in of("ARG", found) + of("ENV", found):
        assert not re.search("TOKEN|SECRET|PASSWORD|KEY", words, re.IGNORECASE)
    assert not any(re.search(r"\.(pem|key|token)", words) for words in of("COPY", found))
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (chosen,) = [words.removeprefix("EXTRAS=") for words in of("ARG", found) if words.startswith("EXTRAS=")]
    assert set(chosen.split(",")) <= set(extras)
    assert any("constraints/cu12.txt" in words for words in of("RUN", found))


# --- Orthanc ---


def test_orthanc_reaches_the_ports_and_title_that_are_the_defaults() -> None:
    peer = json.loads(text("orthanc.json"))["DicomModalities"]["fastich"]
    assert (peer["AET"], peer["Port"]) == (DicomConfig().ae_title, DicomConfig().port)
    assert f"'{DicomConfig().ae_title}'" in text("orthanc_route.lua")


@needs("Orthanc")
def test_orthanc_knows_every_setting(tmp_path: Path) -> None:
    sample = tmp_path / "sample.json"
    subprocess.run(["Orthanc", f"--config={sample}"], capture_output=True, check=True)
    known = re.findall(r'"(\w+)" *:', sample.read_text())  # some stand in a comment, for they have no default
    assert set(json.loads(text("orthanc.json"))) <= set(known)


@needs("Orthanc", "ip", "unshare")
def test_orthanc_sends_slices_on_takes_reports_and_refuses_strangers(tmp_path: Path) -> None:
    settings = json.loads(text("orthanc.json"))
    settings |= {"StorageDirectory": str(tmp_path / "db"), "IndexDirectory": str(tmp_path / "db")}
    settings |= {"AuthenticationEnabled": False}
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))
    shutil.copy(DEPLOY / "orthanc_route.lua", tmp_path)
    uids = {"StudyInstanceUID": "2.25.1", "SeriesInstanceUID": "2.25.2"}
    (tmp_path / "ct.dcm").write_bytes(ct_file(slice_hu(), SOPInstanceUID="2.25.3", **uids))
    report = {"Modality": "SR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.34", "PixelData": None}
    (tmp_path / "sr.dcm").write_bytes(ct_file(slice_hu(), SOPInstanceUID="2.25.4", **uids | report))
    script = PROJECT / "tests" / "orthanc_routing.py"
    names = [str(tmp_path / name) for name in ("orthanc.json", "ct.dcm", "sr.dcm")]
    command = ["unshare", "--map-root-user", "--net", sys.executable, str(script), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {"sent": ["CT"], "kept": 2, "statuses": {"CT1": 0, "FASTICH": 0, "STRANGER": -1}}


# --- nginx ---


def test_nginx_overwrites_the_headers_that_the_server_believes() -> None:
    conf, defaults = text("nginx.conf"), HttpConfig()
    for header in (defaults.proxy_user_header, defaults.proxy_role_header, "X-Forwarded-For"):
        assert f"proxy_set_header {header} $" in conf
    assert set(re.findall(r"proxy_pass (\S+);", conf)) == {f"http://{defaults.host}:{defaults.port}"}
    assert f"client_max_body_size {defaults.max_body_mib}m;" in conf
    roles = re.findall(r'^    "[^"]+" (\w+);$', conf, re.MULTILINE)
    assert set(roles) == {"viewer", "admin"}


def test_nginx_settings_are_balanced() -> None:
    code = re.sub(r"#.*", "", text("nginx.conf"))
    assert code.count("{") == code.count("}") > 0
    for line in code.splitlines():
        assert not line.strip() or line.rstrip()[-1] in "{};"


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx: not installed")
def test_nginx_takes_its_settings(tmp_path: Path) -> None:
    key = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-days", "1"]
    files = ["-keyout", str(tmp_path / "privkey.pem"), "-out", str(tmp_path / "fullchain.pem")]
    subprocess.run([*key, *files], capture_output=True, check=True)
    site = text("nginx.conf").replace("/etc/ssl/fastich", str(tmp_path)).replace("listen 443", "listen 127.0.0.1:8443")
    conf = tmp_path / "nginx.conf"
    head = f"pid {tmp_path}/pid; error_log stderr; events {{}}"
    paths = "".join(
        f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    conf.write_text(f"{head} http {{ {paths} access_log off;\n{site}\n}}")
    done = subprocess.run(
        ["nginx", "-t", "-p", str(tmp_path), "-c", str(conf)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


# --- peers of the tests ---


def install(tmp_path: Path, *, uid: int, installed: str) -> "subprocess.CompletedProcess[str]":
    """deploy/install_peers.sh where ``id``, ``dpkg-query`` and ``apt-get`` are ours; the last only writes down."""
    fakes = {
        "id": f"echo {uid}",
        "dpkg-query": f'case " {installed} " in *" $3 "*) printf installed;; *) exit 1;; esac',
        "apt-get": f'echo "$@" >> {tmp_path}/apt',
        "systemctl": f'echo "$@" >> {tmp_path}/systemctl',
    }
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    command = ["sh", str(DEPLOY / "install_peers.sh")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path})


def packages() -> list[str]:
    found = re.search(r'^PACKAGES="([^"]*)"$', text("install_peers.sh"), re.MULTILINE)
    assert found is not None
    return found[1].split()


def test_install_peers_refuses_in_one_line_when_not_root(tmp_path: Path) -> None:
    done = install(tmp_path, uid=1000, installed="")
    assert done.returncode == 1
    assert done.stderr == "error: expected root, found user 1000; run: sudo sh deploy/install_peers.sh\n"
    assert not (tmp_path / "apt").exists()


def test_install_peers_installs_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    done = install(tmp_path, uid=0, installed="dcmtk orthanc iproute2")
    assert done.returncode == 0, done.stderr
    missing = [name for name in packages() if name not in ("dcmtk", "orthanc", "iproute2")]
    lines = (tmp_path / "apt").read_text().splitlines()
    assert lines == ["update", f"install --yes --no-install-recommends {' '.join(missing)}"]
    (tmp_path / "apt").unlink()
    done = install(tmp_path, uid=0, installed=" ".join(packages()))
    assert done.stdout == f"all there: {' '.join(packages())}\n"
    assert not (tmp_path / "apt").exists()


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_install_peers_is_a_shell_script(shell: str) -> None:
    subprocess.run([shell, "-n", str(DEPLOY / "install_peers.sh")], check=True)
