"""``python -m fastich.serve``: DICOM studies in, a prioritised worklist and DICOM results out.

Without ``--config`` every setting has its default: DICOM on 127.0.0.1:11112, the page on 127.0.0.1:8080. The first
start prints the page's address and the token that opens it.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from fastich import verb
from fastich.errors import UsageError
from fastich.serve import config_file, dry_run, log, start_check
from fastich.serve.config import ServeConfig
from fastich.serve.server import Server, open_model


def main(argv: list[str]) -> int:
    """Run the verb."""
    args = _parser().parse_args(argv)
    if args.print_config:
        print(config_file.example(), end="")
        return 0
    config = settings(args)
    if args.dry_run and not args.check_config:
        return _dry_run(config, args.dry_run, as_json=args.json)
    if args.check_config:
        return _check(config)
    if found := start_check.problems(config):  # the model is opened by the server itself
        raise UsageError("; ".join(found))
    return _serve(config, argv)


def _parser() -> argparse.ArgumentParser:
    made = verb.parser("serve", __doc__ or "")
    made.add_argument("--config", type=Path, metavar="TOML", help="settings; --print-config shows every key")
    made.add_argument("--model", type=Path, metavar="DIR", help="model folder ([model] folder)")
    made.add_argument("--spool", type=Path, metavar="DIR", help="folder of everything taken in ([spool] folder)")
    made.add_argument("--dicom-port", type=int, metavar="N", help="port of DICOM, 0 takes a free one ([dicom] port)")
    made.add_argument("--http-port", type=int, metavar="N", help="port of the page, 0 takes a free one ([http] port)")
    made.add_argument("--check-config", action="store_true", help="say what cannot work, and stop")
    made.add_argument("--print-config", action="store_true", help="print a TOML file with every key, and stop")
    made.add_argument(
        "--dry-run", type=Path, action="append", metavar="PATH", help="say what would happen to these files, and stop"
    )
    made.add_argument("--json", action="store_true", help="print the result of --dry-run as JSON")
    return made


def settings(args: argparse.Namespace) -> ServeConfig:
    """The file's settings with the flags over them."""
    config = config_file.read(args.config) if args.config else ServeConfig()
    flags: tuple[tuple[str, str, Any], ...] = (
        ("model", "folder", args.model),
        ("spool", "folder", args.spool),
        ("dicom", "port", args.dicom_port),
        ("http", "port", args.http_port),
    )
    for section, name, value in flags:
        if value is not None:
            changed = dataclasses.replace(getattr(config, section), **{name: value})
            config = dataclasses.replace(config, **{section: changed})
    return config


def _check(config: ServeConfig) -> int:
    """Print what would not start."""
    found = _problems(config)
    for line in found or ["the settings are sound, and the model opens"]:
        print(line)
    return 1 if found else 0


def _problems(config: ServeConfig) -> list[str]:
    """What would not start; the model is opened too, for it is what fails most."""
    found = start_check.problems(config)
    if not found:
        open_model(config.model)
    return found


def _dry_run(config: ServeConfig, paths: list[Path], *, as_json: bool) -> int:
    """What would happen to files; only the model and the rules need to be there."""
    wrong = [line for line in config_file.problems(config) if line.startswith(("[model]", "[scoring]"))]
    if wrong:
        raise UsageError("; ".join(wrong))
    session, study_session = open_model(config.model)
    report = dry_run.explain(paths, session, study_session, config)
    print(json.dumps(report, indent=2, allow_nan=False) if as_json else dry_run.table(report))
    return 0


def _serve(config: ServeConfig, argv: list[str]) -> int:
    """Serve until a signal; after a hang-up with sound settings and a sound model, start again in place."""
    log.set_up(config.log)
    os.umask(0o077)  # patients' names stand in the database: nobody else reads what this process writes
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # while it starts: its default would end the process
    server = Server(config)
    again = server.run(check=lambda: _reload_problems(argv))
    if again:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it outlives the exec
        os.execv(sys.executable, [sys.executable, "-m", "fastich.serve", *argv])
    return 0


def _reload_problems(argv: list[str]) -> list[str]:
    """Why the settings and the model, as they are now, would not start."""
    return _problems(settings(_parser().parse_args(argv)))


if __name__ == "__main__":
    verb.run(main, sys.argv[1:])
