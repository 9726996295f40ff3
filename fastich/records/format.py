"""The shard file: TFRecord framing around one ``tf.train.Example`` a slice, so that other tools read it as it is.

Framing costs 16 bytes a slice, the Example about 100 and a UID; the checksum runs at several GB/s (in hardware).
The Example is written by hand in protobuf's wire format: few lines, no dependency, and the same bytes on every machine
(a protobuf library does not promise the order of a map). One page on all of it: docs/records.md.

Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/{example,feature}.proto.
"""

import functools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np

from fastich.errors import RecordError
from fastich.labels import NUM_LABELS

FORMAT_VERSION = 1
"""Version of the whole records folder; a reader refuses any other."""

FRAME_HEADER = struct.Struct("<QI")
"""Length of the data, masked CRC32C of those eight bytes."""
FRAME_FOOTER = struct.Struct("<I")
"""Masked CRC32C of the data."""
MAX_DATA_BYTES = 2**31 - 1
"""The most that protobuf parses; also what keeps a damaged length from being believed."""

_MASK_DELTA = 0xA282EAD8
_FEATURES = 1
_MAP_ENTRY, _KEY, _VALUE = 1, 1, 2
_BYTES_LIST, _INT64_LIST, _LIST_VALUES = 1, 3, 1
_DELIMITED = 2
"""The only wire type an Example needs: even its numbers stand packed in a list."""
_ONE_BYTE = tuple(bytes([value]) for value in range(0x80))


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """What one record says of its slice; the payload is [payload_offset, +payload_size) within the Example's bytes."""

    height: int
    width: int
    labels: tuple[int, ...]
    sop: str
    payload_offset: int
    payload_size: int


def crc32c(data: bytes | memoryview) -> int:
    """CRC32C (Castagnoli) of ``data``, 0 to 2^32 - 1."""
    return int(google_crc32c.value(data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)))


def masked_crc32c(data: bytes | memoryview) -> int:
    """TFRecord's mask over ``crc32c``: rotate right by 15 bits, add a constant."""
    return _mask(crc32c(data))


def _mask(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def frame(*parts: bytes) -> bytes:
    """One TFRecord record around the data that ``parts`` make up: length, its checksum, data, its checksum.

    In parts, so that a payload of hundreds of kilobytes is copied once.
    """
    length = struct.pack("<Q", sum(map(len, parts)))
    footer = FRAME_FOOTER.pack(_mask(functools.reduce(google_crc32c.extend, parts, 0)))
    return b"".join((length, struct.pack("<I", masked_crc32c(length)), *parts, footer))


def read_frame_header(shard: memoryview, offset: int, file: str) -> int:
    """The length of the data of the record at ``offset`` of ``shard``, checked against its checksum and the file's end.

    Raises:
        RecordError: the shard ends inside the record, or the length's checksum does not fit; names ``file:offset``.
    """
    if offset < 0 or offset + FRAME_HEADER.size > len(shard):
        raise RecordError(f"{file}:{offset}: the file ends at byte {len(shard)}, inside a record's header")
    length, found = FRAME_HEADER.unpack_from(shard, offset)
    expected = masked_crc32c(shard[offset : offset + 8])
    if found != expected:
        raise RecordError(f"{file}:{offset}: checksum of the record's length is {found:08x}, expected {expected:08x}")
    end = offset + FRAME_HEADER.size + length + FRAME_FOOTER.size
    if length > MAX_DATA_BYTES or end > len(shard):
        raise RecordError(f"{file}:{offset}: a record of {length} bytes does not fit into a file of {len(shard)} bytes")
    return int(length)


def read_frame(shard: memoryview, offset: int, file: str) -> memoryview:
    """The data of the record at ``offset`` of ``shard``, with both checksums checked.

    Raises:
        RecordError: as ``read_frame_header``, or the data's checksum does not fit.
    """
    start = offset + FRAME_HEADER.size
    length = read_frame_header(shard, offset, file)
    data = shard[start : start + length]
    (found,) = FRAME_FOOTER.unpack_from(shard, start + length)
    expected = masked_crc32c(data)
    if found != expected:
        raise RecordError(f"{file}:{offset}: checksum of the record's data is {found:08x}, expected {expected:08x}")
    return data


def build_example(payload: bytes, height: int, width: int, labels: Sequence[int], sop: str) -> tuple[bytes, int]:
    """The Example of one slice, features in the order of their names, and the payload's offset within it.

    ``labels`` are six of -1 (unknown), 0 or 1; ``sop`` is the SOP Instance UID.
    """
    before, after = example_around(len(payload), height, width, labels, sop)
    return b"".join((before, payload, after)), len(before)


def example_around(payload_size: int, height: int, width: int, labels: Sequence[int], sop: str) -> tuple[bytes, bytes]:
    """What stands before and after the payload in the Example of ``build_example``."""
    assert len(labels) == NUM_LABELS, f"expected {NUM_LABELS} labels, found {len(labels)}"
    before = _int64_entry("height", (height,)) + _int64_entry("labels", tuple(labels))
    after = _bytes_entry("sop", sop.encode()) + _int64_entry("width", (width,))
    pixels = _entry_head("pixels", _BYTES_LIST, payload_size)
    size = len(before) + len(pixels) + payload_size + len(after)
    return b"".join((_tag(_FEATURES), _varint(size), before, pixels)), after


def parse_example(data: memoryview) -> Example:
    """Read an Example written by ``build_example`` or by any protobuf library.

    Raises:
        RecordError: it is not an Example with exactly our five features; offsets count from its first byte.
    """
    spans = _feature_spans(data)
    payload_offset, payload_end = _bytes_span(data, spans, "pixels")
    sop_offset, sop_end = _bytes_span(data, spans, "sop")
    labels = _int64s(data, spans, "labels")
    if len(labels) != NUM_LABELS:
        raise RecordError(f"feature 'labels' holds {len(labels)} values: expected {NUM_LABELS}")
    try:
        sop = bytes(data[sop_offset:sop_end]).decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"feature 'sop' at byte {sop_offset} is not UTF-8") from error
    return Example(
        height=_one_int64(data, spans, "height"),
        width=_one_int64(data, spans, "width"),
        labels=labels,
        sop=sop,
        payload_offset=payload_offset,
        payload_size=payload_end - payload_offset,
    )


