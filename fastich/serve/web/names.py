"""Text that came out of a DICOM header, made fit to be read by a person: names, dates, and nothing that is no text.

Escaping is the template's work (autoescape) and the JSON encoder's; here characters go that have no place on a line:
controls, and the bidirectional overrides that let a name display as another one. Pure functions, microseconds.
"""

import unicodedata
from datetime import UTC, datetime

MAX_CHARACTERS = 256
"""PN has at most 64 characters in each of three groups (PS3.5 6.2); what is longer is no name."""
NOT_STATED = ""
SINGLE_LINE_GAPS = frozenset({"Cc", "Zl", "Zp"})
DROPPED = frozenset({"Cf", "Cs", "Co", "Cn"})
"""Unicode categories: Cf holds the bidirectional overrides and zero-width characters; the others have no glyph."""


def clean(text: str, limit: int = MAX_CHARACTERS) -> str:
    """``text`` as one line of at most ``limit`` characters: controls are gaps, invisible characters are gone."""
    kept = []
    for character in text[: 4 * limit]:
        category = unicodedata.category(character)
        if category in SINGLE_LINE_GAPS:
            kept.append(" ")
        elif category not in DROPPED:
            kept.append(character)
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def person_name(value: str) -> str:
    """A PN value as people write it: ``Family, Prefix Given Middle, Suffix``, further groups in brackets.

    Source: PS3.5 6.2.1: groups are apart by ``=`` (alphabetic, ideographic, phonetic), components by ``^`` (family,
    given, middle, prefix, suffix).
    """
    groups = value.split("=")[:3]
    shown = [text for text in (_group(groups[0]), *map(_other_group, groups[1:])) if text]
    if not shown:
        return NOT_STATED
    rest = " / ".join(shown[1:])
    return clean(f"{shown[0]} ({rest})" if rest else shown[0])


def _group(group: str) -> str:
    family, given, middle, prefix, suffix = ([clean(part) for part in group.split("^")] + [""] * 5)[:5]
    first = " ".join(part for part in (prefix, given, middle) if part)
    return ", ".join(part for part in (family, first, suffix) if part)


def _other_group(group: str) -> str:
    """An ideographic or phonetic name: parts in their order, no comma."""
    return " ".join(part for part in map(clean, group.split("^")) if part)


def dicom_date(value: str) -> str:
    """A DA value as ``2026-11-25``; what is none as it stands. Source: PS3.5 6.2, and the older form with dots."""
    text = clean(value, 18)
    digits = text.replace(".", "")
    if len(digits) == 8 and digits.isdecimal() and digits.isascii():
        return f"{digits[:4]}-{digits[4:6]}-{digits[6:]}"
    return text


def dicom_time(value: str) -> str:
    """A TM value as ``07:41``; what is none as it stands. Source: PS3.5 6.2, and the older form with colons."""
    text = clean(value, 18)
    digits = text.replace(":", "")[:4]
    if len(digits) == 4 and digits.isdecimal() and digits.isascii():
        return f"{digits[:2]}:{digits[2:]}"
    return text


def age(seconds: float, coarse: bool = False) -> str:
    """A stretch of time as people say it: ``42 s``, ``7 min 05 s``, ``3 h 20 min``, ``2 d 4 h``; never negative.

    ``coarse`` leaves the seconds out beyond a minute.
    """
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" if coarse else f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def moment(at: float) -> str:
    """Seconds since the epoch as ``2026-11-25T07:41:03Z``."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
