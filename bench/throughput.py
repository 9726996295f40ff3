"""Slices a second of every stage on this machine, beside its ceilings and beside what one would otherwise do.

    python bench/throughput.py [--stage all|codec|pack|load|train|infer|end-to-end|scale] [--quick]
                               [--dicom DIR] [--records DIR] [--ct DIR] [--json FILE] [--chart FILE.png]
    python bench/throughput.py --project-to A40        # a roofline of a card that is not here; measures nothing

Without ``--dicom`` and ``--records`` it makes synthetic studies at 512 px first. Contenders of a stage run in turn,
round by round, each in a process of its own, and only after their output was checked (``contest.py``). ``--quick``
takes fewer slices, rounds and variants: a look, not a result. How to read the tables: bench/README.md.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for CUDA must not open it in this process
import bench_codec
import bench_end_to_end
import bench_infer
import bench_load
import bench_pack
import bench_scale
import bench_train
import ceilings
import model
import torch
from case import BATCH, Case, make_case, work_folder
from chart import draw
from commit import commit
from contest import Contender, Result, Work, compete, one_line
from goals import goal_table, goals
from projection import CARDS, project
from rows import Ceilings, Row, append_json, bottleneck, ceiling_table, figures, make_rows, markdown, rate_in, shown

from fastich import ops, verb
from fastich.training.environment import device_name, host, versions

STAGES = {module.STAGE: module for module in (
    bench_codec, bench_pack, bench_load, bench_train, bench_infer, bench_end_to_end, bench_scale,
)}  # fmt: skip
NEED_MODEL = (bench_infer.STAGE, bench_end_to_end.STAGE)
QUICK_STAGES = [stage for stage in STAGES if stage != bench_scale.STAGE]


def main(argv: list[str]) -> int:
    args = flags().parse_args(argv)
    if args.project_to:
        print(project(args.project_to, args.size))
        return 0
    chosen = [args.stage] if args.stage != "all" else QUICK_STAGES if args.quick else list(STAGES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with work_folder(args.work) as work:
        case = make_case(work, dicom=args.dicom, records=args.records, size=args.size, quick=args.quick, device=device)
        rounds, seconds = (2, 0.2) if args.quick else (args.rounds, args.seconds)
        facts = run_facts(case, args, rounds, seconds)
        measured = ceiling_of_machine(case, 0.05 if args.quick else 0.5)
        results = {stage: measure(stage, case, rounds, seconds) for stage in chosen}
        if not args.quick:
            measured = higher(measured, ceiling_of_machine(case, 0.5))
        rows = [row for stage, found in results.items() for row in make_rows(stage, found, measured)]
        rows += chain_rows(case, measured)
        ratios = bench_codec.ratios(case, args.ct) if bench_codec.STAGE in chosen else []
    facts |= {"ceilings": {n: one["value"] for n, one in measured.items()}}
    print(report(rows, measured, ratios, facts))
    if args.json:
        append_json(args.json, rows + ratio_rows(ratios), facts)
    if args.chart:
        draw(rows, args.chart, title(facts))
    wrong = [f"{row['stage']}: {row['name']}" for row in rows if row["status"] in ("failed", "refused")]
    if wrong:
        verb.say(f"{len(wrong)} rows failed or were refused: {'; '.join(wrong)}")
    return 1 if wrong and args.strict else 0


def flags() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--stage", default="all", choices=("all", *STAGES), help="what to measure (default: all)")
    made.add_argument("--records", type=Path, help="packed records (default: those of the DICOM files, packed now)")
    made.add_argument("--dicom", type=Path, help="folder of DICOM files (default: synthetic studies, made now)")
    made.add_argument("--ct", type=Path, help="folder of real CT slices (a few do) whose compression is measured too")
    made.add_argument("--size", type=int, default=256, help="side of the network's input, pixels (default: 256)")
    made.add_argument("--seconds", type=float, default=1.0, help="least length of a turn, seconds (default: 1)")
    made.add_argument("--rounds", type=int, default=5, help="turns of each contender (default: 5)")
    made.add_argument(
        "--quick", action="store_true", help="fewer slices, rounds and variants: about four minutes on two cores"
    )
    made.add_argument(
        "--work", type=Path, help="keep what is made here, and use it again (default: a temporary folder)"
    )
    made.add_argument("--json", type=Path, help="append each row to this file as one JSON line")
    made.add_argument("--chart", type=Path, help="write a bar chart to this PNG file")
    made.add_argument("--strict", action="store_true", help="exit 1 where a row failed or was refused")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    made.add_argument("--project-to", choices=tuple(CARDS), help="print a roofline projection for a card and stop")
    return made


def measure(stage: str, case: Case, rounds: int, seconds: float) -> list[Result]:
    started = time.monotonic()
    verb.say(f"bench: {stage}")
    if stage in NEED_MODEL:
        try:
            model.exported(case)
        except (subprocess.CalledProcessError, RuntimeError) as error:
            verb.say(f"bench: no model to time ({one_line(error)}); its rows will say failed")
    found = compete(STAGES[stage].contenders(case), rounds=rounds, seconds=seconds, say=verb.say)
    verb.say(f"  {time.monotonic() - started:.0f} s")
    return found


def ceiling_of_machine(case: Case, seconds: float) -> dict[str, Any]:
    """The machine's ceilings, measured in a process of their own."""
    verb.say("bench: ceilings")
    arguments = {"records": case.half, "device": case.device, "seconds": seconds}
    result = compete(
        [Contender(name="ceilings", make="throughput:ceiling_work", arguments=arguments)], rounds=0, seconds=0
    )[0]
    if result.status != "ok":
        raise RuntimeError(f"ceilings: {result.why}")
    return result.facts


