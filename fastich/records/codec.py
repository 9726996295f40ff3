"""LBP, the lossless codec of a record's pixels, in numpy: the reference that every faster one must match bit for bit.

Head CT is smooth where there is tissue and constant where there is air, so a Lorenzo residual packed to the bits that
each run of 32 pixels needs is 3.4 times smaller than raw, and decodes without a branch on data. Cost here: about
3 ms each way for 512 x 512 on one core. The byte layout stands in docs/records.md and is fixed by exact-byte tests.

Legend: H rows, W columns, P columns padded to a multiple of 32, R = H * P / 32 runs.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from fastich.errors import RecordError

CODECS = ("lbp", "raw")
MAGIC = b"LBP1"
VERSION = 1
MODE_FLAT = 0
MODE_HALF_FIRST = 1
HALF_FIRST_FROM = 512
"""Slices with sides from here on are stored half-resolution plane first; below, the detail planes' tables cost more."""
HEADER = struct.Struct("<4sBBHII")
"""magic, version, mode, reserved (0), height, width: 16 bytes."""
RUN = 32
"""Pixels in a run, and bits in a word of one bit plane."""
MAX_BITS = 16
MAX_SIDE = 65535
MAX_PIXELS = 2**26
"""64 Mpx, 256 times a usual slice: what a decoder will allocate at most on the word of a header."""

_POWERS = (1 << np.arange(MAX_BITS)).astype(np.uint16)
_PLANES = np.arange(MAX_BITS, dtype=np.uint8)
_SWAPS = ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0))
"""Shift and mask of the three steps of an 8 x 8 bit transpose (Warren, Hacker's Delight, 2nd ed., 7-3)."""


def encode(pixels: NDArray[np.uint16], codec: str = "lbp") -> bytes:
    """The payload of ``pixels`` uint16 [H, W]: ``lbp`` (mode flat) or ``raw`` (little-endian uint16).

    Raises:
        RecordError: the sides are outside 1..65535, the area is over 64 Mpx, or the codec is unknown.
    """
    assert pixels.dtype == np.uint16, f"expected uint16 pixels, found {pixels.dtype}"
    assert pixels.ndim == 2, f"expected [H, W] pixels, found {pixels.ndim} dimensions"
    height, width = pixels.shape
    _check_sides(height, width)
    _check_codec(codec)
    if codec == "raw":
        return pixels.astype("<u2", copy=False).tobytes()
    return encode_lbp(pixels, mode_for(pixels))


def mode_for(pixels: NDArray[np.uint16]) -> int:
    """The mode that ``encode`` stores ``pixels`` [H, W] in: a function of the pixels alone.

    Half-first from 512 x 512 on, where the sides are even and no two pixels differ by 2^15 or more (there the half
    plane would not be the mean); else flat.
    """
    height, width = pixels.shape
    if min(height, width) < HALF_FIRST_FROM or height % 2 or width % 2:
        return MODE_FLAT
    return MODE_HALF_FIRST if int(pixels.max()) - int(pixels.min()) < 2**15 else MODE_FLAT


def encode_lbp(pixels_HW: NDArray[np.uint16], mode: int) -> bytes:
    """The LBP payload of ``pixels_HW`` uint16 [H, W] in ``mode``; half-first needs even sides."""
    height, width = pixels_HW.shape
    header = HEADER.pack(MAGIC, VERSION, mode, 0, height, width)
    if mode == MODE_FLAT:
        return header + _encode_plane(_residual(_pad_rows(pixels_HW)))
    half, *details = _split_2x2(pixels_HW)
    planes = [_residual(_pad_rows(half)), *(_pad_rows(detail, constant=True) for detail in details)]
    return header + b"".join(_encode_plane(plane) for plane in planes)


def decode(payload: bytes | memoryview, height: int, width: int, codec: str) -> NDArray[np.uint16]:
    """The pixels of ``payload``, a new uint16 array [height, width]; nothing in the payload is trusted.

    Raises:
        RecordError: the payload is not what ``encode`` makes for this shape; offsets count from its first byte.
    """
    _check_sides(height, width)
    _check_codec(codec)
    return _decode_raw(payload, height, width) if codec == "raw" else _decode_lbp(payload, height, width)


