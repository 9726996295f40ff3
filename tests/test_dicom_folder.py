"""Files below a folder: their order and names are those of pathlib, whichever way they are worked out."""

import os
from pathlib import Path

import pytest

from fastich.dicom import find_files, text_below

NAMES = ["a/b", "a-b", "a/b-c/d", "a.b/c", "b/a", "ab", "a b/z", "é/x", "Z", "a/b.c/d", "b-/q"]


def fill(folder: Path) -> None:
    for name in ["a/b-c/d", "a/c", *NAMES[1:2], *NAMES[3:]]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    with open(os.fsencode(folder) + b"/\xff\xfe", "wb"):
        pass


def test_files_are_found_in_the_order_of_paths(tmp_path: Path) -> None:
    fill(tmp_path)
    found = find_files(tmp_path)
    assert len(found) == 12
    assert found == sorted(found)
    assert found == sorted(path for path in tmp_path.rglob("*") if path.is_file())


def test_text_below_is_the_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path, Path(), Path("a"), Path("..") / tmp_path.name, Path(f"{tmp_path}/")):
        for path in find_files(root):
            assert text_below(path, root) == text_below(str(path), root) == path.relative_to(root).as_posix()
    assert text_below("/x/y", Path("/")) == "x/y"


def test_text_below_another_folder_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="/ab/c is not below /a"):
        text_below("/ab/c", Path("/a"))
