"""One DICOM file to slices in Hounsfield units, one folder to ordered studies; every file left out has a named reason.

The only door to pydicom for reading (with ``dicom_parse`` and ``dicom_pixels`` behind it). An uncompressed 512 x 512
slice costs about 1 ms of one core, compressed ones 5-40 ms. Nothing here trusts a file: sizes are capped before memory
is taken, native decoders run in a process of their own, and an error is a ``DicomError`` with a reason, never a
traceback.
"""

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fastich import hu
from fastich.decoder import Decoder
from fastich.dicom_header import TAGS, PixelLayout, Rescale, check_kind, frame_headers, frame_rescales, read_layout
from fastich.dicom_parse import DEFLATED, MEDIA_DIRECTORY, Elements, FileMeta, inflate, parse, read_meta
from fastich.dicom_pixels import stored_frames
from fastich.dicom_scan import PIXEL_DATA
from fastich.errors import DicomError, FastichError
from fastich.geometry import SeriesGeometry, order_series, same_direction, slice_normal
from fastich.types import HuArray, Reject, RejectReason, Slice, SliceHeader

__all__ = [
    "Decoder",
    "Seen",
    "Series",
    "Study",
    "find_files",
    "group_studies",
    "iter_folder",
    "load",
    "name_below",
    "named_files",
    "read_bytes",
    "read_file",
    "read_folder",
    "read_records",
    "text_below",
]

T = TypeVar("T")

MAX_FILE_BYTES = 2**30
"""An enhanced study of 1,000 uncompressed frames is 0.5 GiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """Slices of one series that share size and orientation, in slice order."""

    series_uid: str
    headers: tuple[SliceHeader, ...]
    geometry: SeriesGeometry


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """The series of one study of one patient."""

    study_uid: str
    patient_id: str
    series: tuple[Series, ...]


def find_files(folder: Path) -> list[Path]:
    """Every file below ``folder``, sorted by path; links to folders are followed, each folder is entered once.

    Raises:
        FastichError: ``folder`` is not a folder, or a folder below it cannot be listed.
    """
    if not folder.is_dir():
        raise FastichError(f"{folder}: expected a folder, found {'a file' if folder.exists() else 'nothing'}")

    def refuse(error: OSError) -> None:
        raise FastichError(f"{error.filename}: cannot list this folder ({error.strerror})")

    found: list[str] = []
    entered: set[tuple[int, int]] = set()
    for base, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(base)
        if (status.st_dev, status.st_ino) in entered:
            below.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        below.sort()
        found += [os.path.join(base, name) for name in names]
    return [Path(text) for text in sorted(found, key=_parts)]  # the order of paths, without comparing paths


def _parts(path: str) -> list[str]:
    return path.split(os.sep)


def text_below(path: str | Path, root: Path) -> str:
    """The path of a file below ``root`` relative to it, as ``relative_to`` says but without making a path."""
    text = os.fspath(path)
    start = os.path.join(root, "") if root.parts else ""
    assert text.startswith(start), f"{text} is not below {root}"
    return text.removeprefix(start)


def name_below(path: Path, root: Path) -> str:
    """The path of a file relative to ``root`` as valid text; bytes that are no UTF-8 are spelled out."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


def read_file(
    path: Path, *, root: Path | None = None, decoder: Decoder | None = None, allow_deflated: bool = True
) -> list[Slice]:
    """Read one file: one slice, or one for each frame of an enhanced multi-frame file.

    Frame k > 0 is called ``<SOPInstanceUID>#k``.

    Args:
        path: the file.
        root: the folder that the header's ``path`` is relative to; None gives the bare file name.
        decoder: the worker for compressed pixels; None makes one for this call, which costs 0.2 s if it is needed.
        allow_deflated: False refuses the deflated transfer syntax, for input that came over a network.

    Raises:
        DicomError: the file cannot be used, with the reason.
    """
    name = name_below(path, path.parent if root is None else root)
    return read_bytes(load(path), name, decoder=decoder, allow_deflated=allow_deflated)


