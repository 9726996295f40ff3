import importlib.util
import subprocess
import sys

import pytest

from fastich import __version__, cli


def call(*argv: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.argv[1:] = {list(argv)!r}; from fastich.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_help_lists_every_verb() -> None:
    assert all(f"  {verb}" in cli.usage() for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_is_a_module(verb: str) -> None:
    assert importlib.util.find_spec(f"fastich.{verb}") is not None


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb: str) -> None:
    command = [sys.executable, "-W", "error::DeprecationWarning:fastich", "-m", f"fastich.{verb}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m fastich.{verb}" in done.stdout


@pytest.mark.parametrize("verb", cli.VERBS)
def test_the_console_script_reaches_every_verb(verb: str) -> None:
    done = call(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m fastich.{verb}" in done.stdout


def test_an_unknown_verb_is_bad_usage() -> None:
    done = call("trian")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no verb 'trian'; one of: inspect")


def test_version_is_printed() -> None:
    assert call("--version").stdout == f"fastich {__version__}\n"
