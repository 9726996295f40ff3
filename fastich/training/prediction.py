"""One split through one network, or through those of a k-fold run: the table of predictions.parquet, and how fast.

The networks of a k-fold run are one ensemble where none of them has seen the slices: their logits are averaged. Logits
and not probabilities, because a calibration is fitted to logits, and because a network that is sure should count for
more than one that shrugs. Validation is out of fold: each slice is judged by the one network that did not see it. A
calibration fitted to such single answers meets averaged ones, which are a little less extreme.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import verb
from fastich.checkpoint import LoadedRun, load_run
from fastich.errors import FastichError, UsageError
from fastich.folds import FOLDED, fold_config
from fastich.labels import LABELS
from fastich.loaders import open_loader
from fastich.records.reader import read_dataset
from fastich.report.results import LOGIT_COLUMNS, PROBABILITY_COLUMNS
from fastich.training.feed import Feed
from fastich.training.predictions import Forward, predict, probability_of
from fastich.training.replicas import Replicas
from fastich.training.run_folder import fold_folders
from fastich.training.views import Views


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One split as the network saw it: the prediction table, who fed it, and how long it took."""

    predictions: pd.DataFrame
    loader: str
    seconds: float

    @property
    def slices_per_s(self) -> float:
        """Slices of the table a second, whatever number of networks saw them."""
        return round(len(self.predictions) / self.seconds, 2)


def load_members(run: Path, which: str = "best") -> tuple[LoadedRun, ...]:
    """The network of a run folder, or those of all folds of a k-fold run's.

    Raises:
        CheckpointError: the folder, a fold or a checkpoint is missing, damaged or of another version.
    """
    folders = fold_folders(run) or [run]
    return tuple(load_run(folder, which) for folder in folders)


def predict_members(
    members: Sequence[LoadedRun], records: Path, split: str, feed: Feed, views: tuple[str, ...] = ()
) -> Pass:
    """Predict every slice of ``split`` with all ``members``, of which none has seen it; see the module's docstring.

    Args:
        members: what ``load_members`` gave, each on the device.
        records: the records folder.
        split: of the records; ``val`` of the records that the folds were made of is every slice, out of fold.
        feed: how slices get through.
        views: test-time augmentation, from ``views.parse_views``.

    Raises:
        UsageError: the train split of a k-fold run is asked for: all members but one have learned each of its slices.
    """
    folded = len(members) > 1 and split in FOLDED and read_dataset(records)[1] == members[0].dataset_sha256
    if folded and split == "train":
        raise UsageError(
            f"split train: a k-fold run has none of its own, for its {len(members)} networks learned from each other's "
            "slices; judge val, which is every slice of train and val out of fold, or one fold's run folder"
        )
    passes = [predict_split(member, records, split, feed, views) for member in members]
    tables = [one.predictions for one in passes]
    made = pd.concat(tables).sort_values("row", ignore_index=True) if folded else mean_table(tables)
    return Pass(predictions=made, loader=passes[0].loader, seconds=sum(one.seconds for one in passes))


def mean_table(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The table whose logits are the mean of those of ``tables``, which are of the same slices or studies."""
    key = "row" if "row" in tables[0] else "study_uid"
    assert all(table[key].equals(tables[0][key]) for table in tables), "the members saw other rows"
    return with_logits(tables[0], np.mean([table[LOGIT_COLUMNS].to_numpy(np.float64) for table in tables], axis=0))


def predict_split(run: LoadedRun, records: Path, split: str, feed: Feed, views: tuple[str, ...] = ()) -> Pass:
    """Predict every slice of ``split``; the table has the columns of predictions.parquet, in row order.

    For a run of one fold, on the records that it was trained on, ``val`` is its own fold and ``train`` the others.
    """
    folds = fold_config(run.config, same_records=read_dataset(records)[1] == run.dataset_sha256)
    loader = open_loader(feed.loader_config(run, records, split, **folds))
    with contextlib.closing(loader), contextlib.ExitStack() as stack:
        start = time.perf_counter()
        batches = verb.progress(loader.epoch(0), total=loader.num_batches, unit="batches", title=f"predict {split}")
        forward: Forward = run.model
        if feed.num_replicas > 1:
            forward = stack.enter_context(contextlib.closing(Replicas(run.model, feed.num_replicas, feed.precision)))
        if views:
            forward = Views(forward=forward, names=views)
        seen = predict(run.model, forward, batches, feed.precision, feed.batch_size).tensors()
        rows, logit = seen["rows"].cpu().numpy(), seen["logits"].double().cpu().numpy()
        seconds = time.perf_counter() - start
        made = prediction_table(loader.reader.index, rows, logit)
        return Pass(predictions=made, loader=loader.backend, seconds=seconds)


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
    return with_logits(table, logit[order])


def with_logits(table: pd.DataFrame, logit: NDArray[np.float64]) -> pd.DataFrame:
    """``table`` with ``logit`` [N, 6] and its probabilities in their columns."""
    return table.assign(
        **dict(zip(PROBABILITY_COLUMNS, probability_of(logit).T, strict=True)),
        **dict(zip(LOGIT_COLUMNS, logit.T, strict=True)),
    )
