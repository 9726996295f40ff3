"""The benchmark does not lie: its arithmetic by hand, who is refused, who is absent, what the README repeats."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

PROJECT = Path(__file__).resolve().parents[1]
BENCH = PROJECT / "bench"
sys.path.insert(0, str(BENCH))

import case  # noqa: E402
import ceilings  # noqa: E402
import contest  # noqa: E402
import goals  # noqa: E402
import memory  # noqa: E402
import projection  # noqa: E402
import readme_table  # noqa: E402
import rows  # noqa: E402
import throughput  # noqa: E402
import traffic  # noqa: E402
from bench_train import loader_share, steps  # noqa: E402
from chart import draw  # noqa: E402
from contest import Contender, Result, Work, WrongOutputError  # noqa: E402
from loaders_data import write_records  # noqa: E402
from preprocessing import EXACT, check_epoch, eight_bit_reference, half_plane, to_input  # noqa: E402

from fastich.errors import FastichError, UsageError  # noqa: E402
from fastich.hu import from_record  # noqa: E402
from fastich.records.reader import RecordReader  # noqa: E402
from fastich.windowing import preprocess  # noqa: E402

MEASURED = {
    "copy, one core": {"value": 10e9, "lowest": 9e9, "highest": 11e9, "unit": "B/s", "note": ""},
    "copy, all cores": {"value": 20e9, "lowest": 19e9, "highest": 21e9, "unit": "B/s", "note": ""},
    "GEMM float32": {"value": 100e9, "lowest": 99e9, "highest": 101e9, "unit": "FLOP/s", "note": ""},
}


def result(name: str, *rates: float, **more: Any) -> Result:
    known = {key: more.pop(key) for key in ("baseline", "ceiling", "limit") if key in more}
    return Result(contender=Contender(name=name, make="a:b", **known), rates=rates, **more)


def row(stage: str, name: str, rate: float, **more: Any) -> rows.Row:
    return rows.make_rows(stage, [result(name, rate, facts={"ours": True}, **more)], {})[0]


def test_row_has_median_spread_and_ratio_to_the_baseline() -> None:
    made = rows.make_rows("load", [result("ours", 50, 70, 60), result("seed", 2, 3, 4, baseline=True)], {})
    assert [made[0][key] for key in ("slices_per_s", "lowest", "highest", "rounds")] == [60, 50, 70, 3]
    assert (made[0]["relative"], made[0]["relative_to"], made[1]["relative"]) == (20, "seed", 1)


def test_fraction_is_of_the_lowest_ceiling_that_applies() -> None:
    made = rows.make_rows("infer", [result("net", 8, ceiling="all cores", moved_bytes=1e9, flop=10e9)], MEASURED)[0]
    assert (made["ceiling"], made["ceiling_slices_per_s"], made["fraction"]) == ("GEMM float32", 10, 0.8)
    assert made["bound"] == "GEMM float32"


def test_memory_ceiling_counts_bytes_read_and_written() -> None:
    found = result("decode", 5000, ceiling="one core", moved_bytes=1e6, limit="the core")
    made = rows.make_rows("codec", [found], MEASURED)[0]
    assert (made["ceiling_slices_per_s"], made["fraction"], made["bound"]) == (20_000, 0.25, "the core")


def test_ceiling_can_be_another_row() -> None:
    made = rows.make_rows("pack", [result("pack", 6, ceiling="row:read"), result("read", 10)], MEASURED)
    assert (made[0]["ceiling"], made[0]["fraction"], made[1]["fraction"]) == ("read", 0.6, None)


def test_row_without_a_baseline_has_no_ratio() -> None:
    late = Result(contender=Contender(name="seed", make="a:b", baseline=True), status="failed", why="it died")
    made = rows.make_rows("load", [result("ours", 5), late], {})
    assert made[0]["relative"] is None
    assert "| seed | failed: it died |" in rows.markdown(made)


def test_bottleneck_is_the_slowest_link_and_says_how_far_the_others_are() -> None:
    found = [row("load", "native", 6000), row("train", "amp", 20), row("infer", "onnx", 40)]
    assert rows.bottleneck(found) == (
        "Bottleneck of the chain: train (amp) at 20 slices/s, bound by the cores; as fast as it: "
        "infer 2.0 times, load 300.0 times."
    )


def test_bottleneck_of_one_link_is_not_known() -> None:
    assert "not known" in rows.bottleneck([row("load", "native", 6000)])


def test_bottleneck_leaves_rivals_out() -> None:
    rival = rows.make_rows("load", [result("rival", 1)], {})
    assert "train" in rows.bottleneck([*rival, row("load", "native", 60), row("train", "amp", 20)])


def test_goals_compare_rows_of_one_run() -> None:
    found = [row("load", "fastich native, half-first", 6000), row("load", "WebDataset", 1000)]
    by_text = {goal.text: goal for goal in goals.goals(found, [{"data": "ct", "codec": "lbp flat", "ratio": 3.5}])}
    assert by_text["load against WebDataset"].found == 6
    assert by_text["load against WebDataset"].verdict == "not met"
    assert by_text["load against FFCV"].verdict == "not measured"
    assert by_text["compression of real head CT, flat"].verdict == "met"


def test_loader_share_by_hand() -> None:
    assert loader_share(20, 19) == pytest.approx(0.05)
    assert loader_share(20, 21) == 0


def test_roofline_by_hand() -> None:
    card = projection.CARDS["A40"]
    assert projection.roofline(card, 7.4e9, 54e6) == (pytest.approx(12_889, rel=1e-3), "memory")
    assert projection.roofline(card, 7.4e12, 54e6) == (pytest.approx(20.23, rel=1e-3), "arithmetic")


def test_projection_says_that_it_is_none_of_a_measurement() -> None:
    text = projection.project("H200", 256)
    assert "a projection, not a measurement" in text
    assert "| infer, perfect | 7.4 | 54 | memory | 88,889 | 49,778-73,778 |" in text


def test_counted_work_is_that_of_the_published_network() -> None:
    flop, moved = traffic.count(256, training=False, dtype=torch.float16)
    assert flop == pytest.approx(7.4e9, rel=0.01)
    assert moved == pytest.approx(279e6, rel=0.05)


def test_byte_counter_by_hand() -> None:
    with traffic.ByteCounter() as counted:
        _ = torch.zeros(10, dtype=torch.float32, device="meta") + 1
    assert counted.total_bytes == 40 + 80
    with traffic.ByteCounter() as counted:
        torch.zeros(4, device="meta").view(2, 2).transpose(0, 1)
    assert counted.total_bytes == 16


def test_busy_moment_does_not_lower_a_ceiling() -> None:
    slow = {"copy, one core": MEASURED["copy, one core"] | {"value": 1.0}, "GEMM int8": {"value": None}}
    found = throughput.higher(slow, MEASURED | {"GEMM int8": {"value": 3.0}})
    assert (found["copy, one core"]["value"], found["GEMM int8"]["value"]) == (10e9, 3.0)


def test_memory_counts_what_children_hold() -> None:
    code = "import os; held = b'x' * 2**26; child = os.fork(); child or (held := b'y' * 2**26); print(1); input()"
    command = [sys.executable, "-u", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == [b"1\n", b"1\n"]
        held = memory.tree_bytes(process.pid)
        process.communicate(b"\n\n")
    assert held is not None
    assert 2**27 <= held < 2**27 + 2**26


def test_large_dicom_folder_is_cut_to_its_first_files(tmp_path: Path) -> None:
    folder = tmp_path / "dicom"
    for name in ("a/1.dcm", "b/1.dcm", "b/2.dcm"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    assert case.first_files(folder, tmp_path / "few", 3) == folder
    few = case.first_files(folder, tmp_path / "few", 2)
    assert [path.read_text() for path in sorted(few.iterdir())] == ["a/1.dcm", "b/1.dcm"]


def test_rate_does_not_count_the_pass_that_warms_up() -> None:
    passes: list[float] = []

    def one_pass() -> int:
        time.sleep(0.0 if passes else 0.2)
        passes.append(time.perf_counter())
        return 10

    assert contest.rate_of(one_pass, 0.0) > 10 / 0.2
    passes.clear()
    assert contest.rate_of(one_pass, 0.0, warm_up=False) <= 10 / 0.2


def test_storage_ceiling_says_whether_the_cache_was_dropped(tmp_path: Path) -> None:
    (tmp_path / "shard-00000-of-00001.tfrecord").write_bytes(bytes(2**20))
    found = ceilings.storage(tmp_path)
    assert found["note"] in ("page cache dropped", "CACHED: the kernel kept the pages")
    assert found["lowest"] <= found["value"] <= found["highest"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    write_records(folder, [(64, 64)] * 32)
    return folder


@pytest.mark.parametrize("loaded", [False, True], ids=["in memory", "with the loader"])
def test_a_training_contender_trains(records: Path, loaded: bool) -> None:
    with steps(records, 32, 8, "cpu", loaded, amp=True) as work:
        assert work.check() == "finite loss"
        assert work.run() == 8
    assert work.facts["precision"] == "bfloat16"


def test_strict_run_fails_where_a_row_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, records: Path) -> None:
    bad = Result(contender=Contender(name="wrong pixels", make="x:y"), status="refused", why="off by one")
    monkeypatch.setattr(throughput, "measure", lambda *_: [bad])
    monkeypatch.setattr(throughput, "ceiling_of_machine", lambda *_: {"storage read": dict.fromkeys(
        ("value", "lowest", "highest"), 1e9) | {"note": "a test", "unit": "B/s"}})  # fmt: skip
    words = ["--records", str(records), "--dicom", str(tmp_path), "--stage", "load", "--size", "32"]
    assert throughput.main([*words, "--work", str(tmp_path / "work")]) == 0
    assert throughput.main([*words, "--work", str(tmp_path / "work"), "--strict"]) == 1


def test_peers_arithmetic_is_the_reference() -> None:
    stored = np.random.default_rng(0).integers(0, 3000, (64, 64)).astype(np.uint16)
    for size in (32, 24):
        assert np.abs(to_input(stored, size) - preprocess(from_record(stored), size)).max() < EXACT
    assert half_plane(stored, 32).dtype == np.float32


def test_eight_bit_reference_averages_windows_not_hu() -> None:
    stored = np.tile(np.array([[1024, 1104]], np.uint16), (2, 1))
    found = eight_bit_reference(stored, 1)[0, 0, 0]
    assert found == pytest.approx((0.5 - 0.485) / 0.229, abs=1e-5)


def epoch_of(folder: Path, change: float = 0.0, skip: int = 0) -> Iterator[tuple[Any, Any]]:
    with RecordReader(folder) as reader:
        for number in range(skip, len(reader)):
            yield to_input(reader.stored(number), 32)[None] + np.float32(change), [number]


def test_right_pixels_pass(records: Path) -> None:
    with RecordReader(records) as reader:
        assert check_epoch(epoch_of(records), reader, 32, EXACT) == "1e-4"


def test_wrong_pixels_are_refused(records: Path) -> None:
    with RecordReader(records) as reader, pytest.raises(WrongOutputError, match=r"row 0 differs by 0\.01"):
        check_epoch(epoch_of(records, change=0.01), reader, 32, EXACT)


def test_a_missing_slice_is_refused(records: Path) -> None:
    with (
        RecordReader(records) as reader,
        pytest.raises(WrongOutputError, match="gave 31 slices, 31 different ones, of 32"),
    ):
        check_epoch(epoch_of(records, skip=1), reader, 32, EXACT)


def test_another_element_type_is_refused(records: Path) -> None:
    batches = ((images.astype(np.float16), numbers) for images, numbers in epoch_of(records))
    with RecordReader(records) as reader, pytest.raises(WrongOutputError, match="images are float16"):
        check_epoch(batches, reader, 32, EXACT)


@contextlib.contextmanager
def counting(wrong: bool = False) -> Iterator[Work]:
    """A contender for these tests: counts numbers."""

    def check() -> str:
        if wrong:
            raise WrongOutputError("row 3 differs by 1 from the reference")
        return "exact"

    yield Work(run=lambda: len(bytes(range(200))), check=check)


@contextlib.contextmanager
def dying() -> Iterator[Work]:
    import os

    os._exit(7)
    yield  # type: ignore[unreachable]


def test_contest_times_the_right_refuses_the_wrong_and_names_the_absent() -> None:
    found = contest.compete(
        [
            Contender(name="right", make="test_bench:counting"),
            Contender(name="wrong", make="test_bench:counting", arguments={"wrong": True}),
            Contender(name="absent", make="no_such_library:loader"),
            Contender(name="dying", make="test_bench:dying"),
        ],
        rounds=2,
        seconds=0.01,
    )
    assert [one.status for one in found] == ["ok", "refused", "absent", "failed"]
    assert len(found[0].rates) == 2
    assert found[0].rates[0] > 0
    assert found[0].peak_bytes is not None
    table = rows.markdown(rows.make_rows("load", found, {}))
    assert "| wrong | refused, wrong output: row 3 differs by 1 from the reference |" in table
    assert "| absent | not installed: No module named 'no_such_library' |" in table
    assert "| dying | failed: its process died (exit status 7)" in table


def test_quick_run_on_tiny_records_prints_the_tables_and_leaves_rows(records: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "rows.jsonl", tmp_path / "chart.png"
    flags = ["--quick", "--stage", "scale", "--records", records, "--dicom", tmp_path, "--size", 32]
    done = run_bench(*flags, "--json", out, "--chart", picture)
    assert done.returncode == 0, done.stderr
    assert "copy, one core" in done.stdout
    assert "native loader, shuffled, 1,000 slices" in done.stdout or "kernels are not built" in done.stdout
    found = rows.read_json(out)
    assert {"stage", "name", "status", "host", "versions", "commit", "config", "ops", "ceilings"} <= found[0].keys()
    assert found[0]["config"]["num_slices"] == 32
    assert picture.read_bytes().startswith(b"\x89PNG")


def run_bench(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(BENCH / "throughput.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)


def test_projection_measures_nothing() -> None:
    done = run_bench("--project-to", "A40")
    assert done.returncode == 0, done.stderr
    assert "A40 at 256 px: a projection, not a measurement" in done.stdout
    assert "ceiling of this machine" not in done.stdout


def test_too_few_slices_is_an_error_that_says_what_to_do(records: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    write_records(few, [(64, 64)] * 5)
    with pytest.raises(UsageError, match="expected at least 32 slices, found 5; give more DICOM files"):
        case.make_case(tmp_path / "work", dicom=tmp_path, records=few, size=32, quick=True, device="cpu")


def test_chart_shows_every_timed_row(tmp_path: Path) -> None:
    draw([row("load", "native", 6000), row("train", "amp", 20)], tmp_path / "chart.png", "a machine")
    assert (tmp_path / "chart.png").stat().st_size > 5000


FACTS = {
    "commit": "abc", "host": {"cpu": "a CPU", "num_cores": 2}, "ops": "native-avx512", "versions": {},
    "config": {"size": 256, "rounds": 5},
}  # fmt: skip


def test_readme_section_is_made_from_the_last_run_only() -> None:
    old = row("load", "fastich native, half-first", 1) | FACTS | {"commit": "old"}
    new = row("load", "fastich native, half-first", 6000) | FACTS
    text = readme_table.section(readme_table.last_run([old, new]), "cpu.jsonl")
    assert "| fastich native, half-first | 6,000 | 6,000-6,000 | - | - |" in text
    assert "2 cores (a CPU)" in text
    assert "old" not in text


def test_readme_without_markers_is_refused() -> None:
    with pytest.raises(FastichError, match=r"README\.md: expected <!-- bench:begin --> and then <!-- bench:end -->"):
        readme_table.replaced("no markers", "new", "README.md")


def test_no_rows_are_refused() -> None:
    with pytest.raises(FastichError, match=r"no rows in the results file; run bench/throughput\.py with --json"):
        readme_table.last_run([])


def test_readme_that_was_edited_by_hand_is_found_out(tmp_path: Path) -> None:
    results, readme = tmp_path / "cpu.jsonl", tmp_path / "README.md"
    results.write_text(json.dumps(row("load", "fastich native, half-first", 6000) | FACTS) + "\n")
    readme.write_text(f"before\n{readme_table.BEGIN}\n{readme_table.END}\nafter\n")
    assert readme_table.main([str(results), str(readme)]) == 0
    assert readme_table.main(["--check", str(results), str(readme)]) == 0
    readme.write_text(readme.read_text().replace("6,000", "9,000"))
    assert readme_table.main(["--check", str(results), str(readme)]) == 1


def test_readmes_speed_section_is_that_of_the_rows_it_names() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    if readme_table.BEGIN not in text:
        pytest.skip("README has no markers yet: it gets them with the first committed run")
    name = text.split(readme_table.BEGIN)[1].split("(bench/results/")[1].split(")")[0]
    assert readme_table.main(["--check", str(BENCH / "results" / name), str(PROJECT / "README.md")]) == 0


def test_gpu_suite_is_valid_shell_and_its_dry_run_names_every_step(tmp_path: Path) -> None:
    script = str(BENCH / "gpu_suite.sh")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    done = subprocess.run(["bash", script, "--dry-run", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    verbs = ("--cache device", "--cuda-graph", "--compile", "--profile")
    for step in (*verbs, "check_cuda", "--stage load", "--stage train", "--stage infer", "all.jsonl"):
        assert step in done.stdout
    assert not list(tmp_path.glob("*.log"))
