"""What each way to help rare labels does to epidural recall: the same network trained with each, on the same records.

    python bench/rare_classes.py --records RECORDS --out DIR [--size 96] [--epochs 8] [--seeds 1]

Each run is ``fastich.train`` and ``fastich.evaluate`` as typed by hand. The table gives epidural AUC, and its recall
and precision at 0.5 and at the threshold that validation chose, with 95 % intervals by patient, beside the AUC of any.
Not about speed: it belongs to docs/trust.md, and takes as long as one training a row.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastich.intervals import text

WAYS = {
    "plain BCE": (),
    "challenge weights (any counts twice)": ("--class-weights", "challenge"),
    "inverse prevalence": ("--class-weights", "inverse"),
    "focal, gamma 2": ("--loss", "focal"),
    "balanced sampling": ("--balanced",),
}
LABEL = "epidural"


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--records", type=Path, required=True)
    made.add_argument("--out", type=Path, required=True, help="a folder; runs that it holds already are not repeated")
    made.add_argument("--size", type=int, default=96)
    made.add_argument("--epochs", type=int, default=8)
    made.add_argument("--seeds", type=int, default=1, help="runs of each way, with seeds from 0")
    args = made.parse_args()
    rows = [
        (name, seed, measured(args, number, flags, seed))
        for seed in range(args.seeds)
        for number, (name, flags) in enumerate(WAYS.items())
    ]
    print(table(rows))


def measured(args: argparse.Namespace, number: int, flags: tuple[str, ...], seed: int) -> dict[str, Any]:
    """metrics.json of one way and seed."""
    run = args.out / f"way-{number}-seed-{seed}"
    found = run / "evaluation-test" / "metrics.json"
    if not found.is_file():
        verb("train", "--records", args.records, "--out", run, "--weights", "none", "--size", args.size, "--epochs",
             args.epochs, "--batch-size", 24, "--schedule", "one-cycle", "--lr", "2e-3", "--amp", "--augment",
             "--seed", seed, "--resume", "auto", *flags)  # fmt: skip
        verb("evaluate", "--run", run, "--records", args.records, "--amp", "--overwrite")
    values: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return values


def verb(name: str, *arguments: object) -> None:
    words = [str(word) for word in arguments]
    print(f"$ python -m fastich.{name} {' '.join(words)}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", f"fastich.{name}", *words], check=True, stdout=subprocess.DEVNULL)


def table(rows: list[tuple[str, int, dict[str, Any]]]) -> str:
    lines = [
        "| way | seed | AUC epidural | recall at 0.5 | recall at threshold | precision at threshold | AUC any |",
        "|---|---:|---|---|---|---|---|",
    ]
    for name, seed, found in rows:
        cells = [
            text(found["auc"][LABEL], digits=2),
            _rate(found, "at_0.5", "recall"),
            _rate(found, "at_thresholds", "recall"),
            _rate(found, "at_thresholds", "precision"),
            text(found["auc"]["any"], digits=2),
        ]
        lines.append(f"| {name} | {seed} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(found: dict[str, Any], point: str, name: str) -> str:
    value, interval = (found[key][point][LABEL][name] for key in ("reports", "report_intervals"))
    return text({"value": value, **interval}, digits=2)


if __name__ == "__main__":
    main()
