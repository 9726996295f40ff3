"""How many studies a minute the triage server takes, scores and shows, with nothing lost: an open-loop load test.

    python bench/bench_serve.py [--way dimse|stow] [--model DIR] [--rate 10] [--hold 180] [--quick] [--json FILE]

Starts ``python -m fastich.serve`` on loopback in a new spool and sends it phantom studies (40 slices, 512 px) at a
fixed rate, whether or not earlier ones are done. Measured: the time from the acknowledgement of a study's last slice to
its entry in the worklist (both on this machine's clock; quiet_s is in it), refusals, memory, and whether everything
that was acknowledged is there and every study ended in a final state. A rate is held where for ``--hold`` seconds
nothing was lost or refused and p95 stayed below ``--within``; rates rise by half from ``--rate`` until one is not held,
then the gap is halved twice. Sender and server share the machine's cores: a server of its own is faster.
"""

import argparse
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import model
from case import make_case, work_folder
from commit import commit
from rows import Row, append_json, figures, shown
from serve_load import Sender, Sent, by_dimse, by_stow, due_times, send_all
from serve_process import COMMAND, HOST, Served, served, settings
from serve_studies import Template, templates

from fastich import verb
from fastich.artifact import PRECISIONS
from fastich.errors import UsageError
from fastich.training.environment import host, versions

STAGE = "serve"
NUM_TEMPLATES = 6
FINAL = ("scored", "not evaluated", "failed")
STEP, HALVINGS, MOST_STEPS = 1.5, 2, 12
LATE_S = 0.5
"""A study that left later than this after its time: the sender is what was measured."""
ASK_S = 0.3


@dataclass(frozen=True, kw_only=True)
class Load:
    """One measurement to make."""

    way: str
    rate_per_min: float
    hold_s: float
    arrivals: str
    quiet_s: float
    within_s: float
    settle_s: float
    seed: int = 0


def main(argv: list[str]) -> int:
    args = flags().parse_args(argv)
    if min(args.rate, args.hold, args.slices, args.size, args.within, args.quiet) <= 0:
        raise UsageError("--rate, --hold, --slices, --size, --within and --quiet must be above 0")
    facts = run_facts(args)
    with work_folder(args.work) as work:
        folder = args.model or made_model(work, args)
        studies = templates(work, num_studies=NUM_TEMPLATES, num_slices=args.slices, size=args.size)
        text = settings(folder, work / "server" / "spool", precision=args.precision, quiet_s=args.quiet)

        def at(rate: float) -> Row:
            row = measure(load_of(args, rate), studies, work / "server", text, COMMAND)
            verb.say(line(row))
            if args.json:  # each at once: a run of many rates may be interrupted
                append_json(args.json, [row], facts)
            return row

        rows = [at(args.rate)] if args.quick else list(steps(args.rate, at))
    print(report(rows, args, facts))
    return 0


def flags() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--way", default="dimse", choices=("dimse", "stow"), help="how studies are sent (default: dimse)")
    made.add_argument("--model", type=Path, help="model folder (default: an untrained DenseNet121 at 256 px, made now)")
    made.add_argument("--precision", default="float32", choices=PRECISIONS, help="of the network (default: float32)")
    made.add_argument("--rate", type=float, default=10.0, help="studies a minute to begin with (default: 10)")
    made.add_argument("--hold", type=float, default=180.0, help="how long a rate is held, seconds (default: 180)")
    made.add_argument("--arrivals", default="poisson", choices=("poisson", "uniform"), help="(default: poisson)")
    made.add_argument("--slices", type=int, default=40, help="slices of a study (default: 40)")
    made.add_argument("--size", type=int, default=512, help="side of a slice, px; smaller for a look (default: 512)")
    made.add_argument("--quiet", type=float, default=5.0, help="the server's quiet_s, seconds (default: 5)")
    made.add_argument(
        "--within", type=float, default=30.0, help="p95 that a held rate stays below, seconds (default: 30)"
    )
    made.add_argument("--quick", action="store_true", help="one rate, held for at most 20 s: a look, not a result")
    made.add_argument("--work", type=Path, help="keep what is made here for the next run (default: a temporary folder)")
    made.add_argument("--json", type=Path, help="append each row to this file as one JSON line")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def made_model(work: Path, args: argparse.Namespace) -> Path:
    """A model folder whose size and speed are those of a trained one (``model.py``)."""
    case = make_case(work, dicom=None, records=None, size=256, quick=True, device="cpu")
    return model.exported(case, "" if args.precision in ("float32", "bfloat16") else args.precision)


