"""A study run opened: a CNN and its sequence model, and what the two say of the studies of a split.

The CNN is the one that the sequence model was trained with: its run folder is found from the study run's folder and its
weights are compared, since a sequence model over another CNN's embeddings says nothing. Where the two were trained end
to end, the CNN's weights in the study run replace those that it started from. What the CNN says of the
records is taken from their side store, which is made where it is missing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fastich.checkpoint import BEST, LAST, LoadedRun, load, load_run, weights_sha256
from fastich.errors import CheckpointError, FastichError
from fastich.folds import fold_config
from fastich.models.sequence import SequenceNetwork
from fastich.records.reader import RecordReader
from fastich.training.embedder import stores_of
from fastich.training.feed import Feed
from fastich.training.study_config import build_sequence
from fastich.training.study_data import StudySet, rows_of, series_of
from fastich.training.study_folder import CNN_PREFIX, KIND, restore_networks
from fastich.training.study_predictions import StudyPredictions, predict

STUDIES_AT_A_TIME = 8


@dataclass(frozen=True, kw_only=True)
class LoadedStudyRun:
    """A trained sequence model and the CNN it belongs to.

    Attributes:
        path: the study run's folder.
        sequence: on the CPU, float32, in eval mode.
        cnn: what it was trained with, or fine-tuned together with it.
        config: the resolved config of the study run.
        dataset_sha256: identity of the records that both were trained on.
        epoch: number of the epoch whose weights these are; -1 for the start, which is the CNN's own answer.
        embedding_size: channels of an embedding.
        meta: everything else in the checkpoint's header.
    """

    path: Path
    sequence: SequenceNetwork
    cnn: LoadedRun
    config: dict[str, Any]
    dataset_sha256: str
    epoch: int
    embedding_size: int
    meta: dict[str, Any]


def load_study_run(path: Path, which: str = "best", *, cnn: Path | None = None) -> LoadedStudyRun:
    """The sequence model of a study run folder and its CNN.

    Args:
        path: what ``python -m fastich.train_study --out`` wrote.
        which: ``best`` (what the run kept) or ``last``.
        cnn: the CNN's run folder, where it does not lie as it did to the study run's.

    Raises:
        CheckpointError: a folder or checkpoint is missing, damaged, no study run, or the CNN is another one.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such run folder; expected the --out folder of python -m fastich.train_study")
    saved = load(path / {"best": BEST, "last": LAST}[which])
    if saved.meta.get("kind") != KIND:
        raise CheckpointError(f"{saved.path}: expected a study run's checkpoint, found a CNN's; give the study run")
    said = saved.meta["cnn"]
    sequence = build_sequence(saved.meta["config"], said["embedding_size"])
    run = load_run(cnn or path / said["run"], said["which"])
    if (found := weights_sha256(run.model)) != said["weights_sha256"]:
        raise CheckpointError(
            f"{run.run}: expected the CNN with weights {said['weights_sha256'][:12]} that {path} was trained with, "
            f"found {found[:12]}; give its run folder, or train the sequence model again"
        )
    networks = nn.ModuleDict({"sequence": sequence} | ({"cnn": run.model} if saved.part(CNN_PREFIX) else {}))
    restore_networks(networks, saved)
    networks.eval()
    return LoadedStudyRun(
        path=path,
        sequence=sequence,
        cnn=run,
        config=saved.meta["config"],
        dataset_sha256=saved.meta["dataset_sha256"],
        epoch=saved.meta["epoch"],
        embedding_size=said["embedding_size"],
        meta=saved.meta,
    )


def predict_studies(
    run: LoadedStudyRun, reader: RecordReader, split: str, feed: Feed, *, reverse: bool = False
) -> StudyPredictions:
    """Logits of the labelled slices of ``split`` and of their studies (``StudyPredictions``).

    Args:
        run: from ``load_study_run``; its networks are moved to the device.
        reader: the records; their side store is used or made.
        split: train, val or test.
        feed: how slices get through the CNN, where the store is missing.
        reverse: average with what is said of the studies turned around.

    Raises:
        FastichError: the split is empty.
        RecordError: the side store is damaged.
    """
    folds = fold_config(run.cnn.config, same_records=reader.dataset_sha256 == run.dataset_sha256)
    rows = rows_of(reader, folds, split)
    if not len(rows):
        raise FastichError(f"{reader.folder}: no labelled slices in split {split!r}; pack more patients")
    stores = stores_of(run.cnn, reader.folder, reader, rows, 0, feed)
    studies = StudySet(series=series_of(reader.index, rows), labels=reader.labels(), stores=stores)
    run.sequence.to(feed.precision.device)
    return predict(run.sequence, studies, rows, STUDIES_AT_A_TIME, reverse=reverse)
