"""What is known of each stored file beside the network's answer: headers, the gate's fields, and how its HU lie.

Made when a file is scored, kept in memory, and made again from the spool where they are not there (after a restart): so
the tables hold nothing that the files do not say. About 1 KB a slice, 20,000 slices at most.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.decoder import Decoder
from fastich.dicom import read_bytes
from fastich.errors import DicomError
from fastich.gate_fields import NOTHING, GateFields, read_fields
from fastich.serve.spool import Spool
from fastich.types import HuArray, RejectReason, Slice, SliceHeader

HU_EDGES = tuple(range(-100, 101, 10))
"""Borders of the HU histogram: fat, fluid, brain, blood; air and bone lie outside and are counted nowhere."""
STEP = 4
"""Every fourth row and column is counted: 16,384 pixels of 512 x 512, 0.1 ms."""
MAX_FILES = 20_000
TRANSIENT = frozenset((RejectReason.DECODER_FAILED, RejectReason.UNREADABLE))
"""Reasons that may be the machine's fault: what they stopped is tried again."""

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """One slice: its header, what the gate looks at, and its HU histogram [20] (``HU_EDGES``)."""

    header: SliceHeader
    fields: GateFields
    hu_counts: Counts


def count_hu(hu: HuArray) -> Counts:
    """How many of every fourth pixel of ``hu`` int16 [H, W] lie between each two of ``HU_EDGES``, int64 [20]."""
    part = hu[::STEP, ::STEP].ravel().astype(np.int32) - HU_EDGES[0]
    inside = part[(part >= 0) & (part < HU_EDGES[-1] - HU_EDGES[0])]
    return np.bincount(inside // (HU_EDGES[1] - HU_EDGES[0]), minlength=len(HU_EDGES) - 1)


def read_object(spool: Spool, name: str, decoder: Decoder) -> tuple[list[Slice], GateFields]:
    """The slices of an object of the spool, and its fields; headers have the object's name as ``path``.

    Raises:
        DicomError: it cannot be used, with the reason.
    """
    if not name:
        raise DicomError(RejectReason.UNREADABLE, "its pixels were deleted by age")
    try:
        data = spool.path_of(name).read_bytes()
    except OSError as error:
        raise DicomError(RejectReason.UNREADABLE, f"{type(error).__name__}: {error.strerror}") from error
    return read_bytes(data, name, decoder=decoder, allow_deflated=False), read_fields(data)


def notes_of(slices: list[Slice], fields: GateFields) -> tuple[Note, ...]:
    """The notes of one file."""
    return tuple(Note(header=one.header, fields=fields, hu_counts=count_hu(one.hu)) for one in slices)


class NoteBook:
    """Notes by object name; safe to call from any thread."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._lock = threading.Lock()
        self._notes: OrderedDict[str, tuple[Note, ...]] = OrderedDict()

    def put(self, name: str, notes: tuple[Note, ...]) -> None:
        """Keep the notes of an object; the longest unused ones make room."""
        with self._lock:
            self._notes[name] = notes
            self._notes.move_to_end(name)
            while len(self._notes) > MAX_FILES:
                self._notes.popitem(last=False)

    def of(self, name: str, decoder: Decoder) -> tuple[Note, ...]:
        """The notes of an object, read from the spool where they are not here.

        Raises:
            DicomError: they have to be read and the file cannot be used.
        """
        with self._lock:
            found = self._notes.get(name)
        if found is None:
            found = notes_of(*read_object(self._spool, name, decoder))
            self.put(name, found)
        return found


def protocol(notes: list[Note], spacing_mm: float | None, tilt_deg: float) -> dict[str, Any]:
    """How a series was made, for the drift page: the first slice's header, and its HU as fractions; None if unknown."""
    first, fields = notes[0].header, notes[0].fields
    counts = np.sum([note.hu_counts for note in notes], axis=0)
    total = int(counts.sum())
    return {
        "kvp": fields.kvp,
        "thickness_mm": first.thickness_mm,
        "spacing_mm": spacing_mm,
        "pixel_mm": None if first.pixel_spacing_mm is None else list(first.pixel_spacing_mm),
        "kernel": fields.kernel,
        "manufacturer": fields.manufacturer,
        "model": fields.model,
        "num_slices": len(notes),
        "tilt_deg": tilt_deg,
        "hu_edges": list(HU_EDGES),
        "hu_fractions": [float(count / total) for count in counts] if total else None,
    }


def note_of(header: SliceHeader, fields: GateFields = NOTHING) -> Note:
    """The note of a slice whose pixels are not at hand; without ``fields`` its file is gone and says nothing more."""
    return Note(header=header, fields=fields, hu_counts=np.zeros(len(HU_EDGES) - 1, dtype=np.int64))
