"""The pool: every job once, few in hand at a time, and worker processes that start light."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastich.packing import pool
from fastich.packing.pool import JOBS_PER_WORKER, Workers

HEAVY = ("pandas", "pyarrow", "scipy", "torch")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_job_is_done_once(num_workers: int, tmp_path: Path) -> None:
    with Workers(num_workers, tmp_path / "lock") as workers:
        assert sorted(workers.map(abs, range(-50, 0))) == list(range(1, 51))
        assert list(workers.map(abs, [])) == []


def test_jobs_are_taken_as_results_are(tmp_path: Path) -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    with Workers(2, tmp_path / "lock") as workers:
        results = workers.map(abs, jobs())
        next(results)
        assert len(taken) <= 4 * JOBS_PER_WORKER
        list(results)
    assert len(taken) == 100


def test_workers_start_before_there_is_a_job(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    with Workers(2, tmp_path / "lock"):
        assert len(set(multiprocessing.active_children()) - before) == 2


def test_what_the_user_has_set_reaches_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with Workers(2, tmp_path / "lock") as workers:
        names = ["OMP_NUM_THREADS", "MALLOC_TRIM_THRESHOLD_"]
        assert set(workers.map(os.getenv, names)) == {"3", pool.ENVIRONMENT["MALLOC_TRIM_THRESHOLD_"]}
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MALLOC_TRIM_THRESHOLD_" not in os.environ


def test_what_workers_run_loads_no_table_library() -> None:
    code = (
        f"import sys, fastich.packing.headers, fastich.packing.shard; print([m for m in {HEAVY} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def loaded(name: str) -> bool:
    return name in sys.modules


SCRIPT = """
from fastich import pack
from fastich.packing import pool
from test_packing_pool import HEAVY, loaded
import runpy, sys, tempfile, pathlib
def main(argv):
    with pool.Workers(2, pathlib.Path(tempfile.mkdtemp()) / "lock") as workers:
        print(sorted(set(workers.map(loaded, HEAVY))))
pack.main = main
sys.argv = ["fastich.pack"]
runpy.run_module("fastich.pack", run_name="__main__", alter_sys=True)
"""


def test_a_worker_of_the_verb_does_not_import_the_verb() -> None:
    tests = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *filter(None, sys.path)])}
    words = [sys.executable, "-c", SCRIPT]
    found = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == "[False]", found.stderr
