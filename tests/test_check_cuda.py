"""bench/check_cuda.py on the emulator: it accepts right kernels, catches wrong ones, counts bytes."""

import argparse
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastich.errors import FastichError, UsageError
from fastich.windowing import preprocess

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="g++ builds the emulated kernels")


@pytest.fixture
def script():
    path = Path(__file__).resolve().parents[1] / "bench" / "check_cuda.py"
    spec = importlib.util.spec_from_file_location("check_cuda", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_are_appended_with_what_ran(script, emulated_library, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    tiny = ["--batch", "1", "--side", "32", "--size", "16", "--seconds", "0.01"]
    script.main(["--device", "cpu", "--library", str(emulated_library), "--json", str(rows), *tiny])
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    stages = {row["stage"] for row in found}
    assert {"copy on the device", "copy from pinned memory", "decode_window half-first float16 warped"} <= stages
    assert len(stages) == 20
    assert all(row["ops"] == "emulated" and row["checked_slices"] > 250 for row in found)
    assert all(row["lowest"] <= row["gb_per_s"] <= row["highest"] for row in found)
    assert capsys.readouterr().out.count("\n| decode_window") == 18


def test_a_pixel_that_differs_ends_the_run(script, emulated_library, monkeypatch):
    monkeypatch.setattr(
        script.codec, "decode", lambda payload, height, width, name: np.ones((height, width), np.uint16)
    )
    with pytest.raises(FastichError, match=r"lbp payload 0 of 1 x 1: status 0, expected 0, or other pixels"):
        script.check(emulated_library, "cpu")


def test_an_image_that_is_off_ends_the_run(script, emulated_library, monkeypatch):
    monkeypatch.setattr(script, "preprocess", lambda hu, size: preprocess(hu, size) + np.float32(0.01))
    with pytest.raises(
        FastichError, match=r"images of mode 0, dtype 0, layout 0: off by 0.01, expected at most 0.0001"
    ):
        script.check(emulated_library, "cpu")


def test_bytes_moved_are_payload_plane_twice_and_output(script):
    args = argparse.Namespace(side=512)
    output = 256 * 256 * 3 * 4
    assert script.moved_bytes("flat", False, args, 150_000, output) == 150_000 + 2 * 524_288 + output
    assert script.moved_bytes("half-first", True, args, 195_000, output) == 65_000 + 2 * 131_072 + output
    assert script.moved_bytes("raw", False, args, 524_288, output) == 524_288 + output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(script):
    with pytest.raises(UsageError, match="torch sees no CUDA device; run this on a machine with a GPU"):
        script.main([])
