"""One object on its way in: a temporary file of the spool, with a cap, which is gone unless it was taken over.

Writing never raises: a sender that is in the middle of its object can only be told at the end, so the first refusal is
kept, the file is removed at once, and the rest of the bytes fall on the floor.
"""

from pathlib import Path
from typing import BinaryIO

from fastich.serve.entities import Refused
from fastich.serve.ingest import IngestRefused
from fastich.serve.spool import Spool


class Incoming:
    """A temporary file that takes at most ``max_bytes``.

    Attributes:
        size_bytes: bytes that came, whether kept or not.
        refused: why it will not be taken, None while nothing speaks against it.
    """

    def __init__(self, spool: Spool, max_bytes: int) -> None:
        self.size_bytes = 0
        self.refused: IngestRefused | None = None
        self._max_bytes = max_bytes
        self._path: Path | None = None
        self._handle: BinaryIO | None = None
        try:
            self._path = spool.temporary()
            self._handle = self._path.open("xb")
        except OSError as error:
            self._fail(error)

    def write(self, data: bytes | memoryview) -> None:
        """Take ``data``, or remember why not."""
        self.size_bytes += len(data)
        if self.refused is not None or self._handle is None:
            return
        if self.size_bytes > self._max_bytes:
            self.refuse(IngestRefused(Refused.TOO_LARGE, f"more than {self._max_bytes} bytes"))
            return
        try:
            self._handle.write(data)
        except OSError as error:
            self._fail(error)

    def refuse(self, refusal: IngestRefused) -> None:
        """Keep the first reason, and nothing else."""
        self.refused = self.refused or refusal
        self.discard()

    def finish(self) -> Path:
        """The whole file, closed; who called owns it.

        Raises:
            IngestRefused: it was refused on its way.
        """
        if self._handle is not None:
            try:
                self._handle.close()
            except OSError as error:  # the last bytes stood in the buffer
                self._fail(error)
        if self.refused is not None or self._path is None:
            raise self.refused or IngestRefused(Refused.STORAGE_FULL, "the file is gone")
        return self._path

    def discard(self) -> None:
        """Remove the file, if it is still there. Safe to call twice, and after it was taken over."""
        if self._handle is not None:
            try:
                self._handle.close()
            except OSError as error:
                self.refused = self.refused or _refusal(error)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _fail(self, error: OSError) -> None:
        self.refuse(_refusal(error))


def _refusal(error: OSError) -> IngestRefused:
    """A full or failing disk in the sender's words; the system's own name no patient."""
    return IngestRefused(Refused.STORAGE_FULL, error.strerror or type(error).__name__)
