"""A record as an LBP payload at the network's side: what a cache keeps.

Nothing is decoded where a record is half-first at twice the network's side: the first stream of such a
payload is a flat payload of the half plane once a header stands before it (docs/records.md); HU is then short of the
block mean by 0.5, which ``half`` marks. A flat LBP record of the network's side is kept as it is. Any other becomes
its area mean, rounded and encoded flat: at most 0.5 HU off. Every record's CRC is checked as it is read, and the
widths of its streams against its length, so what comes out decodes.
"""

import numpy as np
from numpy.typing import NDArray

from fastich import ops
from fastich.hu import AIR_HU
from fastich.records import codec
from fastich.records.reader import RecordReader
from fastich.windowing import resize_area

Uint8Array = NDArray[np.uint8]


def plane_payload(reader: RecordReader, row: int, side: int) -> tuple[Uint8Array, bool]:
    """Slice ``row`` as an LBP payload of [side, side], and whether 0.5 HU is to be added to what it decodes to.

    Raises:
        RecordError: the record is damaged; names file and byte offset.
    """
    payload = np.frombuffer(reader.payload(row), np.uint8)  # checks the CRC
    if reader.codec == "lbp":
        if _starts(payload, codec.MODE_HALF_FIRST, 2 * side) and (ends := _stream_ends(payload, side, 4)):
            header = np.frombuffer(_header(codec.MODE_FLAT, side), np.uint8)
            return np.concatenate([header, payload[codec.HEADER.size : ends[0]]]), True
        if _starts(payload, codec.MODE_FLAT, side) and _stream_ends(payload, side, 1):
            return payload, False
    mean_hu = resize_area(reader.hu(row), side)  # decodes the record, and says so with file and offset if it cannot
    stored = np.rint(mean_hu - np.float32(AIR_HU)).astype(np.uint16)
    flat = codec.mode_for(stored) == codec.MODE_FLAT
    made = ops.encode(stored) if flat else codec.encode_lbp(stored, codec.MODE_FLAT)
    return np.frombuffer(made, np.uint8), False


def _header(mode: int, side: int) -> bytes:
    return codec.HEADER.pack(codec.MAGIC, codec.VERSION, mode, 0, side, side)


def _starts(payload: Uint8Array, mode: int, side: int) -> bool:
    return payload[: codec.HEADER.size].tobytes() == _header(mode, side)


def _stream_ends(payload: Uint8Array, side: int, count: int) -> list[int]:
    """Where each of ``count`` streams of [side, side] ends; empty unless the widths ask for exactly these bytes."""
    ends, end = [], codec.HEADER.size
    for _ in range(count):
        words_at = end + codec.num_runs(side, side)
        widths = payload[end:words_at]
        if words_at > len(payload) or widths.max() > codec.MAX_BITS:
            return []
        end = words_at + 4 * int(widths.sum(dtype=np.int64))
        ends.append(end)
    return ends if end == len(payload) else []
