"""Studies to send: phantom slices as a scanner would send them, each time under new UIDs, at microseconds a slice.

A template holds UIDs of one length that occur nowhere else in it, so that a new study is three replacements in bytes
that were encoded once: the sender must not be what is measured.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from case import call
from pydicom.uid import ExplicitVRLittleEndian

from fastich.errors import UsageError
from fastich.phantom.as_sent import as_sent

SPACING_MM = 5.0
KINDS = ("study", "series", "sop")


def uid(*words: object) -> str:
    """A legal UID of 44 characters, made from ``words``: 2.25 and an integer below 2^128 (PS3.5 B.2)."""
    number = int.from_bytes(hashlib.sha256(repr(words).encode()).digest(), "big") % 10**38
    return f"2.25.1{number:038d}"


PLACEHOLDERS = {kind: uid("placeholder", kind) for kind in KINDS}


@dataclass(frozen=True, kw_only=True)
class Template:
    """One study as Part 10 files, slices from below upwards, with ``PLACEHOLDERS`` for UIDs."""

    slices: tuple[bytes, ...]

    def study(self, *name: object) -> "OutgoingStudy":
        """The study under UIDs made from ``name``."""
        study, series = uid(*name, "study"), uid(*name, "series")
        sops = tuple(uid(*name, "sop", number) for number in range(len(self.slices)))
        return OutgoingStudy(template=self, study_uid=study, series_uid=series, sop_uids=sops)


@dataclass(frozen=True, kw_only=True)
class OutgoingStudy:
    """A template under UIDs of its own."""

    template: Template
    study_uid: str
    series_uid: str
    sop_uids: tuple[str, ...]

    def file(self, number: int) -> bytes:
        """Slice ``number`` as a Part 10 file."""
        found = self.template.slices[number]
        new = {"study": self.study_uid, "series": self.series_uid, "sop": self.sop_uids[number]}
        for kind, value in new.items():
            found = found.replace(PLACEHOLDERS[kind].encode(), value.encode())
        return found


def templates(work: Path, *, num_studies: int, num_slices: int, size: int) -> list[Template]:
    """Synthetic studies of ``num_slices`` slices of ``size`` px, one in two with a bleed; made once a work folder."""
    folder = work / f"serve-{size}-{num_studies}"
    if not (folder / "stage_2_train.csv").exists():
        call("phantom", "--out", folder, "--studies", num_studies, "--size", size)
    by_study: dict[str, list[tuple[float, Path]]] = {}
    for path in sorted((folder / "stage_2_train").glob("*.dcm")):
        with pydicom.config.disable_value_validation():
            header = pydicom.dcmread(path, specific_tags=["StudyInstanceUID", "ImagePositionPatient"])
            by_study.setdefault(str(header.StudyInstanceUID), []).append((float(header.ImagePositionPatient[2]), path))
    if not by_study:
        raise UsageError(f"{folder}: expected synthetic studies, found none; remove it")
    return [_template([path for _, path in sorted(found)], num_slices) for found in by_study.values()]


def _template(paths: Sequence[Path], num_slices: int) -> Template:
    """``num_slices`` slices from below upwards; where there are fewer, some repeat, each at a place of its own."""
    chosen = [paths[number * len(paths) // num_slices] for number in range(num_slices)]
    return Template(slices=tuple(_slice(path, number) for number, path in enumerate(chosen)))


def _slice(path: Path, number: int) -> bytes:
    data = pydicom.dcmread(io.BytesIO(as_sent(path.read_bytes(), number=number + 1)))
    data.StudyInstanceUID, data.SeriesInstanceUID = PLACEHOLDERS["study"], PLACEHOLDERS["series"]
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = PLACEHOLDERS["sop"]
    row, column = np.reshape(np.asarray(data.ImageOrientationPatient, dtype=float), (2, 3))
    data.ImagePositionPatient = [f"{value:.3f}" for value in SPACING_MM * number * np.cross(row, column)]
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    target = io.BytesIO()
    data.save_as(target, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return target.getvalue()
