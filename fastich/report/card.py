"""A model card from model.json alone: what the model is for, what it saw, how well it does, and what it cannot do.

A pure function of the document, so that a card can be made again anywhere and compared with what is there. The wording
of the sections follows Mitchell et al., "Model cards for model reporting", FAT* 2019 (arXiv:1810.03993), section 4.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from fastich.files import json_text
from fastich.labels import LABELS
from fastich.report.card_numbers import (
    calibration_section,
    metrics_section,
    operating_section,
    parity_section,
    subgroups_section,
    triage_section,
)
from fastich.report.card_parts import NOT_STATED, Document, Section, Table, facts, flat, look, percent, said, settings
from fastich.report.html import environment

VALIDATION = "val"
FEW_PATIENTS = 100
"""Below this number of judged patients an interval is wide and rare labels have a handful of positives."""
_HERE = Path(__file__).parent


def sections(document: Document) -> tuple[Section, ...]:
    """Every section of the card, in order."""
    return (
        _use(document),
        _data(document),
        _architecture(document),
        metrics_section(document),
        operating_section(document),
        calibration_section(document),
        triage_section(document),
        subgroups_section(document),
        _limits(document),
        _leakage(document),
        parity_section(document),
        _files(document),
    )


def title(document: Document) -> str:
    """The card's heading: which network."""
    weights = said(look(document, "training", "weights_sha256"))[:12]
    return f"Model card: intracranial hemorrhage on head CT, weights {weights}"


def identity(document: Document) -> str:
    """SHA-256 of model.json as it is written: a card that says another one is of another model.json."""
    return hashlib.sha256(json_text(document).encode()).hexdigest()


def _use(document: Document) -> Section:
    sentences = (
        f"Intended use: {said(document.get('intended_use'))}.",
        "It ranks head CT studies by how likely they hold a bleed and points at slices; a person reads every study.",
        f"Labels: {said(document.get('labels'))}.",
    )
    return Section(title="Intended use", sentences=sentences)


def _data(document: Document) -> Section:
    metrics = document.get("metrics") or look(document, "study", "metrics")
    certificate = document.get("leakage_certificate")
    rows = [
        ("records trained on (SHA-256 of the data set)", look(document, "training", "dataset_sha256")),
        ("records judged", look(metrics, "dataset_sha256")),
        ("split rule", look(certificate, "rule")),
        ("split judged", look(metrics, "split")),
        ("slices judged", look(metrics, "num_slices")),
        ("studies judged", look(metrics, "num_studies")),
        ("patients judged", look(metrics, "num_patients")),
        *((f"slices with {label}", percent(look(metrics, "prevalence", label))) for label in LABELS),
    ]
    counted = look(certificate, "splits") or {}
    kinds = ("patients", "studies", "series", "pixels")
    splits = tuple((name, *(said(look(found, kind)) for kind in kinds)) for name, found in counted.items())
    table = Table(caption="splits", columns=("split", *kinds), rows=splits)
    origin = "Whether the data are of patients or synthetic, and where they come from: not stated in model.json."
    return Section(title="Data", sentences=(origin,), tables=(facts("data", rows), *((table,) if splits else ())))


def _architecture(document: Document) -> Section:
    config = look(document, "training", "config") or {}
    windows = look(document, "preprocessing", "windows") or ()
    rows = [
        ("network", look(config, "backbone")),
        ("features of a slice", _width(document)),
        ("input", " ".join(map(said, (look(document, "input", "dtype"), look(document, "input", "unit"))))),
        ("resized to, pixels", look(document, "preprocessing", "size")),
        ("windows, centre / width in HU", [f"{said(w['center_hu'])} / {said(w['width_hu'])}" for w in windows]),
        ("sees neighbouring slices", look(document, "preprocessing", "adjacent")),
        ("epoch", look(document, "training", "epoch")),
        ("sequence model", look(document, "study", "variant")),
    ]
    tables = [facts("architecture and input", rows), settings("training configuration", config)]
    study = look(document, "study", "config")
    if study:
        tables.append(settings("training configuration of the sequence model", study))
    return Section(title="Architecture and input", tables=tuple(tables))


def _width(document: Document) -> Any:
    """C of the output ``embedding``."""
    outputs: list[dict[str, Any]] = document.get("outputs") or []
    return next((spec["shape"][1] for spec in outputs if spec["name"] == "embedding"), None)


