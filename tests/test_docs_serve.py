"""What docs/conformance.md and docs/deploy.md state is what the code does: tables are compared, names looked up."""

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import UID

import fastich
from fastich.serve import config_file
from fastich.serve.config import ServeConfig
from fastich.serve.entities import Refused
from fastich.serve.outputs import codes, key_image, source, sr
from fastich.serve.receive import dimse, reasons

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"
MEANINGS = {
    Refused.MALFORMED: "cannot understand",
    Refused.INVALID_UID: "invalid SOP instance",
    Refused.MISMATCH: "data set does not match",
    Refused.FORBIDDEN_SYNTAX: "transfer syntax not supported",
    Refused.TOO_LARGE: "cannot understand",
    Refused.STORAGE_FULL: "out of resources",
    Refused.BUSY: "out of resources",
    Refused.DATABASE: "out of resources",
}
"""What PS3.7 annex C and PS3.4 B.2 call the statuses; the same words for one status."""


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def syntaxes() -> list[str]:
    """Rows of the table of transfer syntaxes."""
    return [f"| {UID(uid).name} | {uid} |" for uid in dimse.TRANSFER_SYNTAXES]


def statuses() -> list[str]:
    """Rows of the table of C-STORE statuses."""
    rows = {"0x0000": "| 0x0000 | success | |"}
    for reason in Refused:
        code = f"0x{reasons.ANSWERS[reason].dimse_status:04X}"
        row = rows.setdefault(code, f"| {code} | {MEANINGS[reason]} | |")
        rows[code] = row.removesuffix(" |") + (", " if not row.endswith("| |") else " ") + f"{reason.value} |"
    rows["0x0110"] = f"| 0x{reasons.PROCESSING_FAILURE:04X} | processing failure | an error of the server |"
    rows["0x0122"] = (
        f"| 0x{reasons.SOP_CLASS_NOT_SUPPORTED:04X} | SOP class not supported | "
        "not the SOP class of its presentation context |"
    )
    return [rows[code] for code in sorted(rows)]


def classes() -> list[str]:
    """Rows of annex A."""
    found = (str(context.abstract_syntax) for context in dimse.supported_contexts())
    stored = [uid for uid in found if uid != dimse.VERIFICATION]
    return ["| SOP class | UID |", "|---|---|", *(f"| {UID(uid).name} | {uid} |" for uid in stored)]


TABLES = {"syntaxes": syntaxes, "statuses": statuses, "classes": classes}


def between(text: str, name: str) -> list[str]:
    found = re.search(rf"<!-- {name}:begin -->\n(.*?)<!-- {name}:end -->", text, re.DOTALL)
    assert found is not None, name
    return found[1].splitlines()


@pytest.mark.parametrize("name", TABLES)
def test_table_of_the_conformance_statement_is_the_codes(name: str) -> None:
    assert between(page("conformance.md"), name) == TABLES[name]()


def test_conformance_statement_names_version_and_uids() -> None:
    text = page("conformance.md")
    assert f"**fastich {fastich.__version__}**" in text
    for value in (source.IMPLEMENTATION_UID, source.IMPLEMENTATION_NAME, sr.SOP_CLASS, key_image.SOP_CLASS):
        assert value in text
    assert f"Series Number {sr.SERIES_NUMBER}" in text
    assert f"Series Number {key_image.SERIES_NUMBER}" in text
    assert sr.SERIES_DESCRIPTION in text


def test_conformance_statement_has_every_rejection() -> None:
    text = page("conformance.md")
    for result, of, reason in (dimse.UNKNOWN_CALLED, dimse.UNKNOWN_CALLER, dimse.TOO_MANY):
        assert re.search(rf"\| {result} [^|]*\| {of} [^|]*\| {reason} ", text)
    assert f"{dimse.MAX_PDU_BYTES} bytes" in text


def test_conformance_statement_has_every_code() -> None:
    text = page("conformance.md")
    for label, concept in codes.FINDINGS.items():
        assert f'| {label} | ({concept.code}, {concept.scheme}, "{concept.meaning}")' in text
    private = [one for one in (*codes.TRIAGE_VALUES.values(), codes.TRIAGE, codes.REACHED) if one.scheme != "SCT"]
    for concept in private:
        assert f"| {concept.code} | {concept.meaning} |" in text


def settings() -> dict[str, set[str]]:
    """Tables of the TOML file and the keys of each."""

    def of(config: type[Any], name: str) -> dict[str, set[str]]:
        hints = typing.get_type_hints(config)
        found: dict[str, set[str]] = {name: set()}
        for field in dataclasses.fields(config):
            hint = hints[field.name]
            inner = (typing.get_args(hint) or (hint,))[0] if typing.get_origin(hint) is tuple else hint
            found[name].add(field.name)
            if dataclasses.is_dataclass(inner):
                below = f"{name}.{field.name}".removeprefix(".")
                found |= of(typing.cast(type[Any], inner), below)
        return found

    return of(ServeConfig, "")


@pytest.mark.parametrize("name", ["conformance.md", "deploy.md"])
def test_settings_that_the_docs_name_exist(name: str) -> None:
    known, text = settings(), page(name)
    named = re.findall(r"`\[\[?([a-z_.]+)\]\]?(?: ([a-z_]+))?", text)
    assert len(named) > 10
    for table, key in named:
        assert table in known, table
        assert not key or key in known[table], f"[{table}] {key}"


def test_settings_in_the_docs_examples_are_read(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", page("deploy.md"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        (tmp_path / "fastich.toml").write_text(block, encoding="utf-8")
        config = config_file.read(tmp_path / "fastich.toml")
        found = [line for line in config_file.problems(config) if not line.startswith(("[model]", "[spool]"))]
        assert all("expected a file" in line for line in found), found


def test_metrics_that_the_alerts_ask_for_exist() -> None:
    known = (PROJECT / "fastich" / "serve" / "web" / "metrics.py").read_text(encoding="utf-8")
    for text in ((PROJECT / "deploy" / "alerts.yml").read_text(encoding="utf-8"), page("deploy.md")):
        for metric in re.findall(r"\bfastich_(?!session|ICH)[a-z_]+", text):
            stem = re.sub(r"_(instances|studies|deliveries)$", "_{what}", metric)
            assert metric in known or stem in known, metric


@pytest.mark.parametrize("name", ["conformance.md", "deploy.md"])
def test_links_and_files_of_the_docs_exist(name: str) -> None:
    text = page(name)
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (DOCS / target).exists(), target
    for path in re.findall(r"`((?:deploy|bench|tests|fastich)/[\w./]+\.\w+)`", text):
        assert (PROJECT / path).exists(), path


if __name__ == "__main__":  # writes the tables
    written = page("conformance.md")
    for table_name, rows in TABLES.items():
        marks = f"<!-- {table_name}:begin -->\n", f"<!-- {table_name}:end -->"
        start, end = written.index(marks[0]) + len(marks[0]), written.index(marks[1])
        written = written[:start] + "".join(row + "\n" for row in rows()) + written[end:]
    (DOCS / "conformance.md").write_text(written, encoding="utf-8")
