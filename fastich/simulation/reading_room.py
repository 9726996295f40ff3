"""Readers who take studies off a list, one after the other: when is each study opened?

A discrete-event simulation of the worklist's own rule (``serve.ordering``), not a copy of it. Nobody is interrupted for
a study that is raised (non-preemptive), nobody waits while something can be read, and a study that is raised stands in
its place in order of arrival until its score is there. Readers who are on duty follow the hour of the day; who goes off
duty finishes the study that is open. About 20 microseconds a study.
Shapes: S studies.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fastich.serve.entities import Description, Origin, Priority, Study, StudyState
from fastich.serve.ordering import place_in_worklist
from fastich.simulation.cases import HOUR_S, Floats, by_hour

ARRIVES, IS_RAISED, READER_FREE, HOUR_STRIKES = range(4)
Place = tuple[int, float, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Staff:
    """Readers on duty: one number for all hours, or 24."""

    readers: tuple[int, ...]

    def at(self, time_s: float) -> int:
        """Readers on duty at ``time_s`` after midnight."""
        return int(by_hour(self.readers, time_s))

    def seconds(self, start_s: float, length_s: float) -> float:
        """Seconds of readers on duty within ``length_s`` from ``start_s``."""
        hours = np.arange(start_s // HOUR_S, (start_s + length_s) / HOUR_S) * HOUR_S
        inside_s = np.minimum(hours + HOUR_S, start_s + length_s) - np.maximum(hours, start_s)
        return float(sum(self.at(hour) * part for hour, part in zip(hours.tolist(), inside_s.tolist(), strict=True)))

    def next_change_s(self, time_s: float) -> float | None:
        """The next full hour at which the number may change; None where it never does."""
        return None if len(set(self.readers)) == 1 else (time_s // HOUR_S + 1) * HOUR_S


def place(number: int, arrived_s: float, priority: Priority) -> Place:
    """Where the worklist puts study ``number`` while it is raised to ``priority``."""
    study = Study(
        study_uid=f"{number:09d}",
        description=Description(),
        origin=Origin(way="simulated"),
        arrived_at=arrived_s,
        last_at=arrived_s,
        revision=1,
        num_instances=1,
        num_waiting=0,
        num_conflicts=0,
        state=StudyState.SCORED,
        reason="",
        priority=priority,
        scored_revision=1,
        score_id=None,
        document=None,
        final_at=arrived_s,
        acknowledged_by=None,
        acknowledged_at=None,
        expected_instances=None,
    )
    return place_in_worklist(study)


def opened_s(
    arrived_s: Floats, read_s: Floats, priority: Sequence[int] | NDArray[np.intp], notification_s: float, staff: Staff
) -> Floats:
    """When each study is opened, seconds, float64 [S].

    Args:
        arrived_s: ascending arrival times [S].
        read_s: how long a reader is busy with each study [S].
        priority: what each study is raised to once its score is there [S]; all ``ROUTINE`` is first come, first read.
        notification_s: from the arrival until the study is raised.
        staff: the readers; at least one at some hour.
    """
    arrived, raised = arrived_s.tolist(), [Priority(one) for one in priority]
    opened = [-1.0] * len(arrived)
    events = [(time, ARRIVES, number) for number, time in enumerate(arrived)]
    events += [(arrived[n] + notification_s, IS_RAISED, n) for n, one in enumerate(raised) if one != Priority.ROUTINE]
    heapq.heapify(events)
    waiting: list[tuple[Place, int]] = []
    busy, left, bell = 0, len(arrived), False
    while left:
        now = events[0][0]
        while events and events[0][0] == now:
            _, kind, number = heapq.heappop(events)
            if kind == READER_FREE:
                busy -= 1
            elif kind == HOUR_STRIKES:
                bell = False
            elif opened[number] < 0:
                shown_as = raised[number] if kind == IS_RAISED else Priority.ROUTINE
                heapq.heappush(waiting, (place(number, arrived[number], shown_as), number))
        while waiting and busy < staff.at(now):
            _, number = heapq.heappop(waiting)
            if opened[number] < 0:  # a raised study stands in the list twice; the second time it is open already
                opened[number] = now
                heapq.heappush(events, (now + float(read_s[number]), READER_FREE, number))
                busy, left = busy + 1, left - 1
        change = staff.next_change_s(now)
        if waiting and not bell and change is not None:
            heapq.heappush(events, (change, HOUR_STRIKES, -1))
            bell = True
    return np.array(opened)


def first_in_first_out_s(arrived_s: Floats, read_s: Floats, staff: Staff) -> Floats:
    """When each study is opened where nobody raises any, float64 [S]."""
    assert all(before <= after for before, after in pairwise(arrived_s.tolist())), "arrivals must ascend"
    return opened_s(arrived_s, read_s, [Priority.ROUTINE] * len(arrived_s), 0.0, staff)
