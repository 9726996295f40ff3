import hashlib
import json
import logging
import stat
from pathlib import Path

import pytest

from fastich.errors import FastichError
from fastich.serve.web.limits import MAX_FAILURES, WINDOW_S, FailedLogins
from fastich.serve.web.tokens import SESSION_S, Tokens, user_name


def text_of(folder: Path, role: str) -> str:
    return (folder / f"{role}.token").read_text().strip()


def test_first_start_makes_secrets_that_only_the_owner_reads(tmp_path):
    Tokens(tmp_path)
    for name in ("admin.token", "viewer.token", "session.key"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert len((tmp_path / name).read_text().strip()) >= 43


def test_tokens_survive_a_restart(tmp_path):
    Tokens(tmp_path)
    before = text_of(tmp_path, "admin")
    found = Tokens(tmp_path).find(before)
    assert found is not None
    assert found.role == "admin"


def test_wrong_tokens_are_nobody(tmp_path):
    tokens = Tokens(tmp_path)
    assert tokens.find("") is None
    assert tokens.find(text_of(tmp_path, "viewer") + "x") is None
    assert tokens.find("\udcff") is None


def test_secret_that_others_can_read_is_refused(tmp_path):
    Tokens(tmp_path)
    (tmp_path / "viewer.token").chmod(0o644)
    with pytest.raises(FastichError, match=r"viewer\.token: expected mode 600, found 644"):
        Tokens(tmp_path)


def test_emptied_secret_is_refused(tmp_path):
    Tokens(tmp_path)
    (tmp_path / "admin.token").write_text("")
    with pytest.raises(FastichError, match=r"admin\.token: expected a secret, found 0 characters"):
        Tokens(tmp_path)


def more(folder: Path, rows: object, mode: int = 0o600) -> None:
    path = folder / "tokens.json"
    path.write_text(json.dumps(rows))
    path.chmod(mode)


def test_further_tokens_come_and_go_without_a_restart(tmp_path):
    tokens = Tokens(tmp_path)
    assert tokens.find("ris-secret") is None
    more(tmp_path, [{"name": "ris", "role": "viewer", "sha256": hashlib.sha256(b"ris-secret").hexdigest()}])
    found = tokens.find("ris-secret")
    assert found is not None
    assert (found.name, found.role) == ("ris", "viewer")
    cookie = tokens.cookie(found, "Kim", 0.0)
    assert tokens.open_cookie(cookie, 1.0) is not None
    (tmp_path / "tokens.json").unlink()
    assert tokens.find("ris-secret") is None
    assert tokens.open_cookie(cookie, 1.0) is None


def test_while_the_tokens_file_cannot_be_used_the_last_sound_one_holds(tmp_path, caplog):
    logging.getLogger("fastich").propagate = True
    tokens = Tokens(tmp_path)
    row = {"name": "ris", "role": "viewer", "sha256": hashlib.sha256(b"ris-secret").hexdigest()}
    more(tmp_path, [row])
    assert tokens.find("ris-secret") is not None
    more(tmp_path, [row, row | {"sha256": hashlib.sha256(b"new").hexdigest()}], 0o644)
    for _ in range(2):
        assert tokens.find("ris-secret") is not None
        assert tokens.find("new") is None
    assert tokens.find(text_of(tmp_path, "admin")) is not None
    assert [one.message for one in caplog.records if "expected mode 600" in one.message] == [
        f"the tokens before it still hold: {tmp_path / 'tokens.json'}: expected mode 600, found 644: "
        "others can read it; chmod 600, or remove it"
    ]
    (tmp_path / "tokens.json").chmod(0o600)
    assert tokens.find("new") is not None


def test_damaged_tokens_file_is_refused(tmp_path):
    more(tmp_path, {"name": 1})
    with pytest.raises(FastichError, match=r"tokens\.json: expected a list of name, role, sha256"):
        Tokens(tmp_path)
    more(tmp_path, [{"name": "x", "role": "root", "sha256": "00" * 32}])
    with pytest.raises(FastichError, match=r"tokens\.json: expected role viewer or admin"):
        Tokens(tmp_path)
    more(tmp_path, [], 0o640)
    with pytest.raises(FastichError, match=r"tokens\.json: expected mode 600, found 640"):
        Tokens(tmp_path)


def test_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(FastichError, match="cannot be written"):
        Tokens(tmp_path / "absent")


def test_cookies_end_and_cannot_be_forged(tmp_path):
    tokens = Tokens(tmp_path)
    token = tokens.find(text_of(tmp_path, "viewer"))
    assert token is not None
    cookie = tokens.cookie(token, "Kim", 100.0)
    found = tokens.open_cookie(cookie, 100.0)
    assert found is not None
    assert (found.user, found.role) == ("Kim", "viewer")
    assert tokens.open_cookie(cookie, 101.0 + SESSION_S) is None
    body, mark = cookie.split(".")
    for forged in ("", ".", "x", body, f"{body}.{mark[:-2]}AA", f"{body[:-2]}AA.{mark}", "é.é", "A" * 5000):
        assert tokens.open_cookie(forged, 100.0) is None


def test_names_typed_at_the_login_are_plain_text(tmp_path):
    tokens = Tokens(tmp_path)
    token = tokens.find(text_of(tmp_path, "viewer"))
    assert token is not None
    assert user_name(" Kim\n\x1b ", token) == "Kim (viewer)"
    assert user_name("\t", token) == "viewer"
    assert len(user_name("x" * 500, token)) == 64 + len(" (viewer)")


def test_address_that_fails_too_often_waits_and_others_do_not():
    now = [0.0]
    failures = FailedLogins(lambda: now[0])
    for _ in range(MAX_FAILURES):
        assert failures.wait_s("192.0.2.1") == 0
        failures.failed("192.0.2.1")
    assert failures.wait_s("192.0.2.1") == WINDOW_S
    assert failures.wait_s("192.0.2.2") == 0
    now[0] = WINDOW_S
    assert failures.wait_s("192.0.2.1") == 0
