"""Pack, interrupted: a kill, a full disk or a wrong request loses nothing, and resuming gives the same bytes."""

import fcntl
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from pack_data import clean_input, command, config, edit, folder_bytes, make_folder, write_labels

from fastich.errors import FastichError, UsageError
from fastich.pack import pack
from fastich.packing import pool

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clean input: folder, label table and labels by SOP UID."""
    return clean_input(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def packed(data, tmp_path_factory):
    """The clean input packed without disturbance by one worker."""
    out = tmp_path_factory.mktemp("packed") / "records"
    return out, pack(config(data, out))


class PowerCutError(BaseException):
    """Stands for a kill: no handler of ours may take it for an error."""


def cut_short(data, out, monkeypatch, num_renames=6):
    """Pack into ``out`` and cut the power before the rename that would follow ``num_renames`` others."""
    real, left = Path.replace, num_renames

    def replace(self, target):
        nonlocal left
        left -= 1
        if left < 0:
            raise PowerCutError
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        pack(config(data, out))


def test_a_cut_before_any_rename_changes_no_byte(tmp_path, monkeypatch):
    """Every file appears by a rename, so these are all the states that a kill can leave (half-written files aside)."""
    labels = make_folder(tmp_path / "dicom", num_patients=3)
    small = (tmp_path / "dicom", write_labels(tmp_path / "labels.csv", labels))
    pack(config(small, tmp_path / "whole"))
    expected = folder_bytes(tmp_path / "whole")
    num_renames = 0
    while True:
        out = tmp_path / f"cut{num_renames}"
        try:
            cut_short(small, out, monkeypatch, num_renames)
            break
        except PowerCutError:
            assert not (out / "dataset.json").exists()
        (out / "index.parquet.tmp").write_bytes(b"half")
        (out / ".packing" / "part-00000.json.tmp").write_bytes(b"half")
        pack(config(small, out, resume=True))
        assert folder_bytes(out) == expected
        num_renames += 1
    assert num_renames == 12, "plan 3, three shards with their parts 6, rejects, index and dataset.json 3"


def test_a_kill_at_any_moment_and_resume_give_the_same_bytes(data, packed, tmp_path):
    out = tmp_path / "out"
    stages = [".packing/plan.json", ".packing/part-00003*"]
    killed = 0
    for stage in stages:
        with subprocess.Popen(command(data, out, "--workers", 2, "--resume"), stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not list(out.glob(stage)):
                time.sleep(0.0005)
            killed += process.poll() is None
            process.send_signal(signal.SIGKILL)
    subprocess.run(command(data, out, "--workers", 2, "--resume"), check=True, stderr=subprocess.DEVNULL)
    assert killed >= 1
    assert folder_bytes(out) == folder_bytes(packed[0])


@pytest.fixture
def interrupted(data, tmp_path, monkeypatch):
    """A folder in which a pack was cut after the plan and three of eight shards."""
    with pytest.raises(PowerCutError):
        cut_short(data, tmp_path / "out", monkeypatch, 9)
    return tmp_path / "out"


def test_resume_keeps_finished_shards_and_redoes_damaged_ones(data, packed, interrupted):
    out = interrupted
    done = sorted(out.glob("shard-*"))
    assert len(done) == 3
    edit(done[0], lambda content: b"\0" + content[1:])
    kept = done[1].stat().st_mtime_ns
    summary = pack(config(data, out, resume=True))
    assert summary["num_slices"] == len(data[2])
    assert done[1].stat().st_mtime_ns == kept
    assert folder_bytes(out) == folder_bytes(packed[0])


def test_resume_with_other_settings_is_refused_and_loses_nothing(data, interrupted):
    out = interrupted
    before = folder_bytes(out)
    with pytest.raises(FastichError, match="packed with codec lbp, now asked with raw; remove it to start again"):
        pack(config(data, out, resume=True, codec="raw"))
    with pytest.raises(FastichError, match="packed with seed 0, now asked with 1"):
        pack(config(data, out, resume=True, seed=1))
    assert folder_bytes(out) == before


def test_resume_after_the_input_changed_is_refused(data, tmp_path, monkeypatch):
    labels = make_folder(tmp_path / "dicom", num_patients=3)
    own = (tmp_path / "dicom", write_labels(tmp_path / "labels.csv", labels))
    with pytest.raises(PowerCutError):
        cut_short(own, tmp_path / "out", monkeypatch)
    edit(next(own[0].rglob("*.dcm")), lambda content: content + b"\0\0")
    with pytest.raises(FastichError, match="the DICOM files have changed since this pack began"):
        pack(config(own, tmp_path / "out", resume=True))


def test_an_interrupted_pack_is_not_overwritten_without_resume(data, interrupted):
    with pytest.raises(UsageError, match="holds an interrupted pack; go on with --resume, or remove it"):
        pack(config(data, interrupted))


def test_complete_output_is_refused_or_said_to_be_complete(data, packed, capsys):
    before = folder_bytes(packed[0])
    with pytest.raises(UsageError, match="already holds a data set; choose another --out"):
        pack(config(data, packed[0]))
    assert pack(config(data, packed[0], resume=True))["num_slices"] == len(data[2])
    assert f"is already complete: {len(data[2])} slices" in capsys.readouterr().err
    with pytest.raises(FastichError, match="packed with size None, now asked with 16; choose another --out"):
        pack(config(data, packed[0], resume=True, size=16))
    assert folder_bytes(packed[0]) == before


def test_bad_usage_is_exit_status_2_with_one_line(data, packed):
    done = subprocess.run(command(data, packed[0]), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_foreign_files_in_the_output_are_not_touched(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose")
    for resume in (False, True):
        with pytest.raises(UsageError, match="is not empty and holds no data set"):
            pack(config(data, tmp_path, resume=resume))
    with pytest.raises(UsageError, match="is a file"):
        pack(config(data, tmp_path / "thesis.txt"))
    with pytest.raises(FastichError, match=r"cannot make this folder .*choose another --out"):
        pack(config(data, tmp_path / "thesis.txt" / "records"))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_second_pack_into_the_same_folder_waits_and_then_gives_up(data, interrupted, monkeypatch):
    monkeypatch.setattr(pool, "LOCK_WAIT_S", 0.2)
    with (interrupted / ".packing" / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        with pytest.raises(FastichError, match="another pack is writing here"):
            pack(config(data, interrupted, resume=True))
    assert pack(config(data, interrupted, resume=True))["num_slices"] == len(data[2])


def test_a_full_disk_is_one_line_and_resume_finishes(data, packed, tmp_path):
    def fill_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))

    done = subprocess.run(
        command(data, tmp_path / "out", "--workers", 1),
        capture_output=True, text=True, check=False, preexec_fn=fill_disk,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.endswith("File too large; what is done is kept: repeat with --resume\n")
    assert done.stderr.count("\n") == 1
    pack(config(data, tmp_path / "out", resume=True))
    assert folder_bytes(tmp_path / "out") == folder_bytes(packed[0])


def test_a_killed_worker_is_one_clear_error(data, packed, tmp_path):
    process = subprocess.Popen(command(data, tmp_path / "out", "--workers", 2), stderr=subprocess.PIPE, text=True)
    workers: list[str] = []
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and not workers:
        pids = children.read_text().split()
        workers = [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        time.sleep(0.001)
    os.kill(int(workers[0]), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "a worker process was killed (out of memory?); what is done is kept: repeat with --resume" in stderr
    pack(config(data, tmp_path / "out", resume=True))
    assert folder_bytes(tmp_path / "out") == folder_bytes(packed[0])


def hear_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_is_one_word_and_resume_finishes(data, packed, tmp_path):
    """A shell starts background jobs deaf to Ctrl-C; the process of this test must hear it wherever tests run."""
    out = tmp_path / "out"
    words = command(data, out, "--workers", 2)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hear_ctrl_c)
    while process.poll() is None and not list(out.glob(".packing/part-*")):
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "interrupted\n")
    pack(config(data, out, resume=True))
    assert folder_bytes(out) == folder_bytes(packed[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"half', r"dataset.json: damaged \(.*remove the folder and pack again"),
        ("[1]", r"dataset.json: damaged"),
        ('{"format_version": 99}', r"dataset.json: expected format version 1, found 99; choose another --out"),
    ],
)
def test_resume_on_a_dataset_json_it_cannot_use_names_it(data, packed, tmp_path, content, message):
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset.json").write_text(content)
    with pytest.raises(FastichError, match=message):
        pack(config(data, out, resume=True))
    assert (out / "dataset.json").read_text() == content


def test_a_pool_that_breaks_while_a_job_is_handed_over_is_a_killed_worker(tmp_path, monkeypatch):
    def closed(*_):
        raise OSError("handle is closed")  # what CPython's pool says when it breaks at that moment

    with pool.Workers(2, tmp_path / "lock") as workers:
        monkeypatch.setattr(workers._pool, "submit", closed)
        with pytest.raises(FastichError, match="a worker process was killed"):
            list(workers.map(abs, [1]))


def test_a_real_error_of_the_system_is_not_taken_for_a_killed_worker(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(12, "Cannot allocate memory")

    with pool.Workers(2, tmp_path / "lock") as workers:
        monkeypatch.setattr(workers._pool, "submit", full)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            list(workers.map(abs, [1]))
