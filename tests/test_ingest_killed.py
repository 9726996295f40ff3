"""Kill -9 while objects are taken in: whatever was acknowledged is there, whole."""

import contextlib
import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serve_data import SPOOL, files_below, received

from fastich.serve.config import RetentionConfig
from fastich.serve.entities import InstanceState
from fastich.serve.housekeeping import Housekeeping
from fastich.serve.spool import Spool
from fastich.serve.store import Store, open_store

TESTS = Path(__file__).parent
NUM_KILLS = 10


def acknowledged_until_killed(folder: Path, first: int, wait_s: float) -> list[str]:
    """UIDs that a child printed before it was killed; a line that was cut short counts as never printed."""
    path = os.pathsep.join((str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, str(TESTS / "ingest_forever.py"), str(folder), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(wait_s)
        child.kill()
        said = child.stdout.read()
    return said[: said.rfind("\n") + 1].split()


def check(store: Store, spool: Spool, uids: list[str]) -> None:
    for sop_uid in uids:
        found = store.find_instance(sop_uid)
        assert found is not None, f"{sop_uid} was acknowledged and is not in the store"
        data = spool.path_of(found.object_name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == found.object_name
        assert (len(data), found.state) == (found.size_bytes, InstanceState.WAITING)
        assert sop_uid.encode() in data


@pytest.mark.slow
def test_fact_17_what_was_acknowledged_before_kill_9_is_there_whole(tmp_path: Path) -> None:
    moments = random.Random(17)
    acknowledged: list[str] = []
    for kill in range(NUM_KILLS):
        acknowledged += acknowledged_until_killed(tmp_path, 100_000 * kill, moments.uniform(0.01, 0.4))
    assert len(acknowledged) > NUM_KILLS
    assert len(set(acknowledged)) == len(acknowledged)
    with contextlib.closing(open_store(tmp_path / "fastich.sqlite")) as store:
        spool = Spool(tmp_path / "spool", SPOOL)
        check(store, spool, acknowledged)
        for path in files_below(tmp_path / "spool" / "objects"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem, "a half file"
        assert files_below(tmp_path / "spool" / "incoming") == []
        swept = Housekeeping(store, spool, RetentionConfig()).run_once()
        assert swept.orphans <= 3 * NUM_KILLS
        check(store, spool, acknowledged)
        known = store.counts()["instances"]["waiting"]
        assert len(files_below(tmp_path / "spool" / "objects")) == known >= len(acknowledged)


def test_second_process_on_a_spool_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", SPOOL)
    on_its_way = received(spool, b"half an object")
    command = [sys.executable, str(TESTS / "ingest_forever.py"), str(tmp_path), "0"]
    path = os.pathsep.join((str(TESTS), str(TESTS.parent)))
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "spool: another process uses this spool; stop it, or take another --spool" in done.stderr
    assert on_its_way.read_bytes() == b"half an object"


def test_spool_is_free_again_after_its_process_was_killed(tmp_path: Path) -> None:
    acknowledged_until_killed(tmp_path, 0, 0.0)
    Spool(tmp_path / "spool", SPOOL).check_space()
