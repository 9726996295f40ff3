"""One split through one network: the table of predictions.parquet, who fed it, and how fast."""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import verb
from fastich.checkpoint import LoadedRun
from fastich.errors import FastichError
from fastich.labels import LABELS
from fastich.loaders import LoaderConfig, open_loader
from fastich.report.results import LOGIT_COLUMNS, PROBABILITY_COLUMNS
from fastich.training.embedder import Feed
from fastich.training.predictions import Forward, predict, probability_of
from fastich.training.replicas import Replicas


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One split as the network saw it: the prediction table, who fed it, and how fast."""

    predictions: pd.DataFrame
    loader: str
    slices_per_s: float


def predict_split(run: LoadedRun, records: Path, split: str, feed: Feed) -> Pass:
    """Predict every slice of ``split``; the table has the columns of predictions.parquet, in row order."""
    loader = open_loader(
        LoaderConfig(
            records=records,
            split=split,
            batch_size=feed.batch_size,
            size=run.size,
            windows=run.windows,
            adjacent=run.adjacent,
            backend=feed.loader,
            device=feed.precision.device.type,
            threads=feed.threads,
        )
    )
    with contextlib.closing(loader), contextlib.ExitStack() as stack:
        start = time.perf_counter()
        batches = verb.progress(loader.epoch(0), total=loader.num_batches, unit="batches", title=f"predict {split}")
        forward: Forward = run.model
        if feed.num_replicas > 1:
            forward = stack.enter_context(contextlib.closing(Replicas(run.model, feed.num_replicas, feed.precision)))
        seen = predict(run.model, forward, batches, feed.precision, feed.batch_size).tensors()
        rows, logit = seen["rows"].cpu().numpy(), seen["logits"].double().cpu().numpy()
        seconds = time.perf_counter() - start
        made = prediction_table(loader.reader.index, rows, logit)
        return Pass(predictions=made, loader=loader.backend, slices_per_s=round(len(made) / seconds, 2))


def prediction_table(index: pd.DataFrame, rows: NDArray[np.int64], logit: NDArray[np.float64]) -> pd.DataFrame:
    """Columns of predictions.parquet, ascending in ``row``; probabilities are not calibrated yet.

    Raises:
        FastichError: a logit is not finite, and names the first such slice.
    """
    bad = ~np.isfinite(logit).all(axis=1)
    if bad.any():
        uid = index["sop_uid"].iloc[int(rows[bad][0])]
        raise FastichError(f"the network gave values that are not finite for {int(bad.sum())} slices, first {uid}")
    order = np.argsort(rows, kind="stable")
    table = index.loc[rows[order], ["sop_uid", "study_uid", "patient_id", *LABELS]].reset_index(drop=True)
    table.insert(0, "row", rows[order])
    return table.assign(
        **dict(zip(PROBABILITY_COLUMNS, probability_of(logit[order]).T, strict=True)),
        **dict(zip(LOGIT_COLUMNS, logit[order].T, strict=True)),
    )
