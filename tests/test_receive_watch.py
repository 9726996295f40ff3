"""The watched folder: what stands still is taken in once, what is refused says why, links lead nowhere."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from dicom_data import DEFLATED
from receive_data import ROOT, ct_bytes, incoming_files, open_ingest, stored_files, wait_until

from fastich.errors import FastichError
from fastich.serve.config import WatchConfig
from fastich.serve.entities import Refused
from fastich.serve.ingest import Ingest, IngestRefused
from fastich.serve.receive.watch import FolderWatch


class Watched:
    """A watch that looks when a test says so."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "watched"
        self.folder.mkdir()
        self.ingest = open_ingest(tmp_path / "spool")
        self.events: list[tuple[str, dict[str, Any]]] = []
        config = WatchConfig(folder=self.folder, interval_s=0.05)
        self.watch = FolderWatch(self.ingest, config, on_event=lambda kind, values: self.events.append((kind, values)))

    def put(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            self.watch.look()

    def inside(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if path.is_symlink() or not path.is_dir()
        )


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_files_that_stand_still_are_taken_in_and_moved_to_done(watched: Watched) -> None:
    for number in range(3):
        watched.put(f"study/series/IM{number}", ct_bytes(number))
    watched.look(1)
    assert not stored_files(watched.ingest), "they may be growing"
    watched.look(1)
    assert len(stored_files(watched.ingest)) == 3
    assert watched.inside() == ["done/IM0", "done/IM1", "done/IM2"]
    assert watched.ingest._store.find_instance(f"{ROOT}.1.1.2").origin.way == "folder"
    assert not incoming_files(watched.ingest)


def test_a_file_that_grows_is_left_alone_until_it_stops(watched: Watched) -> None:
    whole = ct_bytes(1)
    for size in (100, 500, 1000):
        watched.put("slow", whole[:size])
        watched.look(1)
    watched.put("slow", whole)
    watched.look(1)
    assert (watched.inside(), watched.events) == (["slow"], [])
    watched.look(1)
    assert watched.inside() == ["done/slow"]


def test_a_file_that_changes_while_it_is_read_is_left_for_later(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = watched.put("one", ct_bytes(1))
    watched.look(1)
    check = watched.ingest.check_capacity

    def grow() -> None:
        check()
        with path.open("ab") as out:
            out.write(b"more")

    monkeypatch.setattr(watched.ingest, "check_capacity", grow)
    watched.look(1)
    assert watched.inside() == ["one"]
    assert not stored_files(watched.ingest)
    assert not incoming_files(watched.ingest)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no DICOM at all", "not a DICOM object"),
        (b"", "not a DICOM object"),
        (ct_bytes(1, syntax=DEFLATED), "a transfer syntax that is not taken"),
        (ct_bytes(1, SOPInstanceUID="../../x"), "a UID that breaks PS3.5 9.1"),
        (bytes(2**20 + 1), "larger than the cap"),
    ],
    ids=["text", "empty", "deflated", "uid", "large"],
)
def test_what_is_refused_is_moved_with_its_reason_beside_it(watched: Watched, data: bytes, words: str) -> None:
    watched.put("bad.dcm", data)
    watched.look()
    assert watched.inside() == ["refused/bad.dcm", "refused/bad.dcm.txt"]
    assert (watched.folder / "refused" / "bad.dcm").read_bytes() == data
    assert words in (watched.folder / "refused" / "bad.dcm.txt").read_text()
    watched.look()
    assert len(watched.events) == 1, "refused once"


@pytest.mark.parametrize("reason", [Refused.STORAGE_FULL, Refused.BUSY, Refused.DATABASE])
def test_what_passes_by_itself_leaves_the_file_for_later(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, reason: Refused
) -> None:
    def refuse() -> None:
        raise IngestRefused(reason, "as asked")

    watched.put("one", ct_bytes(1))
    with monkeypatch.context() as patch:
        patch.setattr(watched.ingest, "check_capacity", refuse)
        watched.look(4)
        assert watched.inside() == ["one"]
        assert watched.events == [("waiting", {"way": "folder", "reason": reason.value})], "said once"
    watched.look(1)
    assert watched.inside() == ["done/one"]


def test_equal_names_get_numbers_and_nothing_is_written_over(watched: Watched) -> None:
    for number in range(3):
        watched.put(f"{number}/IM1", ct_bytes(number))
        watched.put(f"{number}/bad", b"bad %d" % number)
    watched.look()
    assert watched.inside() == [
        "done/IM1",
        "done/IM1.1",
        "done/IM1.2",
        "refused/bad",
        "refused/bad.1",
        "refused/bad.1.txt",
        "refused/bad.2",
        "refused/bad.2.txt",
        "refused/bad.txt",
    ]
    assert len(stored_files(watched.ingest)) == 3


def test_links_are_never_followed(watched: Watched, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "one.dcm").write_bytes(ct_bytes(1))
    (watched.folder / "file").symlink_to(outside / "one.dcm")
    (watched.folder / "folder").symlink_to(outside)
    (watched.folder / "loop").symlink_to(watched.folder)
    os.mkfifo(watched.folder / "pipe")
    watched.look(3)
    assert not stored_files(watched.ingest)
    assert [path.name for path in outside.iterdir()] == ["one.dcm"]
    assert watched.inside() == ["file", "folder", "loop", "pipe"]
    assert not watched.events


def test_a_done_folder_that_became_a_link_is_not_written_to(watched: Watched, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (watched.folder / "done").rmdir()
    (watched.folder / "done").symlink_to(outside)
    watched.put("one", ct_bytes(1))
    with pytest.raises(OSError):
        watched.look()
    assert not list(outside.iterdir())


def test_hidden_files_are_being_written_by_somebody(watched: Watched) -> None:
    watched.put(".partial", ct_bytes(1))
    watched.put(".folder/one", ct_bytes(2))
    watched.look(3)
    assert not stored_files(watched.ingest)


def test_the_thread_takes_in_what_is_put_and_survives_the_folder(watched: Watched) -> None:
    watched.watch.start()
    try:
        watched.put("one", ct_bytes(1))
        wait_until(lambda: "done/one" in watched.inside())
        shutil.move(watched.folder, watched.folder.with_name("gone"))
        wait_until(lambda: any(kind == "waiting" for kind, _ in watched.events))
        shutil.move(watched.folder.with_name("gone"), watched.folder)
        watched.put("two", ct_bytes(2))
        wait_until(lambda: "done/two" in watched.inside())
    finally:
        watched.watch.stop()


def test_no_event_holds_the_name_of_a_file(watched: Watched) -> None:
    watched.put("SECRET^NAME.dcm", ct_bytes(1))
    watched.put("SECRET^BAD.dcm", b"bad")
    watched.look()
    assert len(watched.events) == 2
    assert "SECRET" not in repr(watched.events)


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    ingest = open_ingest(tmp_path / "spool")
    with pytest.raises(FastichError, match=r"watch.folder: .*absent: expected a folder that can be written, found No"):
        _watch(ingest, tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(FastichError, match=r"watch.folder: .*file: expected a folder .*, found Not a directory"):
        _watch(ingest, tmp_path / "file")


def _watch(ingest: Ingest, folder: Path) -> FolderWatch:
    return FolderWatch(ingest, WatchConfig(folder=folder), on_event=lambda *_: None)
