"""``--profile``: a trace of a few steps and one table of where a step's time goes, written to RUN/profile.

Steps 4 to 6 are traced (``trace.json``, for chrome://tracing or ui.perfetto.dev), since tracing slows what it looks at;
the 20 after them are timed (``table.json``), and the table is said. Nothing that a step computes is touched.

Whose time is whose on a CPU, with replicas and on a GPU: ``step_parts.py``.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from fastich import verb
from fastich.files import write_json
from fastich.training.step_parts import Interval, lines, parts_on_cpu, parts_on_gpu, table

FOLDER, TRACE, TABLE = "profile", "trace.json", "table.json"
NUM_BEFORE, NUM_TRACED, NUM_TIMED = 3, 3, 20
"""Steps before the trace (the first ones compile, choose kernels and fill pools), traced, and timed."""
FEWEST_STEPS = NUM_BEFORE + NUM_TRACED + 1

Span = Callable[[str], AbstractContextManager[object]]
"""``with span("forward"):`` names what a step does inside."""
_NOTHING = nullcontext()


def no_span(name: str) -> AbstractContextManager[object]:
    """Times nothing."""
    return _NOTHING


class Profile:
    """Looks at the steps of one session; does nothing unless enabled."""

    def __init__(self, run: Path, device: torch.device, *, enabled: bool) -> None:
        """Write into ``run``/profile."""
        self._folder, self._device, self._enabled = run / FOLDER, device, enabled
        self._num_steps = 0
        self._trace: torch_profile | None = None
        self._timing = False
        self._lock = threading.Lock()
        self._intervals: list[tuple[str, Any, Any]] = []
        self._steps: list[tuple[list[tuple[str, Any, Any]], Any]] = []

    def span(self, name: str) -> AbstractContextManager[object]:
        """Time or trace what happens inside; ``data`` begins a step. Any thread may call it."""
        if self._timing:
            return self._timed(name)
        return record_function(name) if self._trace else _NOTHING

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin = self._moment()
        yield
        end = self._moment()
        with self._lock:
            self._intervals = [] if name == "data" else self._intervals
            self._intervals.append((name, begin, end))

    def _moment(self) -> Any:
        """Now: seconds, or on a GPU an event on the current stream."""
        if self._device.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()  # type: ignore[no-untyped-call]
        return event

    def step_done(self) -> None:
        """Say that a step has ended: here tracing and timing begin and end."""
        if not self._enabled:
            return
        self._num_steps += 1
        if self._timing:
            self._steps.append((self._intervals, self._moment()))
        if self._num_steps == NUM_BEFORE:
            self._begin_trace()
        elif self._num_steps == NUM_BEFORE + NUM_TRACED:
            self._end_trace()
            self._timing = True
        elif len(self._steps) == NUM_TIMED:
            self._write_table()

    def close(self) -> None:
        """Write the table of a run that ended before all steps were timed."""
        if self._trace:
            self._end_trace()
        if self._timing and self._steps:
            self._write_table()

    def _begin_trace(self) -> None:
        on_gpu = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
        trace = torch_profile(
            activities=[ProfilerActivity.CPU, *on_gpu],
            acc_events=True,
            experimental_config=_ExperimentalConfig(profile_all_threads=True),  # replicas and loaders work on theirs
        )
        trace.start()
        self._trace = trace

    def _end_trace(self) -> None:
        assert self._trace
        self._trace.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._trace.export_chrome_trace(str(self._folder / TRACE))
        self._trace = None

    def _write_table(self) -> None:
        self._timing = False
        parts = parts_on_gpu if self._device.type == "cuda" else parts_on_cpu
        seconds = self._clock()
        steps = [
            parts([Interval(name=n, begin_s=seconds(a), end_s=seconds(b)) for n, a, b in intervals], seconds(end))
            for intervals, end in self._steps
        ]
        made = table(steps)
        write_json(self._folder / TABLE, {"device": self._device.type, **made})
        verb.say(lines(made))

    def _clock(self) -> Callable[[Any], float]:
        """What turns a moment into seconds: on a GPU one wait for it."""
        if self._device.type == "cpu":
            return float
        torch.cuda.synchronize(self._device)
        first = self._steps[0][0][0][1]
        return lambda event: float(first.elapsed_time(event)) / 1e3