def load_of(args: argparse.Namespace, rate: float) -> Load:
    hold = min(args.hold, 20.0) if args.quick else args.hold
    settle = max(60.0, 2 * args.within)
    return Load(
        way=args.way,
        rate_per_min=rate,
        hold_s=hold,
        arrivals=args.arrivals,
        quiet_s=args.quiet,
        within_s=args.within,
        settle_s=settle,
    )


def steps(first: float, at: Callable[[float], Row]) -> Iterator[Row]:
    """Rows of rising rates until one is not held (or ``MOST_STEPS``), then of rates between the last two."""
    low, high, rate = 0.0, None, first
    for _ in range(MOST_STEPS):
        row = at(rate)
        yield row
        if not row["held"]:
            high = rate
            break
        low, rate = rate, rate * STEP
    for _ in range(HALVINGS if high is not None else 0):
        assert high is not None
        rate = (low + high) / 2
        row = at(rate)
        yield row
        low, high = (rate, high) if row["held"] else (low, rate)


def measure(load: Load, studies: Sequence[Template], folder: Path, text: str, command: Sequence[str]) -> Row:
    """One row: a new server, ``load`` on it, and what became of every study."""
    shutil.rmtree(folder, ignore_errors=True)
    with served(folder, text, command=command) as server:
        due = due_times(load.rate_per_min, load.hold_s, load.arrivals, load.seed)
        name = f"{load.way}-{load.rate_per_min:g}-{time.time()}"
        sent = send_all(studies, due, sender_of(load, server), name=name, give_up_s=load.settle_s)
        found = outcomes(server, sent, time.time() + load.settle_s)
    shutil.rmtree(folder, ignore_errors=True)
    return row_of(load, sent, found, server.peak_bytes)


def sender_of(load: Load, server: Served) -> Sender:
    """How ``load`` sends."""
    if load.way == "stow":
        return by_stow(HOST, server.http_port, server.token)
    return by_dimse(HOST, server.dicom_port, "FASTICH")


def outcomes(server: Served, sent: Sequence[Sent], deadline: float) -> dict[str, dict[str, Any] | None]:
    """What the API says of each study once it is final, or at ``deadline``; None for one that it does not know."""
    found: dict[str, dict[str, Any] | None] = {}
    waiting = {one.study.study_uid: one for one in sent if one.acknowledged}
    while True:
        for uid, one in list(waiting.items()):
            status, study = server.get(f"/studies/{uid}")
            found[uid] = study if status == 200 else None
            if is_done(found[uid], one):
                del waiting[uid]
        if not waiting or time.time() > deadline:
            return found
        time.sleep(ASK_S)


def is_done(study: dict[str, Any] | None, one: Sent) -> bool:
    """Final, and about everything that was acknowledged."""
    return study is not None and study["state"] in FINAL and not study["is_partial"] and missing(study, one) == 0


def missing(study: dict[str, Any] | None, one: Sent) -> int:
    """Slices that were acknowledged and are not there."""
    return max(0, one.acknowledged - (0 if study is None else int(study["num_instances"])))


def row_of(load: Load, sent: Sequence[Sent], found: dict[str, dict[str, Any] | None], peak_bytes: int | None) -> Row:
    """The row: arithmetic only."""
    taken = [(one, found[one.study.study_uid]) for one in sent if one.acknowledged]
    done = [(one, study) for one, study in taken if is_done(study, one) and study is not None]
    waits = sorted(study["final_at"] - one.last_ack_at for one, study in done if one.last_ack_at is not None)
    late = max(one.started_at - one.due_at for one in sent)
    counts = {
        "num_studies": len(sent),
        "num_slices": sum(one.acknowledged for one in sent),
        "refusals": sum(one.refusals for one in sent),
        "faults": dict(Counter(fault for one in sent for fault in one.faults)),
        "not_taken": sum(not one.is_whole for one in sent),
        "lost_slices": sum(missing(study, one) for one, study in taken),
        "lost_studies": sum(study is None for _, study in taken),
        "unfinished": len(taken) - len(done),
        "states": dict(Counter(study["state"] for _, study in done)),
    }
    row: Row = {
        "stage": STAGE,
        "name": f"{load.way}, {load.rate_per_min:g} studies/min",
        "status": "ok" if late <= LATE_S else "refused",
        "why": "" if late <= LATE_S else f"the sender was {late:.1f} s late: it measured itself",
        "way": load.way,
        "rate_per_min": load.rate_per_min,
        "hold_s": load.hold_s,
        "quiet_s": load.quiet_s,
        **counts,
        **{f"p{part}_s": percentile(waits, part) for part in (50, 95, 99)},
        "sender_late_s": figures(late),
        "peak_mib": None if peak_bytes is None else round(peak_bytes / 2**20),
    }
    return row | {"held": is_held(row, load)}