def num_runs(height: int, width: int) -> int:
    """How many runs of 32 pixels a slice holds once its rows are padded."""
    return height * -(-width // RUN)


def _check_sides(height: int, width: int) -> None:
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise RecordError(f"image is {height} x {width}: expected sides of 1 to {MAX_SIDE} pixels")
    if height * width > MAX_PIXELS:
        raise RecordError(f"image is {height} x {width}: expected at most {MAX_PIXELS} pixels in all")


def _check_codec(codec: str) -> None:
    if codec not in CODECS:
        raise RecordError(f"codec {codec!r}: expected one of {', '.join(CODECS)}; was it packed by a newer fastich?")


def _encode_plane(values_HP: NDArray[np.uint16]) -> bytes:
    """One stream: the width of each run, then its words."""
    zigzag_RJ = _zigzag(values_HP).reshape(-1, RUN)
    used_bits_R = np.asarray(np.bitwise_or.reduce(zigzag_RJ, axis=1))
    widths_R = np.searchsorted(_POWERS, used_bits_R, side="right").astype(np.uint8)
    words = _planes_of(zigzag_RJ)[widths_R[:, None] > _PLANES]
    return widths_R.tobytes() + words.tobytes()


def _decode_lbp(payload: bytes | memoryview, height: int, width: int) -> NDArray[np.uint16]:
    if _check_header(payload, height, width) == MODE_FLAT:
        plane_HW, end = _decode_plane(payload, HEADER.size, height, width)
        _check_end(payload, end)
        return _integrate(plane_HW)
    planes, end = [], HEADER.size
    for _ in range(4):
        plane, end = _decode_plane(payload, end, height // 2, width // 2)
        planes.append(plane)
    _check_end(payload, end)
    return _join_2x2(_integrate(planes[0]), *planes[1:])


def _check_end(payload: bytes | memoryview, end: int) -> None:
    if len(payload) != end:
        raise RecordError(f"LBP payload is {len(payload)} bytes: its widths ask for exactly {end}")


def _decode_plane(payload: bytes | memoryview, start: int, height: int, width: int) -> tuple[NDArray[np.uint16], int]:
    """Values [height, width] of the stream at byte ``start`` (before any prediction is undone), and where it ends."""
    runs = num_runs(height, width)
    words_at = start + runs
    if len(payload) < words_at:
        raise RecordError(f"LBP payload ends at byte {len(payload)} inside its width table, which ends at {words_at}")
    widths_R = np.frombuffer(payload, np.uint8, runs, start)
    if widths_R.max() > MAX_BITS:
        at = int(np.argmax(widths_R > MAX_BITS))
        raise RecordError(f"LBP width at payload byte {start + at} is {widths_R[at]}: expected at most {MAX_BITS}")
    num_words = int(widths_R.sum(dtype=np.int64))
    end = words_at + 4 * num_words
    if len(payload) < end:
        raise RecordError(f"LBP payload is {len(payload)} bytes: its widths ask for exactly {end}")
    planes_RB = np.zeros((runs, MAX_BITS), dtype="<u4")
    planes_RB[widths_R[:, None] > _PLANES] = np.frombuffer(payload, "<u4", num_words, words_at)
    return _unzigzag(_pixels_of(planes_RB)).reshape(height, -1)[:, :width], end


def _integrate(residual_HW: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Undo ``_residual``: prefix sums along the rows, then down the columns."""
    rows_HW = np.add.accumulate(residual_HW, axis=1, dtype=np.uint16)
    return np.add.accumulate(rows_HW, axis=0, dtype=np.uint16)


def _split(a: NDArray[np.uint16], b: NDArray[np.uint16]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Reversible S-transform of pairs, exact modulo 2^16: floor of the mean (where |a - b| < 2^15), difference."""
    high = a - b
    return b + (high.view(np.int16) >> 1).view(np.uint16), high


def _join(low: NDArray[np.uint16], high: NDArray[np.uint16]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    b = low - (high.view(np.int16) >> 1).view(np.uint16)
    return b + high, b


def _split_2x2(pixels_HW: NDArray[np.uint16]) -> list[NDArray[np.uint16]]:
    """Half plane, then vertical, horizontal and diagonal detail, each [H/2, W/2]."""
    low_top, high_top = _split(pixels_HW[::2, ::2], pixels_HW[::2, 1::2])
    low_bottom, high_bottom = _split(pixels_HW[1::2, ::2], pixels_HW[1::2, 1::2])
    return [*_split(low_top, low_bottom), *_split(high_top, high_bottom)]


def _join_2x2(
    half: NDArray[np.uint16], vertical: NDArray[np.uint16], horizontal: NDArray[np.uint16], diagonal: NDArray[np.uint16]
) -> NDArray[np.uint16]:
    lows, highs = _join(half, vertical), _join(horizontal, diagonal)
    out = np.empty((2 * half.shape[0], 2 * half.shape[1]), np.uint16)
    for row in range(2):
        out[row::2, ::2], out[row::2, 1::2] = _join(lows[row], highs[row])
    return out


def _check_header(payload: bytes | memoryview, height: int, width: int) -> int:
    """The mode."""
    if len(payload) < HEADER.size:
        raise RecordError(f"LBP payload is {len(payload)} bytes: expected a header of {HEADER.size}")
    magic, version, mode, reserved, found_height, found_width = HEADER.unpack_from(payload)
    if magic != MAGIC:
        raise RecordError(f"LBP magic at payload byte 0 is {magic.hex()}: expected {MAGIC.hex()} ({MAGIC.decode()})")
    if version != VERSION:
        raise RecordError(f"LBP version at payload byte 4 is {version}: this fastich reads {VERSION}")
    if mode not in (MODE_FLAT, MODE_HALF_FIRST):
        raise RecordError(
            f"LBP mode at payload byte 5 is {mode}: "
            f"this fastich reads {MODE_FLAT} (flat), {MODE_HALF_FIRST} (half-first)"
        )
    if mode == MODE_HALF_FIRST and (height % 2 or width % 2):
        raise RecordError(f"LBP mode at payload byte 5 is half-first: expected even sides, found {height} x {width}")
    if reserved != 0:
        raise RecordError(f"LBP reserved field at payload byte 6 is {reserved}: expected 0")
    if (found_height, found_width) != (height, width):
        raise RecordError(
            f"LBP header at payload byte 8 says {found_height} x {found_width}: expected {height} x {width}"
        )
    return int(mode)


def _decode_raw(payload: bytes | memoryview, height: int, width: int) -> NDArray[np.uint16]:
    if len(payload) != 2 * height * width:
        raise RecordError(f"raw payload is {len(payload)} bytes: expected {2 * height * width} for {height} x {width}")
    return np.frombuffer(payload, "<u2").astype(np.uint16).reshape(height, width)


def _pad_rows(pixels_HW: NDArray[np.uint16], *, constant: bool = False) -> NDArray[np.uint16]:
    """Pad each row to a multiple of 32: pixels repeat the last one (residual 0), detail planes get 0: no words."""
    missing = -pixels_HW.shape[1] % RUN
    if not missing:
        return pixels_HW
    place = ((0, 0), (0, missing))
    return np.pad(pixels_HW, place) if constant else np.pad(pixels_HW, place, mode="edge")


def _residual(pixels_HP: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """``p - (left + up - upleft)`` modulo 2^16, with 0 outside: a difference along columns, then along rows."""
    down_HP = pixels_HP.copy()
    down_HP[1:] -= pixels_HP[:-1]
    residual_HP = down_HP.copy()
    residual_HP[:, 1:] -= down_HP[:, :-1]
    return residual_HP


def _zigzag(residual: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Fold the sign into bit 0 (0, -1, 1, -2 -> 0, 1, 2, 3), so small residuals of either sign have few bits."""
    sign = (residual.view(np.int16) >> 15).view(np.uint16)
    return (residual << np.uint16(1)) ^ sign


def _unzigzag(folded: NDArray[np.uint16]) -> NDArray[np.uint16]:
    return (folded >> np.uint16(1)) ^ -(folded & np.uint16(1))


def _planes_of(pixels_RJ: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Bit planes uint32 [R, 16] of runs uint16 [R, 32]: bit j of word b is bit b of pixel j."""
    halves = pixels_RJ.astype("<u2", copy=False).view(np.uint8).reshape(-1, 4, 8, 2).transpose(0, 3, 1, 2)
    octets = _transpose_8x8(np.ascontiguousarray(halves).view("<u8"))
    by_plane = octets.view(np.uint8).reshape(-1, 2, 4, 8).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(by_plane).view("<u4").reshape(-1, MAX_BITS)


def _pixels_of(planes_RB: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """The inverse of ``_planes_of``."""
    by_octet = planes_RB.view(np.uint8).reshape(-1, 2, 8, 4).transpose(0, 1, 3, 2)
    octets = _transpose_8x8(np.ascontiguousarray(by_octet).view("<u8"))
    by_pixel = octets.view(np.uint8).reshape(-1, 2, 4, 8).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(by_pixel).view("<u2").reshape(-1, RUN).astype(np.uint16, copy=False)


def _transpose_8x8(octets: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Transpose each little-endian uint64 as 8 x 8 bits (bit i of byte b <-> bit b of byte i), in place."""
    for shift, mask in _SWAPS:
        swap = octets >> np.uint64(shift)
        swap ^= octets
        swap &= np.uint64(mask)
        octets ^= swap
        swap <<= np.uint64(shift)
        octets ^= swap
    return octets
