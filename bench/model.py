"""A model folder to time: DenseNet121 after one epoch on a dozen slices, exported by the project's own commands.

Its scores mean nothing; its size, graph and speed are those of any trained one. Made once a work folder.
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
NUM_TRAIN, NUM_VAL = 8, 4
PARITY_SLICES = 2


def trained(case: Case) -> Path:
    """The run folder."""
    run, records = case.derived / f"run-{case.size}", case.derived / "dozen"
    if not (run / "run.json").exists():
        with RecordReader(case.half) as reader:
            write_records(records, reader, NUM_TRAIN + NUM_VAL, "lbp", ops.encode, as_split)
        flags = ("--size", case.size, "--batch-size", NUM_TRAIN, "--epochs", 1, "--weights", "none", "--resume", "auto")
        call("train", "--records", records, "--out", run, *flags, "--device", case.device)
    return run


def as_split(index: pd.DataFrame) -> None:
    """Give the rows of an index labels and splits to train on."""
    index["split"] = ["train"] * NUM_TRAIN + ["val"] * NUM_VAL
    for label in LABELS:
        index[label] = (np.arange(NUM_TRAIN + NUM_VAL) % 2).astype(np.int8)


def exported(case: Case, precision: str = "") -> Path:
    """The model folder; ``precision`` is handed to ``export/to_onnx.py --precision`` where it is not empty.

    Raises:
        ModuleNotFoundError: the export command refuses the precision; its last line.
    """
    folder = case.derived / f"model-{case.size}{precision and '-' + precision}"
    if not (folder / MANIFEST).exists():
        command = [sys.executable, str(EXPORT), "--run", str(trained(case)), "--out", str(folder)]
        command += ["--parity-slices", str(PARITY_SLICES), *(("--precision", precision) if precision else ())]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ModuleNotFoundError(f"export/to_onnx.py: {done.stderr.strip().splitlines()[-1]}")
    return folder
