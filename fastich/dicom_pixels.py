"""Pixel data of one file to stored values, frame by frame, with every length and shape compared before it is believed.

pydicom raises nothing for short pixel data, so lengths are checked here. Uncompressed frames cost a view and one pass;
RLE runs in process in Python (about 30 ms a slice); the rest goes to ``Decoder``.
Source: PS3.5 section 8 (encoding of pixel data), A.4 (encapsulation), Annex G (RLE); PS3.3 C.7.6.3.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import generate_frames
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import RLELossless

from fastich.decode_worker import Frame
from fastich.decoder import CODECS, Decoder, samples
from fastich.dicom_header import PixelLayout
from fastich.dicom_parse import DEFLATED, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, quiet
from fastich.errors import DicomError
from fastich.types import RejectReason

NATIVE = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED, EXPLICIT_BIG})
RLE = "1.2.840.10008.1.2.5"
END_OF_STREAM = b"\xff\xd9"
"""EOI of JPEG and JPEG-LS, EOC of JPEG 2000: a stream without it was cut. None of them has it inside coded data."""
MAX_TAIL_BYTES = 256
"""Padding behind the end marker; the standard allows one byte, archives add more."""
LOSSY = frozenset("1.2.840.10008.1.2.4." + number for number in ("50", "51", "53", "55", "81", "91", "203"))


def stored_frames(
    value: bytes | memoryview, layout: PixelLayout, encapsulated: bool, decoder: Decoder
) -> Iterator[NDArray[np.integer[Any]]]:
    """Yield the stored values of each frame, [rows, columns], masked to BitsStored and sign-extended.

    Raises:
        DicomError: UNSUPPORTED_SYNTAX, UNSUPPORTED_PIXELS, DAMAGED_PIXELS, DECODER_FAILED.
    """
    syntax = layout.transfer_syntax
    if syntax in NATIVE:
        return _native_frames(value, layout)
    if syntax != RLE and syntax not in CODECS:
        raise DicomError(RejectReason.UNSUPPORTED_SYNTAX, f"{syntax[:64]}: no decoder for it")
    if not encapsulated:
        raise DicomError(RejectReason.DAMAGED_PIXELS, f"{syntax} but the pixel data is not encapsulated")
    streams = _split(bytes(value), layout)
    if syntax == RLE:
        return (_rle_frame(stream, layout) for stream in streams)
    return (_compressed_frame(stream, layout, decoder) for stream in streams)


def _native_frames(value: bytes | memoryview, layout: PixelLayout) -> Iterator[NDArray[np.integer[Any]]]:
    """Uncompressed frames. Up to one row of excess bytes is taken for padding; more means that the header is wrong."""
    expected = layout.frame_bytes * layout.num_frames
    size = layout.bits_allocated // 8
    if not expected <= len(value) < expected + max(2, layout.columns * size):
        raise DicomError(RejectReason.DAMAGED_PIXELS, f"{len(value)} bytes of pixel data, expected {expected}")
    big = layout.transfer_syntax == EXPLICIT_BIG
    if big and size == 1:
        raise DicomError(RejectReason.UNSUPPORTED_PIXELS, "8 bit pixels in big endian, whose byte order is ambiguous")
    count = layout.rows * layout.columns
    for index in range(layout.num_frames):
        flat = np.frombuffer(value, f"{'>' if big else '<'}u{size}", count, index * layout.frame_bytes)
        native = flat.reshape(layout.rows, layout.columns)
        yield interpret(native.astype(f"=u{size}") if big else native, layout.bits_stored, layout.signed)


def _split(value: bytes, layout: PixelLayout) -> list[bytes]:
    """The codestreams of an encapsulated value, one a frame."""
    try:
        with quiet():
            streams = list(generate_frames(value, number_of_frames=layout.num_frames))
    except Exception as error:
        raise DicomError(RejectReason.DAMAGED_PIXELS, f"encapsulation: {type(error).__name__}") from error
    if len(streams) != layout.num_frames:
        raise DicomError(RejectReason.DAMAGED_PIXELS, f"{len(streams)} frames of data, expected {layout.num_frames}")
    return streams


def _rle_frame(stream: bytes, layout: PixelLayout) -> NDArray[np.integer[Any]]:
    kind = f"<u{layout.bits_allocated // 8}"
    try:
        with quiet():
            raw, _ = get_decoder(RLELossless).as_buffer(
                stream_item(stream),
                transfer_syntax_uid=RLELossless,
                rows=layout.rows,
                columns=layout.columns,
                number_of_frames=1,
                samples_per_pixel=1,
                photometric_interpretation="MONOCHROME2",
                pixel_representation=0,
                bits_allocated=layout.bits_allocated,
                bits_stored=layout.bits_allocated,
                pixel_keyword="PixelData",
            )
        image = np.frombuffer(raw, kind).reshape(layout.rows, layout.columns)
    except Exception as error:
        raise DicomError(RejectReason.DAMAGED_PIXELS, f"RLE: {type(error).__name__}") from error
    return interpret(image, layout.bits_stored, layout.signed)


def stream_item(stream: bytes) -> bytes:
    """One codestream as an encapsulated value: an empty offset table and one item (PS3.5 A.4)."""
    padded = stream + b"\0" * (len(stream) % 2)
    return b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0" + len(padded).to_bytes(4, "little") + padded


def _compressed_frame(stream: bytes, layout: PixelLayout, decoder: Decoder) -> NDArray[np.integer[Any]]:
    if END_OF_STREAM not in stream[-MAX_TAIL_BYTES:]:
        raise DicomError(RejectReason.DAMAGED_PIXELS, f"no end marker in the {len(stream)} bytes of codestream")
    frame = decoder.decode(layout.transfer_syntax, stream)
    _check_frame(frame, layout)
    bits = min(frame.precision, layout.bits_stored)
    image = samples(frame)
    return interpret(image.view(f"u{frame.item_bytes}"), bits, layout.signed)


def _check_frame(frame: Frame, layout: PixelLayout) -> None:
    """Compare what the codestream says with what the header says.

    A lossless stream of fewer bits than BitsStored merely held no larger value; in a lossy one the values may have been
    scaled to fit, so it is refused. More bits than BitsStored are usual (16 for 12) and masked.
    """
    found = f"{frame.rows} x {frame.columns} x {frame.components}, {frame.precision} bit"
    expected = f"{layout.rows} x {layout.columns} x 1, {layout.bits_stored} of {layout.bits_allocated} bit"
    shape_fits = (frame.rows, frame.columns, frame.components) == (layout.rows, layout.columns, 1)
    size_fits = len(frame.body) == frame.rows * frame.columns * frame.item_bytes
    lowest = layout.bits_stored if layout.transfer_syntax in LOSSY else 1
    if not shape_fits or not size_fits or not lowest <= frame.precision <= layout.bits_allocated:
        raise DicomError(RejectReason.DAMAGED_PIXELS, f"the codestream holds {found}; the header says {expected}")


def interpret(image: NDArray[Any], bits: int, signed: bool) -> NDArray[np.integer[Any]]:
    """Unsigned containers [rows, columns] to values: keep the low ``bits``, and extend the sign where ``signed``.

    This also settles a codestream whose sign disagrees with PixelRepresentation: the bit pattern rules, as in pydicom.
    """
    spare = image.dtype.itemsize * 8 - bits
    if not signed:
        return image & image.dtype.type((1 << bits) - 1) if spare else image
    values = image.view(f"i{image.dtype.itemsize}")
    return (values << spare) >> spare if spare else values
