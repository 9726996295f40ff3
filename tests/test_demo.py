import subprocess
import sys
from pathlib import Path

import pytest

from fastich import demo, steps
from fastich.demo import DemoConfig
from fastich.errors import FastichError, UsageError


def test_half_a_data_set_is_refused() -> None:
    with pytest.raises(UsageError, match="both --dicom DIR and --labels CSV"):
        DemoConfig(dicom=Path("x"))


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="was not made by the demo"):
        demo.demo(DemoConfig(out=tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_an_earlier_demo_is_replaced(tmp_path: Path) -> None:
    steps.clear(tmp_path / "demo", "demo")
    (tmp_path / "demo" / "old").write_text("old")
    steps.clear(tmp_path / "demo", "demo")
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [".fastich-demo"]


def test_missing_data_is_named(tmp_path: Path) -> None:
    config = DemoConfig(out=tmp_path / "out", dicom=tmp_path / "none", labels=tmp_path / "none.csv")
    with pytest.raises(FastichError, match=r"DICOM folder .*none does not exist"):
        demo.demo(config)


def test_missing_data_leaves_an_earlier_demo_alone(tmp_path: Path) -> None:
    steps.clear(tmp_path / "demo", "demo")
    (tmp_path / "demo" / "old").write_text("old")
    with pytest.raises(FastichError, match="does not exist"):
        demo.demo(DemoConfig(out=tmp_path / "demo", dicom=tmp_path / "none", labels=tmp_path / "none.csv"))
    assert (tmp_path / "demo" / "old").exists()


def test_data_inside_the_output_is_not_cleared_away(tmp_path: Path) -> None:
    steps.clear(tmp_path, "demo")
    (tmp_path / "dicom").mkdir()
    (tmp_path / "labels.csv").write_text("Id,Label\n")
    with pytest.raises(UsageError, match=r"DICOM folder .*dicom lies in .*which the demo replaces"):
        demo.demo(DemoConfig(out=tmp_path, dicom=tmp_path / "dicom", labels=tmp_path / "labels.csv"))
    assert (tmp_path / "labels.csv").exists()


def test_the_table_shows_what_is_undefined() -> None:
    summary = {
        "studies": 2, "slices": 60, "bytes": 2**20, "ratio": 3.5, "rates": {"pack": 100.0},
        "auc": {"any": 0.97, "epidural": None}, "log_loss": 0.1, "held_out_slices": 20, "held_out_patients": 1,
        "parity": {"model.onnx vs torch": {"max_abs_probability": 1e-7, "flips_at_half": 0}},
        "seconds": {"total": 300.0},
    }  # fmt: skip
    text = demo.table(summary)
    assert "AUC any" in text
    assert "0.9700" in text
    assert "undefined (one class only)" in text
    assert "max_abs_probability 1.00e-07, flips_at_half 0" in text


def test_the_command_line_exits_with_2_on_bad_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastich.demo", "--dicom", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: your own data needs both --dicom DIR and --labels CSV\n"
