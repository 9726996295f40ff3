"""Peers that keep a file a slice, read in worker processes of torch's DataLoader: PNG-8, PNG-16, .npy, DICOM."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from contest import Work
from numpy.typing import NDArray
from PIL import Image
from preprocessing import (
    EIGHT_BIT,
    EXACT,
    LOW,
    MEAN,
    OFFSET,
    SCALE,
    STD,
    WIDTH,
    eight_bit_windows,
    epoch_work,
    half_plane,
    to_input,
)
from torch.utils.data import DataLoader, Dataset

from fastich.hu import WRAP_SHIFT, is_wrapped_12_bit, to_hu, to_record, unwrap_12_bit
from fastich.records.reader import RecordReader

Read = Callable[[Path, int], NDArray[np.float32]]


class Files(Dataset[tuple[Any, int]]):
    """Slice number ``row`` read from ``paths[row]``."""

    def __init__(self, paths: list[Path], read: Read, size: int) -> None:
        self.paths, self.read, self.size = paths, read, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return torch.from_numpy(self.read(self.paths[row], self.size)), row


def read_png8(path: Path, size: int) -> NDArray[np.float32]:
    """The seed's way: three windows as three 8-bit channels, resized by Pillow."""
    with Image.open(path) as image:
        small = np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float32)
    small /= 255
    small -= MEAN
    small /= STD
    return np.ascontiguousarray(small.transpose(2, 0, 1))


def read_png16(path: Path, size: int) -> NDArray[np.float32]:
    """Lossless 16-bit grey."""
    with Image.open(path) as image:
        return to_input(np.asarray(image).astype(np.uint16), size)


def read_npy(path: Path, size: int) -> NDArray[np.float32]:
    """Plain uint16."""
    return to_input(np.load(path), size)


def read_npy_plane(path: Path, size: int) -> NDArray[np.float32]:
    """Plain uint16 to its area mean only, so that workers send a third."""
    return half_plane(np.load(path), size)


def read_dicom(path: Path, size: int) -> NDArray[np.float32]:
    """pydicom, on the fly."""
    return to_input(to_record(dicom_hu(path)), size)


def dicom_hu(path: Path) -> NDArray[np.int16]:
    """HU of a single-frame file by pydicom, with the one repair that the RSNA data needs (12-bit wrap)."""
    dataset = pydicom.dcmread(path)
    stored, slope, intercept = dataset.pixel_array, float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    if is_wrapped_12_bit(int(dataset.BitsStored), bool(dataset.PixelRepresentation), intercept):
        return to_hu(unwrap_12_bit(stored), slope, -float(WRAP_SHIFT))
    return to_hu(stored, slope, intercept)


READS: dict[str, Read] = {
    "png8": read_png8,
    "png16": read_png16,
    "npy": read_npy,
    "npy-plane": read_npy_plane,
    "dicom": read_dicom,
}


def write_one(kind: str, path: Path, stored: NDArray[np.uint16]) -> None:
    """One slice as a user would have saved it."""
    if kind == "png8":
        Image.fromarray(eight_bit_windows(stored)).save(path)
    elif kind == "png16":
        Image.fromarray(stored).save(path)
    else:
        np.save(path, stored)


def prepared(kind: str, records: Path, work: Path, dicom: Path) -> list[Path]:
    """The files of ``kind`` in the order of the rows of ``records``; written now where they are not there."""
    with RecordReader(records) as reader:
        if kind == "dicom":
            return [dicom / str(source) for source in reader.index["source"]]
        stem = kind.partition("-")[0]
        folder, suffix = work / stem, ".npy" if stem == "npy" else ".png"
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{row:06d}{suffix}" for row in range(len(reader))]
        for row, path in enumerate(paths):
            if not path.exists():
                temporary = path.with_name(f"part-{path.name}")
                write_one(stem, temporary, reader.stored(row))
                temporary.replace(path)
    return paths


@contextlib.contextmanager
def loader(kind: str, records: Path, work: Path, dicom: Path, size: int, batch: int) -> Iterator[Work]:
    """A DataLoader with one worker a core, kept alive between epochs, four batches ahead."""
    paths = prepared(kind, records, work, dicom)
    batches: Any = DataLoader(
        Files(paths, READS[kind], size),
        batch_size=batch,
        num_workers=len(os.sched_getaffinity(0)),
        persistent_workers=True,
        prefetch_factor=4,
        multiprocessing_context="fork",
    )
    epoch = (lambda: windows_after(batches)) if kind == "npy-plane" else (lambda: iter(batches))
    stored_bytes = sum(path.stat().st_size for path in paths) / len(paths)
    with RecordReader(records) as reader:
        tolerance = EIGHT_BIT if kind == "png8" else EXACT
        yield epoch_work(epoch, reader, size, tolerance, stored_bytes=stored_bytes)


def windows_after(batches: Any) -> Iterator[tuple[Any, Any]]:
    """Windows and normalisation of whole batches in the main process."""
    shape = (1, -1, 1, 1)
    low, high = torch.from_numpy(LOW).view(shape), torch.from_numpy(LOW + WIDTH).view(shape)
    offset, scale = torch.from_numpy(OFFSET).view(shape), torch.from_numpy(SCALE).view(shape)
    for planes, rows in batches:
        yield torch.clamp(planes.unsqueeze(1), low, high).sub_(offset).mul_(scale), rows
