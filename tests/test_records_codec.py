import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fastich.dicom import read_file
from fastich.errors import RecordError
from fastich.hu import to_record
from fastich.records import codec

HEADER_1x1 = "4c425031010000000100000001000000"


def image(*rows):
    return np.array(rows, dtype=np.uint16)


def slow_flat(pixels):
    """DESIGN 4.3 word for word, pixel by pixel: the twin that the fast encoder is held to."""
    height, width = pixels.shape
    padded = [[int(row[min(x, width - 1)]) for x in range(-(-width // 32) * 32)] for row in pixels]
    folded = []
    for y, row in enumerate(padded):
        for x, value in enumerate(row):
            left = row[x - 1] if x else 0
            up = padded[y - 1][x] if y else 0
            upleft = padded[y - 1][x - 1] if x and y else 0
            residual = (value - (left + up - upleft) + 32768) % 65536 - 32768
            folded.append(2 * residual if residual >= 0 else -2 * residual - 1)
    runs = [folded[at : at + 32] for at in range(0, len(folded), 32)]
    widths = bytes(max(run).bit_length() for run in runs)
    words = b"".join(
        sum((value >> plane & 1) << j for j, value in enumerate(run)).to_bytes(4, "little")
        for run, bits in zip(runs, widths, strict=True)
        for plane in range(bits)
    )
    header = b"LBP1" + bytes([1, 0, 0, 0]) + height.to_bytes(4, "little") + width.to_bytes(4, "little")
    return header + widths + words


GOLDEN = [
    pytest.param(image([0]), HEADER_1x1 + "00", id="one zero pixel has no words"),
    pytest.param(image([1]), HEADER_1x1 + "020000000001000000", id="1 folds to 2: plane 0 empty, plane 1 bit 0"),
    pytest.param(image([65535]), HEADER_1x1 + "0101000000", id="65535 is residual -1, folds to 1"),
    pytest.param(
        image([32768]),
        HEADER_1x1 + "10" + "01000000" * 16,
        id="32768 is residual -32768, folds to 65535: all sixteen planes",
    ),
    pytest.param(
        image([5, 7, 4], [6, 7, 9]),
        # residuals 5 2 -3 | 1 -1 5, folded 10 4 5 | 2 1 10
        "4c42503101000000020000000300000004040400000001000000060000000100000002000000050000000000000004000000",
        id="two rows: widths first, then words",
    ),
    pytest.param(
        image([1] * 33),
        "4c42503101000000010000002100000002000000000001000000",
        id="33 columns: the padding repeats the last pixel and costs a width byte only",
    ),
]


@pytest.mark.parametrize(("pixels", "golden"), GOLDEN)
def test_encode_writes_these_exact_bytes(pixels, golden):
    assert codec.encode(pixels).hex() == golden


@pytest.mark.parametrize(("pixels", "golden"), GOLDEN)
def test_decode_reads_these_exact_bytes(pixels, golden):
    assert np.array_equal(codec.decode(bytes.fromhex(golden), *pixels.shape, "lbp"), pixels)


def test_raw_is_little_endian_rows():
    payload = codec.encode(image([1, 256], [65535, 2]), "raw")
    assert payload.hex() == "01000001ffff0200"
    assert np.array_equal(codec.decode(payload, 2, 2, "raw"), image([1, 256], [65535, 2]))


@pytest.mark.parametrize("shape", [(1, 1), (1, 33), (33, 1), (2, 31), (3, 32), (5, 65), (17, 200)])
@pytest.mark.parametrize("kind", ["zeros", "full", "checkerboard", "noise", "ramp"])
def test_encode_equals_the_format_written_pixel_by_pixel(shape, kind):
    y, x = np.indices(shape)
    pixels = {
        "zeros": np.zeros(shape),
        "full": np.full(shape, 65535),
        "checkerboard": (y + x) % 2 * 65535,
        "noise": np.random.default_rng(0).integers(0, 65536, shape),
        "ramp": 1024 + 7 * x + 3 * y,
    }[kind].astype(np.uint16)
    payload = codec.encode(pixels)
    assert payload == slow_flat(pixels)
    assert np.array_equal(codec.decode(payload, *shape, "lbp"), pixels)


SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=70)


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.uint16, SHAPES), st.sampled_from(codec.CODECS))
def test_decode_gives_back_any_image(pixels, name):
    decoded = codec.decode(codec.encode(pixels, name), *pixels.shape, name)
    assert decoded.dtype == np.uint16
    assert decoded.flags.writeable
    assert np.array_equal(decoded, pixels)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_payload_decodes_or_is_refused_but_never_anything_else(data):
    payload = bytearray(codec.encode(data.draw(hnp.arrays(np.uint16, st.just((3, 40))))))
    for at in data.draw(st.lists(st.integers(0, len(payload) - 1), min_size=1, max_size=4)):
        payload[at] = data.draw(st.integers(0, 255))
    cut = bytes(payload[: data.draw(st.integers(0, len(payload)))])
    with contextlib.suppress(RecordError):
        assert codec.decode(cut, 3, 40, "lbp").shape == (3, 40)


def test_encode_takes_a_view_that_is_not_contiguous():
    pixels = np.random.default_rng(1).integers(0, 4096, (20, 66)).astype(np.uint16)
    assert codec.encode(pixels[::2, ::2]) == codec.encode(pixels[::2, ::2].copy())
    assert codec.encode(pixels.T, "raw") == codec.encode(pixels.T.copy(), "raw")


def test_encode_leaves_its_input_alone():
    pixels = np.random.default_rng(1).integers(0, 4096, (20, 64)).astype(np.uint16)
    before = pixels.copy()
    codec.encode(pixels)
    assert np.array_equal(pixels, before)


def test_smooth_image_packs_to_less_than_half():
    y, x = np.indices((512, 512))
    noise = np.random.default_rng(0).normal(0, 3, (512, 512))
    pixels = (1024 + 40 * np.sin(x / 40) + y / 9 + noise).astype(np.uint16)
    assert len(codec.encode(pixels)) < pixels.nbytes / 2


GOOD = codec.encode(image([5, 7, 4], [6, 7, 9]))


def changed(at, value):
    return GOOD[:at] + bytes([value]) + GOOD[at + 1 :]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "payload is 0 bytes: expected a header of 16"),
        (GOOD[:15], "payload is 15 bytes: expected a header of 16"),
        (changed(0, 0x4D), r"magic at payload byte 0 is 4d425031: expected 4c425031 \(LBP1\)"),
        (changed(4, 2), "version at payload byte 4 is 2: this fastich reads 1"),
        (changed(5, 2), r"mode at payload byte 5 is 2: this fastich reads 0 \(flat\), 1 \(half-first\)"),
        (changed(5, 1), "LBP"),
        (changed(6, 1), "reserved field at payload byte 6 is 1"),
        (changed(8, 3), "header at payload byte 8 says 3 x 3: expected 2 x 3"),
        (changed(15, 255), "header at payload byte 8 says 2 x 4278190083: expected 2 x 3"),
        (GOOD[:17], "ends at byte 17 inside its width table, which ends at 18"),
        (changed(17, 17), "width at payload byte 17 is 17: expected at most 16"),
        (changed(16, 5), "payload is 50 bytes: its widths ask for exactly 54"),
        (GOOD[:-1], "payload is 49 bytes: its widths ask for exactly 50"),
        (GOOD + b"\0", "payload is 51 bytes: its widths ask for exactly 50"),
    ],
)
def test_decode_refuses_damage_and_says_where(payload, message):
    with pytest.raises(RecordError, match=message):
        codec.decode(payload, 2, 3, "lbp")


