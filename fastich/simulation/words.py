"""A simulation in lines for a terminal."""

from collections.abc import Iterator
from typing import Any

from fastich.intervals import FEWEST


def table(found: dict[str, Any]) -> Iterator[str]:
    """Lines for a terminal."""
    one = found["operating_point"]
    yield f"{found['source']}; {found['studies_per_shift']:.1f} studies a shift, {found['prevalence']:.1%} with a bleed"
    yield "; ".join(found["assumptions"]) + f"; reading time that comes: {_load(found['load'])}"
    if found["load"] is None or found["load"] >= 1:
        yield "more comes than is read: waits grow with the length of the shift, and say little of another one"
    rates = (("sensitivity", "sensitivity"), ("specificity", "specificity"), ("ppv", "PPV"), ("npv", "NPV"))
    yield f"{one['name']}: " + ", ".join(f"{text} {_rate(one[name])}" for name, text in rates)
    yield f"{'minutes':34}{'mean':>24}{'median':>24}{'95th percentile':>24}{'largest':>9}"
    yield _line("bleeds: opened earlier by", one["bleeds"]["saved"])
    yield _line("  wait, first come, first read", one["bleeds"]["wait_first_come"])
    yield _line("  wait, worklist", one["bleeds"]["wait_worklist"])
    yield _line("bleeds not raised: opened later by", one["missed_bleeds_delayed"])
    yield _line("studies without: opened later by", one["others_delayed"])
    yield (
        f"alarms a shift {_estimate(one['alarms_per_shift'], 1)}, false {_estimate(one['false_alarms_per_shift'], 1)}; "
        f"in brackets 95 % intervals over {found['num_shifts']} shifts"
        + ("" if found["num_shifts"] >= FEWEST else f": none from fewer than {FEWEST} shifts")
    )
    if found["sweep"]:
        yield ""
        yield from _sweep(found["sweep"])


def _sweep(points: list[dict[str, Any]]) -> Iterator[str]:
    yield (
        f"{'operating point':20}{'threshold':>10}{'sens.':>8}{'spec.':>8}{'PPV':>8}{'alarms':>8}{'saved, mean':>24}"
        f"{'others, mean':>24}{'largest':>9}"
    )
    for one in points:
        saved, others = one["bleeds"]["saved"], one["others_delayed"]
        cells = "".join(f"{_rate(one[name]):>8}" for name in ("sensitivity", "specificity", "ppv"))
        yield (
            f"{one['name']:20}{one['threshold']:>10.4g}{cells}{one['alarms_per_shift']['value']:>8.1f}"
            f"{_estimate(saved['mean']):>24}{_estimate(others['mean']):>24}{_minutes(others['largest']):>9}"
        )
    yield "alarms: a shift; saved: minutes that bleeds open earlier; others: minutes that studies without open later"


def _line(title: str, found: dict[str, Any]) -> str:
    if found["undefined"]:
        return f"{title:34}  {found['undefined']}"
    cells = "".join(f"{_estimate(found[name]):>24}" for name in ("mean", "median", "p95"))
    return f"{title:34}{cells}{_minutes(found['largest']):>9}"


def _estimate(found: dict[str, Any], digits: int = 1) -> str:
    if found["value"] is None:
        return "undefined"
    span = "" if found["low"] is None else f" ({found['low']:.{digits}f} to {found['high']:.{digits}f})"
    return f"{found['value']:.{digits}f}{span}"


def _load(value: float | None) -> str:
    return "nobody is on duty" if value is None else f"{value:.0%} of what the readers on duty have"


def _rate(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _minutes(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}"
