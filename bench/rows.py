"""From results to rows: arithmetic only, so that each number of the table can be checked by hand.

A row is one JSON line: stage, name, status, slices/s (median, lowest, highest of the rounds), what bounds it, its
ceiling and the fraction of it, bytes a slice, peak memory, relative to the stage's baseline, and the run's facts.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from contest import Result

Row = dict[str, Any]
Ceilings = dict[str, dict[str, Any]]
NEAR = 0.7
"""From this fraction on, the ceiling is what bounds a row."""


def make_rows(stage: str, results: Sequence[Result], ceilings: Ceilings) -> list[Row]:
    """The rows of a stage in the order of its contenders."""
    rates = {result.contender.name: median(result.rates) for result in results if result.rates}
    base = next((r.contender.name for r in results if r.contender.baseline), None)
    return [make_row(stage, result, ceilings, rates, base) for result in results]


def make_row(stage: str, result: Result, ceilings: Ceilings, rates: dict[str, float], base: str | None) -> Row:
    """One row; a contender that was not timed has its status and why, and no numbers."""
    one = result.contender
    row: Row = {"stage": stage, "name": one.name, "status": result.status}
    if result.status != "ok":
        return row | {"why": result.why}
    rate = median(result.rates)
    ceiling, most = ceiling_of(result, ceilings, rates)
    fraction = rate / most if most else None
    return row | {
        "slices_per_s": figures(rate),
        "lowest": figures(min(result.rates)),
        "highest": figures(max(result.rates)),
        "rounds": len(result.rates),
        "bound": ceiling if fraction is not None and fraction >= NEAR else one.limit,
        "ceiling": ceiling or None,
        "ceiling_slices_per_s": figures(most) if most else None,
        "fraction": figures(fraction) if fraction else None,
        "bytes_per_slice": round(result.stored_bytes) or None,
        "peak_mib": None if result.peak_bytes is None else round(result.peak_bytes / 2**20),
        "relative": figures(rate / rates[base]) if base in rates else None,
        "relative_to": base if base in rates else None,
        "tolerance": result.tolerance,
        "facts": result.facts,
    }


def ceiling_of(result: Result, ceilings: Ceilings, rates: dict[str, float]) -> tuple[str, float | None]:
    """Name and slices/s of the lowest ceiling that applies; ("", None) where none does or was measured."""
    asked = result.contender.ceiling
    if asked.startswith("row:"):
        name = asked.removeprefix("row:")
        return (name.strip(), rates[name]) if name in rates else ("", None)
    gpu = ", GPU" if asked == "cuda" else ""
    memory = {"one core": "copy, one core", "cuda": "copy, GPU"}.get(asked, "copy, all cores")
    gemm = f"GEMM {result.facts.get('precision', 'float32')}{gpu}"
    known = {}
    if asked and result.moved_bytes and (rate := value(ceilings, memory)):
        known[memory] = 2 * rate / result.moved_bytes
    if asked and result.flop and (rate := value(ceilings, gemm)):
        known[gemm] = rate / result.flop
    return min(known.items(), key=lambda item: item[1]) if known else ("", None)


def value(ceilings: Ceilings, name: str) -> float | None:
    """A measured ceiling, or None."""
    found = ceilings.get(name, {}).get("value")
    return float(found) if found else None


def figures(number: float) -> float:
    """Four significant figures: more would be noise."""
    return float(f"{number:.4g}")


def rate_in(rows: Sequence[Row], stage: str, name: str) -> float | None:
    """slices/s of the row of this name, None where it was not timed."""
    found = (row for row in rows if row["stage"] == stage and row["name"] == name and row["status"] == "ok")
    return next((float(row["slices_per_s"]) for row in found), None)


def best(rows: Sequence[Row], stage: str) -> Row | None:
    """The fastest row of a stage that is ours."""
    ours = [row for row in rows if row["stage"] == stage and row["status"] == "ok" and row["facts"].get("ours")]
    return max(ours, key=lambda row: float(row["slices_per_s"]), default=None)


LINKS = ("storage", "load", "host to device", "train", "infer")
"""Of the chain from disk to probability; packing is done once and no link."""


def bottleneck(rows: Sequence[Row]) -> str:
    """One sentence that names the slowest link of the chain, computed from the rows."""
    found = {stage: row for stage in LINKS if (row := best(rows, stage))}
    if len(found) < 2:
        return "Bottleneck of the chain: not known, fewer than two of its links were measured in this run."
    order = sorted(found.items(), key=lambda item: float(item[1]["slices_per_s"]))
    (slowest, row), rest = order[0], order[1:]
    others = ", ".join(
        f"{stage} {float(other['slices_per_s']) / float(row['slices_per_s']):,.1f} times" for stage, other in rest
    )
    return (
        f"Bottleneck of the chain: {slowest} ({row['name']}) at {shown(row['slices_per_s'])} slices/s, bound by "
        f"{row['bound']}; as fast as it: {others}."
    )


def shown(number: float | None) -> str:
    """A number with four figures at most, - for None."""
    if number is None:
        return "-"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def markdown(rows: Sequence[Row]) -> str:
    """The rows of each stage as a Markdown table."""
    return "\n\n".join(stage_table([row for row in rows if row["stage"] == stage]) for stage in stages(rows))


def stages(rows: Sequence[Row]) -> list[str]:
    """Stages in the order of their first row."""
    return list(dict.fromkeys(row["stage"] for row in rows))


def stage_table(rows: Sequence[Row]) -> str:
    """One stage's rows as a Markdown table."""
    lines = [
        f"| {rows[0]['stage']} | slices/s | lowest-highest | relative | bound by | of its ceiling | bytes/slice "
        "| peak MiB |",
        "|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        if row["status"] != "ok":
            lines.append(f"| {row['name']} | {STATUS[row['status']]}: {row['why']} | | | | | | |")
            continue
        part = "-" if row["fraction"] is None else f"{row['fraction']:.0%} ({row['ceiling']})"
        lines.append(
            f"| {row['name']} | {shown(row['slices_per_s'])} | {shown(row['lowest'])}-{shown(row['highest'])} | "
            f"{shown(row['relative'])} | {row['bound']} | {part} | {shown(row['bytes_per_slice'])} | "
            f"{shown(row['peak_mib'])} |"
        )
    return "\n".join(lines)


STATUS = {"absent": "not installed", "refused": "refused, wrong output", "failed": "failed"}


def ceiling_table(ceilings: Ceilings) -> str:
    """The machine's ceilings as a Markdown table."""
    lines = ["| ceiling of this machine | rate | lowest-highest | |", "|---|---:|---:|---|"]
    for name, one in ceilings.items():
        rates = [rate_text(one.get(key), one["unit"]) for key in ("value", "lowest", "highest")]
        lines.append(f"| {name} | {rates[0]} | {rates[1]}-{rates[2]} | {one['note']} |")
    return "\n".join(lines)


def rate_text(rate: float | None, unit: str) -> str:
    """``12.3 GB/s``."""
    if rate is None:
        return "-"
    return f"{rate / 1e9:,.1f} G{unit}" if rate < 1e12 else f"{rate / 1e12:,.1f} T{unit}"


def append_json(path: Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Append each row with the run's facts as one JSON line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(row | facts, allow_nan=False) + "\n" for row in rows)


def read_json(path: Path) -> list[Row]:
    """The rows of a results file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
