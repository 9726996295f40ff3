"""Contenders in rounds, each in a process of its own: the part of the benchmark that decides whether a number counts.

A contender is named by ``module:function``, imported in its own process only: a library that is not installed makes a
row that says so. Before anything is timed it must show that its output is right; who gives wrong pixels is refused. A
round runs every contender once, so that noise of the machine hits all alike. Each turn is a new process, forked from a
clean one that has imported torch and fastich and nothing else: open, one pass to warm up, passes for ``seconds``.

Peak memory comes from a turn that is not timed: anonymous and shared memory (PSS) of the contender and of all processes
it starts, above that of the process when it began. Mapped files (records, libraries) are not counted.
"""

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from memory import tree_bytes

PRELOADED = ["numpy", "pandas", "torch", "fastich.loaders", "fastich.records.writer"]
"""What every contender finds imported: the interpreter that its memory is counted above."""
TURN_LIMIT_S = 420.0
"""A contender that takes longer for one turn is ended and named."""
WATCH_S = 0.03
MEMORY_PASS_S = 0.3
DIED = "its process died"


class WrongOutputError(ValueError):
    """A contender's output is not what the benchmark asks for."""


@dataclass(kw_only=True)
class Work:
    """An opened contender; ``check`` may fill in what is only known after a pass.

    Attributes:
        run: does one pass and returns how many slices it handled.
        check: proves the output right; returns the tolerance in words.
        moved_bytes: bytes read and written in memory a slice at least, 0 where memory is not what the row is about.
        stored_bytes: bytes a slice on the disk, or of its payload.
        flop: floating-point operations a slice, 0 where arithmetic is not what the row is about.
        facts: whatever else belongs into the row: which backend ran, ``precision``, ``ours`` (not a rival).
        warms_up: whether a pass before the clock starts changes anything.
    """

    run: Callable[[], int]
    check: Callable[[], str]
    moved_bytes: float = 0.0
    stored_bytes: float = 0.0
    flop: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    warms_up: bool = True


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row to be.

    Attributes:
        name: as the table shows it.
        make: ``module:function``; called with ``arguments`` it is a context manager that gives a ``Work``.
        arguments: of it; they must pickle.
        limit: what bounds it where no measured ceiling is near.
        baseline: the stage's Relative column is against this one.
        ceiling: which ceilings apply: ``one core``, ``all cores``, ``network``, ``cuda`` or none.
    """

    name: str
    make: str
    arguments: dict[str, Any] = field(default_factory=dict)
    limit: str = "the cores"
    baseline: bool = False
    ceiling: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a contender: ``rates`` (slices/s of each round), or ``status`` (absent, refused, failed) and why."""

    contender: Contender
    status: str = "ok"
    why: str = ""
    rates: tuple[float, ...] = ()
    peak_bytes: int | None = None
    tolerance: str = ""
    moved_bytes: float = 0.0
    stored_bytes: float = 0.0
    flop: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


def compete(
    contenders: Sequence[Contender], *, rounds: int, seconds: float, say: Callable[[str], None] = lambda text: None
) -> list[Result]:
    """Check every contender, then run them in ``rounds``, about ``seconds`` of passes a turn."""
    found = {one.name: _checked(one) for one in contenders}
    assert len(found) == len(contenders), "two contenders share a name"
    for one in contenders:
        if found[one.name].status != "ok":
            say(f"  {one.name}: {found[one.name].status}: {found[one.name].why}")
    for number in range(rounds):
        say(f"  round {number + 1} of {rounds}")
        for one in contenders:
            if found[one.name].status == "ok":
                found[one.name] = _with_turn(found[one.name], _turn(one, seconds))
    for result in found.values():
        if result.status == "ok":
            say(f"  {result.contender.name}: {' '.join(f'{rate:,.1f}' for rate in result.rates)} slices/s")
    return list(found.values())


def _checked(contender: Contender) -> Result:
    """The contender after its check and its turn for memory."""
    answer = _turn(contender, None)
    if answer["status"] != "ok":
        return Result(contender=contender, status=answer["status"], why=answer["why"])
    names = ("peak_bytes", "tolerance", "moved_bytes", "stored_bytes", "flop", "facts")
    return Result(contender=contender, **{name: answer[name] for name in names})


