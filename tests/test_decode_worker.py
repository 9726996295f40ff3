import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from fastich import decode_worker
from fastich.decoder import Decoder, samples
from fastich.errors import DicomError
from fastich.types import RejectReason

JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
IMAGE = (np.arange(30 * 40, dtype=np.uint16).reshape(30, 40) * 37) % 4096

# The real worker with a decoder that does what its input says.
PUPPET = f"""
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("worker", {decode_worker.__file__!r})
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
def decode(codec, stream):
    if stream == b"abort":
        os.abort()
    if stream == b"hang":
        time.sleep(60)
    if stream == b"exit":
        os.write(2, b"heap corruption\\n")
        os._exit(3)
    if stream == b"junk":
        os.write(sink_fd, b"junk" * 100)
        os._exit(0)
    if stream == b"raise":
        raise ValueError("broken stream")
    return worker.Frame(1, len(stream), 1, 1, 8, False, stream)
sink_fd = os.dup(1)
worker.decode = decode
worker.main()
"""


@pytest.fixture
def puppet() -> Iterator[Decoder]:
    with Decoder(frame_limit_s=1.0, command=(sys.executable, "-c", PUPPET, "30")) as made:
        yield made


def test_worker_decodes_in_its_own_process_without_loading_decoders_here() -> None:
    code = (
        "import sys; from fastich.decoder import Decoder\n"
        "with Decoder() as d: frame = d.decode(sys.argv[1], sys.stdin.buffer.read())\n"
        "assert not {'imagecodecs', 'openjpeg', 'jpeg_ls'} & set(sys.modules)\n"
        "print(frame[:6])"
    )
    stream = imagecodecs.jpeg8_encode(IMAGE, lossless=True, bitspersample=12)
    done = subprocess.run([sys.executable, "-c", code, JPEG_LOSSLESS], input=stream, capture_output=True, check=True)
    assert done.stdout.decode().strip() == "(30, 40, 1, 2, 12, False)"


def test_decoded_samples_equal_the_image() -> None:
    with Decoder() as decoder:
        frame = decoder.decode(JPEG_LOSSLESS, imagecodecs.jpeg8_encode(IMAGE, lossless=True, bitspersample=12))
        assert np.array_equal(samples(frame), IMAGE)
        with pytest.raises(DicomError, match="damaged pixels: the decoder says"):
            decoder.decode(JPEG_LOSSLESS, b"\xff\xd8 no jpeg \xff\xd9")
        assert np.array_equal(
            samples(decoder.decode(JPEG_LOSSLESS, imagecodecs.jpeg8_encode(IMAGE, lossless=True))), IMAGE
        )


def test_frame_that_claims_a_giant_image_is_refused_within_the_memory_cap() -> None:
    stream = bytearray(imagecodecs.jpeg8_encode(IMAGE, lossless=True, bitspersample=12))
    at = stream.index(b"\xff\xc3")
    stream[at + 5 : at + 9] = b"\xfe\xfe\xfe\xfe"
    with Decoder() as decoder, pytest.raises(DicomError) as caught:
        decoder.decode(JPEG_LOSSLESS, bytes(stream))
    assert caught.value.reason is RejectReason.DAMAGED_PIXELS


@pytest.mark.parametrize(
    ("fate", "words"),
    [
        (b"abort", "was killed by signal 6"),
        (b"exit", "ended with status 3: heap corruption"),
        (b"junk", "the decoder process"),
        (b"hang", "took longer than 1 s and was stopped"),
    ],
)
def test_dead_or_hung_worker_costs_one_frame(puppet: Decoder, fate: bytes, words: str) -> None:
    assert puppet.decode(JPEG_LOSSLESS, b"one").body == b"one"
    started = time.monotonic()
    with pytest.raises(DicomError, match=words) as caught:
        puppet.decode(JPEG_LOSSLESS, fate)
    assert caught.value.reason is RejectReason.DECODER_FAILED
    assert time.monotonic() - started < 10
    assert puppet.decode(JPEG_LOSSLESS, b"two").body == b"two"


def test_error_of_a_decoder_keeps_the_worker(puppet: Decoder) -> None:
    with pytest.raises(DicomError, match="damaged pixels: the decoder says ValueError: broken stream"):
        puppet.decode(JPEG_LOSSLESS, b"raise")
    assert puppet.decode(JPEG_LOSSLESS, b"next").body == b"next"


def test_worker_that_cannot_start_is_named() -> None:
    command = (sys.executable, "-c", "raise SystemExit('no decoder library')")
    with Decoder(command=command) as decoder, pytest.raises(DicomError, match="status 1: no decoder library"):
        decoder.decode(JPEG_LOSSLESS, b"x")


def test_unknown_syntax_starts_nothing(tmp_path: Path) -> None:
    flag = tmp_path / "started"
    command = (sys.executable, "-c", f"open({str(flag)!r}, 'w')")
    with Decoder(command=command) as decoder, pytest.raises(DicomError) as caught:
        decoder.decode("1.2.840.10008.1.2.4.100", b"x")
    assert caught.value.reason is RejectReason.UNSUPPORTED_SYNTAX
    assert not flag.exists()


def test_jpeg_shape_reads_the_frame_header() -> None:
    stream = imagecodecs.jpeg8_encode(IMAGE, lossless=True, bitspersample=12)
    assert decode_worker.jpeg_shape(stream) == (12, 30, 40, 1)
    with pytest.raises(ValueError, match="no JPEG frame header"):
        decode_worker.jpeg_shape(b"\xff\xd8\xff\xd9")
