"""Stored values to Hounsfield units, and Hounsfield units to the uint16 of a record. Numpy only.

Source of the rescale: PS3.3 C.11.1.1.2. Source of the 12-bit wrap: headers of the RSNA 2019 data set, where
BitsStored is 12, PixelRepresentation 0 and RescaleIntercept 0, 1 or -1 although the values were signed.
"""

import numpy as np
from numpy.typing import NDArray

from fastich.types import HuArray

AIR_HU = -1024
"""What padding becomes in a record, and what lies outside an image."""
RECORD_OFFSET = 1024
RECORD_MAX_HU = 64511
INT16_MIN, INT16_MAX = -32768, 32767
WRAP_INTERCEPT_ABOVE = -100.0
WRAP_SHIFT, WRAP_MODULUS = 1000, 4096


def is_wrapped_12_bit(bits_stored: int, signed: bool, intercept: float) -> bool:
    """Tell whether the values are signed 12-bit ones written as unsigned (see the module's source)."""
    return bits_stored == 12 and not signed and intercept > WRAP_INTERCEPT_ABOVE


def unwrap_12_bit(stored: NDArray[np.integer]) -> NDArray[np.int32]:
    """Undo the 12-bit wrap of ``stored`` [H, W]; the result goes with a RescaleIntercept of -1000."""
    shifted: NDArray[np.int32] = stored.astype(np.int32) + np.int32(WRAP_SHIFT)
    shifted[shifted >= WRAP_MODULUS] -= WRAP_MODULUS
    return shifted


def to_hu(stored: NDArray[np.integer], slope: float, intercept: float) -> HuArray:
    """Rescale ``stored`` [H, W] in float64, round to nearest, clip to int16.

    The usual case (slope 1, whole intercept) is done in integers, which gives the same values without the rounding.
    """
    if slope == 1.0 and float(intercept).is_integer():
        if stored.dtype.itemsize <= 2 and abs(intercept) <= INT16_MAX:
            return _shift(stored, int(intercept))
        if abs(intercept) < 2**30:
            wide = stored.astype(np.int64) + int(intercept)
            return np.asarray(np.clip(wide, INT16_MIN, INT16_MAX), dtype=np.int16)
    scaled = np.rint(stored.astype(np.float64) * slope + intercept)
    return np.clip(scaled, INT16_MIN, INT16_MAX).astype(np.int16)


def _shift(stored: NDArray[np.integer], offset: int) -> HuArray:
    """``clip(stored + offset)`` of at most 16 bit values, for ``|offset| <= 32767``, without a wider copy.

    What would leave int16 is clipped before the addition, which then is exact modulo 2^16: two passes over two bytes a
    pixel.
    """
    values = stored if stored.dtype.itemsize == 2 else stored.astype(np.int16)
    limits, kind = np.iinfo(values.dtype), values.dtype.type
    low, high = kind(max(limits.min, INT16_MIN - offset)), kind(min(limits.max, INT16_MAX - offset))
    return _add_modulo(np.clip(values, low, high), offset).view(np.int16)


def _add_modulo(values: NDArray[np.integer], offset: int) -> NDArray[np.uint16]:
    """Add to 16 bit ``values``, in place and modulo 2^16."""
    unsigned = values.view(np.uint16)
    return np.add(unsigned, np.uint16(offset % 2**16), out=unsigned)


def to_record(hu: HuArray) -> NDArray[np.uint16]:
    """HU to the record's uint16: ``clip(HU, -1024, 64511) + 1024``. Padding below -1024 HU becomes air on purpose.

    Added modulo 2^16 in the same two bytes, which is exact: what is left after the clip fits the uint16.
    """
    assert hu.dtype == np.int16, f"HU are int16, found {hu.dtype}"
    # np.clip with limits of the array's own type is vectorised, np.maximum with a number is not: 17 against 150 us
    return _add_modulo(np.clip(hu, np.int16(AIR_HU), np.int16(INT16_MAX)), RECORD_OFFSET)


def from_record(stored: NDArray[np.uint16]) -> HuArray:
    """The record's uint16 back to int16 HU (values above 32767 HU, which no scanner makes, are clipped)."""
    return np.minimum(stored.astype(np.int32) - RECORD_OFFSET, INT16_MAX).astype(np.int16)


def is_blank(pixels: NDArray[np.uint16]) -> bool:
    """Tell whether an image holds at most two values: empty, or empty with padding round the field of view.

    Such images are equal by chance, so they never join two patients (``fastich.splits``).
    """
    flat = pixels.reshape(-1)
    if len(set(flat[:: max(1, flat.size // 256)].tolist())) > 2:  # all but a few slices end here
        return False
    other = flat[flat != flat[0]]
    return other.size == 0 or bool((other == other[0]).all())