def read_records(path: str, decoder: Decoder) -> list[NDArray[np.uint16]]:
    """The frames of one file as records store them, uint16 [H, W]: ``hu.to_record`` of what ``read_file`` gives.

    For packing, which has described the slices already: no header is made, and the usual frame becomes a record in one
    pass over its stored values. Every check of ``read_file`` is made.

    Raises:
        DicomError: the file cannot be used, with the reason.
    """
    data = load(path)

    def records() -> list[NDArray[np.uint16]]:
        checked = _check(data, allow_deflated=True)
        scales = list(frame_rescales(*checked))
        frames = _stored(checked, decoder)
        return [_record(scale, stored) for scale, stored in zip(scales, frames, strict=True)]

    return _guarded(records)


def _record(scale: Rescale, stored: NDArray[np.integer]) -> NDArray[np.uint16]:
    values = hu.unwrap_12_bit(stored) if scale.wrapped else stored
    return hu.stored_to_record(values, scale.slope, scale.intercept)


def load(path: str | Path) -> bytes:
    """The bytes of a file of bounded size.

    Raises:
        DicomError: it cannot be read, is no regular file, or too large.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DicomError(RejectReason.UNREADABLE, "not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise DicomError(RejectReason.TOO_LARGE, f"{status.st_size} bytes, at most {MAX_FILE_BYTES}")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DicomError(RejectReason.UNREADABLE, f"{type(error).__name__}: {error.strerror}") from error


def read_bytes(data: bytes, name: str, *, decoder: Decoder | None = None, allow_deflated: bool = True) -> list[Slice]:
    """As ``read_file``, for the bytes of a file; ``name`` becomes the header's ``path``."""
    if decoder is None:
        with Decoder() as own:
            return read_bytes(data, name, decoder=own, allow_deflated=allow_deflated)

    def slices() -> list[Slice]:
        checked = _check(data, allow_deflated)
        headers = list(frame_headers(*checked, name))
        frames = _stored(checked, decoder)
        return [
            Slice(header=header.header, hu=_hu(header.rescale, stored))
            for header, stored in zip(headers, frames, strict=True)
        ]

    return _guarded(slices)


def _hu(scale: Rescale, stored: NDArray[np.integer]) -> HuArray:
    values = hu.unwrap_12_bit(stored) if scale.wrapped else stored
    return hu.to_hu(values, scale.slope, scale.intercept)


def _guarded(read: Callable[[], T]) -> T:
    """What ``read`` returns; whatever it stumbles over becomes a ``DicomError``."""
    try:
        return read()
    except DicomError:
        raise
    except (Exception, MemoryError) as error:
        raise DicomError(RejectReason.DAMAGED_HEADER, f"{type(error).__name__} while its elements were read") from error


Checked = tuple[Elements, FileMeta, PixelLayout]


def _check(data: bytes, allow_deflated: bool) -> Checked:
    """Parse a file and check what it is and how its pixels are stored."""
    if not data:
        raise DicomError(RejectReason.EMPTY_FILE, "0 bytes")
    meta = read_meta(data)
    if meta.sop_class == MEDIA_DIRECTORY:
        raise DicomError(RejectReason.DICOMDIR, "a media directory: it lists files and holds no image")
    offset = meta.dataset_offset
    if meta.transfer_syntax == DEFLATED:
        if not allow_deflated:
            raise DicomError(RejectReason.UNSUPPORTED_SYNTAX, "deflated data sets are not taken from a network")
        data, offset = inflate(data[offset:]), 0
    elements = parse(data, offset, meta.transfer_syntax, TAGS)
    check_kind(elements, meta)
    return elements, meta, read_layout(elements, meta.transfer_syntax)


def _stored(checked: Checked, decoder: Decoder) -> Iterator[NDArray[np.integer]]:
    """The stored values of each frame."""
    elements, _, layout = checked
    value, encapsulated = elements.raw(PIXEL_DATA) or b"", elements.has_undefined_length(PIXEL_DATA)
    return stored_frames(value, layout, encapsulated, decoder)


def read_folder(folder: Path) -> Iterator[Slice | Reject]:
    """Every file below ``folder`` in path order: its slices, or the reason why it is left out."""
    return iter_folder([folder])


