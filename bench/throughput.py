"""Slices a second of each stage on this machine: codec, loaders, one training step, inference.

    python bench/throughput.py [--records DIR] [--stage all|codec|load|train|infer] [--size 256] [--json FILE]

Without ``--records`` it makes and packs a small synthetic data set at 512 px in a temporary folder. Each row is the
median of rounds after one warm-up round, with the lowest and highest beside it. ``copy`` is the ceiling of the codec
and load rows: how many raw slices a second one thread copies in memory. Networks have random weights.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastich import ops, verb
from fastich.loaders import LoaderConfig, open_loader
from fastich.models.densenet import build_model
from fastich.models.serving import Front, ServingModel
from fastich.records.reader import RecordReader
from fastich.train import num_replicas, start_learner
from fastich.training.config import TrainConfig
from fastich.training.environment import host, versions
from fastich.training.precision import choose_device, choose_precision
from fastich.windowing import DEFAULT_WINDOWS

BATCH = 32
ROUNDS = 5


def main(argv: list[str]) -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--records", type=Path, help="packed records (default: synthetic ones, made now)")
    made.add_argument("--stage", default="all", choices=("all", "codec", "load", "train", "infer"))
    made.add_argument("--size", type=int, default=256, help="side of the network's input, pixels (default: 256)")
    made.add_argument("--seconds", type=float, default=5.0, help="aimed length of a stage's measurement (default: 5)")
    made.add_argument("--json", type=Path, help="append each row to this file as one JSON line")
    args = made.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        records = args.records or synthetic(Path(scratch))
        stages = {"codec": codec, "load": load, "train": train, "infer": infer}
        chosen = stages.values() if args.stage == "all" else [stages[args.stage]]
        rows = [row for stage in chosen for row in stage(records, args.size, args.seconds)]
    print(markdown(rows))
    if args.json:
        facts = {"ops": ops.backend(), "host": host(), "versions": versions(), "size": args.size, "batch": BATCH}
        with args.json.open("a", encoding="utf-8") as out:
            out.writelines(json.dumps({**row, **facts}) + "\n" for row in rows)


def synthetic(folder: Path) -> Path:
    """Six studies at 512 px, packed with the default codec."""
    dicom, records = folder / "dicom", folder / "records"
    for words in (
        ["phantom", "--out", dicom, "--studies", 6],
        ["pack", "--dicom", dicom / "stage_2_train", "--labels", dicom / "stage_2_train.csv", "--out", records],
    ):
        subprocess.run([sys.executable, "-m", "fastich." + str(words[0]), *map(str, words[1:])], check=True)
    return records


def codec(records: Path, size: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Encode and decode of the codec that the records use, beside a plain copy of the pixels."""
    reader = RecordReader(records)
    rows = range(min(64, len(reader.index)))
    slices = [reader.stored(row) for row in rows]
    payloads = [bytes(reader.payload(row)) for row in rows]
    height, width = slices[0].shape
    target = np.empty_like(slices[0])
    yield measure("copy", len(slices), seconds, lambda: [np.copyto(target, pixels) for pixels in slices])
    yield measure("encode", len(slices), seconds, lambda: [ops.encode(pixels, reader.codec) for pixels in slices])
    yield measure(
        "decode", len(slices), seconds, lambda: [ops.decode(p, height, width, reader.codec) for p in payloads]
    )


def load(records: Path, size: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Records to normalised batches, every backend, plain and augmented."""
    for backend in (*(["native"] if ops.KERNELS else []), "dali", "cpu"):
        for augment in (False, True):
            config = LoaderConfig(
                records=records, split="all", batch_size=BATCH, size=size, augment=augment, backend=backend
            )
            loader = open_loader(config)
            name = f"load {loader.backend}{' augmented' if augment else ''}"
            yield measure(
                name, loader.num_slices, seconds, lambda loader=loader: [len(b.rows) for b in loader.epoch(0)]
            )
            loader.close()


def train(records: Path, size: int, seconds: float) -> Iterator[dict[str, Any]]:
    """Training steps on one batch held in memory: the network without the loader."""
    device = choose_device("auto")
    loader = open_loader(LoaderConfig(records=records, split="all", batch_size=BATCH, size=size, backend="cpu"))
    batch = next(iter(loader.epoch(0)))
    loader.close()
    for amp in (False, True):
        config = TrainConfig(records=records, out=Path("unused"), weights="none", size=size, amp=amp)
        precision = choose_precision(amp, device)
        learner = start_learner(config, precision, num_replicas(config, device))
        learner.model.train()
        name = f"train {device.type} {precision.name}"
        yield measure(name, BATCH, seconds, lambda learner=learner: float(learner.step(batch, 1e-4)[0]))
        learner.close()


def infer(records: Path, size: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The serving graph in torch, preprocessing included; the exported file's rate is what fastich.score prints."""
    reader = RecordReader(records)
    hu = torch.from_numpy(np.stack([reader.hu(row) for row in range(16)]))
    model = ServingModel(Front(size, DEFAULT_WINDOWS, False), build_model(weights="none")).eval()
    with torch.inference_mode():
        yield measure("infer torch eager", len(hu), seconds, lambda: model(hu))


def measure(name: str, num_slices: int, seconds: float, work: Callable[[], Any]) -> dict[str, Any]:
    """Slices a second of ``work``, which handles ``num_slices``: median, lowest and highest of a few rounds."""
    started = time.perf_counter()
    work()
    once = time.perf_counter() - started
    repeats = max(1, round(seconds / ROUNDS / max(once, 1e-9)))
    rates = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        rates.append(num_slices * repeats / (time.perf_counter() - started))
    verb.say(f"{name}: {statistics.median(rates):.1f} slices/s")
    return {
        "stage": name,
        "slices_per_s": round(statistics.median(rates), 2),
        "lowest": round(min(rates), 2),
        "highest": round(max(rates), 2),
        "rounds": ROUNDS,
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| stage | slices/s | lowest | highest |", "|---|---:|---:|---:|"]
    lines += [f"| {r['stage']} | {r['slices_per_s']:,.1f} | {r['lowest']:,.1f} | {r['highest']:,.1f} |" for r in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    verb.run(main)
