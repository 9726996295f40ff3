"""What every command line shares: flags made from a config dataclass, one-line errors, exit codes, progress.

Exit status: 0 done, 2 bad usage, 1 anything else with one clear line on stderr (a traceback only with ``--debug``).
"""

import argparse
import dataclasses
import signal
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from fastich.errors import FastichError, UsageError

T = TypeVar("T")
_beside: list[str] = []
"""Holds this process's name where another one speaks for it (``hush``)."""


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    bare: str | None = None,
    read: Callable[[str], Any] | None = None,
) -> Any:
    """A config field that becomes a flag: ``size: int = option(256, "side of the input, pixels")``.

    With ``bare`` the flag may stand without a value and then means that one; ``--no-...`` means the default. ``read``
    makes the value of the flag's text where the field's type alone does not (it raises ``ValueError``).
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "bare": bare, "read": read})


def required(help: str) -> Any:
    """A config field without a default: its flag is required."""
    return dataclasses.field(metadata={"help": help, "choices": None})


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """The argument parser of ``python -m fastich.<name>`` with ``--debug`` on it."""
    made = argparse.ArgumentParser(
        prog=f"python -m fastich.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def add_config_flags(to: argparse.ArgumentParser, config: type[Any]) -> None:
    """Add one flag for each field of the dataclass ``config`` made with ``option`` or ``required``."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if "help" not in field.metadata:
            continue
        flag = "--" + field.name.replace("_", "-")
        must = field.default is dataclasses.MISSING
        kind = _plain_type(hints[field.name])
        if kind is bool:
            to.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=field.default, help=field.metadata["help"]
            )
        else:
            to.add_argument(
                flag,
                type=field.metadata.get("read") or kind,
                required=must,
                default=None if must else field.default,
                choices=field.metadata["choices"],
                help=_help(field),
                metavar=None if field.metadata["choices"] else field.name.upper(),
                **_bare(field),
            )
        if field.metadata.get("bare"):
            off = "--no-" + flag.removeprefix("--")
            to.add_argument(off, dest=field.name, action="store_const", const=field.default, help=argparse.SUPPRESS)


def _help(field: "dataclasses.Field[Any]") -> str:
    """A flag's help with what its absence means, and what standing alone means."""
    told = [f"default: {field.default}"] if field.default not in (dataclasses.MISSING, None) else []
    told += [f"alone: {field.metadata['bare']}"] if field.metadata.get("bare") else []
    return (str(field.metadata["help"]) + (f" ({'; '.join(told)})" if told else "")).replace("%", "%%")


def _bare(field: "dataclasses.Field[Any]") -> dict[str, Any]:
    """What argparse needs for a flag that may stand without a value."""
    value = field.metadata.get("bare")
    return {"nargs": "?", "const": value} if value else {}


def _plain_type(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(arm for arm in typing.get_args(hint) if arm is not type(None))
    return hint


def config_from_args(args: argparse.Namespace, config: type[T]) -> T:
    """Build ``config`` from parsed flags.

    Raises:
        UsageError: the dataclass refused a value.
    """
    names = [field.name for field in dataclasses.fields(config) if "help" in field.metadata]  # type: ignore[arg-type]
    try:
        return config(**{name: getattr(args, name) for name in names})
    except FastichError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def plain(value: Any) -> Any:
    """A config as JSON can hold it: dataclasses and tuples opened up, paths as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def progress(items: Iterable[T], *, total: int | None, unit: str, title: str) -> Iterator[T]:
    """Iterate with a bar, rate and ETA where stderr is a terminal; silently elsewhere."""
    yield from tqdm(items, total=total, unit=" " + unit, desc=title, disable=not shows_progress(), leave=False)


def hush(name: str) -> None:
    """Say nothing and show no bars from here on but errors, with ``name`` before them: another process speaks."""
    _beside[:] = [name]


def shows_progress() -> bool:
    """Whether someone watches this process on a terminal."""
    return sys.stderr.isatty() and not _beside


def say(message: str) -> None:
    """One line for a person, on stderr; stdout is for results."""
    if not _beside:
        print(message, file=sys.stderr, flush=True)


def _complain(message: str) -> None:
    print("".join(f"{name}: " for name in _beside) + message, file=sys.stderr, flush=True)


def run(main: Callable[[list[str]], int | None], argv: list[str] | None = None) -> typing.NoReturn:
    """Run a verb's ``main(argv)`` and exit with its status; errors become one line (module docstring)."""
    arguments = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        status = main(arguments) or 0
    except KeyboardInterrupt:
        _complain("interrupted")
        status = 130
    except BrokenPipeError:
        status = 1
    except Exception as error:
        if "--debug" in arguments:
            raise
        _complain(f"error: {one_line(error)}")
        status = 2 if isinstance(error, UsageError) else 1
    sys.exit(status)


def one_line(error: BaseException) -> str:
    """An exception as one line: our own messages as they are, others with their type in front."""
    text = " ".join(str(error).split()) or "no details"
    return text if isinstance(error, FastichError | OSError) else f"{type(error).__name__}: {text}"