def iter_folder(paths: Sequence[Path], *, allow_deflated: bool = True) -> Iterator[Slice | Reject]:
    """Read files and folders, in the order given and each folder in path order; never raises for what a file holds.

    A SOP instance that was already read is left out as DUPLICATE when its pixels are equal, else as
    CONFLICTING_DUPLICATE. The check reads the first file again, so it costs nothing where nothing is doubled.

    Raises:
        FastichError: a path does not exist.
    """
    seen = Seen()
    with Decoder() as decoder:
        for path, root in named_files(paths):
            try:
                slices = read_file(path, root=root, decoder=decoder, allow_deflated=allow_deflated)
                seen.admit(path, slices, decoder)
            except DicomError as error:
                yield Reject(path=name_below(path, root), reason=error.reason, detail=error.detail)
                continue
            yield from slices


def named_files(paths: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Each file that ``paths`` (files and folders) stand for, with the folder that its name is relative to."""
    found: list[tuple[Path, Path]] = []
    for path in paths:
        if path.is_dir():
            found += [(file, path) for file in find_files(path)]
        elif path.exists():
            found.append((path, path.parent))
        else:
            raise FastichError(f"{path}: expected a file or folder, found nothing")
    return found


class Seen:
    """Remembers which file each SOP instance came from, and refuses a second one."""

    def __init__(self) -> None:
        self._first: dict[str, Path] = {}

    def is_new(self, path: Path, sop_uid: str) -> bool:
        """Note that ``path`` holds ``sop_uid``; tell whether no other file did before."""
        return self._first.setdefault(sop_uid, path) == path

    def admit(self, path: Path, slices: Sequence[Slice], decoder: Decoder) -> None:
        """Note the slices of ``path``.

        Raises:
            DicomError: DUPLICATE or CONFLICTING_DUPLICATE, naming the file that was read first.
        """
        sop_uid = slices[0].header.sop_uid
        if self.is_new(path, sop_uid):
            return
        first = self._first[sop_uid]
        others = read_file(first, decoder=decoder)
        pairs = zip(slices, others, strict=False)
        if len(others) == len(slices) and all(np.array_equal(one.hu, other.hu) for one, other in pairs):
            raise DicomError(RejectReason.DUPLICATE, f"same instance and pixels as {first.name}")
        raise DicomError(RejectReason.CONFLICTING_DUPLICATE, f"same instance UID as {first.name}, which is kept")


def group_studies(headers: Iterable[SliceHeader]) -> list[Study]:
    """Group slices by patient, study and series; a series of mixed size or orientation is split, and says so."""
    studies: dict[tuple[str, str], dict[str, list[SliceHeader]]] = defaultdict(lambda: defaultdict(list))
    for header in headers:
        studies[header.patient_id, header.study_uid][header.series_uid].append(header)
    return [
        Study(
            study_uid=study_uid,
            patient_id=patient_id,
            series=tuple(part for uid, found in sorted(series.items()) for part in _split_series(uid, found)),
        )
        for (patient_id, study_uid), series in sorted(studies.items())
    ]


def _split_series(series_uid: str, headers: list[SliceHeader]) -> Iterator[Series]:
    parts: list[list[SliceHeader]] = []
    for header in headers:
        home = next((part for part in parts if _belongs(part[0], header)), None)
        if home is None:
            parts.append([header])
        else:
            home.append(header)
    for part in parts:
        geometry = order_series(part)
        yield Series(
            series_uid=series_uid,
            headers=tuple(part[index] for index in geometry.order),
            geometry=geometry if len(parts) == 1 else _with_problem(geometry, len(parts)),
        )


def _belongs(one: SliceHeader, other: SliceHeader) -> bool:
    """Tell whether two slices can be stacked: same size, and orientations that agree or are both unknown."""
    if (one.rows, one.columns) != (other.rows, other.columns):
        return False
    first, second = slice_normal(one.orientation), slice_normal(other.orientation)
    if first is None or second is None:
        return first is second
    return same_direction(first, second)


def _with_problem(geometry: SeriesGeometry, num_parts: int) -> SeriesGeometry:
    note = f"the series mixes sizes or orientations and is split into {num_parts}"
    return SeriesGeometry(
        order=geometry.order,
        z_mm=geometry.z_mm,
        spacing_mm=geometry.spacing_mm,
        tilt_deg=geometry.tilt_deg,
        distances_mm=geometry.distances_mm,
        gaps_mm=geometry.gaps_mm,
        duplicates=geometry.duplicates,
        problems=(note, *geometry.problems),
    )
