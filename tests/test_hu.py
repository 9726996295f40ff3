import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fastich import hu


def test_rescale_rounds_to_nearest_in_float64() -> None:
    stored = np.array([[0, 1, 2, 3]], dtype=np.uint16)
    assert hu.to_hu(stored, 0.5, -1024.3).tolist() == [[-1024, -1024, -1023, -1023]]


def test_rescale_beyond_int16_is_clipped_not_wrapped() -> None:
    stored = np.array([[-31788, 31573]], dtype=np.int16)  # raw range of a slice of the RSNA data
    assert hu.to_hu(stored, 1.0, -1024.0).tolist() == [[-32768, 30549]]
    assert hu.to_hu(np.array([[65535]], dtype=np.uint16), 1.0, 0.0).tolist() == [[32767]]


@given(st.integers(-32768, 32767), st.integers(-3000, 3000))
def test_whole_intercepts_give_the_same_as_float64(stored: int, intercept: int) -> None:
    pixel = np.array([[stored]], dtype=np.int16)
    expected = np.clip(np.rint(np.float64(stored) * 1.0 + intercept), -32768, 32767)
    assert hu.to_hu(pixel, 1.0, float(intercept))[0, 0] == expected


def test_wide_stored_values_do_not_overflow() -> None:
    assert hu.to_hu(np.array([[2**31 - 1]], dtype=np.int32), 1.0, 1000.0)[0, 0] == 32767


@pytest.mark.parametrize(
    ("bits", "signed", "intercept", "wrapped"),
    [(12, False, 0.0, True), (12, False, 1.0, True), (12, False, -1.0, True), (12, False, -1024.0, False),
     (12, True, 0.0, False), (16, False, 0.0, False)],
)  # fmt: skip
def test_wrap_is_told_by_bits_sign_and_intercept(bits: int, signed: bool, intercept: float, wrapped: bool) -> None:
    assert hu.is_wrapped_12_bit(bits, signed, intercept) is wrapped


def test_unwrap_recovers_signed_values() -> None:
    true_hu = np.array([[-1000, -1, 0, 40, 3095]])
    stored = (true_hu % 4096).astype(np.uint16)
    assert hu.to_hu(hu.unwrap_12_bit(stored), 1.0, -1000.0).tolist() == true_hu.tolist()


def test_padding_becomes_air_in_a_record() -> None:
    assert hu.to_record(np.array([[-3024, -2000, -1024, 0, 32767]], dtype=np.int16)).tolist() == [
        [0, 0, 0, 1024, 33791]
    ]


@given(st.integers(-1024, 32767))
def test_record_round_trip(value: int) -> None:
    pixel = np.array([[value]], dtype=np.int16)
    assert hu.from_record(hu.to_record(pixel))[0, 0] == value


def test_record_values_beyond_int16_hu_are_clipped() -> None:
    assert hu.from_record(np.array([[65535]], dtype=np.uint16))[0, 0] == 32767


def reference_hu(stored: NDArray[np.integer], slope: float, intercept: float) -> NDArray[np.int16]:
    """The contract, word for word: float64, nearest, clip (DESIGN 4.1)."""
    scaled = np.rint(stored.astype(np.float64) * slope + intercept)
    return np.clip(scaled, -32768, 32767).astype(np.int16)


EDGES = [0.0, -0.0, 1.0, -1.0, -1000.0, -1024.0, 1024.0, -8192.0, 31743.0, -31744.0, 32766.0]
EDGES += [32767.0, -32767.0, 32768.0, -32768.0, 40000.0, -65536.0, 2.0**31, -(2.0**31), 0.5, -1024.25, 1e300]


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("intercept", EDGES)
@pytest.mark.parametrize("slope", [1.0, -1.0, 2.0, 0.5])
def test_every_stored_value_gives_the_float64_result(kind: type[np.integer], intercept: float, slope: float) -> None:
    limits = np.iinfo(kind)
    stored = np.arange(limits.min, limits.max + 1).astype(kind).reshape(16, -1)
    stored.flags.writeable = False
    expected = reference_hu(stored, slope, intercept)
    found = hu.to_hu(stored, slope, intercept)
    assert found.dtype == np.int16
    assert found.flags.writeable
    assert np.array_equal(found, expected)
    record = np.maximum(expected, -1024).astype(np.int64) + 1024
    assert np.array_equal(hu.to_record(expected), record)
    assert np.array_equal(hu.stored_to_record(stored, slope, intercept), record)
    assert hu.stored_to_record(stored, slope, intercept).dtype == np.uint16


@given(
    stored=arrays(st.sampled_from([np.int16, np.uint16]), (3, 5)),
    intercept=st.one_of(st.integers(-70000, 70000).map(float), st.floats(-1e6, 1e6)),
)
def test_records_from_stored_values_are_those_of_their_hu(stored: NDArray[np.integer], intercept: float) -> None:
    expected = reference_hu(stored, 1.0, intercept)
    assert np.array_equal(hu.to_hu(stored, 1.0, intercept), expected)
    assert np.array_equal(hu.stored_to_record(stored, 1.0, intercept), hu.to_record(expected))
    assert np.array_equal(hu.stored_to_record(stored.T[::-1], 1.0, intercept), hu.to_record(expected).T[::-1])


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
@pytest.mark.parametrize("top", [4095, 4096, 65535])
def test_unwrap_is_the_same_in_16_and_in_32_bits(kind: type[np.integer], top: int) -> None:
    stored = np.arange(top + 1).astype(kind).reshape(1, -1)
    expected = stored.astype(np.int64) + 1000
    expected[expected >= 4096] -= 4096
    assert np.array_equal(hu.unwrap_12_bit(stored), expected)


def test_blank_is_told_from_all_pixels_and_not_from_a_sample() -> None:
    pixels = np.zeros((512, 512), dtype=np.uint16)
    pixels[300:] = 7
    assert hu.is_blank(pixels)
    pixels[1, 1] = 8
    assert not hu.is_blank(pixels)
