"""Processes that train together: two for real, started by torchrun over gloo, beside one on the same global batch."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from test_train import assert_same_run, without_time_lines, write_split_records

from fastich import checkpoint, train
from fastich.errors import UsageError
from fastich.training import history
from fastich.training.config import TrainConfig, flag
from fastich.training.distributed import ALONE, VARIABLES, World, cores_a_process, find_world, take_gpu
from fastich.training.modes import require_runnable, require_shareable
from fastich.training.precision import Precision
from fastich.training.predictions import Predictions

PROJECT = Path(__file__).resolve().parents[1]
TWO = World(rank=1, size=2, local_rank=1)
TOLD = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
}
VALUES: dict[str, Any] = {
    "weights": "none", "device": "cpu", "threads": 1, "size": 32, "batch_size": 4, "epochs": 2, "loader": "cpu",
    "checkpoint_steps": 2, "ema": 0.9, "clip_norm": 1.0, "accumulate": 2, "schedule": "cosine", "warmup_epochs": 0.5,
    "class_weights": "challenge",
}  # fmt: skip
FLAGS = [item for name, value in VALUES.items() for item in (flag(name), str(value))]
"""25 slices make 6 batches an epoch, so 3 groups."""


def torchrun(records: Path, out: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two processes of tiny_run.py; none is left when this returns, even where torchrun itself hangs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(PROJECT / "tests" / "tiny_run.py"), "--records", str(records), "--out", str(out), *FLAGS, *flags]
    paths = os.pathsep.join(path for path in sys.path if path)
    started = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": paths} | environment, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        _, told = started.communicate(timeout=240)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, started.returncode, stderr=told)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("records") / "records"
    write_split_records(made)
    return made


@pytest.fixture(scope="module")
def two(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two processes."""
    out = tmp_path_factory.mktemp("two") / "run"
    done = torchrun(records, out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def spoilt(records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of two processes, the second of which met a bad image in its fourth step."""
    out = tmp_path_factory.mktemp("spoilt") / "run"
    return out, torchrun(records, out, TINY_NAN="1:3")


@pytest.fixture(scope="module")
def one(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in this process."""
    out = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_model", tiny_run.build)
        train.train(TrainConfig(records=records, out=out, **VALUES))
    return out


def measured(run: Path) -> dict[str, float]:
    """Every number of the history but the times; what is undefined is left out."""
    lines = enumerate(without_time_lines(run))
    return {name: value for number, line in lines for name, value in flat(str(number), line) if value is not None}


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from flat(f"{name}.{key}", inner)
    else:
        yield name, value


def test_two_processes_learn_what_one_learns_from_the_same_global_batch(one: Path, two: Path) -> None:
    """To 1e-5, weights to 1e-4: sums of gradients have another order, and nothing else differs."""
    assert measured(two) == pytest.approx(measured(one), rel=1e-5)
    assert {"0.train.loss", "1.val.loss", "1.val.auc.any"} <= set(measured(one))
    assert [line["val"]["num_slices"] for line in history.read(two)] == [9, 9]  # odd: the order of two ranks wraps
    for name in (checkpoint.LAST, checkpoint.BEST):
        here, there = checkpoint.load(one / name).tensors, checkpoint.load(two / name).tensors
        assert set(there) - set(here) == ({"rng.cpu.1"} if name == checkpoint.LAST else set())
        for key in set(here) - {"rng.cpu"}:
            torch.testing.assert_close(there[key], here[key], rtol=1e-4, atol=1e-6)
    summary = json.loads((two / "run.json").read_text())
    assert (summary["num_processes"], summary["replicas"], summary["epochs_run"]) == (2, 1, 2)


def test_a_killed_rank_ends_the_job_within_a_minute_and_it_goes_on_to_the_same_weights(
    records: Path, tmp_path: Path
) -> None:
    """With batch norm and dropout, of which each rank has its own; killed in the second epoch, amid a group."""
    norm = {"TINY_NETWORK": "norm"}
    assert torchrun(records, tmp_path / "whole", **norm).returncode == 0
    killed = torchrun(records, tmp_path / "killed", TINY_KILL="1:9", TINY_KILLED=str(tmp_path / "when"), **norm)
    assert time.time() - float((tmp_path / "when").read_text()) < 60
    assert killed.returncode != 0
    assert checkpoint.load(tmp_path / "killed" / checkpoint.LAST).meta["position"]["batch"] == 2
    done = torchrun(records, tmp_path / "killed", "--resume", "auto", **norm)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_loss_that_is_no_number_on_one_rank_ends_all_and_names_its_slices(
    spoilt: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run, done = spoilt
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "error: loss is nan at step 3, on slices ID_" in line]
    # torchrun ends the other as soon as one has failed: on a loaded machine either may not get to say it too.
    ranks = sorted(line.partition("error")[0] for line in lines)
    assert ranks in (["", "rank 1: "], [""], ["rank 1: "]), done.stderr
    named = json.loads((run / "nonfinite.json").read_text())
    assert named["step"] == 3
    assert len(named["sop_uids"]) == 2  # of four in the batch: rank 1's


def test_one_process_goes_on_where_two_left_off(
    spoilt: tuple[Path, subprocess.CompletedProcess[str]],
    one: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Amid an epoch: what both ranks had predicted of it is put together in the order of the epoch."""
    shutil.copytree(spoilt[0], tmp_path / "run")
    monkeypatch.setattr(train, "build_model", tiny_run.build)
    train.train(TrainConfig(records=records, out=tmp_path / "run", resume="auto", **VALUES))
    assert measured(tmp_path / "run") == pytest.approx(measured(one), rel=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_two_compiled_processes_learn_what_one_plain_one_learns(one: Path, records: Path, tmp_path: Path) -> None:
    done = torchrun(records, tmp_path / "run", "--compile")
    assert done.returncode == 0, done.stderr
    assert measured(tmp_path / "run") == pytest.approx(measured(one), rel=1e-4)


def test_no_torchrun_is_a_world_of_one() -> None:
    assert find_world({}) is find_world({"WORLD_SIZE": "1", "RANK": "0"}) is ALONE
    assert find_world(TOLD) == World(rank=1, size=4, local_rank=1)
    assert cores_a_process({}) == max(1, len(os.sched_getaffinity(0)))
    assert cores_a_process(TOLD) == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.parametrize("missing", [name for name in VARIABLES if name != "WORLD_SIZE"])
def test_half_an_environment_is_refused(missing: str) -> None:
    told = {name: value for name, value in TOLD.items() if name != missing}
    with pytest.raises(UsageError, match=f"WORLD_SIZE is 4 but {missing} is not set; start with torchrun"):
        find_world(told)


def test_the_global_batch_must_be_shared_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert World(size=4).share(64) == 16
    with pytest.raises(UsageError, match=r"--batch-size 10 is that of all 4 processes .* a multiple of 4; give 8"):
        World(size=4).share(10)
    with pytest.raises(UsageError, match="give 4"):
        World(size=4).share(3)


@pytest.mark.parametrize(
    ("visible", "left"), [(None, "1"), ("4,7,9", "7"), ("GPU-a,GPU-b", "GPU-b"), ("3", ""), ("", "")]
)
def test_each_process_sees_its_own_gpu_alone(visible: str | None, left: str) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    take_gpu(TWO, environment)
    assert environment == {"CUDA_VISIBLE_DEVICES": left}
    untouched: dict[str, str] = {}
    take_gpu(ALONE, untouched)
    assert untouched == {}


def test_processes_on_different_devices_are_refused() -> None:
    store = torch.distributed.HashStore()
    store.set("fastich/ready/0", "cuda")
    with pytest.raises(UsageError, match="process 1 of 2 finds no GPU of its own, process 0 does; lower --nproc"):
        TWO._wait_for_all(store, "cpu")


@pytest.mark.parametrize(
    ("compile_mode", "cuda_graph", "message"),
    [
        ("max-autotune", False, "--compile max-autotune records no step that 2 processes share; use --compile default"),
        ("none", True, "--cuda-graph records no step that 2 processes share"),
    ],
)
def test_recorded_steps_are_not_shared(compile_mode: str, cuda_graph: bool, message: str) -> None:
    precision = Precision(dtype=torch.float32, device=torch.device("cuda"))
    with pytest.raises(UsageError, match=message):
        require_runnable(compile_mode, cuda_graph, precision, TWO)
    assert require_runnable("default", False, precision, TWO) is None
    assert require_runnable(compile_mode, cuda_graph, precision) is None


def test_a_cache_in_ram_is_not_held_twice() -> None:
    with pytest.raises(UsageError, match="--cache host: each of 2 processes would hold the whole split"):
        require_shareable("host", TWO)
    assert require_shareable("host", ALONE) is None
    assert require_shareable("device", TWO) is None


def test_processes_take_the_place_of_replicas() -> None:
    config = TrainConfig(records=Path("x"), out=Path("y"), threads=4)
    assert train.num_replicas(config, torch.device("cpu")) == 4
    assert train.num_replicas(config, torch.device("cpu"), TWO) == 1


def test_a_rank_reads_its_share_of_the_global_batch() -> None:
    made = TrainConfig(records=Path("x"), out=Path("y"), batch_size=64).loader_config("train", "cpu", TWO)
    assert (made.batch_size, made.rank, made.world_size) == (32, 1, 2)


def test_each_rank_has_a_dropout_of_its_own_and_rank_0_that_of_one_process() -> None:
    assert World(rank=0, size=2).seed(7) == ALONE.seed(7) == 7
    assert len({World(rank=rank, size=8).seed(7) for rank in range(8)}) == 8


def test_a_world_of_one_hands_back_what_it_is_given() -> None:
    value = torch.arange(3.0)
    assert ALONE.gather(value)[0] is ALONE.interleaved(value) is value
    assert ALONE.of_writer(0.3) == 0.3
    ALONE.average([value])
    ALONE.meet()
    assert value.tolist() == [0, 1, 2]
    assert not torch.distributed.is_initialized()


def test_a_row_that_was_predicted_twice_is_counted_once() -> None:
    seen = Predictions(seconds=2.0)
    rows = torch.tensor([5, 3, 8, 5])
    seen.add(rows[:, None].float().expand(4, 6), torch.zeros(4, 6), rows)
    once = seen.each_row_once()
    assert once.tensors()["rows"].tolist() == [5, 3, 8]
    assert np.array_equal(once.tensors()["logits"][:, 0], [5, 3, 8])
    assert once.seconds == 2
