"""How much memory a process and all that it started hold: right for threads and for processes that share pages."""

from pathlib import Path

FIELDS = ("Pss_Anon:", "Pss_Shmem:")
"""Proportional, so that pages shared by a fork count once over its sharers; files in the page cache do not count."""


def tree_bytes(pid: int) -> int | None:
    """Anonymous and shared memory of ``pid`` and its descendants, bytes; None where the kernel does not say."""
    found = [_own_bytes(one) for one in _tree(pid)]
    known = [size for size in found if size is not None]
    return sum(known) if known else None


def _tree(pid: int) -> list[int]:
    """``pid`` and its descendants; a process that ends meanwhile is left out."""
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        for task in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                waiting += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def _own_bytes(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith(FIELDS)]
    return sum(sizes) if sizes else None