def higher(first: Ceilings, second: Ceilings) -> Ceilings:
    """The higher of two measurements of each ceiling, made before and after the stages: a busy moment lowers both."""
    return {name: max(one, second[name], key=lambda found: found["value"] or 0.0) for name, one in first.items()}


@contextlib.contextmanager
def ceiling_work(records: Path, device: str, seconds: float) -> Iterator[Work]:
    found = ceilings.measure(records, device, seconds)
    yield Work(run=lambda: 1, check=lambda: "", facts=found)


def chain_rows(case: Case, measured: dict[str, Any]) -> list[Row]:
    """Storage and host to device as rows, in slices/s, so that the chain can be compared link by link."""
    stored = sum(path.stat().st_size for path in case.half.glob("shard-*")) / case.num_slices
    found = [
        link(
            "storage",
            f"read of half-first records, {measured['storage read']['note']}",
            "storage read",
            stored,
            measured,
        )
    ]
    if "host to device" in measured:
        written = 4.0 * 3 * case.size**2
        found.append(link("host to device", "float32 inputs, pinned", "host to device", written, measured))
    return found


def link(stage: str, name: str, ceiling: str, size: float, measured: dict[str, Any]) -> Row:
    rates = {key: figures(measured[ceiling][key] / size) for key in ("value", "lowest", "highest")}
    return {
        "stage": stage, "name": name, "status": "ok", "slices_per_s": rates["value"], "lowest": rates["lowest"],
        "highest": rates["highest"], "rounds": 3, "bound": "itself", "ceiling": None, "ceiling_slices_per_s": None,
        "fraction": None, "bytes_per_slice": round(size), "peak_mib": None, "relative": None, "relative_to": None,
        "tolerance": "", "facts": {"ours": True},
    }  # fmt: skip


def ratio_rows(ratios: Sequence[dict[str, Any]]) -> list[Row]:
    return [
        {"stage": "ratio", "name": f"{one['codec']}, {one['data']}", "status": "ratio", "ratio": figures(one["ratio"])}
        for one in ratios
    ]


def run_facts(case: Case, args: argparse.Namespace, rounds: int, seconds: float) -> dict[str, Any]:
    """What every row of the run shares: machine, versions, commit, config."""
    config = {
        "size": case.size, "batch": BATCH, "num_slices": case.num_slices, "quick": case.quick, "rounds": rounds,
        "seconds": seconds, "data": "own DICOM files" if args.dicom else "own records" if args.records else "synthetic",
        "device": case.device,
    }  # fmt: skip
    gpu = {"gpu": device_name(torch.device("cuda"))} if case.device == "cuda" else {}
    return {"host": host() | gpu, "versions": versions(), "commit": commit(), "ops": ops.backend(), "config": config}


def title(facts: dict[str, Any]) -> str:
    machine, config = facts["host"], facts["config"]
    where = machine.get("gpu") or machine["cpu"]
    quick = ", quick: a look, not a result" if config["quick"] else ""
    return (
        f"{where}, {machine['num_cores']} cores, kernels {facts['ops']}; 512 to {config['size']} px, three windows, "
        f"{config['num_slices']} slices ({config['data']}), {config['rounds']} rounds{quick}"
    )


def report(rows: list[Row], measured: dict[str, Any], ratios: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Everything that is printed."""
    parts = [title(facts) + f"; commit {facts['commit']}", ceiling_table(measured), markdown(rows)]
    if ratios:
        lines = ["| compression | data | ratio |", "|---|---|---:|"]
        parts.append("\n".join(lines + [f"| {one['codec']} | {one['data']} | {one['ratio']:.2f} |" for one in ratios]))
    parts += [loader_shares(rows), goal_table(goals(rows, ratios)), bottleneck(rows)]
    return "\n\n".join(part for part in parts if part)


def loader_shares(rows: list[Row]) -> str:
    """A line for each precision that was timed in memory and with the loader."""
    lines = []
    for name in ("float32", "amp", "amp, compiled"):
        both = [rate_in(rows, "train", f"{name}, {place}") for place in ("in memory", "with the loader")]
        if both[0] and both[1]:
            share = bench_train.loader_share(both[0], both[1])
            lines.append(
                f"The loader's share of a training step, {name}: {share:.1%} "
                f"({shown(both[1])} of {shown(both[0])} slices/s)."
            )
    return "\n".join(lines)


def alone(stage: str) -> None:
    """Run one stage as the command of its own file: the flags are these, the stage is given."""
    verb.run(main, [*sys.argv[1:], "--stage", stage])


if __name__ == "__main__":
    verb.run(main)
