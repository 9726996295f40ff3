import hashlib
import hmac
import json
import re
from pathlib import Path
from typing import Any

import pytest
from http_peer import http_peer
from outputs_data import CREATED_AT, Scored, phantom_study

from fastich.errors import FastichError
from fastich.serve.config import WebhookConfig
from fastich.serve.entities import Outcome, Score, StudyState
from fastich.serve.outputs import webhook
from fastich.serve.outputs.send_error import SendError

BODY = b'{"a": 1}'


@pytest.fixture
def study(tmp_path: Path) -> Scored:
    return phantom_study(tmp_path / "in")


def said(study: Scored, how: str = "json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(webhook.body_of(study.score, [study.score], how))
    return found


def test_body_holds_the_result(study: Scored) -> None:
    found = said(study)
    assert (found["study_uid"], found["state"], found["priority"]) == (study.score.study_uid, "scored", "flagged")
    assert found["created_at"] == "2025-11-24T16:00:00.250000+00:00"
    assert found["result"]["probability"] == study.result.probability
    assert found["result"]["key_slice"]["sop_uid"] == study.result.key_slices["any"].sop_uid
    assert "NOT FOR DIAGNOSIS" in found["notice"]


@pytest.mark.parametrize("how", ["json", "fhir"])
def test_body_names_nobody(study: Scored, how: str) -> None:
    text = json.dumps(said(study, how))
    assert not any(secret in text for secret in ("MUELLER", "4711", "A-1", "19500102"))


def test_body_of_a_study_without_a_score_has_its_reason() -> None:
    outcome = Outcome(state=StudyState.NOT_EVALUATED, reason="no axial series")
    score = Score(score_id=3, study_uid="1.2", revision=1, created_at=CREATED_AT, partial=False, outcome=outcome)
    found = json.loads(webhook.body_of(score, [score], "json"))
    assert (found["state"], found["reason"], found["result"]) == ("not evaluated", "no axial series", None)


def test_fhir_body_is_a_report(study: Scored) -> None:
    assert said(study, "fhir")["resourceType"] == "DiagnosticReport"


def test_signature_can_be_checked_with_the_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("top secret\n")
    with http_peer((204, {}, b"")) as peer:
        config = WebhookConfig(url=peer.url + "/hook", secret_file=tmp_path / "secret")
        assert webhook.send(config, 17, BODY, 1234.9, 5) == ""
    (asked,) = peer.asked
    assert (asked.path, asked.body) == ("/hook", BODY)
    found = re.fullmatch(r"t=1234,v1=([0-9a-f]{64})", asked.headers["Fastich-Signature"])
    assert found
    assert found[1] == hmac.new(b"top secret", b"1234." + BODY, hashlib.sha256).hexdigest()
    assert asked.headers["Fastich-Delivery"] == "17"
    assert asked.headers["Content-Type"] == "application/json"


def test_other_body_has_another_signature() -> None:
    assert webhook.signature("s", BODY, 1) != webhook.signature("s", BODY + b" ", 1)
    assert webhook.signature("s", BODY, 1) != webhook.signature("s", BODY, 2)


def test_without_a_secret_nothing_is_signed() -> None:
    with http_peer() as peer:
        webhook.send(WebhookConfig(url=peer.url, body="fhir"), 1, BODY, 0, 5)
    assert "Fastich-Signature" not in peer.asked[0].headers
    assert peer.asked[0].headers["Content-Type"] == "application/fhir+json"


def test_redirect_is_not_followed() -> None:
    with (
        http_peer() as other,
        http_peer((307, {"Location": other.url}, b"")) as peer,
        pytest.raises(SendError, match=r"^webhook: answered 307, a redirect, which is not followed") as caught,
    ):
        webhook.send(WebhookConfig(url=peer.url), 1, BODY, 0, 5)
    assert other.asked == []
    assert not caught.value.permanent


@pytest.mark.parametrize(
    ("status", "permanent"),
    [(400, True), (410, True), (413, True), (401, False), (404, False), (429, False), (503, False)],
)
def test_refusal_is_permanent_only_where_no_person_can_mend_it(status: int, permanent: bool) -> None:
    with (
        http_peer((status, {}, b"why")) as peer,
        pytest.raises(SendError, match=rf"^webhook: answered {status}$") as caught,
    ):
        webhook.send(WebhookConfig(url=peer.url), 1, BODY, 0, 5)
    assert caught.value.permanent is permanent


def test_nobody_listening_is_tried_again() -> None:
    with http_peer() as peer:
        url = peer.url
    with pytest.raises(SendError, match=r"^webhook: no answer \(ConnectError\)$") as caught:
        webhook.send(WebhookConfig(url=url), 1, BODY, 0, 5)
    assert not caught.value.permanent


@pytest.mark.parametrize(
    ("content", "what"), [(None, r"cannot be read \(FileNotFoundError\)"), ("\n", "an empty file")]
)
def test_secret_that_is_not_there_is_said(tmp_path: Path, content: str | None, what: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FastichError, match=rf"^\[webhook\] secret_file: .*secret: .*{what}"):
        webhook.send(WebhookConfig(url="http://127.0.0.1:1", secret_file=path), 1, BODY, 0, 5)
