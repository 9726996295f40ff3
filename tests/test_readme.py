"""The README is true: its tree names every file, its commands exist."""

import re
from pathlib import Path

import pytest

from fastich import cli

PROJECT = Path(__file__).resolve().parents[1]
README = (PROJECT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path",
    [p for p in sorted((PROJECT / "fastich").rglob("*.py")) if p.name not in ("__init__.py", "__main__.py")],
    ids=lambda path: str(path.relative_to(PROJECT)),
)
def test_tree_names_every_file(path: Path) -> None:
    assert re.search(rf"(?<![\w]){re.escape(path.name)}", README)


def test_commands_exist() -> None:
    for verb in re.findall(r"python -m fastich\.(\w+)", README):
        assert verb in cli.VERBS or (PROJECT / "fastich" / verb).exists()
    for script in re.findall(r"python ((?:export|bench)/\w+\.py)", README):
        assert (PROJECT / script).exists()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (PROJECT / target).exists(), target


def test_make_targets_exist() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"@[A-Z]+@|TODO|FIXME", README)
