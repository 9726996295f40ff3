"""The records' codec on one core: encode, decode, decode straight to the network's input; ratio beside other codecs.

    python bench/bench_codec.py [--dicom DIR] [--records DIR] [--quick] [--json FILE]

Slices are decoded one by one as a loader would, into memory that is used again where the interface allows it. The other
codecs run through imagecodecs with their usual fast settings. ``ratio`` stands in each row's facts and in its name.
"""

import contextlib
import functools
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from case import Case
from contest import Contender, Work, WrongOutputError
from numpy.typing import NDArray
from preprocessing import EXACT, HALF_HU, TOLERANCES, check_image

from fastich import dicom, ops
from fastich.hu import to_record
from fastich.records.codec import MODE_FLAT, MODE_HALF_FIRST, encode_lbp
from fastich.records.reader import RecordReader
from fastich.types import Slice
from fastich.windowing import DEFAULT_WINDOWS

STAGE = "codec"
MOST_SLICES, FEW_SLICES = 64, 16
RECORDS = "records"
"""What the records' own slices are called among the data of ``ratios``."""
PNG = "decode 16-bit PNG"

Pixels = NDArray[np.uint16]


def contenders(case: Case) -> list[Contender]:
    def one(name: str, function: str, limit: str = "the core", **arguments: Any) -> Contender:
        known = {"records": case.half, "count": FEW_SLICES if case.quick else MOST_SLICES, **arguments}
        make = f"bench_codec:{function}"
        return Contender(name=name, make=make, arguments=known, limit=limit, ceiling="one core", baseline=name == PNG)

    layouts = ("HWC",) if case.quick else ("HWC", "CHW")
    modes = ("half-first", "flat")
    others = QUICK_OTHERS if case.quick else OTHERS
    return [
        *(
            one(f"decode_window {mode}, {layout}", "decode_window", mode=mode, layout=layout, size=case.size)
            for mode in modes
            for layout in layouts
        ),
        *(one(f"decode LBP {mode}", "decode", codec=f"lbp {mode}") for mode in modes),
        *(one(f"decode {name}", "decode", codec=name) for name in others),
        one("encode LBP", "encode", codec="lbp"),
        *(one(f"encode {name}", "encode", codec=name) for name in others),
    ]


def ratios(case: Case, folder: Path | None) -> list[dict[str, Any]]:
    """Raw bytes / coded bytes of the records' slices, and of the CT slices of ``folder`` where it is given."""
    found = []
    with RecordReader(case.half) as reader:
        chosen = [reader.stored(row) for row in range(min(len(reader), MOST_SLICES))]
    named = [(RECORDS, chosen)]
    if folder is not None:
        slices = [to_record(one.hu) for one in dicom.read_folder(folder) if isinstance(one, Slice)]
        named.append((folder.name, slices[:MOST_SLICES]))
    for data, slices in named:
        for name, (encode, _) in codecs().items():
            size = sum(len(encode(pixels)) for pixels in slices)
            found.append({"data": data, "codec": name, "ratio": sum(pixels.nbytes for pixels in slices) / size})
    return found


OTHERS = ("16-bit PNG", "zlib level 1", "zstd level 1", "blosc2 shuffle, zstd 1", "JPEG-LS", "HTJ2K", "JPEG 2000")
QUICK_OTHERS = ("16-bit PNG", "zstd level 1")


@functools.cache
def codecs() -> dict[str, tuple[Callable[[Pixels], bytes], Callable[[bytes], Pixels]]]:
    """Encoder and decoder of every codec that is installed, by name."""
    found: dict[str, Any] = {
        f"lbp {name}": (functools.partial(encode_lbp, mode=mode), _lbp_decode)
        for name, mode in (("flat", MODE_FLAT), ("half-first", MODE_HALF_FIRST))
    }
    found["lbp"] = (ops.encode, _lbp_decode)
    found["zlib level 1"] = (lambda p: zlib.compress(p.tobytes(), 1), lambda d: _square(zlib.decompress(d)))
    try:
        import imagecodecs as ic
    except ImportError:
        return found
    found |= {
        "16-bit PNG": (lambda p: ic.png_encode(p, level=1), ic.png_decode),
        "zstd level 1": (lambda p: ic.zstd_encode(p.tobytes(), level=1), lambda d: _square(ic.zstd_decode(d))),
        "blosc2 shuffle, zstd 1": (
            lambda p: ic.blosc2_encode(
                p.tobytes(), level=1, compressor="zstd", shuffle="shuffle", typesize=2, numthreads=1
            ),
            lambda d: _square(ic.blosc2_decode(d, numthreads=1)),
        ),
        "JPEG-LS": (ic.jpegls_encode, ic.jpegls_decode),
        "HTJ2K": (lambda p: ic.htj2k_encode(p, reversible=True), ic.htj2k_decode),
        "JPEG 2000": (lambda p: ic.jpeg2k_encode(p, reversible=True, numthreads=1), ic.jpeg2k_decode),
    }
    return found