def _limits(document: Document) -> Section:
    metrics, found = document.get("metrics") or look(document, "study", "metrics"), []
    patients = look(metrics, "num_patients")
    if metrics is None:
        found.append("Nothing was measured: no evaluation was given to the export.")
    elif patients is not None and patients < FEW_PATIENTS:
        found.append(f"Judged on {patients} patients only: rare labels have few positives, and intervals are wide.")
    for whose, part in (("the network's own slices", document), ("the sequence model", document.get("study"))):
        measured = look(part, "metrics", "measured_with")
        if measured is not None:
            found.append(
                f"Figures of {whose} were measured with {measured}: what they say of probabilities, thresholds and "
                "triage is of the old ones."
            )
    for label in LABELS:
        if look(metrics, "num_positive", label) == 0:
            found.append(f"No slice with {label} was judged: what it does there is undefined.")
    if look(document, "preprocessing", "adjacent"):
        found.append("A slice is judged with its neighbours: slices must come as one series in order.")
    if look(document, "study") is None:
        found.append("Slices are judged one by one and a study by its largest slice: there is no sequence model.")
    if look(document, "calibration", "method") == "none":
        found.append("Probabilities of single slices are not calibrated.")
    if look(metrics, "split") is not None and look(metrics, "split") == VALIDATION:
        found.append("Judged on the validation split, on which calibration, thresholds and triage were chosen too.")
    for what, name in (("judged", "leakage"), ("validation", "leakage_of_validation")):
        if look(metrics, name, "clean") is False:
            found.append(f"The run has seen patients, studies or images of the {what} split; that was allowed.")
    if document.get("leakage_certificate") is None:
        found.append("No leakage certificate: nothing says that judged patients were not trained on.")
    found.append("Not evaluated on a clinical population; not seen by a regulator.")
    return Section(title="Limits", sentences=tuple(found))


def _leakage(document: Document) -> Section:
    found = document.get("leakage_certificate")
    if found is None:
        return Section(title="Leakage certificate", sentences=(NOT_STATED.capitalize() + ".",))
    clean = look(found, "clean")
    verdict = {True: "The splits share nothing.", False: "The splits share patients, studies or images."}.get(clean)
    rows: list[dict[str, Any]] = look(found, "shared") or []
    shared = tuple(Table(caption="shared", columns=tuple(row), rows=_cells(rows)) for row in rows[:1])
    return Section(title="Leakage certificate", sentences=(verdict or f"Clean: {NOT_STATED}.",), tables=shared)


def _cells(rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(said(value) for value in row.values()) for row in rows)


def _files(document: Document) -> Section:
    rows = tuple(
        (name, said(look(entry, "role")), said(look(entry, "size_bytes")), said(look(entry, "sha256")))
        for name, entry in (document.get("files") or {}).items()
    )
    files = Table(caption="files", columns=("file", "role", "bytes", "SHA-256"), rows=rows)
    return Section(
        title="Files and versions",
        sentences=(f"Made from model.json with SHA-256 {identity(document)}.",),
        tables=(files, facts("made with", flat(document.get("versions") or {}))),
    )


def to_markdown(document: Document) -> str:
    """The card as Markdown text, ending in a newline."""
    lines = [f"# {_plain(title(document))}", ""]
    for section in sections(document):
        lines += [f"## {section.title}", ""]
        lines += [line for sentence in section.sentences for line in (_plain(sentence), "")]
        for table in section.tables:
            lines += [f"*{_plain(table.caption)}*", "", _row(table.columns), _row(["---"] * len(table.columns))]
            lines += [*(_row([_plain(cell) for cell in row]) for row in table.rows), ""]
    return "\n".join(lines)


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text that stays text in Markdown: no HTML, no links, no table marks, one line."""
    one_line = " ".join(text.split())
    for char, safe in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("[", "\\["),
        ("`", "\\`"),
    ):
        one_line = one_line.replace(char, safe)
    return one_line


def to_html(document: Document) -> str:
    """The card as one HTML page: no scripts, nothing fetched, everything escaped."""
    template = environment().get_template("card.html")
    css = (_HERE / "report.css").read_text(encoding="utf-8")
    use = said(document.get("intended_use"))
    return template.render(title=title(document), intended_use=use, sections=sections(document), css=css) + "\n"


def normalised(document: Document) -> dict[str, Any]:
    """The document as JSON gives it back: tuples become lists, so that written and read cards are equal."""
    plain: dict[str, Any] = json.loads(json.dumps(document))
    return plain
