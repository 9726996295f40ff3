"""Where the time of a step went: from timed intervals to one table. Pure functions.

Whose time is whose:
- On a CPU: the main thread's wall clock. With replicas the parts of a batch run at once; the wall time from the first
  one's start to the last one's end is shared between forward and backward as all threads together spent it.
- On a GPU: events on the stream that computes. Forward, backward and optimiser are what lies between theirs; the gap
  before forward is host-to-device where the batch's copy fell into it, else waiting for data. So a copy or a decode
  that overlaps with the step before costs nothing here, as in life. (Not run on a GPU.)
- The rest: metrics, progress, the look at the losses once in 20 steps.
"""

from dataclasses import dataclass
from typing import Any

PARTS = {
    "data": "waiting for data",
    "host-to-device": "host-to-device",
    "forward": "forward",
    "backward": "backward",
    "optimiser": "optimiser",
    "rest": "the rest",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """One span of a step in seconds, on the clock of its device."""

    name: str
    begin_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.begin_s


Parts = dict[str, float]


def parts_on_cpu(intervals: list[Interval], end_s: float) -> Parts:
    """Seconds of each of ``PARTS`` in a step that begins with the wait for its data and ends at ``end_s``."""
    spent = dict.fromkeys(PARTS, 0.0)
    for interval in intervals:
        spent[interval.name] += interval.seconds
    work = [interval for interval in intervals if interval.name in ("forward", "backward")]
    wall_s = max(interval.end_s for interval in work) - min(interval.begin_s for interval in work)
    on_threads_s = spent["forward"] + spent["backward"]
    for name in ("forward", "backward"):
        spent[name] *= wall_s / on_threads_s
    return _with_rest(spent, end_s - intervals[0].begin_s)


def parts_on_gpu(intervals: list[Interval], end_s: float) -> Parts:
    """The same from the times of events: of each kind one interval, ``data`` beginning where the stream became free."""
    by_name = {interval.name: interval for interval in intervals}
    free_s, forward_s, copy = by_name["data"].begin_s, by_name["forward"].begin_s, by_name["host-to-device"]
    spent = {name: by_name[name].seconds for name in ("forward", "backward", "optimiser")}
    copied_s = max(0.0, min(copy.end_s, forward_s) - max(copy.begin_s, free_s))
    return _with_rest(
        {"data": forward_s - free_s - copied_s, "host-to-device": copied_s, **spent, "rest": 0.0}, end_s - free_s
    )


def _with_rest(spent: Parts, total_s: float) -> Parts:
    return spent | {"rest": total_s - sum(spent.values())}


def table(steps: list[Parts]) -> dict[str, Any]:
    """Mean milliseconds and share of the whole of each part over ``steps``."""
    total_s = sum(sum(step.values()) for step in steps)
    sums = {name: sum(step[name] for step in steps) for name in PARTS}
    return {
        "steps": len(steps),
        "step_ms": round(1e3 * total_s / len(steps), 3),
        "share": {name: round(value / total_s, 5) for name, value in sums.items()},
        "ms": {name: round(1e3 * value / len(steps), 3) for name, value in sums.items()},
    }


def lines(made: dict[str, Any]) -> str:
    """The table for a person."""
    rows = [f"  {PARTS[name]:<18}{made['share'][name]:>7.1%}{made['ms'][name]:>10.2f} ms" for name in PARTS]
    return "\n".join([f"profile: {made['steps']} steps of {made['step_ms']:.1f} ms", *rows])
