"""Run inside a network namespace of its own (``unshare -n``): Orthanc as the PACS that gets images and our results.

Debian's Orthanc binds every interface, so it never runs outside of one. Prints what Orthanc holds as one JSON line.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from outputs_data import CREATED_AT, phantom_study
from test_outputs_sender import fill

from fastich.errors import StoreError
from fastich.serve.config import DeliveryConfig, Destination, ServeConfig
from fastich.serve.outputs import dimse_client
from fastich.serve.outputs.sender import Sender
from fastich.serve.store import Store, open_store

DICOM_PORT, HTTP_PORT = 4242, 8042
URL = f"http://127.0.0.1:{HTTP_PORT}"
PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc")
STOW_PLUGIN = "libOrthancDicomWeb*.so*"
START_S = 30.0


def plugins() -> list[str]:
    """The DICOMweb plugin, where it is installed."""
    found = [str(path) for folder in (*PLUGINS, *sys.argv[2:]) for path in sorted(Path(folder).glob(STOW_PLUGIN))]
    return found[:1]


@contextmanager
def orthanc(folder: Path) -> Iterator[None]:
    """Orthanc on loopback until done."""
    folder.mkdir()
    settings = {
        "StorageDirectory": str(folder / "data"),
        "IndexDirectory": str(folder / "data"),
        "DicomAet": "ORTHANC",
        "DicomPort": DICOM_PORT,
        "HttpPort": HTTP_PORT,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": plugins(),
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},  # read where the plugin is there
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            _wait(process, folder / "log")
            yield
        finally:
            process.terminate()
            process.wait(30)


def _wait(process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            ask("/system")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise RuntimeError(f"Orthanc did not start: {log.read_text()[-2000:]}")


def ask(path: str) -> Any:
    with urllib.request.urlopen(URL + path, timeout=10) as answer:
        return json.loads(answer.read())


def send_twice(store: Store, study: Any, config: ServeConfig, name: str) -> list[str]:
    """Everything for one destination, each message twice: the first time we die before it is noted."""

    def die(self: Store, delivery_id: int, at: float) -> None:
        raise StoreError("killed here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "delivered", die)
        for _ in range(2):  # each leases one message
            with pytest.raises(StoreError, match="killed here"):
                Sender(store, study, config, clock=clock).send_due(name)
    store.release_deliveries()
    Sender(store, study, config, clock=clock).send_due(name)
    return [one.state.value for one in store.deliveries_of(study.score.study_uid) if one.destination == name]


def clock() -> float:
    return CREATED_AT


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    work = Path(sys.argv[1])
    study = phantom_study(work / "in")
    pacs = Destination(name="pacs", host="127.0.0.1", port=DICOM_PORT, ae_title="ORTHANC")
    stow = Destination(name="stow", kind="stow", url=URL + "/dicom-web")
    kinds = [("pacs", "sr"), ("pacs", "sc")] + ([("stow", "sr"), ("stow", "sc")] if plugins() else [])
    config = ServeConfig(destinations=(pacs, stow), delivery=DeliveryConfig(timeout_s=10))
    store = open_store(work / "store.sqlite", clock=clock)
    fill(store, study, kinds)
    with orthanc(work / "orthanc"):
        for instance in study.instances:
            dimse_client.send(pacs, "SCANNER", study.path_of(instance.object_name).read_bytes(), 10)
        if plugins():
            by_stow = send_twice(store, study, config, "stow")
            stowed = [ask(f"/instances/{one}/tags?simplify") for one in ask("/instances")]
            for one in ask("/series"):
                found = ask(f"/series/{one}")
                if found["MainDicomTags"]["Modality"] != "CT":
                    delete(f"/series/{one}")
        else:
            by_stow, stowed = None, []
        by_dimse = send_twice(store, study, config, "pacs")
        held = [ask(f"/instances/{one}/tags?simplify") for one in ask("/instances")]
        studies = ask("/studies?expand")
    store.close()
    print(json.dumps({"dimse": by_dimse, "stow": by_stow, "studies": studies} | _told(study, held, stowed)))


def delete(path: str) -> None:
    request = urllib.request.Request(URL + path, method="DELETE")
    urllib.request.urlopen(request, timeout=10).close()


def _told(study: Any, held: list[dict[str, Any]], stowed: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("SOPInstanceUID", "StudyInstanceUID", "Modality", "PatientName")
    expected = {kind: study.result.uid(kind) for kind in ("sr", "sc")}
    return {
        "expected": expected | {"study": study.score.study_uid, "slices": len(study.instances)},
        "held": [{name: one[name] for name in names} for one in held],
        "stowed": [{name: one[name] for name in names} for one in stowed],
    }


if __name__ == "__main__":
    main()
