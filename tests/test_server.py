"""The server's parts put together: what one of them hides from the others, the server sees."""

from pathlib import Path

import httpx
import pytest
from toy_model import write_model

from fastich.serve.config import (
    Destination,
    DicomConfig,
    HttpConfig,
    ModelConfig,
    ServeConfig,
    SpoolConfig,
    WatchConfig,
)
from fastich.serve.server import Server


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    write_model(tmp_path / "model")
    (tmp_path / "watched").mkdir()
    return ServeConfig(
        model=ModelConfig(folder=tmp_path / "model"),
        spool=SpoolConfig(folder=tmp_path / "spool", min_free_mib=1),
        dicom=DicomConfig(port=0),
        http=HttpConfig(port=0),
        watch=WatchConfig(folder=tmp_path / "watched", interval_s=0.05),
        destinations=(Destination(name="pacs", host="127.0.0.1", ae_title="PACS"),),
    )


def test_a_thread_that_ended_makes_the_server_not_ready(config: ServeConfig) -> None:
    server = Server(config)
    server.start()
    try:
        ready = httpx.get(server.http_url + "health/ready")
        assert (ready.status_code, ready.json()["checks"]["threads"]["ok"]) == (200, True)
        assert server.dicom is not None
        assert server.watch is not None
        server.dicom.stop(0.1)
        server.watch.stop()
        server.sender.stop()
        server.housekeeping.stop()
        dead = httpx.get(server.http_url + "health/ready")
        said = dead.json()["checks"]["threads"]["detail"]
        assert dead.status_code == 503
        assert said == "not at work: housekeeping, send-pacs, dicom, watch; see the log, and start the server again"
    finally:
        server.stop()
