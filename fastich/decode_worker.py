"""The process that runs the native pixel decoders, so that a crash or a hang in one costs a frame and not the job.

Run as a script by ``fastich.decoder.Decoder``; imports no part of this package and no pydicom. Speaks over its pipes:

    request   codec u8 | payload length u64 | payload (one frame's codestream)
    reply     status u8 (0 ready, 1 pixels, 2 error) | rows, columns, components, item bytes, precision, signed u32 each
              | body length u64 | body (pixels, little endian, or an error text)

Starting it costs about 0.2 s; a frame then costs its decoding and two copies through a pipe (0.2 ms for 512 x 512).
Source: PS3.5 A.4 (transfer syntaxes); ITU-T T.81 B.2.2 (JPEG frame header), T.87 (JPEG-LS), T.800 (JPEG 2000).
"""

import io
import os
import resource
import signal
import struct
import sys
from typing import BinaryIO, NamedTuple

JPEG, JPEG_LS, JPEG_2000 = 1, 2, 3
READY, PIXELS, ERROR = 0, 1, 2
REQUEST = struct.Struct("<BQ")
REPLY = struct.Struct("<B6IQ")
MAX_ADDRESS_BYTES = 3 * 2**30
MAX_NOISE_BYTES = 2**20
END_OF_IMAGE = b"\xff\xd9"
SCAN_NOISE = bytes((0x5A, 0xC3, 0x96, 0x3C, 0xA5, 0x69, 0x81, 0x7E)) * 8


class Frame(NamedTuple):
    """One decoded frame: its shape as the codestream states it, and its samples as little-endian bytes."""

    rows: int
    columns: int
    components: int
    item_bytes: int
    precision: int
    signed: bool
    body: bytes


def jpeg_shape(stream: bytes) -> tuple[int, int, int, int]:
    """Precision, rows, columns and components from the frame header (SOFn) of a JPEG stream."""
    at = 2
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            precision, rows, columns, components = struct.unpack_from(">BHHB", stream, at + 4)
            return precision, rows, columns, components
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    raise ValueError("no JPEG frame header (SOF) found")


def decode_jpeg(stream: bytes) -> Frame:
    """Decode JPEG baseline, extended, progressive or lossless, 8 to 16 bit.

    libjpeg fills what a cut scan lacks with nothing but a warning that its binding swallows. So the frame is decoded
    again with noise before the end marker: pixels that change were never in the stream (2-7 ms for 512 x 512).
    """
    precision, rows, columns, components = jpeg_shape(stream)
    image = jpeg8_decode(stream)
    end = len(stream[: stream.rindex(END_OF_IMAGE)].rstrip(b"\xff"))  # an encoder may fill with FF before the marker
    if not numpy.array_equal(image, jpeg8_decode(stream[:end] + SCAN_NOISE + END_OF_IMAGE)):
        raise ValueError("the scan ends before the image does")
    if image.shape[:2] != (rows, columns):
        raise ValueError(f"decoded {image.shape}, the frame header says {rows} x {columns}")
    found = image.shape[2] if image.ndim == 3 else 1
    return Frame(rows, columns, max(components, found), image.dtype.itemsize, precision, False, image.tobytes())


def decode_jpeg_ls(stream: bytes) -> Frame:
    """Decode JPEG-LS, lossless or near-lossless."""
    body, info = jpeg_ls.decode_pixel_data(stream)
    precision = int(info["bits_per_sample"])
    size = 1 if precision <= 8 else 2
    return Frame(info["height"], info["width"], info["components"], size, precision, False, bytes(body))


def decode_jpeg_2000(stream: bytes) -> Frame:
    """Decode JPEG 2000 or HTJ2K."""
    info = openjpeg_utils.get_parameters(io.BytesIO(stream))
    precision = int(info["precision"])
    body = openjpeg_utils.decode_pixel_data(stream, version=2)
    size = 1 if precision <= 8 else 2 if precision <= 16 else 4
    rows, columns, components = (int(info[name]) for name in ("rows", "columns", "samples_per_pixel"))
    return Frame(rows, columns, components, size, precision, bool(info["is_signed"]), bytes(body))


def reply(to: BinaryIO, status: int, frame: Frame) -> None:
    """Write one reply and flush it."""
    to.write(REPLY.pack(status, *frame[:6], len(frame.body)))
    to.write(frame.body)
    to.flush()


def noise_bytes() -> int:
    """How much the libraries have written to stderr so far (the parent made it a file)."""
    return os.fstat(2).st_size


def decode(codec: int, stream: bytes) -> Frame:
    """Decode one frame; what a library prints (libjpeg on corrupt data) counts as an error.

    Raises:
        Exception: whatever the decoder raises; ValueError for output on stderr or an unknown codec.
    """
    before = noise_bytes()
    decoders = {JPEG: decode_jpeg, JPEG_LS: decode_jpeg_ls, JPEG_2000: decode_jpeg_2000}
    frame = decoders[codec](stream)
    if noise_bytes() > before:
        with open("/proc/self/fd/2", "rb") as noise:
            noise.seek(before)
            raise ValueError(noise.read(200).decode("latin-1").strip())
    return frame


def serve(source: BinaryIO, sink: BinaryIO, frame_limit_s: float) -> None:
    """Answer requests until the pipe closes; a frame that outlives its limit ends the process (SIGALRM)."""
    reply(sink, READY, Frame(0, 0, 0, 0, 0, False, b""))
    while len(head := source.read(REQUEST.size)) == REQUEST.size:
        codec, length = REQUEST.unpack(head)
        stream = source.read(length)
        if len(stream) < length:
            return
        signal.setitimer(signal.ITIMER_REAL, frame_limit_s)
        try:
            frame, status = decode(codec, stream), PIXELS
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            frame, status = Frame(0, 0, 0, 0, 0, False, text[:300].encode()), ERROR
        signal.setitimer(signal.ITIMER_REAL, 0)
        reply(sink, status, frame)


def main() -> None:
    """Cap memory, core dumps and noise, then serve stdin to stdout; argument 1 is the limit per frame in seconds."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_BYTES, MAX_ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_NOISE_BYTES, MAX_NOISE_BYTES))
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not enter the protocol
    serve(sys.stdin.buffer, sink, float(sys.argv[1]))


if __name__ == "__main__":  # only in the worker: the parent takes the protocol from here and must not load these
    import jpeg_ls
    import numpy
    from imagecodecs import jpeg8_decode
    from openjpeg import utils as openjpeg_utils

    main()
