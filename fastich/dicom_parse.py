"""Bytes of one file to raw DICOM elements: the preamble, the file meta, inflation, and pydicom's parser behind caps.

Why not ``dcmread``: it inflates a deflated file of 1 MB to 2 GB before it looks at anything, and it turns every value
into a checked object, which costs time and a warning for each illegal UID. Here the meta is read first, inflation is
capped, and values stay raw bytes until one is asked for. Plain data sets never reach pydicom's parser
(``dicom_scan``): 15 us for a header of 22 elements instead of 0.3 ms.

Source: PS3.10 section 7 (file meta), PS3.5 sections 7.1 (elements), A.5 (deflated).
"""

import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.dataelem import RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator
from pydicom.tag import BaseTag
from pydicom.valuerep import PN_DELIMS

from fastich.dicom_scan import LONG_VRS, MAX_TOP_LEVEL_ELEMENTS, PIXEL_DATA, UNDEFINED_LENGTH, scan
from fastich.errors import DicomError
from fastich.types import RejectReason

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"

PREAMBLE_BYTES = 128
MAX_INFLATED_BYTES = 256 * 2**20
"""A deflated CT slice is under 1 MiB and a large enhanced study about 100; 1 MB of input can make 1 GB."""
PADDING = " \0\t\r\n"
FLOAT_PIXEL_DATA = 0x7FE00008
DOUBLE_PIXEL_DATA = 0x7FE00009
SHARED_GROUPS, FRAME_GROUPS = 0x52009229, 0x52009230
NESTED = frozenset({SHARED_GROUPS, FRAME_GROUPS})
"""The sequences whose items are asked for (PS3.3 C.7.6.16); only pydicom's parser gives them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileMeta:
    """What the file meta says: three UIDs as text ("" where absent) and where the data set starts in the bytes."""

    transfer_syntax: str
    sop_class: str
    sop_uid: str
    dataset_offset: int


class Elements:
    """Read-only view of a data set whose values are raw bytes, so that odd values cost nothing until asked for.

    Attributes:
        is_cut: the bytes ended inside an element.
    """

    def __init__(self, elements: Mapping[int, Any], *, is_cut: bool = False) -> None:
        self._elements = elements
        self.is_cut = is_cut

    def raw(self, tag: int) -> bytes | memoryview | None:
        """The value's bytes (pixel data may be a view), or None where the element is absent or is a sequence."""
        element = self._elements.get(tag)
        if element is None:
            return None
        value = element.value
        if value is None:
            return b""
        return value if isinstance(value, bytes | memoryview) else None

    def texts(self, tag: int) -> tuple[str, ...]:
        """The value as text, split at backslashes and stripped of padding; () where absent or empty."""
        raw = self.raw(tag)
        text = decode_text(bytes(raw)) if raw else ""
        if "\\" not in text:  # most values, and asked for 20 times a file
            return (text,) if text else ()
        return tuple(part.strip(PADDING) for part in text.split("\\"))

    def text(self, tag: int) -> str:
        """The first value as text, "" where absent."""
        values = self.texts(tag)
        return values[0] if values else ""

    def whole(self, tag: int) -> int | None:
        """The value of a US or UL element, None where absent or of another length."""
        raw = self.raw(tag)
        if not raw or len(raw) not in (2, 4):
            return None
        return int.from_bytes(raw, "little" if self._elements[tag].is_little_endian else "big")

    def items(self, tag: int) -> list["Elements"]:
        """The items of a sequence, [] where absent or not a sequence."""
        element = self._elements.get(tag)
        if element is None:
            return []
        with quiet():
            value = convert_raw_data_element(element).value if isinstance(element, RawDataElement) else element.value
            items = [item for item in value or () if isinstance(item, Dataset)]
            return [Elements({int(key): item.get_item(key) for key in item.keys()}) for item in items]  # noqa: SIM118

    def has_undefined_length(self, tag: int) -> bool:
        """Tell whether the element was written with undefined length (encapsulated, for pixel data)."""
        return getattr(self._elements.get(tag), "length", 0) == UNDEFINED_LENGTH

    def __contains__(self, tag: int) -> bool:
        return tag in self._elements


def decode_text(raw: bytes) -> str:
    """Bytes as text: UTF-8 where they are valid UTF-8, else Latin-1; only identifiers and numbers are ever read."""
    try:
        return raw.decode("utf-8").strip(PADDING)
    except UnicodeDecodeError:
        return raw.decode("latin-1").strip(PADDING)


def decode_words(raw: bytes, character_sets: tuple[str, ...]) -> str:
    """Text that people read, by the data set's Specific Character Set; as ``decode_text`` where it says none.

    Source: PS3.5 section 6.1, PS3.3 C.12.1.1.2.
    """
    if not any(character_sets):
        return decode_text(raw)
    try:
        with quiet():
            return str(decode_bytes(raw, convert_encodings([*character_sets]), PN_DELIMS)).strip(PADDING)
    except (LookupError, ValueError):  # a character set that nobody knows, or bytes that are none of it
        return decode_text(raw)


_quiet_lock = threading.Lock()
_quiet_depth = 0
_quiet_saved: Any = None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's own warnings (illegal UIDs, odd padding) while any thread is inside; restore them after."""
    global _quiet_depth, _quiet_saved
    with _quiet_lock:
        if _quiet_depth == 0:
            _quiet_saved = warnings.catch_warnings()
            _quiet_saved.__enter__()
            warnings.filterwarnings("ignore", module=r"pydicom\.")
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                _quiet_saved.__exit__(None, None, None)


