"""What the process is told from outside: an end that was asked for is never taken back, and no handler can block."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_model import write_model

from fastich.serve.config import DicomConfig, HttpConfig, ModelConfig, ServeConfig, SpoolConfig
from fastich.serve.server import Server
from fastich.serve.signals import AGAIN, Signals


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.fixture
def signals() -> Iterator[Signals]:
    with contextlib.closing(Signals()) as made:
        yield made


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    write_model(tmp_path / "model")
    config = ServeConfig(
        model=ModelConfig(folder=tmp_path / "model"),
        spool=SpoolConfig(folder=tmp_path / "spool", min_free_mib=1),
        dicom=DicomConfig(enabled=False),
        http=HttpConfig(port=0),
    )
    before = signal.getsignal(signal.SIGTERM)
    made = Server(config)
    try:
        yield made
    finally:
        made.stop()
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_hang_up_after_an_end_does_not_take_it_back(signals: Signals) -> None:
    send(signal.SIGTERM, signal.SIGHUP)
    assert [signals.wait(), signals.wait()] == [signal.SIGTERM, signal.SIGTERM]
    assert signals.must_end()


def test_an_end_after_a_hang_up_is_seen(signals: Signals) -> None:
    send(signal.SIGHUP, signal.SIGINT)
    assert signals.wait() == AGAIN
    assert signals.must_end()
    assert signals.wait() == signal.SIGTERM


def test_hang_ups_alone_ask_for_no_end(signals: Signals) -> None:
    send(signal.SIGHUP)
    assert signals.wait() == AGAIN
    send(signal.SIGHUP)
    assert not signals.must_end()


def test_a_signal_that_comes_while_it_waits_wakes_it(signals: Signals) -> None:
    timer = threading.Timer(0.05, send, [signal.SIGTERM])
    timer.start()
    assert signals.wait() == signal.SIGTERM
    timer.join()


def test_an_end_while_the_reload_check_runs_ends_the_server(server: Server) -> None:
    def check() -> list[str]:
        send(signal.SIGTERM)
        return []

    threading.Timer(0.3, send, [signal.SIGHUP]).start()
    assert server.run(check=check) is False


def test_a_hang_up_while_it_drains_does_not_start_it_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = server.stop
    monkeypatch.setattr(server, "stop", lambda: (send(signal.SIGHUP), stop()))
    threading.Timer(0.3, send, [signal.SIGTERM]).start()
    assert server.run(check=list) is False


def test_a_check_that_breaks_does_not_end_the_server(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def check() -> list[str]:
        threading.Timer(0.1, send, [signal.SIGTERM]).start()
        raise PermissionError("x")

    threading.Timer(0.3, send, [signal.SIGHUP]).start()
    assert server.run(check=check) is False
    assert "the check failed (PermissionError)" in caplog.text
