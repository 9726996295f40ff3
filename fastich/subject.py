"""What is evaluated, whatever kind of run it is: CNNs, or CNNs with a sequence model over their slices; one, or folds.

All give the same two tables of a split, with logits: one of slices, one of studies. A CNN decides about a study by its
largest slice, a sequence model by its study head. The models of a k-fold run are one ensemble where none of them has
seen the slices (mean logits), and validation is out of fold (``training/prediction.py``).
Shapes: S studies, K labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import checkpoint
from fastich.checkpoint import LoadedRun, weights_sha256
from fastich.errors import CheckpointError, UsageError
from fastich.folds import FOLDED
from fastich.records.reader import RecordReader
from fastich.report.choices import HEAD, LARGEST, Tables
from fastich.study_metrics import study_table
from fastich.study_run import LoadedStudyRun, load_study_run, predict_studies
from fastich.training.config import ALL_FOLDS
from fastich.training.feed import Feed
from fastich.training.prediction import load_members, mean_table, predict_members, prediction_table, with_logits
from fastich.training.run_folder import fold_folders
from fastich.training.study_folder import KIND
from fastich.training.views import NONE, parse_views

REVERSE = "reverse"
STORED = "the side store of embeddings"


@dataclass(frozen=True, kw_only=True)
class Found:
    """One split as a model saw it, who fed it, and how fast; a sequence model over a side store has no such rate."""

    tables: Tables
    loader: str
    slices_per_s: float | None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A loaded run of any kind.

    Attributes:
        cnn: the network that sees slices (of folds the first): its input and its records are those of the run.
        config: resolved config of the run itself.
        epoch: of the run's checkpoint; of folds one for each.
        weights_sha256: of the CNN, and of the sequence model where there is one; of folds one after the other.
        predict: the tables of a split.
    """

    cnn: LoadedRun
    config: dict[str, Any]
    epoch: int | list[int]
    weights_sha256: list[str]
    predict: Callable[[str], Found]


def open_subject(run: Path, which: str, reader: RecordReader, feed: Feed, *, tta: str = NONE) -> Subject:
    """Load ``run`` for judging slices and studies of ``reader``'s records.

    Args:
        run: folder that training or study training wrote, of one model or of folds.
        which: ``best`` or ``last``.
        reader: the records.
        feed: how slices get through the networks, and where.
        tta: test-time augmentation, as ``views.parse_views`` reads it; of a sequence model ``none`` or ``reverse``.

    Raises:
        CheckpointError: a folder or checkpoint is missing, damaged or of another version.
        UsageError: the augmentation does not fit the kind of run.
    """
    if not run.is_dir():
        raise CheckpointError(f"{run}: no such run folder; expected the --out folder of python -m fastich.train")
    folders = study_folders(run, which)
    return _of_studies(folders, which, reader, feed, tta) if folders else _of_cnns(run, which, reader, feed, tta)


def study_folders(run: Path, which: str) -> list[Path]:
    """The folders of the sequence models in ``run``, one or one a fold; none where it holds CNNs.

    Raises:
        CheckpointError: a fold is missing, or not finished.
    """
    folders = fold_folders(run) or [run]
    path = folders[0] / {"best": checkpoint.BEST, "last": checkpoint.LAST}[which]
    is_study = path.is_file() and checkpoint.read_meta(path).get("kind") == KIND
    return folders if is_study else []


def _of_cnns(run: Path, which: str, reader: RecordReader, feed: Feed, tta: str) -> Subject:
    members = load_members(run, which)
    views = parse_views(tta, adjacent=members[0].adjacent)
    for member in members:
        member.model.to(feed.precision.device)

    def predict(split: str) -> Found:
        found = predict_members(members, reader.folder, split, feed, views)
        slices = found.predictions
        tables = Tables(slices=slices, studies=study_table(slices), decision=LARGEST)
        return Found(tables=tables, loader=found.loader, slices_per_s=found.slices_per_s)

    first, is_one = members[0], len(members) == 1
    return Subject(
        cnn=first,
        config=first.config if is_one else {**first.config, "fold": ALL_FOLDS},
        epoch=first.epoch if is_one else [member.epoch for member in members],
        weights_sha256=[weights_sha256(member.model) for member in members],
        predict=predict,
    )


def _of_studies(folders: Sequence[Path], which: str, reader: RecordReader, feed: Feed, tta: str) -> Subject:
    if tta not in (NONE, REVERSE):
        raise UsageError(f"--tta: expected {NONE} or {REVERSE} for a sequence model, found {tta!r}")
    members = [load_study_run(folder, which) for folder in folders]
    for member in members:
        member.cnn.model.to(feed.precision.device)

    def predict(split: str) -> Found:
        pairs = [_tables(member, reader, split, feed, reverse=tta == REVERSE) for member in members]
        folded = split in FOLDED and reader.dataset_sha256 == members[0].dataset_sha256
        slices, studies = (_joined(list(tables), out_of_fold=folded) for tables in zip(*pairs, strict=True))
        tables = Tables(slices=slices.sort_values("row", ignore_index=True), studies=studies, decision=HEAD)
        return Found(tables=tables, loader=STORED, slices_per_s=None)

    first = members[0]
    epochs = [member.epoch for member in members]
    return Subject(
        cnn=first.cnn,
        config=first.config,
        epoch=epochs[0] if len(epochs) == 1 else epochs,
        weights_sha256=[
            weights_sha256(network) for member in members for network in (member.cnn.model, member.sequence)
        ],
        predict=predict,
    )


def _tables(
    member: LoadedStudyRun, reader: RecordReader, split: str, feed: Feed, *, reverse: bool
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What one sequence model says of a split: the slices, and their studies with the head's logits."""
    found = predict_studies(member, reader, split, feed, reverse=reverse)
    slices = prediction_table(reader.index, found.rows, found.slice_logit)
    return slices, headed(slices, found.study_uid, found.study_logit)


def headed(slices: pd.DataFrame, study_uid: list[str], logit_SK: NDArray[np.float64]) -> pd.DataFrame:
    """The study table of ``slices`` with a study head's logits in place of the largest slice's."""
    table = study_table(slices).set_index("study_uid").loc[study_uid].reset_index()
    return with_logits(table, logit_SK)


def _joined(tables: list[pd.DataFrame], *, out_of_fold: bool) -> pd.DataFrame:
    """One table of the members': other rows of each where they are folds, else the same rows with mean logits."""
    if len(tables) == 1:
        return tables[0]
    return pd.concat(tables, ignore_index=True) if out_of_fold else mean_table(tables)
