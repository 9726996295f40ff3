"""What the process says, on stderr: one line a message, as text or as JSON, never with a patient in it.

Other libraries are kept from naming patients: pydicom's warnings quote values, pynetdicom's lower levels whole data
sets.
"""

import json
import logging
import sys
import time
import warnings
from typing import TextIO

from fastich.serve.config import LogConfig

OURS = "fastich"
OTHERS = ("uvicorn", "uvicorn.error", "pynetdicom", "httpx", "psycopg")
"""Libraries that log; of these only warnings and worse are shown."""
QUOTING = ("pydicom", "highdicom")
"""Libraries whose warnings, which they log as well, quote values of data sets; only errors are shown."""
SILENT = ("uvicorn.access",)
"""URLs of requests name studies; the audit trail says who asked for what."""


def set_up(config: LogConfig, stream: TextIO | None = None) -> None:
    """Send what is logged to ``stream`` (stderr), in the form and from the level that ``config`` says."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if config.format == "json" else TextLines())
    level = getattr(logging, config.level.upper())
    least = {OURS: level}
    least |= dict.fromkeys(OTHERS, max(level, logging.WARNING)) | dict.fromkeys(QUOTING, logging.ERROR)
    for name, shown in least.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(shown)
    for name in SILENT:
        logging.getLogger(name).disabled = True
    warnings.filterwarnings("ignore", module=r"(pydicom|pynetdicom|highdicom)\b")


class TextLines(logging.Formatter):
    """``2025-01-02T03:04:05.678Z INFO housekeeping: deleted 5 objects``; a traceback follows in lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        line = f"{timestamp(record.created)} {record.levelname} {_short(record.name)}: {one_line(record.getMessage())}"
        return line if record.exc_info is None else f"{line}\n{self.formatException(record.exc_info)}"


class JsonLines(logging.Formatter):
    """One JSON object a line, with ``at``, ``level``, ``part``, ``message`` and, of an exception, ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        values = {
            "at": timestamp(record.created),
            "level": record.levelname.lower(),
            "part": _short(record.name),
            "message": one_line(record.getMessage()),
        }
        if record.exc_info is not None:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)


def one_line(text: str) -> str:
    """Text whose control characters are spelled out: an AE title cannot forge a line or colour a terminal."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def timestamp(at: float) -> str:
    """A time as RFC 3339, UTC, milliseconds."""
    milliseconds = int(at * 1000)
    seconds, rest = divmod(milliseconds, 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:03d}Z"


def _short(name: str) -> str:
    return name.removeprefix(OURS + ".")