def _square(data: bytes) -> Pixels:
    """Pixels of a codec that keeps no shape."""
    pixels = np.frombuffer(data, np.uint16)
    side = math.isqrt(pixels.size)
    return pixels.reshape(side, side)


def _lbp_decode(payload: bytes) -> Pixels:
    height, width = np.frombuffer(payload, "<u4", 2, 8).tolist()
    return ops.decode(payload, height, width)


def slices_of(records: Path, count: int) -> list[Pixels]:
    """The first slices, as they were packed."""
    with RecordReader(records) as reader:
        return [reader.stored(row) for row in range(min(len(reader), count))]


def pair(codec: str) -> tuple[Callable[[Pixels], bytes], Callable[[bytes], Pixels]]:
    """Encoder and decoder.

    Raises:
        ModuleNotFoundError: the codec's library is not installed.
    """
    if codec not in codecs():
        raise ModuleNotFoundError(f"No module named 'imagecodecs', which has {codec}")
    return codecs()[codec]


@contextlib.contextmanager
def encode(records: Path, count: int, codec: str) -> Iterator[Work]:
    """One slice after the other to bytes."""
    slices, (to_bytes, to_pixels) = slices_of(records, count), pair(codec)
    yield _work(slices, to_bytes, to_pixels, lambda: sum(bool(to_bytes(pixels)) for pixels in slices), codec)


@contextlib.contextmanager
def decode(records: Path, count: int, codec: str) -> Iterator[Work]:
    """One slice after the other to pixels."""
    slices, (to_bytes, to_pixels) = slices_of(records, count), pair(codec)
    payloads = [to_bytes(pixels) for pixels in slices]
    yield _work(slices, to_bytes, to_pixels, lambda: sum(to_pixels(p) is not None for p in payloads), codec)


def _work(slices: list[Pixels], to_bytes: Any, to_pixels: Any, run: Callable[[], int], codec: str) -> Work:
    size = sum(len(to_bytes(pixels)) for pixels in slices) / len(slices)
    raw = sum(pixels.nbytes for pixels in slices) / len(slices)

    def check() -> str:
        for number, pixels in enumerate(slices[:8]):
            if not np.array_equal(to_pixels(to_bytes(pixels)), pixels):
                raise WrongOutputError(f"slice {number} does not come back as it was")
        return "lossless"

    facts = {"ratio": round(raw / size, 3), "ours": codec.startswith("lbp"), "ops": ops.backend()}
    return Work(run=run, check=check, moved_bytes=size + raw, stored_bytes=size, facts=facts)


@contextlib.contextmanager
def decode_window(records: Path, count: int, mode: str, layout: str, size: int) -> Iterator[Work]:
    """Payload to three windows in float32, the output buffer used again."""
    if not ops.KERNELS:
        raise ModuleNotFoundError("the kernels are not built; make setup builds them")
    reader = RecordReader(records)
    modes = {"half-first": MODE_HALF_FIRST, "flat": MODE_FLAT}
    rows = range(min(len(reader), count))
    payloads = [encode_lbp(reader.stored(row), modes[mode]) for row in rows]
    shapes = [reader.shape(row) for row in rows]
    fused = ops.DecodeWindow(DEFAULT_WINDOWS, size, layout=getattr(ops, layout))
    out = np.empty(len(DEFAULT_WINDOWS) * size * size, np.float32)
    place = out.ctypes.data

    def run() -> int:
        for payload, (height, width) in zip(payloads, shapes, strict=True):
            fused(payload, height, width, "lbp", place)
        return len(payloads)

    def check() -> str:
        tolerance = HALF_HU if mode == "half-first" and shapes[0][0] == 2 * size else EXACT
        for row in rows[:8]:
            fused(payloads[row], *shapes[row], "lbp", place)
            image = out.reshape(size, size, -1).transpose(2, 0, 1) if layout == "HWC" else out.reshape(-1, size, size)
            check_image(image, reader, row, size, tolerance)
        return TOLERANCES[tolerance]

    stored = sum(map(len, payloads)) / len(payloads)
    facts = {"ours": True, "ops": ops.backend()}
    yield Work(run=run, check=check, moved_bytes=stored + out.nbytes, stored_bytes=stored, facts=facts)
    reader.close()


if __name__ == "__main__":
    from throughput import alone

    alone(STAGE)