def _with_turn(result: Result, answer: dict[str, Any]) -> Result:
    if answer["status"] != "ok":
        return dataclasses.replace(result, status=answer["status"], why=answer["why"], rates=())
    return dataclasses.replace(result, rates=(*result.rates, answer["rate"]))


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Hide the running script, or every process forked meanwhile would import it first, at seconds a turn."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _turn(contender: Contender, seconds: float | None) -> dict[str, Any]:
    """One turn in a process of its own; ``seconds`` None is the turn that checks and is watched for memory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    here, there = context.Pipe()
    with tempfile.TemporaryFile() as log:
        process = context.Process(target=_attend, args=(there, contender, seconds, log.fileno(), os.getpid()))
        try:
            with without_main():
                process.start()
        except (EOFError, ConnectionError):
            # Something ended the process that contenders are forked from; the next turn starts another.
            return {"status": "failed", "why": "the clean process was ended from outside before its turn"}
        there.close()
        answer = _watch(here, process.pid or 0, contender, watched=seconds is None)
        process.join(0 if answer["status"] == "late" else 30)
        if process.is_alive():
            _end(process)
        if answer["why" if answer["status"] != "ok" else "status"] == DIED:
            answer["why"] += f" (exit status {process.exitcode}){_last_line(log)}"
    return answer | ({"status": "failed"} if answer["status"] == "late" else {})


def _last_line(log: IO[bytes]) -> str:
    """What a process that died said last."""
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return f": {lines[-1][:160]}" if lines else ""


def _watch(here: Connection, pid: int, contender: Contender, *, watched: bool) -> dict[str, Any]:
    """Wait for the answer; meanwhile look at the memory of the process and its children."""
    deadline, base, peak = time.monotonic() + TURN_LIMIT_S, None, 0
    try:
        while time.monotonic() < deadline:
            if not here.poll(WATCH_S if watched else 0.2):
                peak = max(peak, tree_bytes(pid) or 0) if watched and base is not None else peak
                continue
            message: dict[str, Any] = here.recv()
            if message["status"] == "passed":
                watched = False
            elif message["status"] == "started":
                base = tree_bytes(pid) if watched else None
                here.send("go")
            else:
                return message | {"peak_bytes": max(0, peak - base) if base is not None and peak else None}
    except EOFError:
        return {"status": "failed", "why": DIED}
    return {"status": "late", "why": f"no answer of {contender.make} within {TURN_LIMIT_S:.0f} s"}


def _end(process: Any) -> None:
    """End a process that does not end by itself."""
    process.terminate()
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()


def _attend(there: Connection, contender: Contender, seconds: float | None, log: int, parent: int) -> None:
    """The child's side of a turn. What libraries print goes to a file; the answer is the pipe's."""
    _silence(parent, log)
    multiprocessing.set_start_method("fork", force=True)  # for what the contender starts: Linux's default to 3.13
    sys.modules["__main__"] = types.ModuleType("__main__")  # else each process that it spawns imports the benchmark
    there.send({"status": "started"})
    there.recv()
    try:
        there.send(_answer(contender, seconds, lambda: there.send({"status": "passed"})))
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError) or "cannot open shared object" in str(error)
        there.send({"status": "absent" if missing else "failed", "why": one_line(error)})
    except WrongOutputError as error:
        there.send({"status": "refused", "why": one_line(error)})
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        there.send({"status": "failed", "why": f"{type(error).__name__} at {where}: {one_line(error)}"})


def _silence(parent: int, log: int) -> None:
    """Send stdout and stderr to the parent's file, or where that cannot be opened to nothing."""
    try:
        target = os.open(f"/proc/{parent}/fd/{log}", os.O_WRONLY | os.O_APPEND)
    except OSError:
        target = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(target, stream)


def _answer(contender: Contender, seconds: float | None, passed: Callable[[], None]) -> dict[str, Any]:
    """The answer of a turn; ``passed`` is called once memory need no longer be looked at: a check takes its own."""
    module, _, function = contender.make.partition(":")
    opened = getattr(importlib.import_module(module), function)(**contender.arguments)
    with opened as work:
        if seconds is not None:
            return {"status": "ok", "rate": rate_of(work.run, seconds, warm_up=work.warms_up)}
        rate_of(work.run, MEMORY_PASS_S, warm_up=False)
        passed()
        tolerance = work.check()
        names = ("moved_bytes", "stored_bytes", "flop", "facts")
        return {"status": "ok", "tolerance": tolerance} | {name: getattr(work, name) for name in names}


def rate_of(run: Callable[[], int], seconds: float, *, warm_up: bool = True) -> float:
    """Slices a second of ``run`` over at least ``seconds`` and one pass, after one pass to warm up."""
    if warm_up:
        run()
    done, started = 0, time.perf_counter()
    while True:
        done += run()
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return done / elapsed


def one_line(error: BaseException) -> str:
    """An error's text without line breaks, at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
