"""The README's speed section, made from committed rows, so that no number in it was typed.

    python bench/readme_table.py bench/results/FILE.jsonl README.md          # rewrite what is between the markers
    python bench/readme_table.py --check bench/results/FILE.jsonl README.md  # exit 1 where they differ

The section stands between ``<!-- bench:begin -->`` and ``<!-- bench:end -->``. It shows the last run of the results
file: its machine, the stages below, the ratios, and the sentence that names the bottleneck.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from goals import goal_table, goals
from rows import Row, bottleneck, read_json, shown

from fastich import verb
from fastich.errors import FastichError

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
STAGES = ("load", "codec", "pack", "train", "infer", "end-to-end", "scale")
SAME_RUN = ("commit", "host", "ops", "config", "versions")


def main(argv: list[str]) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("results", type=Path, help="rows that throughput.py --json wrote")
    made.add_argument("readme", type=Path, help="file with the two markers")
    made.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 where the section is not of the rows"
    )
    args = made.parse_args(argv)
    text = args.readme.read_text(encoding="utf-8")
    fresh = replaced(text, section(last_run(read_json(args.results)), args.results.name), args.readme.name)
    if args.check:
        return 0 if fresh == text else 1
    args.readme.write_text(fresh, encoding="utf-8")
    return 0


def last_run(rows: Sequence[Row]) -> list[Row]:
    """The rows at the end of a file that share commit, machine and config.

    Raises:
        FastichError: there is none.
    """
    if not rows:
        raise FastichError("no rows in the results file; run bench/throughput.py with --json")
    last = [rows[-1].get(key) for key in SAME_RUN]
    start = len(rows)
    while start and [rows[start - 1].get(key) for key in SAME_RUN] == last:
        start -= 1
    return list(rows[start:])


def section(rows: Sequence[Row], source: str) -> str:
    """What stands between the markers."""
    facts = rows[-1]
    machine, config = facts["host"], facts["config"]
    where = machine.get("gpu") or f"{machine['num_cores']} cores ({machine['cpu']})"
    parts = [
        f"`python bench/throughput.py` on {where}, the rows of a stage in one run, kernels `{facts['ops']}`, commit "
        f"`{facts['commit']}`, 512 to {config['size']} px, three windows, median of {config['rounds']} interleaved "
        f"rounds ([rows](bench/results/{source}), [how to read them](bench/README.md)):"
    ]
    timed = [row for row in rows if row["status"] != "ratio"]
    for stage in STAGES:
        chosen = [row for row in timed if row["stage"] == stage]
        parts += [table(chosen)] if chosen else []
    parts += [goal_table(goals(timed, [ratio_of(row) for row in rows if row["status"] == "ratio"])), bottleneck(timed)]
    return "\n\n".join(parts)


def table(rows: Sequence[Row]) -> str:
    """A stage's rows, shorter than throughput.py prints them."""
    lines = [f"| {rows[0]['stage']} | slices/s | lowest-highest | relative | peak MiB |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        if row["status"] != "ok":
            lines.append(f"| {row['name']} | {row['status']}: {row['why']} | | | |")
            continue
        spread = f"{shown(row['lowest'])}-{shown(row['highest'])}"
        numbers = (shown(row["slices_per_s"]), spread, shown(row["relative"]), shown(row["peak_mib"]))
        lines.append(f"| {row['name']} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def ratio_of(row: Row) -> dict[str, object]:
    """A compression row as ``goals`` takes it."""
    codec, _, data = str(row["name"]).partition(", ")
    return {"codec": codec, "data": data, "ratio": row["ratio"]}


def replaced(text: str, new: str, name: str) -> str:
    """``text`` with ``new`` between the markers.

    Raises:
        FastichError: the markers are not there once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise FastichError(
            f"{name}: expected {BEGIN} and then {END}, once each; add the two lines where the section goes"
        )
    return f"{text[: text.index(BEGIN) + len(BEGIN)]}\n{new}\n{text[text.index(END) :]}"


if __name__ == "__main__":
    verb.run(main)
