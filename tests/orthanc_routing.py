"""Run in a network namespace of its own: does deploy/orthanc.json send CTs on, and results nowhere?

    unshare --map-root-user --net python tests/orthanc_routing.py CONFIG CT.dcm SR.dcm

Orthanc takes a CT slice from CT1 and the same study's report from FASTICH. Prints as JSON what FASTICH was sent, what
Orthanc keeps, and what it answered to a stranger.
"""

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
from pynetdicom import AE, StoragePresentationContexts, evt

ORTHANC, OURS, HTTP = 4242, 11112, 8042
LIMIT_S = 30.0
STABLE_S = 2.0
"""Longer than Orthanc needs to send a slice on: what was not sent by then is not sent."""


def wait(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(0.1)


def store(calling: str, path: Path) -> int:
    """The status of a C-STORE to Orthanc, -1 where it refused the association."""
    data = pydicom.dcmread(path)
    sender = AE(ae_title=calling)
    sender.add_requested_context(data.file_meta.MediaStorageSOPClassUID, data.file_meta.TransferSyntaxUID)
    association = sender.associate("127.0.0.1", ORTHANC, ae_title="ORTHANC")
    if not association.is_established:
        return -1
    status = association.send_c_store(data)
    association.release()
    return int(status.Status)


def kept() -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{HTTP}/statistics") as answer:
        return int(json.load(answer)["CountInstances"])


def answers() -> bool:
    try:
        kept()
    except OSError:
        return False
    return True


def main(config: Path, ct: Path, sr: Path) -> dict[str, Any]:
    sent: list[str] = []

    def take(event: Any) -> int:
        sent.append(str(event.dataset.Modality))
        return 0

    receiver = AE(ae_title="FASTICH")
    for context in StoragePresentationContexts:
        receiver.add_supported_context(context.abstract_syntax or "")
    server = receiver.start_server(("127.0.0.1", OURS), block=False, evt_handlers=[(evt.EVT_C_STORE, take)])
    log = config.parent / "orthanc.log"
    with log.open("wb") as out, subprocess.Popen(["Orthanc", str(config)], stdout=out, stderr=out) as orthanc:
        try:
            wait(answers, f"Orthanc: {log.read_text()[-2000:]}")
            statuses = {who: store(who, path) for who, path in (("CT1", ct), ("FASTICH", sr), ("STRANGER", ct))}
            wait(lambda: bool(sent), "the slice to be sent on")
            time.sleep(STABLE_S)
            return {"sent": sent, "kept": kept(), "statuses": statuses}
        finally:
            orthanc.terminate()
            orthanc.wait(LIMIT_S)
            if server is not None:
                server.shutdown()


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory():
        print(json.dumps(main(*map(Path, sys.argv[1:]))))
