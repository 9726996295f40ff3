"""Scoring what could not be scored as it arrived, from the files of the spool: series in slice order, for models that
look at neighbours; kinds of series that wait for the study; slices that another model scored.

Holds the pixels of one batch and its two neighbours.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fastich.dicom import Series
from fastich.errors import DicomError, FastichError
from fastich.serve.scoring.batcher import answers_of
from fastich.serve.session import Session
from fastich.study_rule import Answers, Place, SliceAnswer, place
from fastich.types import HuArray, Slice, SliceHeader

ReadFile = Callable[[str], Sequence[Slice]]
"""The slices of the file that a header's ``path`` names; raises ``DicomError``."""


class Pixels:
    """The pixels of slices, by header; remembers the last few files, for neighbours and frames."""

    def __init__(self, read: ReadFile, num_files: int) -> None:
        self._read, self._num_files = read, num_files
        self._files: dict[str, dict[int, HuArray]] = {}

    def of(self, header: SliceHeader) -> HuArray:
        """HU int16 [H, W].

        Raises:
            FastichError: a file that was readable no longer is.
        """
        frames = self._files.get(header.path)
        if frames is None:
            try:
                frames = {one.header.frame: one.hu for one in self._read(header.path)}
            except DicomError as error:
                raise FastichError(f"a stored file no longer is what it was ({error})") from error
            self._files[header.path] = frames
            while len(self._files) > self._num_files:
                self._files.pop(next(iter(self._files)))
        return frames[header.frame]


def score_series(series: Series, known: Answers, session: Session, pixels: Pixels, batch_size: int) -> Answers:
    """The answers of a whole series: those that are ``known``, and the others scored now.

    With a model of neighbours everything is scored: each batch brings a neighbour on both sides, so that the answers
    are those of the series run whole.

    Raises:
        FastichError: a file is gone.
        ArtifactError: the model failed.
    """
    if session.artifact.input_order == "series":
        return dict(_in_order(series.headers, session, pixels, batch_size))
    missing = [header for header in series.headers if place(header) not in known]
    found = {place(header): known[place(header)] for header in series.headers if place(header) in known}
    for start in range(0, len(missing), batch_size):
        batch = missing[start : start + batch_size]
        answers = answers_of(session.run(np.stack([pixels.of(header) for header in batch])))
        found.update(zip(map(place, batch), answers, strict=True))
    return found


def _in_order(
    headers: Sequence[SliceHeader], session: Session, pixels: Pixels, batch_size: int
) -> Iterator[tuple[Place, SliceAnswer]]:
    for start in range(0, len(headers), batch_size):
        stop = min(start + batch_size, len(headers))
        first = max(start - 1, 0)
        hu = np.stack([pixels.of(header) for header in headers[first : stop + 1]])
        answers = answers_of(session.run(hu))[start - first : stop - first]
        yield from zip(map(place, headers[start:stop]), answers, strict=True)