def read_meta(data: bytes) -> FileMeta:
    """Read the file meta of ``data``, with or without preamble; infer a transfer syntax that is not stated.

    Raises:
        DicomError: the bytes are not DICOM, or the meta is damaged.
    """
    start = _meta_start(data)
    found: dict[int, str] = {}
    offset = start
    while data[offset : offset + 2] == b"\x02\x00":
        vr, head = data[offset + 4 : offset + 6], 8
        if vr in LONG_VRS:
            head, length = 12, int.from_bytes(data[offset + 8 : offset + 12], "little")
        elif vr.isalpha() and vr.isupper():
            length = int.from_bytes(data[offset + 6 : offset + 8], "little")
        else:
            length = int.from_bytes(data[offset + 4 : offset + 8], "little")
        if offset + head + length > len(data):
            raise DicomError(RejectReason.DAMAGED_HEADER, f"the file meta at byte {offset} runs past the end")
        value = data[offset + head : offset + head + length]
        found[int.from_bytes(data[offset + 2 : offset + 4], "little")] = decode_text(value)
        offset += head + length
    syntax = found.get(0x0010) or _infer_syntax(data, offset)
    return FileMeta(
        transfer_syntax=syntax,
        sop_class=found.get(0x0002, ""),
        sop_uid=found.get(0x0003, ""),
        dataset_offset=offset,
    )


def _meta_start(data: bytes) -> int:
    """Where the first element stands: behind the preamble, or at 0 where the bytes look like a bare data set."""
    if data[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == b"DICM":
        return PREAMBLE_BYTES + 4
    if data[:2] == b"\x1f\x8b":
        raise DicomError(RejectReason.NOT_DICOM, "gzip-compressed: unpack it first")
    group, element = struct.unpack_from("<HH", data) if len(data) >= 8 else (0, 0)
    if (group, element) in {(2, 0), (2, 1), (2, 2)} or (group == 8 and element <= 0x60):
        return 0
    raise DicomError(RejectReason.NOT_DICOM, f"no DICM prefix, and the first bytes are no element: {data[:8].hex(' ')}")


def _infer_syntax(data: bytes, offset: int) -> str:
    """Explicit or implicit little endian, by whether the first element of the data set spells out a VR."""
    return EXPLICIT_LITTLE if _spells_vr(data, offset) else IMPLICIT_LITTLE


def _spells_vr(data: bytes, offset: int) -> bool:
    """Tell whether two capital letters, a VR, follow the tag at ``offset``."""
    vr = data[offset + 4 : offset + 6]
    return vr.isalpha() and vr.isupper()


def inflate(data: bytes) -> bytes:
    """Inflate the data set of a deflated file, at most ``MAX_INFLATED_BYTES``.

    Raises:
        DicomError: the stream is damaged, cut short or too large.
    """
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = stream.decompress(data, MAX_INFLATED_BYTES + 1)
    except zlib.error as error:
        raise DicomError(RejectReason.DAMAGED_PIXELS, f"the deflated data set is damaged: {error}") from None
    if len(plain) > MAX_INFLATED_BYTES:
        raise DicomError(RejectReason.TOO_LARGE, f"{len(data)} bytes inflate to more than {MAX_INFLATED_BYTES}")
    if not stream.eof:
        raise DicomError(RejectReason.DAMAGED_PIXELS, f"the deflated data set is cut after {len(data)} bytes")
    return plain


def parse(data: bytes, offset: int, transfer_syntax: str, tags: AbstractSet[int]) -> Elements:
    """Parse the data set that starts at ``offset``, keeping ``tags`` and stopping behind the pixel data.

    The first element decides between explicit and implicit VR where it contradicts the transfer syntax, as in pydicom.

    Raises:
        DicomError: whatever the parser stumbles over, with its type named (a message could hold patient data).
    """
    little = transfer_syntax != EXPLICIT_BIG
    implicit = not _spells_vr(data, offset) if little else False
    plain = scan(data, offset, tags, NESTED, implicit=implicit) if little else None
    if plain is not None:
        return Elements(plain)
    return _parse_any(data, offset, tags, implicit=implicit, little=little)


def _parse_any(data: bytes, offset: int, tags: AbstractSet[int], *, implicit: bool, little: bool) -> Elements:
    """As ``parse``, by pydicom: the reference, for whatever is not plain."""
    stream = BytesIO(data)
    stream.seek(offset)
    found: dict[int, Any] = {}
    is_cut = False
    try:
        with quiet():
            for element in data_element_generator(stream, implicit, little, _stopper(), specific_tags=[*tags]):
                found[int(element.tag)] = element
    except DicomError:
        raise
    except EOFError:
        is_cut = True
    except (Exception, MemoryError) as error:
        where = f"near byte {stream.tell()} of {len(data)}"
        raise DicomError(RejectReason.DAMAGED_HEADER, f"{type(error).__name__} {where}") from error
    return Elements(found, is_cut=is_cut or stream.tell() > len(data))


def _stopper() -> Callable[[BaseTag, str | None, int], bool]:
    """A callback that ends parsing behind the pixel data, or by an error after too many elements."""
    count, seen_pixels = 0, False

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal count, seen_pixels
        count += 1
        if count > MAX_TOP_LEVEL_ELEMENTS:
            raise DicomError(RejectReason.TOO_LARGE, f"more than {MAX_TOP_LEVEL_ELEMENTS} elements in the header")
        number = int(tag)  # pydicom compares its tags in Python
        done, seen_pixels = seen_pixels and number > PIXEL_DATA, seen_pixels or number == PIXEL_DATA
        return done

    return stop
