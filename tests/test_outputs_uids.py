import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastich.serve.outputs import uids

MODEL = "ab" * 32


@given(st.text(max_size=80), st.lists(st.text(max_size=30), max_size=5))
def test_uid_of_any_text_is_legal(study_uid: str, sop_uids: list[str]) -> None:
    found = uids.of_result("sr", study_uid, MODEL, sop_uids)
    assert uids.is_legal(found)
    assert re.fullmatch(r"2\.25\.(0|[1-9][0-9]{0,38})", found)


def test_uid_is_the_same_today_and_tomorrow() -> None:
    """Stored messages are sent by later versions too: this number must never change."""
    assert uids.of_result("sr", "1.2.3", MODEL, ["1.2.3.4", "1.2.3.5"], "said") == (
        "2.25.287608415301306050132133099279363787448"
    )


def test_order_of_instances_changes_nothing() -> None:
    assert uids.of_result("sr", "1.2", MODEL, ["1.2.4", "1.2.3"]) == uids.of_result(
        "sr", "1.2", MODEL, ["1.2.3", "1.2.4"]
    )


@pytest.mark.parametrize(
    ("kind", "study", "model", "sops", "said"),
    [
        ("sc", "1.2", MODEL, ["1.2.3"], ""),
        ("sr", "1.3", MODEL, ["1.2.3"], ""),
        ("sr", "1.2", "cd" * 32, ["1.2.3"], ""),
        ("sr", "1.2", MODEL, ["1.2.3", "1.2.4"], ""),
        ("sr", "1.2", MODEL, ["1.2.3"], "other thresholds"),
    ],
)
def test_each_part_makes_another_uid(kind: str, study: str, model: str, sops: list[str], said: str) -> None:
    assert uids.of_result(kind, study, model, sops, said) != uids.of_result("sr", "1.2", MODEL, ["1.2.3"])


def test_parts_do_not_run_together() -> None:
    assert uids.of_parts("ab", "c") != uids.of_parts("a", "bc")


@pytest.mark.parametrize("uid", ["ID_5c8b5d701f", "", "1", "1..2", "1.02", ".1.2", "1.2.", "1.2\n", "1." + "2" * 63])
def test_illegal_uid_gets_a_legal_one_that_stays(uid: str) -> None:
    assert not uids.is_legal(uid)
    assert uids.is_legal(uids.legal(uid))
    assert uids.legal(uid) == uids.legal(uid) != uids.legal(uid + "x")


@pytest.mark.parametrize("uid", ["1.2.840.10008.1.1", "2.25.0", "1." + "2" * 62])
def test_legal_uid_stays_as_it_is(uid: str) -> None:
    assert uids.legal(uid) == uid
