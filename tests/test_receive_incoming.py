"""An object on its way in: capped, and gone unless it was taken over."""

from pathlib import Path
from typing import Any

import pytest
from receive_data import incoming_files, open_ingest

from fastich.serve.entities import Refused
from fastich.serve.ingest import Ingest, IngestRefused
from fastich.serve.receive.incoming import Incoming


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    return open_ingest(tmp_path)


def test_what_was_written_is_there_when_it_is_finished(ingest: Ingest) -> None:
    incoming = Incoming(ingest.spool, 6)
    incoming.write(b"abc")
    incoming.write(memoryview(b"def"))
    assert incoming.finish().read_bytes() == b"abcdef"
    incoming.discard()
    assert not incoming_files(ingest)


def test_one_byte_too_many_removes_the_file_at_once_and_counts_on(ingest: Ingest) -> None:
    incoming = Incoming(ingest.spool, 6)
    incoming.write(b"abcdefg")
    assert not incoming_files(ingest)
    incoming.write(b"hij")
    assert incoming.size_bytes == 10
    with pytest.raises(IngestRefused, match=r"larger than the cap: more than 6 bytes"):
        incoming.finish()


def test_the_first_reason_is_kept(ingest: Ingest) -> None:
    incoming = Incoming(ingest.spool, 6)
    for reason in (Refused.BUSY, Refused.MALFORMED):
        incoming.refuse(IngestRefused(reason, "as asked"))
    assert incoming.refused is not None
    assert incoming.refused.reason is Refused.BUSY


@pytest.mark.parametrize("failing", ["write", "close"])
def test_a_disk_that_is_full_is_storage_full_wherever_it_shows(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    incoming = Incoming(ingest.spool, 6)
    handle = incoming._handle
    monkeypatch.setattr(incoming, "_handle", _Failing(handle, failing))
    incoming.write(b"abc")
    with pytest.raises(IngestRefused, match="the spool is full: No space left on device"):
        incoming.finish()
    assert not incoming_files(ingest)
    assert handle is not None
    handle.close()


class _Failing:
    """A file whose one method fails."""

    def __init__(self, handle: Any, failing: str) -> None:
        self._handle, self._failing = handle, failing

    def write(self, data: bytes) -> None:
        if self._failing == "write":
            raise OSError(28, "No space left on device")
        self._handle.write(data)

    def close(self) -> None:
        if self._failing == "close":
            raise OSError(28, "No space left on device")
        self._handle.close()
