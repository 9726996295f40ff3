import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