def _varint(value: int) -> bytes:
    """Base-128, low group first; a negative int64 takes ten bytes as its two's complement."""
    if 0 <= value < 0x80:
        return _ONE_BYTE[value]
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(number: int) -> bytes:
    return _varint(number << 3 | _DELIMITED)


def _entry_head(name: str, kind: int, size: int) -> bytes:
    """What stands before the ``size`` bytes of values of a feature: they end its entry."""
    head = b""
    for number in (_LIST_VALUES, kind, _VALUE):
        head = b"".join((_tag(number), _varint(len(head) + size), head))
    key = name.encode()
    head = b"".join((_tag(_KEY), _varint(len(key)), key, head))
    return b"".join((_tag(_MAP_ENTRY), _varint(len(head) + size), head))


def _entry(name: str, kind: int, values: bytes) -> bytes:
    return _entry_head(name, kind, len(values)) + values


def _bytes_entry(name: str, value: bytes) -> bytes:
    return _entry(name, _BYTES_LIST, value)


@functools.lru_cache(maxsize=1024)
def _int64_entry(name: str, values: tuple[int, ...]) -> bytes:
    """Kept, for sizes and labels are the same few all over a data set."""
    return _entry(name, _INT64_LIST, b"".join(_varint(int(value)) for value in values))


Span = tuple[int, int]


def _read_varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= end:
            break
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + place + 1
    raise RecordError(f"Example: number at byte {at} has no end")


def _fields(data: memoryview, span: Span) -> Iterator[tuple[int, Span]]:
    """The length-delimited fields of the message in ``span``: field number and span of the content."""
    at, end = span
    while at < end:
        tag, start = _read_varint(data, at, end)
        if tag & 7 != _DELIMITED:
            raise RecordError(f"Example: wire type {tag & 7} at byte {at}, expected {_DELIMITED}")
        length, start = _read_varint(data, start, end)
        if start + length > end:
            raise RecordError(f"Example: a field of {length} bytes at byte {at} passes the end of its message")
        yield tag >> 3, (start, start + length)
        at = start + length


def _feature_spans(data: memoryview) -> dict[str, tuple[int, Span]]:
    """For each feature's name: the kind of its list and the span of the list message."""
    spans: dict[str, tuple[int, Span]] = {}
    for features, features_span in _fields(data, (0, len(data))):
        for entry, entry_span in _fields(data, features_span) if features == _FEATURES else ():
            parts = dict(_fields(data, entry_span)) if entry == _MAP_ENTRY else {}
            kinds = list(_fields(data, parts[_VALUE])) if _VALUE in parts else []
            if _KEY in parts and len(kinds) == 1:
                spans[str(bytes(data[slice(*parts[_KEY])]), "utf-8", "replace")] = kinds[0]
    expected = ["height", "labels", "pixels", "sop", "width"]
    if sorted(spans) != expected:
        raise RecordError(f"Example: features are {sorted(spans)}, expected {expected}")
    return spans


def _list_span(data: memoryview, spans: dict[str, tuple[int, Span]], name: str, kind: int) -> Span:
    found, span = spans[name]
    values = [span for number, span in _fields(data, span) if number == _LIST_VALUES]
    if found != kind or len(values) != 1:
        raise RecordError(f"Example: feature {name!r} at byte {span[0]} is not one list of the expected kind ({kind})")
    return values[0]


def _bytes_span(data: memoryview, spans: dict[str, tuple[int, Span]], name: str) -> Span:
    return _list_span(data, spans, name, _BYTES_LIST)


def _int64s(data: memoryview, spans: dict[str, tuple[int, Span]], name: str) -> tuple[int, ...]:
    at, end = _list_span(data, spans, name, _INT64_LIST)
    values = []
    while at < end:
        value, at = _read_varint(data, at, end)
        values.append(value - (1 << 64) if value >> 63 else value)
    return tuple(values)


def _one_int64(data: memoryview, spans: dict[str, tuple[int, Span]], name: str) -> int:
    values = _int64s(data, spans, name)
    if len(values) != 1:
        raise RecordError(f"Example: feature {name!r} holds {len(values)} values, expected 1")
    return values[0]
