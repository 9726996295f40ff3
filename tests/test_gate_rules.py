from pathlib import Path

import pytest

from fastich.errors import FastichError
from fastich.gate_rules import BUILT_IN, load_rules

BEGIN = "version = 1\ncover_mm = 20\n"
END = '[[kinds]]\nid = "all"\nrank = 1\n'
RULE = '[[rules]]\nid = "x"\nabsent = "allow"\nreason = "no"\n'


def load(folder: Path, text: str) -> None:
    path = folder / "rules.toml"
    path.write_text(text, encoding="utf-8")
    load_rules(path)


def test_built_in_rules_are_read_and_named_by_their_hash() -> None:
    rules = load_rules()
    assert [rule.id for rule in rules.rules][:3] == ["head", "non-contrast agent", "non-contrast words"]
    assert rules.kinds[-1].condition is None
    assert len(rules.sha256) == 64


def test_file_without_rules_is_a_file() -> None:
    assert BUILT_IN.is_file()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("version = ", "not TOML: Invalid value"),
        (BEGIN.replace("1", "2", 1) + END, "version: expected 1, found 2"),
        (BEGIN + "colour = 3\n" + END, "top level: unknown key 'colour'; known: cover_mm, kinds, rules, version"),
        (BEGIN + "rules = 3\n" + END, r"rules: expected tables \[\[rules\]\], found 3"),
        (BEGIN.replace("20", '"a"') + END, "cover_mm: expected a number, found 'a'"),
        (BEGIN, "kinds: expected a last one, and no other, without fields"),
        (BEGIN + END + END.replace("all", "b"), "kinds: expected a last one, and no other, without fields"),
        (BEGIN + END + END, r"kinds: expected ids that differ, found \['all', 'all'\]"),
        (BEGIN + "[[rules]]\nfields = []\n" + END, r"rules\[0\].id: expected text, found None"),
        (BEGIN + RULE + END, r"rules\[0\] \(x\).fields: expected a list of field names, found None"),
        (BEGIN + RULE + 'fields = ["kv"]\n' + END, r"rules\[0\] \(x\).fields: expected some of .*, found 'kv'"),
        (BEGIN + RULE + 'fields = ["kvp"]\n' + END, "expected one number with minimum or maximum, or texts with match"),
        (BEGIN + RULE + 'fields = ["kvp"]\nminimum = "a"\n' + END, r"\(x\).minimum: expected a number, found 'a'"),
        (BEGIN + RULE + 'fields = ["kvp"]\nminimum = true\n' + END, r"\(x\).minimum: expected a number, found True"),
        (BEGIN + RULE + 'fields = ["kvp", "model"]\nmatch = "a"\n' + END, "expected one number with minimum"),
        (BEGIN + RULE + 'fields = ["model"]\nminimum = 1\n' + END, "expected match, and no bounds, for texts"),
        (
            BEGIN + RULE + 'fields = ["model"]\nmatch = "("\n' + END,
            r"\(x\).match: expected a regular expression \(miss",
        ),
        (BEGIN + RULE + 'fields = ["model"]\nmatch = "a"\neffect = "b"\n' + END, "effect: expected refuse or caution"),
        (
            BEGIN + RULE.replace("allow", "maybe") + 'fields = ["model"]\nmatch = "a"\n' + END,
            "absent: expected allow or caution or refuse, found 'maybe'",
        ),
        (
            BEGIN + RULE.replace("allow", "refuse") + 'fields = ["model"]\nmatch = "a"\n' + END,
            "absent_reason: expected text, for absent is 'refuse', found ''",
        ),
        (
            BEGIN + RULE.replace('"no"', '"{patient}"') + 'fields = ["model"]\nmatch = "a"\n' + END,
            r"reason: expected text with {field} and {value} at most, found '{patient}'",
        ),
        (
            BEGIN + RULE + 'fields = ["model"]\nmatch = "a"\nanother = 1\n' + END,
            "another: expected true or false, found 1",
        ),
        (
            BEGIN
            + '[[kinds]]\nid = "thin"\nrank = 1\nscore = "completion"\nfields = ["spacing_mm"]\nmaximum = 2\n'
            + END,
            r"kinds\[0\] \(thin\).score: expected arrival, for one slice cannot tell this kind",
        ),
    ],
)
def test_malformed_rules_are_one_line_naming_file_and_key(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(FastichError, match=match) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "rules.toml"))
    assert "\n" not in str(caught.value)


def test_rules_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FastichError, match=r"none.toml: cannot be read \(No such file or directory\)"):
        load_rules(tmp_path / "none.toml")


def test_rules_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(FastichError, match="not TOML: 'utf-8' codec"):
        load_rules(tmp_path / "rules.toml")
