import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest
from serve_data import SPOOL, files_below, received

from fastich.errors import FastichError
from fastich.serve.entities import Refused
from fastich.serve.spool import IngestRefused, Spool, storage_errors

NAME = hashlib.sha256(b"bytes").hexdigest()


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "deep" / "spool", SPOOL)


def never(_: str) -> bool:
    return False


def test_spool_makes_its_folders_for_its_owner_only(spool: Spool) -> None:
    for name in ("incoming", "objects", "aside"):
        assert (spool.folder / name).stat().st_mode & 0o777 == 0o700


def test_spool_clears_what_an_earlier_process_was_receiving_and_keeps_objects(spool: Spool) -> None:
    received(spool, b"half")
    spool.keep(received(spool, b"bytes"), spool.path_of(NAME))
    again = Spool(spool.folder, SPOOL)
    assert files_below(spool.folder / "incoming") == []
    assert again.path_of(NAME).read_bytes() == b"bytes"


def test_spool_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FastichError, match=r"file.*: cannot use this spool \(Not a directory\)"):
        Spool(tmp_path / "file" / "spool", SPOOL)


def test_temporary_names_are_random_and_on_the_spools_file_system(spool: Spool) -> None:
    paths = {spool.temporary() for _ in range(100)}
    assert len(paths) == 100
    assert all(path.parent == spool.folder / "incoming" and len(path.name) == 32 for path in paths)


@pytest.mark.parametrize("name", ["../../x", "", "A" * 64, "0" * 63, "0" * 65, f"{'0' * 63}\n"])
def test_object_name_that_is_no_hash_never_becomes_a_path(spool: Spool, name: str) -> None:
    for path in (spool.path_of, spool.path_aside):
        with pytest.raises(AssertionError, match="64 hexadecimal digits"):
            path(name)


def test_kept_file_is_at_its_place_and_nowhere_else(spool: Spool) -> None:
    temporary = received(spool, b"bytes")
    spool.keep(temporary, spool.path_of(NAME))
    assert not temporary.exists()
    assert spool.path_of(NAME).read_bytes() == b"bytes"
    assert spool.path_of(NAME).parent.name == NAME[:2]
    assert list(spool.stored()) == [spool.path_of(NAME)]


def test_space_is_asked_for_what_is_to_come_too(spool: Spool) -> None:
    spool.check_space()
    with pytest.raises(IngestRefused, match=r"are free, \d+ bytes are to come, and 0 MiB must stay free") as caught:
        spool.check_space(2**62)
    assert caught.value.reason is Refused.STORAGE_FULL


def test_disk_error_is_a_refusal_that_names_it() -> None:
    with pytest.raises(IngestRefused, match="the spool is full: EIO: Input/output error"), storage_errors():
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_object_without_a_row_is_removed_and_one_with_a_row_stays(spool: Spool) -> None:
    path = spool.path_of(NAME)
    spool.keep(received(spool, b"bytes"), path)
    assert not spool.remove(path, lambda name: name == NAME)
    assert path.exists()
    assert spool.remove(path, never)
    assert not path.exists()
    assert spool.remove(path, never)


def test_object_whose_row_is_on_its_way_is_not_removed(spool: Spool) -> None:
    path = spool.path_of(NAME)
    with spool.claim(NAME):
        with spool.claim(NAME):
            spool.keep(received(spool, b"bytes"), path)
        assert not spool.remove(path, never)
    assert path.exists()
    assert spool.remove(path, never)


def test_claim_that_fails_is_let_go(spool: Spool) -> None:
    with pytest.raises(RuntimeError), spool.claim(NAME):
        raise RuntimeError
    assert spool.remove(spool.path_of(NAME), never)


def test_files_that_are_not_ours_are_not_listed(spool: Spool) -> None:
    spool.keep(received(spool, b"bytes"), spool.path_aside(NAME))
    (spool.folder / "objects" / "README").write_text("")
    (spool.folder / "aside" / "notes.dcm").write_text("")
    assert list(spool.stored()) == [spool.path_aside(NAME)]


def test_threads_that_keep_under_one_new_folder_all_succeed(spool: Spool) -> None:
    names = [f"ab{number:062x}" for number in range(20)]
    threads = [threading.Thread(target=spool.keep, args=(received(spool, b"x"), spool.path_of(name))) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.stem for path in spool.stored()] == names
