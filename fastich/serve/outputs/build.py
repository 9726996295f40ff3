"""A stored score to the bytes that are sent: reads the store and the spool, decides nothing, sends nothing."""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from fastich.dicom import read_file
from fastich.errors import DicomError, FastichError
from fastich.labels import ANY
from fastich.serve.entities import Score
from fastich.serve.outputs import key_image, source, sr
from fastich.serve.outputs.result import KeySlice, Result, result_of
from fastich.serve.store import Store
from fastich.types import HuArray


class Objects(Protocol):
    """Where the files of the spool are."""

    def path_of(self, object_name: str) -> Path:
        """The path of an object."""


class Made(NamedTuple):
    """A DICOM object, ready to send: its UID, its study's, and its Part 10 file."""

    sop_uid: str
    study_uid: str
    data: bytes


def build(store: Store, objects: Objects, score: Score, kind: str) -> Made:
    """The object of one kind about a score; the same bytes each time.

    Raises:
        FastichError: the score holds no result, or an image that is needed is gone or cannot be read.
    """
    if score.outcome.document is None:
        raise FastichError(f"score {score.score_id}: expected a result, found none: {score.outcome.reason}")
    result = result_of(score, store.scores_of(score.study_uid))
    sop_classes = {one.sop_uid: one.sop_class_uid for one in store.instances_of(score.study_uid)}
    path = objects.path_of(result.key_slices["any"].object_name)
    header = source.read_header(path)
    if kind == sr.KIND:
        made = sr.build(result, header, sop_classes)
    else:
        key = result.key_slices["any"]
        made = key_image.build(result, header, sop_classes, _pixels(path, key), _class_map(store, result, key))
    return Made(str(made.SOPInstanceUID), str(made.StudyInstanceUID), source.to_bytes(made))


def _pixels(path: Path, key: KeySlice) -> HuArray:
    try:
        return read_file(path, allow_deflated=False)[key.frame].hu
    except (DicomError, IndexError) as error:
        raise FastichError(f"{path.name}: frame {key.frame}: cannot be read ({error})") from error


def _class_map(store: Store, result: Result, key: KeySlice) -> key_image.ClassMap:
    """The class map of any bleed on the key slice [h, w]."""
    for one in store.scored_slices(result.study_uid):
        if (one.header.path, one.header.frame) == (key.object_name, key.frame) and one.answer.cam is not None:
            return np.asarray(one.answer.cam[ANY], dtype=np.float32)
    raise FastichError(f"{key.object_name}: frame {key.frame}: expected a class map, found none stored")
