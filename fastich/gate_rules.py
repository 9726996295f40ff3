"""The eligibility rules as one TOML file says them: what is looked at, refused, doubted and preferred.

A rule is a condition and an effect; a kind sorts series by what they are for. Everything is checked when the file is
read, so that a rule that could never work is one line naming file and key, and not a surprise at night.
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastich.errors import FastichError

BUILT_IN = Path(__file__).with_name("gate.toml")

TEXTS = frozenset(
    {"body_part", "study_description", "series_description", "protocol_name", "image_type", "contrast_agent"}
    | {"kernel", "manufacturer", "model"}
)
SLICE_NUMBERS = frozenset(("kvp", "age_years", "thickness_mm", "angle_deg"))
SERIES_NUMBERS = frozenset(
    ("num_slices", "spacing_mm", "largest_step_mm", "gap_ratio", "coverage_mm", "num_unplaced", "left_out_percent")
)
NUMBERS = SLICE_NUMBERS | SERIES_NUMBERS

ALLOW, CAUTION, REFUSE = "allow", "caution", "refuse"
ARRIVAL, COMPLETION = "arrival", "completion"
COMMON_KEYS = frozenset(("id", "fields", "match", "unless", "minimum", "maximum"))
RULE_KEYS = COMMON_KEYS | {"effect", "absent", "reason", "absent_reason", "another"}
KIND_KEYS = COMMON_KEYS | {"rank", "score"}

Values = Mapping[str, str | float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Condition:
    """What is looked at: texts by pattern, the first field that says anything decides; or one number by its bounds."""

    fields: tuple[str, ...]
    match: re.Pattern[str] | None
    unless: re.Pattern[str] | None
    minimum: float | None
    maximum: float | None

    @property
    def is_of_slices(self) -> bool:
        """Whether one slice's header answers it."""
        return not SERIES_NUMBERS.intersection(self.fields)

    def is_absent(self, values: Values) -> bool:
        """Whether none of the fields is there."""
        return all(values[name] in (None, "") for name in self.fields)

    def matched(self, values: Values) -> tuple[str, str] | None:
        """Field and text that ``match`` finds; None where another field, or ``unless``, has the word before it."""
        assert self.match is not None
        for name in self.fields:
            text = str(values[name] or "")
            if self.unless is not None and self.unless.search(text):
                return None
            found = self.match.search(text)
            if found:
                return name, found.group().strip()
        return None

    def is_inside(self, value: float) -> bool:
        """Whether a number keeps the bounds."""
        above = self.minimum is None or value >= self.minimum
        return above and (self.maximum is None or value <= self.maximum)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A condition that refuses or doubts: texts that match, numbers outside of their bounds.

    A slice that breaks a rule of ``another`` is another image in its series, not a missing part of it.
    """

    id: str
    condition: Condition
    effect: str
    absent: str
    reason: str
    absent_reason: str
    another: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What a series is: the first kind whose condition holds. Of several, those of the lowest ``rank`` are scored."""

    id: str
    condition: Condition | None
    rank: int
    score: str

    def holds(self, values: Values) -> bool:
        """Whether a series, or slice, of ``values`` is of this kind."""
        if self.condition is None:
            return True
        if self.condition.match is not None:
            return self.condition.matched(values) is not None
        value = values[self.condition.fields[0]]
        return isinstance(value, float | int) and self.condition.is_inside(float(value))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Everything that the file says; ``sha256`` is of its bytes, for results to name it."""

    rules: tuple[Rule, ...]
    kinds: tuple[Kind, ...]
    cover_mm: float
    sha256: str


def load_rules(path: Path | None = None) -> Rules:
    """The rules of a file; of the built-in one without a path.

    Raises:
        FastichError: the file cannot be read, or says what makes no sense; names file and key.
    """
    where = BUILT_IN if path is None else path
    try:
        content = where.read_bytes()
        document = tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise FastichError(f"{where}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FastichError(f"{where}: not TOML: {error}") from error
    return _Reader(str(where)).read(document, hashlib.sha256(content).hexdigest())


class _Reader:
    """Turns the document into rules; every message names the file."""

    def __init__(self, where: str) -> None:
        self._where = where

    def _fail(self, key: str, expected: str, found: object) -> FastichError:
        return FastichError(f"{self._where}: {key}: expected {expected}, found {found!r}")

    def read(self, document: dict[str, Any], sha256: str) -> Rules:
        """All of it."""
        self._keys("top level", document, frozenset(("version", "cover_mm", "rules", "kinds")))
        if document.get("version") != 1:
            raise self._fail("version", "1", document.get("version"))
        rules = tuple(self._rule(f"rules[{i}]", one) for i, one in enumerate(self._tables(document, "rules")))
        kinds = tuple(self._kind(f"kinds[{i}]", one) for i, one in enumerate(self._tables(document, "kinds")))
        for name, found in (("rules", [one.id for one in rules]), ("kinds", [one.id for one in kinds])):
            if len(set(found)) < len(found):
                raise self._fail(name, "ids that differ", found)
        if not kinds or kinds[-1].condition is not None or any(one.condition is None for one in kinds[:-1]):
            raise self._fail("kinds", "a last one, and no other, without fields, for every other series", len(kinds))
        return Rules(
            rules=rules, kinds=kinds, cover_mm=self._number("cover_mm", document.get("cover_mm")), sha256=sha256
        )

    def _tables(self, document: dict[str, Any], name: str) -> list[dict[str, Any]]:
        found = document.get(name, [])
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise self._fail(name, f"tables [[{name}]]", found)
        return found

    def _rule(self, key: str, table: dict[str, Any]) -> Rule:
        self._keys(key, table, RULE_KEYS)
        name = self._text(f"{key}.id", table.get("id"))
        key = f"{key} ({name})"
        made = Rule(
            id=name,
            condition=self._condition(key, table),
            effect=self._choice(f"{key}.effect", table.get("effect", REFUSE), (REFUSE, CAUTION)),
            absent=self._choice(f"{key}.absent", table.get("absent"), (ALLOW, CAUTION, REFUSE)),
            reason=self._text(f"{key}.reason", table.get("reason")),
            absent_reason=str(table.get("absent_reason", "")),
            another=self._yes(f"{key}.another", table.get("another", False)),
        )
        try:
            made.reason.format(field="", value="")
        except (KeyError, IndexError, ValueError) as error:
            raise self._fail(f"{key}.reason", "text with {field} and {value} at most", made.reason) from error
        if made.absent != ALLOW and not made.absent_reason:
            raise self._fail(f"{key}.absent_reason", f"text, for absent is {made.absent!r}", made.absent_reason)
        return made

    def _kind(self, key: str, table: dict[str, Any]) -> Kind:
        self._keys(key, table, KIND_KEYS)
        name = self._text(f"{key}.id", table.get("id"))
        key = f"{key} ({name})"
        made = Kind(
            id=name,
            condition=self._condition(key, table) if "fields" in table else None,
            rank=int(self._number(f"{key}.rank", table.get("rank"))),
            score=self._choice(f"{key}.score", table.get("score", ARRIVAL), (ARRIVAL, COMPLETION)),
        )
        if made.score == COMPLETION and not (made.condition and made.condition.is_of_slices):
            raise self._fail(f"{key}.score", "arrival, for one slice cannot tell this kind", made.score)
        return made

    def _condition(self, key: str, table: dict[str, Any]) -> Condition:
        fields = table.get("fields")
        if not isinstance(fields, list) or not fields or not all(isinstance(one, str) for one in fields):
            raise self._fail(f"{key}.fields", "a list of field names", fields)
        unknown = sorted(set(fields) - TEXTS - NUMBERS)
        if unknown:
            raise self._fail(f"{key}.fields", f"some of {', '.join(sorted(TEXTS | NUMBERS))}", unknown[0])
        bounds = [self._number(f"{key}.{name}", table[name]) for name in ("minimum", "maximum") if name in table]
        if set(fields) <= TEXTS:
            if "match" not in table or bounds:
                raise self._fail(f"{key}", "match, and no bounds, for texts", sorted(table))
        elif len(fields) > 1 or not bounds or "match" in table or "unless" in table:
            raise self._fail(f"{key}", "one number with minimum or maximum, or texts with match", sorted(table))
        return Condition(
            fields=tuple(fields),
            match=self._pattern(f"{key}.match", table.get("match")),
            unless=self._pattern(f"{key}.unless", table.get("unless")),
            minimum=float(table["minimum"]) if "minimum" in table else None,
            maximum=float(table["maximum"]) if "maximum" in table else None,
        )

    def _keys(self, key: str, table: dict[str, Any], known: frozenset[str]) -> None:
        unknown = sorted(set(table) - known)
        if unknown:
            raise FastichError(f"{self._where}: {key}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")

    def _text(self, key: str, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise self._fail(key, "text", value)
        return value

    def _number(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._fail(key, "a number", value)
        return float(value)

    def _yes(self, key: str, value: object) -> bool:
        if not isinstance(value, bool):
            raise self._fail(key, "true or false", value)
        return value

    def _choice(self, key: str, value: object, choices: Sequence[str]) -> str:
        if value not in choices:
            raise self._fail(key, " or ".join(choices), value)
        return str(value)

    def _pattern(self, key: str, value: object) -> re.Pattern[str] | None:
        if value is None:
            return None
        try:
            return re.compile(self._text(key, value), re.IGNORECASE)
        except re.error as error:
            raise self._fail(key, f"a regular expression ({error})", value) from error
