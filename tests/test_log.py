import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
from pydicom.dataelem import DataElement

from fastich.serve.config import LogConfig
from fastich.serve.log import OTHERS, OURS, QUOTING, SILENT, one_line, set_up, timestamp


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Loggers as they were."""
    loggers = [logging.getLogger(name) for name in (OURS, *OTHERS, *QUOTING, *SILENT)]
    before = [(one.handlers, one.propagate, one.level, one.disabled) for one in loggers]
    yield
    for logger, (handlers, propagate, level, disabled) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate, logger.disabled = handlers, propagate, disabled
        logger.setLevel(level)


def told(config: LogConfig, name: str = "fastich.dimse") -> tuple[io.StringIO, logging.Logger]:
    stream = io.StringIO()
    set_up(config, stream)
    return stream, logging.getLogger(name)


def test_text_is_one_line_with_time_level_and_part() -> None:
    stream, logger = told(LogConfig())
    logger.info("%d objects", 5)
    line = stream.getvalue()
    assert line.endswith("Z INFO dimse: 5 objects\n")
    assert line[:2] == "20"


def test_json_is_one_object_a_line() -> None:
    stream, logger = told(LogConfig(format="json"))
    logger.warning("Zürich")
    logger.error("b")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["level"], first["part"], first["message"]) == ("warning", "dimse", "Zürich")
    assert second["level"] == "error"
    assert set(first) == {"at", "level", "part", "message"}


@pytest.mark.parametrize("form", ["text", "json"])
def test_sender_cannot_forge_a_line_or_colour_a_terminal(form: str) -> None:
    stream, logger = told(LogConfig(format=form))
    logger.info("from %s", "EVIL\n2025 INFO all is well\x1b[31m\u2028")
    assert len(stream.getvalue().splitlines()) == 1
    assert "\x1b" not in stream.getvalue()


def test_exception_comes_with_its_traceback() -> None:
    for form in ("text", "json"):
        stream, logger = told(LogConfig(format=form))
        try:
            raise RuntimeError("boom")
        except RuntimeError:
            logger.exception("stopped")
        assert "Traceback" in stream.getvalue()
        assert "boom" in stream.getvalue()
    assert "RuntimeError: boom" in json.loads(stream.getvalue())["traceback"]


@pytest.mark.parametrize(("level", "expected"), [("debug", "DIWE"), ("info", "IWE"), ("warning", "WE"), ("error", "E")])
def test_level_is_the_least_severe_that_is_shown(level: str, expected: str) -> None:
    stream, logger = told(LogConfig(level=level))
    for severity in ("debug", "info", "warning", "error"):
        getattr(logger, severity)("x")
    assert "".join(line.split()[1][0] for line in stream.getvalue().splitlines()) == expected


def test_other_libraries_never_say_less_than_a_warning() -> None:
    stream, logger = told(LogConfig(level="debug"), "pynetdicom.dimse")
    logger.debug("SECRET^NAME")
    logger.info("SECRET^NAME")
    logging.getLogger("uvicorn.access").warning("GET /studies/1.2.3")
    assert stream.getvalue() == ""
    logger.warning("peer aborted")
    assert "WARNING pynetdicom.dimse: peer aborted" in stream.getvalue()


def test_set_up_twice_says_each_line_once() -> None:
    told(LogConfig())
    stream, logger = told(LogConfig())
    logger.info("x")
    assert stream.getvalue().count("dimse: x") == 1


def test_warnings_of_pydicom_which_quote_values_are_silenced() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        told(LogConfig())
        warnings.warn_explicit("Invalid value 'SECRET^NAME'", UserWarning, "valuerep.py", 1, module="pydicom.valuerep")
        warnings.warn_explicit("ours", UserWarning, "x.py", 1, module="fastich.x")
    assert [str(one.message) for one in caught] == ["ours"]


def test_warnings_that_pydicom_logs_quote_values_and_are_not_shown() -> None:
    stream, _ = told(LogConfig())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        DataElement(0x00100030, "DA", "SECRET^NAME")
    assert stream.getvalue() == ""


def test_time_is_utc_with_milliseconds() -> None:
    assert timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1735786995.9996) == "2025-01-02T03:03:15.999Z"


def test_control_characters_are_spelled_out_and_letters_stay() -> None:
    assert one_line("a\tb\0ü\u202ex") == "a\\tb\\x00ü\\u202ex"
