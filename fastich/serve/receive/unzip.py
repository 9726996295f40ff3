"""A zip of DICOM files into the spool, file by file.

A zip is a program for its reader: its names are never paths here, its sizes are counted and not believed, its directory
is bounded before Python makes objects of it, and what it holds is never opened as a zip again.

Source: APPNOTE.TXT 6.3.10 (zip).
"""

import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

from fastich.serve.config import HttpConfig
from fastich.serve.entities import Origin, Receipt, Refused
from fastich.serve.ingest import Ingest, IngestRefused
from fastich.serve.receive.bodies import MIB, BodyRefused
from fastich.serve.receive.incoming import Incoming
from fastich.serve.receive.reasons import ANSWERS

METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""LZMA and bzip2 let the file choose how much memory its reader takes."""
ENCRYPTED_FLAG = 1
ZIP_MAGIC = b"PK\x03\x04"
READ_BYTES = 2**16
DIRECTORY_BYTES_PER_FILE = 512
"""Of the zip's directory: 46 bytes and the name. Python makes some 600 bytes of the smallest entry."""
MAX_NAME = 200


class TakenFile:
    """A file of the zip that is in the spool now."""

    def __init__(self, name: str, receipt: Receipt) -> None:
        self.name, self.receipt = name, receipt

    def document(self) -> dict[str, Any]:
        """As JSON."""
        receipt = self.receipt
        words = {"duplicate": receipt.duplicate, "conflict": receipt.conflict, "own": receipt.own}
        outcome = next((word for word, is_so in words.items() if is_so), "accepted")
        return {"name": self.name, "outcome": outcome, "sop_uid": receipt.sop_uid, "study_uid": receipt.study_uid}


class RefusedFile:
    """A file of the zip that is not."""

    def __init__(self, name: str, refusal: IngestRefused) -> None:
        self.name, self.reason, self._detail = name, refusal.reason, refusal.detail

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "outcome": "refused", "reason": self.reason.value, "detail": self._detail}


def take_zip(body: Incoming, ingest: Ingest, origin: Origin, config: HttpConfig) -> list[TakenFile | RefusedFile]:
    """Take in every file of a zip.

    Raises:
        BodyRefused: 400 it is no zip or holds nothing, 413 it holds too many files, 507 the body did not fit.
    """
    try:
        path = body.finish()
    except IngestRefused as refusal:
        raise BodyRefused(ANSWERS[refusal.reason].http_status, refusal.reason.value) from refusal
    with path.open("rb") as raw:
        try:
            directory = max(MIB, config.max_parts * DIRECTORY_BYTES_PER_FILE)
            archive = zipfile.ZipFile(_Bounded(raw, path, directory))
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise BodyRefused(400, f"expected a zip, found none: {type(error).__name__}") from error
        infos = [info for info in archive.infolist() if not info.is_dir()]
        if not infos:
            raise BodyRefused(400, "expected a zip with files, found an empty one")
        if len(infos) > config.max_parts:
            raise BodyRefused(413, f"expected at most {config.max_parts} files (http.max_parts), found {len(infos)}")
        unpacker = _Unpacker(archive, ingest, origin, config.max_body_mib * MIB)
        return [unpacker.take(info) for info in infos]


class _Bounded(io.RawIOBase):
    """A file whose single reads are bounded: zipfile reads the directory in one, as long as it says that it is."""

    def __init__(self, raw: io.BufferedReader, path: Path, max_read_bytes: int) -> None:
        self._raw, self._max_read_bytes = raw, max_read_bytes
        self._size_bytes = os.stat(path).st_size

    def read(self, size: int = -1, /) -> bytes:
        """At most what the file holds, and never more than the bound.

        Raises:
            BodyRefused: 413.
        """
        left = max(0, self._size_bytes - self._raw.tell())
        wanted = left if size < 0 else min(size, left)
        if wanted > self._max_read_bytes:
            raise BodyRefused(413, f"the zip's directory has {wanted} bytes, expected at most {self._max_read_bytes}")
        return self._raw.read(wanted)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """As a file."""
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """As a file."""
        return self._raw.tell()

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readable(self) -> bool:
        """Yes."""
        return True


class _Unpacker:
    """Unpacks file after file into the spool, counting."""

    def __init__(self, archive: zipfile.ZipFile, ingest: Ingest, origin: Origin, max_total_bytes: int) -> None:
        self._archive, self._ingest, self._origin = archive, ingest, origin
        self._left_bytes = max_total_bytes

    def take(self, info: zipfile.ZipInfo) -> TakenFile | RefusedFile:
        """One file: in the spool, or a reason."""
        name = "".join(letter for letter in info.filename if letter.isprintable())[-MAX_NAME:]
        incoming = Incoming(self._ingest.spool, self._ingest.max_object_bytes)
        try:
            self._check(info)
            self._ingest.check_capacity()
            self._unpack(info, incoming)
            return TakenFile(name, self._ingest.accept(incoming.finish(), self._origin))
        except IngestRefused as refusal:
            return RefusedFile(name, refusal)
        finally:
            incoming.discard()

    def _check(self, info: zipfile.ZipInfo) -> None:
        if info.flag_bits & ENCRYPTED_FLAG:
            raise IngestRefused(Refused.MALFORMED, "encrypted; zip it without a password")
        if info.compress_type not in METHODS:
            raise IngestRefused(Refused.MALFORMED, "compressed by another method than deflate; zip it again")
        if self._left_bytes <= 0:
            raise IngestRefused(Refused.TOO_LARGE, "the files before it fill http.max_body_mib")

    def _unpack(self, info: zipfile.ZipInfo, incoming: Incoming) -> None:
        """Write until the file ends or a cap is met, whatever the zip says of its size."""
        try:
            with self._archive.open(info) as source:
                while incoming.refused is None and (piece := source.read(READ_BYTES)):
                    if not incoming.size_bytes and piece.startswith(ZIP_MAGIC):
                        raise IngestRefused(Refused.MALFORMED, "a zip inside the zip is not opened; unpack it first")
                    self._left_bytes -= len(piece)
                    if self._left_bytes < 0:
                        raise IngestRefused(Refused.TOO_LARGE, "with the files before it more than http.max_body_mib")
                    incoming.write(piece)
        except IngestRefused:
            raise
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
            raise IngestRefused(Refused.MALFORMED, f"damaged in the zip: {type(error).__name__}") from error