def test_decode_refuses_raw_of_another_length():
    with pytest.raises(RecordError, match="raw payload is 11 bytes: expected 12 for 2 x 3"):
        codec.decode(bytes(11), 2, 3, "raw")


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (65536, 1), (-1, 4)])
def test_decode_refuses_impossible_sides(shape):
    with pytest.raises(RecordError, match=r"expected sides of 1 to 65535"):
        codec.decode(b"", *shape, "lbp")


def test_decode_refuses_a_bomb_before_allocating():
    with pytest.raises(RecordError, match="expected at most 67108864 pixels"):
        codec.decode(b"LBP1", 65535, 65535, "lbp")


def test_unknown_codec_is_named():
    with pytest.raises(RecordError, match="codec 'zip': expected one of lbp, raw"):
        codec.decode(b"", 1, 1, "zip")
    with pytest.raises(RecordError, match="codec 'zip'"):
        codec.encode(image([1]), "zip")


def test_encode_refuses_an_empty_image():
    with pytest.raises(RecordError, match="image is 0 x 4"):
        codec.encode(np.zeros((0, 4), np.uint16))


def test_real_head_ct_packs_small_and_back():
    folder = Path(__file__).parents[2] / "shared" / "data" / "head_ct_tilt"
    files = sorted(folder.glob("*.dcm"))
    if not files:
        pytest.skip("no ../shared/data/head_ct_tilt here")
    flat = packed = raw = 0
    for path in files[::4]:
        pixels = to_record(read_file(path)[0].hu)
        payload = codec.encode(pixels)
        assert np.array_equal(codec.decode(payload, *pixels.shape, "lbp"), pixels)
        packed, raw = packed + len(payload), raw + pixels.nbytes
        flat += len(codec.encode_lbp(pixels, codec.MODE_FLAT))
    assert raw / flat > 3.4  # measured 3.51 on all 28
    assert raw / packed > 2.6  # half plane first: measured 2.72
