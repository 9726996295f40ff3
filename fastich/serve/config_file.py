"""The server's TOML file: read strictly into ``ServeConfig``, checked for what cannot work, and written as an example.

Whatever is wrong is said at once, one line each, with file and key; a misspelt key never means a silent default.
"""

import dataclasses
import ipaddress
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastich.errors import UsageError
from fastich.serve.config import Destination, ServeConfig, TlsConfig

MAX_PORT = 65535
MAX_AE_TITLE = 16
"""Characters of an AE title (PS3.5 table 6.2-1)."""


def read(path: Path) -> ServeConfig:
    """The settings of one TOML file; relative paths in it are relative to its folder.

    Raises:
        UsageError: the file is missing or no TOML, or a key is unknown, of another type or not one of its choices.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: expected a TOML file, found none ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected TOML, found {error}") from error
    made: ServeConfig = _table(ServeConfig, document, str(path), path.parent)
    return made


def _table(config: type[Any], document: Any, where: str, folder: Path) -> Any:
    if not isinstance(document, Mapping):
        raise UsageError(f"{where}: expected a table, found {type(document).__name__}")
    fields = {field.name: field for field in dataclasses.fields(config)}
    hints = typing.get_type_hints(config)
    for name in document:
        if name not in fields:
            raise UsageError(f"{where}: {name}: unknown key; expected one of {', '.join(fields)}")
    values = {}
    for name, value in document.items():
        values[name] = _value(hints[name], value, f"{where}: {name}", folder)
        choices = fields[name].metadata["choices"]
        if choices and values[name] not in choices:
            raise UsageError(f"{where}: {name}: expected one of {', '.join(choices)}, found {value!r}")
    return config(**values)


def _value(hint: Any, value: Any, where: str, folder: Path) -> Any:
    """``value`` as a field of type ``hint`` holds it."""
    if dataclasses.is_dataclass(hint):
        return _table(typing.cast(type[Any], hint), value, where, folder)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise UsageError(f"{where}: expected a list, found {value!r}")
        (inner, _) = typing.get_args(hint)
        return tuple(_value(inner, item, f"{where}[{at}]", folder) for at, item in enumerate(value))
    if isinstance(hint, types.UnionType):
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
        if value == "":  # as the example file shows what is not set
            return None
    if hint is Path:
        if not isinstance(value, str) or not value:
            raise UsageError(f"{where}: expected a path, found {value!r}")
        return folder / value
    wanted = (int, float) if hint is float else hint
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise UsageError(f"{where}: expected {hint.__name__}, found {value!r}")
    return float(value) if hint is float else value


def problems(config: ServeConfig) -> list[str]:
    """What cannot work, one line each; empty where the settings are sound. Looks at files, never at the network."""
    return [*_listening(config), *_numbers(config), *_leaving(config), *_files(config)]


def _listening(config: ServeConfig) -> Iterator[str]:
    if not (config.dicom.enabled or config.http.enabled or config.watch.folder):
        yield "nothing listens: enable [dicom] or [http], or name a [watch] folder"
    for name, port in (("dicom", config.dicom.port), ("http", config.http.port)):
        if not 0 <= port <= MAX_PORT:
            yield f"[{name}] port: expected 0 to {MAX_PORT}, found {port}"
    yield from _ae_title("[dicom] ae_title", config.dicom.ae_title)
    for peer in config.dicom.peers:
        try:
            ipaddress.ip_network(peer.address or "0.0.0.0/0")
        except ValueError:
            yield f"[[dicom.peers]] address: expected an IP address or network (192.0.2.0/24), found {peer.address!r}"
    for address in config.http.proxy_addresses:
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError:
            yield f"[http] proxy_addresses: expected IP addresses or networks, found {address!r}"


def _ae_title(where: str, title: str) -> Iterator[str]:
    if (
        not title.strip()
        or len(title) > MAX_AE_TITLE
        or "\\" in title
        or not title.isascii()
        or not title.isprintable()
    ):
        yield f"{where}: expected 1 to {MAX_AE_TITLE} ASCII characters without backslash, found {title!r}"


def _numbers(config: ServeConfig) -> Iterator[str]:
    """Counts and times are positive; retention may be 0 (never)."""
    sections = ("spool", "dicom", "http", "watch", "scoring", "delivery")
    for section in sections:
        table = getattr(config, section)
        for field in dataclasses.fields(table):
            value = getattr(table, field.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if is_number and field.name != "port" and not 0 < value < math.inf:
                yield f"[{section}] {field.name}: expected more than 0, found {value:g}"
    for name in ("pixels_days", "studies_days"):
        if not 0 <= getattr(config.retention, name) < math.inf:
            yield f"[retention] {name}: expected 0 (never) or more, found {getattr(config.retention, name):g}"


def _leaving(config: ServeConfig) -> Iterator[str]:
    names = [one.name for one in config.destinations]
    for at, one in enumerate(config.destinations):
        where = f"[[destinations]] {one.name or at}"
        if not one.name or names.count(one.name) > 1:
            yield f"{where}: name: expected a name of its own, found {one.name!r}"
        yield from _destination(where, one)
    if config.webhook.url and not config.webhook.url.startswith(("http://", "https://")):
        yield f"[webhook] url: expected http:// or https://, found {config.webhook.url!r}"
    if config.webhook.url and config.webhook.secret_file is None:
        yield "[webhook] secret_file: expected a file with the signature's key, found none"


def _destination(where: str, one: Destination) -> Iterator[str]:
    if one.kind == "stow":
        if not one.url.startswith(("http://", "https://")):
            yield f"{where}: url: expected http:// or https://, found {one.url!r}"
    else:
        if not one.host:
            yield f"{where}: host: expected a name or address, found none"
        if not 1 <= one.port <= MAX_PORT:
            yield f"{where}: port: expected 1 to {MAX_PORT}, found {one.port}"
        yield from _ae_title(f"{where}: ae_title", one.ae_title)
    for kind in one.send:
        if kind not in ("sr", "sc"):
            yield f"{where}: send: expected sr or sc, found {kind!r}"


def _files(config: ServeConfig) -> Iterator[str]:
    """Files that are named are there."""
    if config.model.folder is None:
        yield "[model] folder: expected a model folder (or --model), found none"
    elif not config.model.folder.is_dir():
        yield f"[model] folder: {config.model.folder} is no folder; export one with export/to_onnx.py"
    if config.spool.folder is None:
        yield "[spool] folder: expected a folder (or --spool), found none"
    named = [("[webhook] secret_file", config.webhook.secret_file), ("[scoring] rules", config.scoring.rules)]
    named += [(f"[[destinations]] {one.name}: token_file", one.token_file) for one in config.destinations]
    tables = [("[dicom.tls]", config.dicom.tls), ("[http.tls]", config.http.tls)]
    for where, tls in [*tables, *((f"[[destinations]] {one.name}: tls", one.tls) for one in config.destinations)]:
        named += [(f"{where} {field.name}", getattr(tls, field.name)) for field in dataclasses.fields(TlsConfig)]
        if (tls.certificate is None) != (tls.private_key is None):
            yield f"{where}: expected certificate and private_key together, found one of them"
    for where, path in named:
        if path is not None and not path.is_file():
            yield f"{where}: expected a file, found none at {path}"


def example() -> str:
    """A TOML file with every key, commented out at its default, and what it means."""
    lines = [
        "# fastich.serve: every key with its default. Uncomment what you change; check it with --check-config.",
        "",
    ]
    for field in dataclasses.fields(ServeConfig):
        hint = typing.get_type_hints(ServeConfig)[field.name]
        lines += _section(field.name, hint)
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, hint: Any) -> list[str]:
    """One table, or one table of an array, and the tables in it."""
    repeated = typing.get_origin(hint) is tuple
    config = typing.get_args(hint)[0] if repeated else hint
    hints = typing.get_type_hints(config)
    lines = [f"# {' '.join((config.__doc__ or '').split('. ')[0].split(': ', 1)[-1].split())}"]
    lines.append(f"# [[{name}]]" if repeated else f"[{name}]")
    inner: list[str] = []
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind) or (typing.get_origin(kind) is tuple and _is_table(kind)):
            inner += _commented(_section(f"{name}.{field.name}", kind), repeated)
            continue
        choices = field.metadata["choices"]
        told = field.metadata["help"] + (f" ({', '.join(choices)})" if choices else "")
        lines.append(f"# {field.name} = {_toml(field.default)}  # {told}")
    return [*lines, "", *inner]


def _is_table(kind: Any) -> bool:
    return dataclasses.is_dataclass(typing.get_args(kind)[0])


def _commented(lines: list[str], repeated: bool) -> list[str]:
    """A table inside an array of tables that is itself only an example must not stand alone."""
    return [f"# {line}" if repeated and line.startswith("[") else line for line in lines]


def _toml(value: Any) -> str:
    if value is None:
        return '""'
    return json.dumps(list(value) if isinstance(value, tuple) else value)
