"""What is evaluated, whatever kind of run it is: a CNN, or a CNN with a sequence model over its slices.

Both give the same two tables of a split, with logits: one of slices, one of studies. A CNN decides about a study by its
largest slice, a sequence model by its study head.
Shapes: S studies, K labels.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import checkpoint
from fastich.checkpoint import LoadedRun, load_run
from fastich.errors import CheckpointError
from fastich.records.reader import RecordReader
from fastich.report.results import LOGIT_COLUMNS, PROBABILITY_COLUMNS
from fastich.report.trust import Tables
from fastich.study_metrics import study_table
from fastich.study_run import load_study_run, predict_studies
from fastich.training.embedder import Feed
from fastich.training.prediction import predict_split, prediction_table
from fastich.training.predictions import probability_of
from fastich.training.study_folder import KIND

LARGEST, HEAD = "largest slice", "study head"


@dataclass(frozen=True, kw_only=True)
class Found:
    """One split as a model saw it, who fed it, and how fast (embeddings that were at hand cost nothing)."""

    tables: Tables
    loader: str
    slices_per_s: float


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A loaded run of either kind.

    Attributes:
        cnn: the network that sees slices: its input and its records are those of the run.
        config: resolved config of the run itself.
        epoch: of the run's checkpoint.
        predict: the tables of a split.
    """

    cnn: LoadedRun
    config: dict[str, Any]
    epoch: int
    predict: Callable[[str], Found]


def open_subject(run: Path, which: str, reader: RecordReader, feed: Feed, *, reverse: bool = False) -> Subject:
    """Load ``run`` for judging slices and studies of ``reader``'s records.

    Args:
        run: folder that training or study training wrote.
        which: ``best`` or ``last``.
        reader: the records.
        feed: how slices get through the network, and where.
        reverse: let a sequence model also see studies turned around, and average.

    Raises:
        CheckpointError: the folder or checkpoint is missing, damaged or of another version.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder; expected the --out folder of python -m fastich.train")
    path = run / {"best": checkpoint.BEST, "last": checkpoint.LAST}[which]
    if checkpoint.read_meta(path).get("kind") == KIND:
        return _of_study(run, which, reader, feed, reverse)
    return _of_cnn(run, which, reader, feed)


def _of_cnn(run: Path, which: str, reader: RecordReader, feed: Feed) -> Subject:
    loaded = load_run(run, which)
    loaded.model.to(feed.precision.device)

    def predict(split: str) -> Found:
        found = predict_split(loaded, reader.folder, split, feed)
        slices = found.predictions
        tables = Tables(slices=slices, studies=study_table(slices), decision=LARGEST)
        return Found(tables=tables, loader=found.loader, slices_per_s=found.slices_per_s)

    return Subject(cnn=loaded, config=loaded.config, epoch=loaded.epoch, predict=predict)


def _of_study(run: Path, which: str, reader: RecordReader, feed: Feed, reverse: bool) -> Subject:
    loaded = load_study_run(run, which)
    loaded.cnn.model.to(feed.precision.device)

    def predict(split: str) -> Found:
        start = time.perf_counter()
        found = predict_studies(loaded, reader, split, feed, reverse=reverse)
        seconds = time.perf_counter() - start
        slices = prediction_table(reader.index, found.rows, found.slice_logit)
        studies = headed(slices, found.study_uid, found.study_logit)
        tables = Tables(slices=slices, studies=studies, decision=HEAD)
        return Found(tables=tables, loader=feed.loader, slices_per_s=round(len(slices) / seconds, 2))

    return Subject(cnn=loaded.cnn, config=loaded.config, epoch=loaded.epoch, predict=predict)


def headed(slices: pd.DataFrame, study_uid: list[str], logit_SK: NDArray[np.float64]) -> pd.DataFrame:
    """The study table of ``slices`` with a study head's logits in place of the largest slice's."""
    table = study_table(slices).set_index("study_uid").loc[study_uid].reset_index()
    return table.assign(
        **dict(zip(PROBABILITY_COLUMNS, probability_of(logit_SK).T, strict=True)),
        **dict(zip(LOGIT_COLUMNS, logit_SK.T, strict=True)),
    )