def is_held(row: Row, load: Load) -> bool:
    """Nothing lost, nothing refused, all done, and soon enough."""
    spoiled = ("refusals", "faults", "not_taken", "lost_slices", "lost_studies", "unfinished")
    p95 = row["p95_s"]
    return row["status"] == "ok" and not any(row[name] for name in spoiled) and p95 is not None and p95 < load.within_s


def percentile(ascending: Sequence[float], part: int) -> float | None:
    """The smallest value with ``part`` per cent at or below it; None without any."""
    if not ascending:
        return None
    return figures(ascending[max(0, -(-part * len(ascending) // 100) - 1)])


def run_facts(args: argparse.Namespace) -> dict[str, Any]:
    """What every row of the run shares."""
    config = {name: getattr(args, name) for name in ("precision", "arrivals", "slices", "size", "within", "quick")} | {
        "model": "own" if args.model else "DenseNet121, 256 px, untrained"
    }
    return {"host": host(), "versions": versions(), "commit": commit(), "config": config}


def report(rows: Sequence[Row], args: argparse.Namespace, facts: dict[str, Any]) -> str:
    """The rows as a Markdown table, and the highest rate that was held."""
    machine = facts["host"]
    head = (
        f"{machine['cpu']}, {machine['num_cores']} cores for server and sender; {args.slices} slices of {args.size} px "
        f"a study, {args.arrivals} arrivals, quiet_s {args.quiet:g}, {args.precision}; commit {facts['commit']}"
    )
    lines = [
        head + (", quick: a look, not a result" if args.quick else ""),
        "",
        "| studies/min | held | p50 s | p95 s | p99 s | studies | refused | lost | unfinished | peak MiB |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(_table_row(row) for row in sorted(rows, key=lambda one: float(one["rate_per_min"]))),
        "",
        verdict(rows, load_of(args, args.rate)),
    ]
    return "\n".join(lines)


def _table_row(row: Row) -> str:
    lost = f"{row['lost_slices']} slices, {row['lost_studies']} studies"
    cells = [
        shown(row["rate_per_min"]),
        "yes" if row["held"] else row["why"] or "no",
        *(shown(row[f"p{part}_s"]) for part in (50, 95, 99)),
        row["num_studies"],
        row["refusals"],
        "none" if not row["lost_slices"] and not row["lost_studies"] else lost,
        row["unfinished"] + row["not_taken"],
        shown(row["peak_mib"]),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def verdict(rows: Sequence[Row], load: Load) -> str:
    """One sentence."""
    held = [row for row in rows if row["held"]]
    if not held:
        return f"No rate was held for {load.hold_s:g} s; the lowest tried was {min(r['rate_per_min'] for r in rows):g}."
    best = max(held, key=lambda row: float(row["rate_per_min"]))
    beyond = best["p95_s"] - best["quiet_s"]
    more = "" if any(not row["held"] for row in rows) else ", and no higher one was tried"
    return (
        f"Highest rate held for {load.hold_s:g} s with nothing lost: {shown(best['rate_per_min'])} studies a "
        f"minute{more}; p95 {best['p95_s']:.1f} s, of which {beyond:.1f} s beyond the quiet time."
    )


def line(row: Row) -> str:
    """A row while others are still being measured."""
    return (
        f"bench: {row['name']}: {'held' if row['held'] else 'not held'}; p95 {shown(row['p95_s'])} s, "
        f"{row['refusals']} refusals, {row['lost_slices']} slices lost, {row['unfinished']} unfinished {row['why']}"
    )


if __name__ == "__main__":
    verb.run(main)
