"""A whole data set of synthetic head CT studies, made by a few processes; the same bytes however many they are."""

import concurrent.futures
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastich import verb
from fastich.errors import FastichError, UsageError
from fastich.labels import LABELS, SUBTYPES
from fastich.phantom import write
from fastich.phantom.cohort import StudyPlan, make_plan
from fastich.phantom.study import make_study

MIN_SIZE, MAX_SIZE = 64, 1024


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """What ``python -m fastich.phantom`` is asked to make."""

    out: Path = verb.required("folder to create and fill; must be empty or absent")
    studies: int = verb.option(60, "number of studies")
    seed: int = verb.option(0, "same seed, same bytes")
    size: int = verb.option(512, "side of a slice, pixels, a multiple of 8")
    healthy: float = verb.option(0.5, "share of patients without a bleed, 0 to 1")
    workers: int = verb.option(1, "processes")

    def __post_init__(self) -> None:
        """Refuse what cannot be made."""
        if self.studies < 1:
            raise ValueError(f"--studies must be at least 1, found {self.studies}")
        if not MIN_SIZE <= self.size <= MAX_SIZE or self.size % 8:
            raise ValueError(f"--size must be a multiple of 8 from {MIN_SIZE} to {MAX_SIZE} pixels, found {self.size}")
        if not 0 <= self.healthy <= 1:
            raise ValueError(f"--healthy must lie in 0..1, found {self.healthy}")
        if self.workers < 1:
            raise ValueError(f"--workers must be at least 1, found {self.workers}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, found {self.seed}")


def generate(config: PhantomConfig) -> dict[str, Any]:
    """Make and write the data set; returns counts, prevalence of each label and the rate.

    Raises:
        UsageError: the output folder already holds something.
        FastichError: the disk is full, or the folder cannot be written.
    """
    out = config.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: expected an empty or absent folder, found something in it; choose another --out")
    begin = time.perf_counter()
    plans = make_plan(config.seed, config.studies, config.healthy)
    try:
        labels = _write(config, plans)
    except OSError as error:
        where = error.filename or out
        raise FastichError(f"{where}: {error.strerror or error}; {out} is not complete, remove it") from error
    seconds = time.perf_counter() - begin
    table = np.asarray([values for _, values in labels])
    return {
        "out": str(out),
        "studies": len(plans),
        "patients": len({plan.patient for plan in plans}),
        "slices": len(labels),
        "size": config.size,
        "seed": config.seed,
        "prevalence": {name: float(table[:, i].mean()) for i, name in enumerate(LABELS)},
        "patients_with": {name: len({p.patient for p in plans if name in p.subtypes}) for name in SUBTYPES},
        "seconds": seconds,
        "slices_per_s": len(labels) / seconds,
        "workers": config.workers,
    }


def _write(config: PhantomConfig, plans: tuple[StudyPlan, ...]) -> list[tuple[str, list[int]]]:
    """Write everything; the labels of all slices [(sop, six labels)]."""
    out = config.out
    for folder in (out, out / write.SLICES_FOLDER, out / write.MASKS_FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
    made = list(verb.progress(_all_studies(config, plans), total=len(plans), unit="studies", title="phantom"))
    labels = [row for study in made for row in study["labels"]]
    write.write_labels(out / write.LABELS_FILE, labels, config.seed)
    write.write_truth(out / write.TRUTH_FILE, [study["truth"] for study in made])
    return labels


def _all_studies(config: PhantomConfig, plans: tuple[StudyPlan, ...]) -> Iterator[dict[str, Any]]:
    """Each study's rows, in order of their numbers."""
    one = partial(_one_study, config)
    if config.workers == 1:
        yield from map(one, plans)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(config.workers, mp_context=context) as pool:
        yield from pool.map(one, plans)


def _one_study(config: PhantomConfig, plan: StudyPlan) -> dict[str, Any]:
    return write.write_study(config.out, config.seed, make_study(plan, config.seed, config.size))
