"""The worklist's order: raised studies first, everything else exactly in order of arrival.

A flagged study that nobody acknowledged stands above one that a person should see first, and both above the rest.
"Clear", "not evaluated", "failed", "still arriving" and "acknowledged" are one class on purpose: no study is ever
placed below one that came after it, unless that one is raised. So the tool can help a study up, never push one down.
"""

from collections.abc import Iterable

from fastich.serve.entities import Priority, Study


def raised_to(study: Study) -> Priority:
    """The priority that counts: that of the newest result, until somebody acknowledged it."""
    return Priority.ROUTINE if study.acknowledged_at is not None else study.priority


def place_in_worklist(study: Study) -> tuple[int, float, str]:
    """A sort key: raised first, then oldest arrival first; the UID only makes the order of equals stable."""
    return -int(raised_to(study)), study.arrived_at, study.study_uid


def in_worklist_order(studies: Iterable[Study]) -> list[Study]:
    """Studies as a reader should see them, from the top."""
    return sorted(studies, key=place_in_worklist)
