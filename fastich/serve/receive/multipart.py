"""multipart/related and multipart/form-data as they stream: part after part, none of them in memory.

Source: RFC 2046 section 5.1, RFC 2387, RFC 7578.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from fastich.serve.receive.bodies import SIZE_TOO_LARGE, BodyRefused


class Sink(Protocol):
    """Where a part goes."""

    def write(self, data: memoryview) -> None:
        """Take a piece."""

    def end(self) -> None:
        """The part is whole."""


class MultipartReader:
    """Feeds each part to the sink that ``open_part`` makes of its headers (names in lower case).

    Attributes:
        num_parts: parts that began.
    """

    def __init__(self, boundary: bytes, max_parts: int, open_part: Callable[[Mapping[str, str]], Sink]) -> None:
        self.num_parts = 0
        self._max_parts, self._open_part = max_parts, open_part
        self._headers: dict[str, str] = {}
        self._name, self._value = bytearray(), bytearray()
        self._sink: Sink | None = None
        self._is_whole = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open,
                    "on_part_data": self._write,
                    "on_part_end": self._end,
                    "on_end": self._finish,
                },
            )
        except FormParserError as error:
            raise BodyRefused(400, f"Content-Type: expected a boundary of RFC 2046, found {error}") from error

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body.

        Raises:
            BodyRefused: 400 it is no multipart, 413 it has too many parts, or what a sink raises.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise BodyRefused(400, f"expected parts, found other bytes after {self.num_parts} of them") from error

    def close(self) -> None:
        """The body is over.

        Raises:
            BodyRefused: 400, it ended inside a part, or held none.
        """
        if not self.num_parts:
            raise BodyRefused(400, "expected parts, found none")
        if not self._is_whole:
            raise BodyRefused(400, f"the body ends in the middle, after {self.num_parts} parts")

    def _begin(self) -> None:
        self.num_parts += 1
        if self.num_parts > self._max_parts:
            raise BodyRefused(SIZE_TOO_LARGE, f"expected at most {self._max_parts} parts (http.max_parts), found more")
        self._headers = {}

    def _end_header(self) -> None:
        self._headers[self._name.decode("latin-1").strip().lower()] = self._value.decode("latin-1").strip()
        self._name.clear()
        self._value.clear()

    def _open(self) -> None:
        self._sink = self._open_part(self._headers)

    def _write(self, data: bytes, start: int, end: int) -> None:
        assert self._sink is not None
        self._sink.write(memoryview(data)[start:end])

    def _end(self) -> None:
        assert self._sink is not None
        self._sink.end()
        self._sink = None

    def _finish(self) -> None:
        self._is_whole = True


def options(header: str) -> tuple[str, dict[str, str]]:
    """A header with parameters, such as Content-Type: its value in lower case, and the parameters."""
    value, parameters = parse_options_header(header)
    return value.decode("latin-1").strip().lower(), {
        name.decode("latin-1").lower(): text.decode("latin-1") for name, text in parameters.items()
    }


def boundary_of(parameters: Mapping[str, str]) -> bytes:
    """The boundary that a multipart Content-Type names.

    Raises:
        BodyRefused: 400, it names none.
    """
    boundary = parameters.get("boundary", "")
    if not boundary:
        raise BodyRefused(400, "Content-Type: expected a boundary, found none")
    return boundary.encode("latin-1")
