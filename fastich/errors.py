"""The errors that outside data can raise: all are ``ValueError``, all say where, expected, found and what to do.

A verb turns each of them into one line on stderr and exit status 1 (``fastich.verb.run``).
"""

from fastich.types import RejectReason


class FastichError(ValueError):
    """Base of every error caused by input, files or the machine rather than by a mistake of ours."""


class DicomError(FastichError):
    """A DICOM file that cannot be used, with one named reason.

    Attributes:
        reason: the named outcome, a ``RejectReason``.
        detail: what was expected and found, in one line, without patient names.
    """

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


class LabelError(FastichError):
    """A label table that is malformed or contradicts itself."""


class RecordError(FastichError):
    """A records folder that is damaged, incomplete or of another version; names file and byte offset."""


class CheckpointError(FastichError):
    """A run folder or checkpoint that cannot be loaded."""


class ArtifactError(FastichError):
    """An exported model folder that lacks a file, fails its hash or does not fit this version."""


class StoreError(FastichError):
    """The server's database cannot be opened, read or written.

    Attributes:
        is_full: because the disk is full.
    """

    def __init__(self, message: str, *, is_full: bool = False) -> None:
        super().__init__(message)
        self.is_full = is_full


class UsageError(FastichError):
    """A request that cannot be carried out as asked (exit status 2): bad flag values, an output that exists."""
