"""``python -m fastich.serve`` as its users run it: checks, dry runs, first start, restart in place, graceful stop."""

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from dicom_peer import dicom_peer
from dicom_sender import SUCCESS, echo, send
from served_process import environment, served, until
from toy_model import toy_onnx, write_model

from fastich import phantom
from fastich.phantom.as_sent import studies_as_sent
from fastich.serve import __main__ as serve_main
from fastich.serve.entities import DeliveryState, StudyState


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    out = tmp_path_factory.mktemp("phantom") / "data"
    phantom.generate(phantom.PhantomConfig(out=out, studies=1, size=64, seed=3))
    return next(studies_as_sent(out / "stage_2_train"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", threshold=0.0)
    return tmp_path / "model"


def serve(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastich.serve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment(), timeout=120)


def test_check_config_says_everything_that_cannot_work_at_once(tmp_path: Path) -> None:
    found = serve("--check-config", "--model", tmp_path / "none", "--dicom-port", 70000)
    assert found.returncode == 1
    lines = found.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["[dicom] port", "[model] folder", "[spool] folder"]


def test_check_config_opens_the_model(tmp_path: Path, model: Path) -> None:
    sound = serve("--check-config", "--model", model, "--spool", tmp_path / "spool")
    assert (sound.returncode, sound.stdout) == (0, "the settings are sound, and the model opens\n")
    assert not (tmp_path / "spool").exists()
    (model / "model.onnx").write_bytes(b"x" + (model / "model.onnx").read_bytes()[1:])
    broken = serve("--check-config", "--model", model, "--spool", tmp_path / "spool")
    assert broken.returncode == 1
    assert re.search(r"error: .*model\.onnx: expected SHA-256", broken.stderr)


def test_check_and_reload_ask_what_a_start_would_meet(tmp_path: Path, model: Path) -> None:
    settings = f'[scoring]\nrules = "rules.toml"\n[model]\nfolder = "{model}"\n[spool]\nfolder = "spool"\n'
    (tmp_path / "fastich.toml").write_text(settings, encoding="utf-8")
    (tmp_path / "rules.toml").write_text("x =", encoding="utf-8")
    flags = ["--config", str(tmp_path / "fastich.toml")]
    assert re.match(r"\[scoring\] rules: .*not TOML", serve("--check-config", *flags).stdout)
    (found,) = serve_main._reload_problems(flags)
    assert re.match(r"\[scoring\] rules: .*not TOML", found)


def test_print_config_is_a_file_that_check_config_takes(tmp_path: Path, model: Path) -> None:
    example = serve("--print-config").stdout
    (tmp_path / "fastich.toml").write_text(example, encoding="utf-8")
    flags = ("--config", tmp_path / "fastich.toml", "--model", model, "--spool", tmp_path / "spool")
    assert serve("--check-config", *flags).returncode == 0


def test_what_cannot_work_ends_with_status_2_and_one_line(tmp_path: Path, model: Path) -> None:
    found = serve("--model", model)
    assert found.returncode == 2
    assert found.stderr == "error: [spool] folder: expected a folder (or --spool), found none\n"


def test_dry_run_says_what_would_happen_and_keeps_nothing(tmp_path: Path, model: Path, study: list[bytes]) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for number, data in enumerate(study):
        (files / f"{number}.dcm").write_bytes(data)
    (files / "page.dcm").write_bytes(b"not DICOM")
    found = serve("--model", model, "--dry-run", files, "--json")
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout)
    assert [one["state"] for one in report["studies"]] == ["scored"]
    assert "page.dcm" in found.stdout
    assert not list(tmp_path.glob("**/*.db"))
    assert "scored" in serve("--model", model, "--dry-run", files).stdout


def test_first_start_says_where_the_page_and_its_tokens_are_and_logs_no_token(tmp_path: Path, model: Path) -> None:
    with served(tmp_path, model) as server:
        where = server.start()
        path = server.spool / "admin.token"
        token = path.read_text(encoding="ascii").strip()
        assert f"admin token: cat {path}" in server.words()
        assert f"open {where['http_url']} and log in" in server.words()
        asked = urllib.request.Request(where["http_url"] + "studies", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer)["studies"] == []
        assert server.stop() == 0
        assert token not in server.words()
        server.start()
        assert "token" not in server.words()
        assert server.stop() == 0


def test_a_person_at_a_terminal_sees_the_token_at_the_first_start(tmp_path: Path, model: Path) -> None:
    ours, theirs = pty.openpty()
    flags = ("--model", model, "--spool", tmp_path / "spool", "--dicom-port", "0", "--http-port", "0")
    command = [sys.executable, "-m", "fastich.serve", *map(str, flags)]
    server = subprocess.Popen(command, stderr=theirs, env=environment())
    os.close(theirs)
    try:
        until((tmp_path / "spool" / "serving.json").is_file, 60)
    finally:
        server.terminate()
        server.wait(60)
    said = b""
    with contextlib.suppress(OSError):  # the other end is closed: Linux answers EIO
        while chunk := os.read(ours, 4096):
            said += chunk
    os.close(ours)
    assert (tmp_path / "spool" / "admin.token").read_bytes().strip() in said


def test_nobody_else_can_read_the_spool(tmp_path: Path, model: Path) -> None:
    with served(tmp_path, model) as server:
        server.start()
        assert server.stop() == 0
        assert server.spool.stat().st_mode & 0o077 == 0
        assert [path for path in server.spool.iterdir() if path.stat().st_mode & 0o077] == []


def test_a_second_process_on_the_same_spool_is_refused(tmp_path: Path, model: Path) -> None:
    with served(tmp_path, model) as server:
        server.start()
        found = serve("--config", tmp_path / "fastich.toml")
        assert found.returncode == 1
        assert re.search(r"error: .*spool.*another process", found.stderr), found.stderr
        assert server.stop() == 0


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flag, where in (("--dicom-port", "dicom"), ("--http-port", "http")):
            other = "--http-port" if flag == "--dicom-port" else "--dicom-port"
            found = serve("--model", model, "--spool", tmp_path / where, flag, port, other, 0)
            assert found.returncode == 1
            lines = [line for line in found.stderr.splitlines() if line.startswith("error:")]
            assert len(lines) == 1, found.stderr
            assert "cannot listen (Address already in use)" in lines[0]
            assert where in lines[0]


def test_a_study_comes_in_is_scored_and_its_results_go_out(tmp_path: Path, model: Path, study: list[bytes]) -> None:
    with dicom_peer() as pacs:
        out = f'[[destinations]]\nname = "pacs"\nhost = "127.0.0.1"\nport = {pacs.port}\nae_title = "PACS"\n'
        with served(tmp_path, model, tables=out) as server:
            where = server.start()
            assert send(where["dicom_port"], study) == [SUCCESS] * len(study)
            until(lambda: len(pacs.stored) == 2, 60, server.words)
            assert {one.Modality for one in pacs.stored} == {"SR", "OT"}
            store = server.store()
            (found,) = store.worklist()
            assert found.state is StudyState.SCORED
            until(lambda: {one.state for one in store.deliveries_of(found.study_uid)} == {DeliveryState.DELIVERED})
            store.close()
            assert server.stop() == 0
            audit = [json.loads(line) for line in (server.spool / "audit.jsonl").read_text("utf-8").splitlines()]
            assert [one["event"] for one in audit] == ["start", "receive", "send", "send", "stop"]
            secret = ("PHANTOM-", "Phantom^")
            assert not any(word in json.dumps(audit) + server.words() for word in secret)


def test_stopping_while_slices_wait_loses_none(tmp_path: Path, model: Path, study: list[bytes]) -> None:
    with served(tmp_path, model, scoring="quiet_s = 0.5\nmax_attempts = 1") as server:
        where = server.start()
        assert send(where["dicom_port"], study) == [SUCCESS] * len(study)
        assert server.stop() == 0
        server.start()
        store = server.store()
        until(lambda: [one.state for one in store.worklist()] == [StudyState.SCORED], 60, server.words)
        (found,) = store.worklist()
        assert found.document is not None
        assert found.document["num_slices"] == len(study)
        store.close()
        assert server.stop() == 0


def test_hang_up_with_a_damaged_model_keeps_the_old_one_serving(tmp_path: Path, model: Path) -> None:
    """FACTS 20: a flipped bit, a wrong hash, external data, NaN weights."""
    with served(tmp_path, model) as server:
        where = server.start()
        whole = (model / "model.onnx").read_bytes()
        damages = {
            "expected SHA-256": lambda: (model / "model.onnx").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1])),
            "external|cannot load": lambda: write_model(model, toy_onnx(external=True)),
            "NaN or infinity": lambda: write_model(model, toy_onnx(scale=float("nan"))),
            "model.json": lambda: (model / "model.json").unlink(),
        }
        for words, damage in damages.items():
            said = server.words().count("not restarted")
            damage()
            server.process.send_signal(signal.SIGHUP)
            until(lambda said=said: server.words().count("not restarted") > said, 30, server.words)
            last = [line for line in server.words().splitlines() if "not restarted" in line][-1]
            assert re.search(words, last), last
            assert echo(where["dicom_port"])
        assert server.stop() == 0


def test_hang_up_with_a_sound_model_restarts_in_place(tmp_path: Path, model: Path) -> None:
    with served(tmp_path, model) as server:
        first = server.start()
        write_model(model, toy_onnx(scale=2.0))
        serving = server.spool / "serving.json"
        process = server.process
        process.send_signal(signal.SIGHUP)
        until(lambda: serving.is_file() and json.loads(serving.read_text()) != first, 60, server.words)
        second = json.loads(serving.read_text())
        assert second["pid"] == first["pid"] == process.pid
        assert echo(second["dicom_port"])
        time.sleep(0.1)
        assert server.stop() == 0
