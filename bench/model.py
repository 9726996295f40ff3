"""A model folder to time: DenseNet121 after a few steps on a few slices, exported by the project's own commands.

It learns to say no to everything, so that its scores mean nothing and none lies near a threshold, where a variant in
another precision would be refused for flipping it. Its size, graph and speed are those of any trained one. Made once a
work folder.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from case import Case, call, write_records

from fastich import ops
from fastich.artifact import MANIFEST
from fastich.labels import LABELS
from fastich.records.reader import RecordReader

EXPORT = Path(__file__).resolve().parents[1] / "export" / "to_onnx.py"
NUM_TRAIN, NUM_VAL, NUM_TEST = 8, 8, 8
NUM_EPOCHS = 4
PARITY_SLICES = 2


def trained(case: Case) -> Path:
    """The run folder."""
    run = case.derived / f"run-{case.size}"
    if not (run / "run.json").exists():
        with RecordReader(case.half) as reader:
            write_records(few(case), reader, NUM_TRAIN + NUM_VAL + NUM_TEST, "lbp", ops.encode, as_split)
        flags = ("--size", case.size, "--batch-size", NUM_TRAIN, "--epochs", NUM_EPOCHS, "--device", case.device)
        call(
            "train",
            "--records",
            few(case),
            "--out",
            run,
            *flags,
            "--weights",
            "none",
            "--allow-leakage",
            "--resume",
            "auto",
        )
    return run


def few(case: Case) -> Path:
    """Records of a few slices of every split: to train on, to calibrate int8 on, to compare variants on."""
    return case.derived / "few"


def as_split(index: pd.DataFrame) -> None:
    """Give the rows of an index labels and splits."""
    index["split"] = ["train"] * NUM_TRAIN + ["val"] * NUM_VAL + ["test"] * NUM_TEST
    for label in LABELS:
        index[label] = np.int8(0)


def exported(case: Case, precision: str = "") -> Path:
    """The model folder; ``precision`` is handed to ``export/to_onnx.py --precision`` where it is not empty.

    Raises:
        RuntimeError: the export command refuses; its last line.
    """
    folder = case.derived / f"model-{case.size}{precision and '-' + precision}"
    if not (folder / MANIFEST).exists():
        command = [sys.executable, str(EXPORT), "--run", str(trained(case)), "--out", str(folder)]
        command += ["--parity-slices", str(PARITY_SLICES)]
        if precision:
            command += ["--precision", precision, "--records", str(few(case))]
            command += ["--calibration-slices", str(NUM_VAL), "--variant-slices", str(NUM_TEST)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"export/to_onnx.py: {done.stderr.strip().splitlines()[-1]}")
    return folder
