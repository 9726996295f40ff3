"""The two sides of a leakage check: what a records, run or model folder, or a folder of NIfTI files, holds.

Records are exact and know which images are blank. A run is its training and validation rows: of the records that it was
trained on where they can be found, else of the certificate in its checkpoint, which holds patients, studies and one
image a study. A model folder holds that certificate. Of NIfTI files only the names are read: BHSD and MBH-Seg are RSNA
scans whose names carry the ids, such as ``ID_0219ef88_ID_e5a1ff1be1.nii.gz``. ``told_by`` says which it was.
"""

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastich import checkpoint
from fastich.artifact import MANIFEST, read_manifest
from fastich.errors import ArtifactError, CheckpointError, RecordError
from fastich.fingerprints import ANY_KIND, Ids, blank_hashes, id_set, of_rows, unpack
from fastich.records.index import DATASET_FILE, SPLITS
from fastich.records.reader import RecordReader, read_dataset

CERTIFICATE_KEY = "leakage_certificate"
"""Of a checkpoint's meta and of model.json."""
LEARNED_FROM = ("train", "val")
"""Splits that a run has seen: the second chose its epoch and its thresholds."""
NO_SPLIT = "no split"
FIRST_FOLD = "fold-0"
_ID_IN_NAME = re.compile(r"(?<![a-z0-9])ID_[0-9a-f]+", re.IGNORECASE)
_NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One data set: the ids of each of its splits, and (records only) which slices by ``sop_uid`` are blank."""

    path: Path
    told_by: str
    splits: dict[str, Ids]
    is_blank: Callable[[str], bool] | None = None


def open_side(path: Path, records: Path | None, stack: contextlib.ExitStack) -> Side:
    """What ``path`` holds; files stay open in ``stack``. ``records`` are those that a run was trained on.

    Raises:
        FastichError: one of its kinds: ``path`` is none of the four, or cannot be read.
    """
    if (path / DATASET_FILE).is_file():
        return records_side(stack.enter_context(contextlib.closing(RecordReader(path))))
    if is_run(path / FIRST_FOLD):
        path = path / FIRST_FOLD  # each fold has seen train and val of the same records
    if is_run(path):
        return run_side(path, checkpoint.read_meta(path / checkpoint.BEST), records, stack)
    if (path / MANIFEST).is_file():
        return certificate_side(path, model_certificate(path))
    return names_side(path)


def is_run(path: Path) -> bool:
    """Tell whether ``path`` is a run folder."""
    return (path / checkpoint.FOLDER).is_dir()


def records_side(reader: RecordReader, splits: tuple[str, ...] | None = None) -> Side:
    """A records folder, or only some of its splits."""
    row_of = reader.index.reset_index().set_index("sop_uid")["index"]
    blank = blank_hashes(reader.index, reader.is_blank)
    return Side(
        path=reader.folder,
        told_by="records",
        splits={
            split or NO_SPLIT: of_rows(reader.index[reader.index["split"] == split], blank)
            for split in (SPLITS if splits is None else splits)
            if (reader.index["split"] == split).any()
        },
        is_blank=lambda sop_uid: reader.is_blank(int(row_of[sop_uid])),
    )


def run_side(path: Path, meta: Mapping[str, Any], records: Path | None, stack: contextlib.ExitStack) -> Side:
    """What the run at ``path`` has seen, from its records where they are found, else from its certificate.

    Args:
        path: named in messages.
        meta: of its checkpoint.
        records: where its records are now; by default where they were when it was trained.
        stack: keeps them open.

    Raises:
        RecordError: ``records`` are others.
        CheckpointError: neither is there.
    """
    known = meta["config"].get("records")
    folder = records or (Path(known) if known else None)
    if folder is not None and (folder / DATASET_FILE).is_file():
        found = read_dataset(folder)[1]
        if found == meta["dataset_sha256"]:
            reader = stack.enter_context(contextlib.closing(RecordReader(folder)))
            return records_side(reader, LEARNED_FROM)
        if records is not None:
            raise RecordError(
                f"{records}: expected the records that {path} was trained on ({meta['dataset_sha256'][:12]}), "
                f"found {found[:12]}; give those, or none to compare with its certificate"
            )
    if not meta.get(CERTIFICATE_KEY):
        raise CheckpointError(
            f"{path}: expected a leakage certificate in its checkpoint, found none, and {folder or 'no records'} are "
            "not there to look at; give the records it was trained on with --records, or train again"
        )
    return certificate_side(path, meta[CERTIFICATE_KEY], LEARNED_FROM)


def model_certificate(path: Path) -> Mapping[str, Any]:
    """The certificate of a model folder.

    Raises:
        ArtifactError: the folder cannot be read, or was exported without one.
    """
    certificate = read_manifest(path).leakage_certificate
    if not certificate:
        raise ArtifactError(f"{path / MANIFEST}: expected a leakage certificate, found none; train and export again")
    return certificate


def certificate_side(path: Path, certificate: Mapping[str, Any], splits: tuple[str, ...] | None = None) -> Side:
    """What a certificate tells of a data set, without names.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        found: dict[str, Ids] = {
            name: {kind: unpack(text) for kind, text in split["ids"].items()}
            for name, split in certificate["splits"].items()
            if splits is None or name in splits
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__} {error}"
        raise ArtifactError(f"{path}: its leakage certificate is damaged, {what}; train or export again") from error
    return Side(path=path, told_by="certificate", splits=found)


def names_side(path: Path) -> Side:
    """The ids in the names of the NIfTI files below ``path``; any of them may be a patient's, a study's or a series'.

    Raises:
        RecordError: there is no such file, or no id in any name.
    """
    files = [found for found in sorted(path.rglob("*")) if found.name.lower().endswith(_NIFTI)]
    if not files:
        raise RecordError(
            f"{path}: expected a records, run or model folder, or NIfTI files, found none of them; check the path"
        )
    ids = sorted({token for found in files for token in ids_in_name(found.name)})
    if not ids:
        raise RecordError(
            f"{path}: expected ids like ID_0219ef88 in the names of {len(files)} NIfTI files, found none; "
            "pack the data set and compare the records"
        )
    return Side(path=path, told_by=f"names of {len(files)} files", splits={"all": {ANY_KIND: id_set(ids)}})


def ids_in_name(name: str) -> list[str]:
    """Every ``ID_<hex>`` of a file name, with the hex in lower case as RSNA writes it."""
    return ["ID_" + found[3:].lower() for found in _ID_IN_NAME.findall(name)]
