"""A triage server that keeps things in memory and scores nothing, for tests of what loads one.

    python tests/fake_serve.py --config TOML        # as python -m fastich.serve

``FAKE_FAULT``: ``lose`` acknowledges every third slice and forgets it; ``forget`` knows no study; ``busy`` refuses the
first two slices or requests; ``stuck`` never finishes; ``late`` takes a second more; ``crash`` ends with status 3 when
asked to stop.
"""

import argparse
import json
import os
import re
import signal
import sys
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import uvicorn
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pynetdicom import AE, evt
from pynetdicom.sop_class import CTImageStorage
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

FAULT = os.environ.get("FAKE_FAULT", "")
STORED_UIDS = "00081199"


class Tables:
    """What arrived when."""

    def __init__(self, quiet_s: float) -> None:
        self.studies: dict[str, dict[str, Any]] = {}
        self.asked = 0
        self._quiet_s = quiet_s
        self._lock = threading.Lock()

    def take(self, study_uid: str, sop_uid: str) -> bool:
        """Whether it is acknowledged."""
        with self._lock:
            self.asked += 1
            if FAULT == "busy" and self.asked <= 2:
                return False
            study = self.studies.setdefault(study_uid, {"instances": set(), "last_at": 0.0})
            if not (FAULT == "lose" and self.asked % 3 == 0):
                study["instances"].add(sop_uid)
            study["last_at"] = time.time()
            return True

    def view(self, study_uid: str) -> dict[str, Any] | None:
        """A study as the API shows it."""
        with self._lock:
            study = self.studies.get(study_uid)
            if study is None or FAULT == "forget":
                return None
            final_at = study["last_at"] + self._quiet_s + (1.0 if FAULT == "late" else 0.0)
            is_final = time.time() >= final_at and FAULT != "stuck"
            return {
                "study_uid": study_uid,
                "state": "scored" if is_final else "receiving",
                "is_partial": not is_final,
                "num_instances": len(study["instances"]),
                "final_at": final_at if is_final else None,
            }


def routes(tables: Tables, token: str) -> list[Route]:
    """The part of the API that a load test uses."""

    def is_known(request: Request) -> bool:
        return request.headers.get("authorization") == f"Bearer {token}"

    async def ready(_: Request) -> Response:
        return JSONResponse({"ready": True})

    async def study(request: Request) -> Response:
        found = tables.view(request.path_params["uid"]) if is_known(request) else None
        return JSONResponse(found, status_code=404 if found is None else 200)

    async def stow(request: Request) -> Response:
        body = await request.body()
        if not is_known(request):
            return Response(status_code=401)
        boundary = re.search("boundary=(.+)", request.headers["content-type"])
        assert boundary is not None
        stored = []
        for part in body.split(b"--" + boundary[1].encode())[1:-1]:
            data = dcmread(DicomBytesIO(part.split(b"\r\n\r\n", 1)[1][:-2]))
            if not tables.take(str(data.StudyInstanceUID), str(data.SOPInstanceUID)):
                return Response(status_code=503)
            stored.append({"00081155": {"vr": "UI", "Value": [str(data.SOPInstanceUID)]}})
        return JSONResponse({STORED_UIDS: {"vr": "SQ", "Value": stored}})

    return [
        Route("/health/ready", ready),
        Route("/studies/{uid}", study),
        Route("/dicom-web/studies/{uid}", stow, methods=["POST"]),
    ]


def main() -> int:
    """Serve until SIGTERM."""
    made = argparse.ArgumentParser()
    made.add_argument("--config", type=Path, required=True)
    config = tomllib.loads(made.parse_args().config.read_text(encoding="utf-8"))
    spool, token = Path(config["spool"]["folder"]), "a-token"
    spool.mkdir(parents=True)
    (spool / "admin.token").write_text(token + "\n")
    tables = Tables(config["scoring"]["quiet_s"])

    def store(event: Any) -> int:
        data = event.dataset
        return 0x0000 if tables.take(str(data.StudyInstanceUID), str(data.SOPInstanceUID)) else 0xA700

    receiver = AE(ae_title="FASTICH")
    receiver.add_supported_context(CTImageStorage)
    dicom = receiver.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert dicom is not None
    app = Starlette(routes=routes(tables, token))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    where = {"http_url": f"http://127.0.0.1:{port}/", "dicom_port": dicom.server_address[1]}
    (spool / "serving.json").write_text(json.dumps(where))
    stop.wait()
    server.should_exit = True
    thread.join()
    dicom.shutdown()
    return 3 if FAULT == "crash" else 0


if __name__ == "__main__":
    sys.exit(main())
