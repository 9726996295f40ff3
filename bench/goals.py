"""The ratios that this project set itself, computed from the rows of one run; what was not measured says so."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import bench_infer
import bench_load
import bench_pack
from bench_codec import RECORDS
from rows import Row, rate_in, shown

FLAT = 0.9
"""Cost a slice counts as flat where the longest run reaches this part of the shortest one's rate."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """``found`` is None where the run did not measure it."""

    text: str
    least: float
    found: float | None

    @property
    def verdict(self) -> str:
        """``met``, ``not met`` or ``not measured``."""
        if self.found is None:
            return "not measured"
        return "met" if self.found >= self.least else "not met"


def goals(rows: Sequence[Row], ratios: Sequence[dict[str, Any]]) -> list[Goal]:
    """Every goal, with what this run found."""
    native = rate_in(rows, "load", "fastich native, half-first")

    def load(text: str, least: float, rival: str) -> Goal:
        return Goal(text=text, least=least, found=over(native, rate_in(rows, "load", rival)))

    def packed(text: str, least: float, rival: str) -> Goal:
        mine = rate_in(rows, "pack", bench_pack.OURS)
        return Goal(text=text, least=least, found=over(mine, rate_in(rows, "pack", rival)))

    def window(mode: str, least: float) -> Goal:
        found = rate_in(rows, "codec", f"decode_window {mode}, HWC")
        return Goal(text=f"decode_window from {mode}, one core, slices/s", least=least, found=found)

    scale = [row for row in rows if row["stage"] == "scale" and row["status"] == "ok"]
    flat = over(scale[-1]["slices_per_s"], scale[0]["slices_per_s"]) if len(scale) > 1 else None
    return [
        load("load against the seed's way", 30, bench_load.SEED),
        load("load against WebDataset", 8, "WebDataset"),
        load("load against the best stock DALI graph", 4, "DALI on the CPU, best stock graph"),
        load("load against FFCV", 1, "FFCV"),
        window("half-first", 7000),
        window("flat", 5000),
        ratio("flat", 3.3, ratios),
        ratio("half-first", 2.6, ratios),
        packed("pack against DICOM to 8-bit PNG", 5, bench_pack.PNG8),
        packed("pack against merely reading DICOM", 0.6, bench_pack.READING),
        Goal(
            text="int8 inference, best CPU backend, against torch eager float32 channels_last",
            least=4,
            found=over(best_int8(rows), rate_in(rows, "infer", bench_infer.CHANNELS_LAST)),
        ),
        Goal(text="rate at the most slices against 1,000", least=FLAT, found=flat),
    ]


def best_int8(rows: Sequence[Row]) -> float | None:
    """Slices/s of the faster int8 backend."""
    found = [rate_in(rows, "infer", f"{backend}, int8") for backend in ("OpenVINO", "ONNX Runtime")]
    return max((rate for rate in found if rate), default=None)


def ratio(mode: str, least: float, ratios: Sequence[dict[str, Any]]) -> Goal:
    """Compression of real head CT."""
    found = [one["ratio"] for one in ratios if one["data"] != RECORDS and one["codec"] == f"lbp {mode}"]
    return Goal(text=f"compression of real head CT, {mode}", least=least, found=found[0] if found else None)


def over(mine: float | None, other: float | None) -> float | None:
    """A ratio, None where a part is missing."""
    return mine / other if mine is not None and other else None


def goal_table(found: Sequence[Goal]) -> str:
    """The goals as a Markdown table."""
    lines = ["| goal | at least | found | |", "|---|---:|---:|---|"]
    lines += [f"| {goal.text} | {goal.least:g} | {shown(goal.found)} | {goal.verdict} |" for goal in found]
    return "\n".join(lines)
