"""Studies over HTTP, and what people say about them: FACTS 6, items 9 and 25, among them."""

import contextlib
import json
import logging
import re

import pytest
from starlette.testclient import TestClient
from web_data import BASE, bearer, log_in, open_site, phantom_files, receive, refuse, score, small_model, uid, write

from fastich.serve.entities import Description, Origin, Outcome, Priority, StudyState
from fastich.serve.web.app import build_app

HOSTILE = Description(
    patient_id="=cmd|'/C calc'!A0",
    patient_name="<script>alert('n')</script>^Eve\x00\x1b[31m\u202e",
    accession_number='"><img src=x onerror=alert(1)>',
    study_date="20261125",
    study_time="074100",
    study_description="{{ 7*7 }} & <b>bold</b>",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def site(tmp_path, model):
    with contextlib.closing(open_site(tmp_path, model)) as made:
        yield made


@pytest.fixture
def client(site):
    with TestClient(build_app(site.parts()), base_url=BASE, client=("127.0.0.1", 5000)) as made:
        yield made


def test_worklist_stands_in_its_order(client, site):
    made = [("clear", 1), ("flag", 2), ("human first", 3), ("flag", 4)]
    for triage, number in made:
        receive(site, uid(number), phantom_files(uid(number))[:2])
        score(site, uid(number), triage=triage)
        site.clock.now += 60
    receive(site, uid(5), phantom_files(uid(5))[:1])
    told = client.get("/studies", headers=bearer(site)).json()
    found = told["studies"]
    assert told["now"] == site.clock.now
    assert [row["study_uid"] for row in found] == [uid(2), uid(4), uid(3), uid(1), uid(5)]
    assert [row["verdict"] for row in found] == ["flag", "flag", "human first", "clear", "receiving"]
    assert 0 < found[0]["probability"]["any"] < 1
    assert found[0]["key_slice"]["number"] in (0, 1)


def test_study_tells_all_that_the_page_shows(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:3])
    score(site, uid(1), triage="flag", left_out=[{"reason": "damaged pixels"}, {"reason": "damaged pixels"}])
    found = client.get(f"/studies/{uid(1)}", headers=bearer(site)).json()
    assert found["left_out"] == [{"reason": "damaged pixels", "count": 2}]
    assert len(found["strip"]["probability"]["any"]) == 3
    assert [row["is_partial"] for row in found["history"]] == [False]
    assert found["model"]["sha256"] == site.session.sha256
    assert client.get("/studies/1.2.3", headers=bearer(site)).status_code == 404


def test_what_is_not_evaluated_says_why(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:2])
    refuse(site, uid(1), "contrast study")
    found = client.get(f"/studies/{uid(1)}", headers=bearer(site)).json()
    assert (found["verdict"], found["reason"]) == ("not evaluated", "contrast study")
    expected = {"state": "not evaluated", "reason": "not CT", "detail": "Modality is 'MR'", "count": 2}
    assert found["not_scored"] == [expected]
    for path in ("/", f"/studies/{uid(1)}"):
        assert "contrast study" in client.get(path, headers=bearer(site) | {"Accept": "text/html"}).text


def test_doubts_about_a_scored_study_are_told(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:2])
    score(site, uid(1), triage="human first", gate={"cautions": ["a gap of 12 mm"]})
    assert "in doubt: a gap of 12 mm" in client.get("/", headers=bearer(site)).text


def test_partial_is_told_as_partial(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:2])
    score(site, uid(1), triage="flag", partial=True)
    (row,) = client.get("/studies", headers=bearer(site)).json()["studies"]
    assert (row["is_partial"], row["state"], row["verdict"]) == (True, "receiving", "flag")
    assert "partial: 2 slices scored so far" in client.get("/", headers=bearer(site)).text


def test_while_more_is_coming_nothing_is_called_clear(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:2])
    score(site, uid(1), triage="clear", partial=True)
    (row,) = client.get("/studies", headers=bearer(site)).json()["studies"]
    assert row["verdict"] == "receiving"


def test_without_a_three_way_rule_nothing_is_called_clear(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:2])
    score(site, uid(1), flagged=False)
    (row,) = client.get("/studies", headers=bearer(site)).json()["studies"]
    assert (row["verdict"], row["title"]) == ("below threshold", "Below threshold")


def test_raised_stays_raised_where_it_was_not_evaluated_in_the_end(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:1])
    score(site, uid(1), triage="flag", partial=True)
    write(site, uid(1), Outcome(state=StudyState.NOT_EVALUATED, reason="gap", priority=Priority.FLAGGED))
    (row,) = client.get("/studies", headers=bearer(site)).json()["studies"]
    assert (row["verdict"], row["is_raised"]) == ("not evaluated", True)


def test_acknowledging_is_noted_with_the_name_and_undone(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:1])
    score(site, uid(1), triage="flag")
    log_in(client, site.token(), "Dr. Kim")
    ours, seen = {"Origin": BASE}, {"score_id": 1}
    assert client.post(f"/studies/{uid(1)}/acknowledge", headers=ours, json=seen).json() == {"changed": True}
    assert client.post(f"/studies/{uid(1)}/acknowledge", headers=ours, json=seen).json() == {"changed": False}
    (row,) = client.get("/studies").json()["studies"]
    assert row["acknowledged"]["by"] == "Dr. Kim (viewer)"
    assert (row["is_raised"], row["was_raised"]) == (False, True)
    assert client.request("DELETE", f"/studies/{uid(1)}/acknowledge", headers=ours).json() == {"changed": True}
    assert client.get("/studies").json()["studies"][0]["is_raised"]
    assert client.post("/studies/1.2.3/acknowledge", headers=ours, json=seen).status_code == 404
    events = [json.loads(line)["event"] for line in (site.folder / "spool" / "audit.jsonl").read_text().splitlines()]
    assert (events.count("acknowledge"), events.count("unacknowledge")) == (2, 1)


def test_form_without_script_gets_back_to_the_study(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:1])
    log_in(client, site.token())
    path, headers = f"/studies/{uid(1)}/comments", {"Origin": BASE, "Accept": "text/html"}
    answer = client.post(path, data={"text": "seen"}, headers=headers, follow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/studies/{uid(1)}")
    assert "seen" in client.get(f"/studies/{uid(1)}", headers={"Accept": "text/html"}).text


def test_comments_are_written_and_bounded(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:1])
    path, headers = f"/studies/{uid(1)}/comments", bearer(site)
    made = client.post(path, headers=headers, json={"text": "line one\nline two\x1b"})
    assert (made.status_code, made.json()["comment"]["text"]) == (201, "line one\nline two")
    for body in ({"text": " "}, {"text": "x" * 2001}, {}, [1]):
        assert client.post(path, headers=headers, json=body).status_code == 400
    assert client.post(path, headers=headers, content=b"{").status_code == 400
    assert client.post("/studies/9.9/comments", headers=headers, json={"text": "x"}).status_code == 404


def test_expected_count_is_taken(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:1])
    headers = bearer(site, "admin")
    assert client.post(f"/studies/{uid(1)}/expect", headers=headers, json={"count": 34}).status_code == 200
    assert client.get(f"/studies/{uid(1)}", headers=headers).json()["expected_instances"] == 34
    for count in (0, -1, "x", 10**9):
        assert client.post(f"/studies/{uid(1)}/expect", headers=headers, json={"count": count}).status_code == 400


def test_dead_letters_are_shown_and_sent_again(site):
    woken = []
    receive(site, uid(1), phantom_files(uid(1))[:1])
    refuse(site, uid(1), "x", deliveries=[("PACS", "sr")])
    (delivery,) = site.store.deliveries_of(uid(1))
    site.store.delivery_failed(delivery.delivery_id, "connection refused", None)
    with TestClient(build_app(site.parts(wake_sender=lambda: woken.append(1))), base_url=BASE) as client:
        headers = bearer(site, "admin")
        (dead,) = client.get("/dead-letters", headers=headers).json()["dead_letters"]
        assert (dead["destination"], dead["last_error"]) == ("PACS", "connection refused")
        assert "not delivered" in client.get("/", headers=headers).text
        assert client.post(f"/deliveries/{dead['delivery_id']}/requeue", headers=headers).status_code == 200
        assert client.post(f"/deliveries/{dead['delivery_id']}/requeue", headers=headers).status_code == 404
    assert woken == [1]


def test_conflicting_copies_are_marked(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:1])
    site.store.add_conflict(f"{uid(1)}.1", uid(1), "ab" * 32, Origin(way="dimse"))
    assert client.get("/studies", headers=bearer(site)).json()["studies"][0]["num_conflicts"] == 1
    assert "1 copy with other pixels kept aside" in client.get("/", headers=bearer(site)).text


def test_facts_9_hostile_names_are_escaped_everywhere(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:2], HOSTILE)
    score(site, uid(1), triage="flag")
    site.store.add_comment(uid(1), "<i>me</i>", "</script><script>alert(2)</script>")
    headers = bearer(site) | {"Accept": "text/html"}
    pages = [client.get(path, headers=headers).text for path in ("/", f"/studies/{uid(1)}")]
    pages += [row["html"] for row in client.get("/worklist", headers=headers).json()["rows"]]
    for text in pages:
        assert "&lt;script&gt;alert(" in text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "<b>bold" not in text
        assert "<i>me" not in text
        assert "{{ 7*7 }}" in text
        assert not re.search("[\x00\x1b\u202e]", text)
    found = client.get("/studies", headers=bearer(site))
    assert found.headers["Content-Type"] == "application/json"
    patient = found.json()["studies"][0]["patient"]
    assert patient == {"name": "<script>alert('n')</script>, Eve [31m", "id": "=cmd|'/C calc'!A0"}


def test_numbers_in_the_page_cannot_close_their_block(client, site):
    receive(site, uid(1), phantom_files(uid(1))[:1])
    odd = {"sha256": "x", "backend": "b", "precision": "p", "triage": None, "thresholds": {"</script>": 1}}
    score(site, uid(1), model=odd)
    text = client.get(f"/studies/{uid(1)}", headers=bearer(site) | {"Accept": "text/html"}).text
    assert text.count("</script>") == text.count("<script")


def test_11_acknowledging_an_older_result_than_the_raised_one_is_a_conflict(client, site):
    path, headers = f"/studies/{uid(1)}/acknowledge", bearer(site)
    receive(site, uid(1), phantom_files(uid(1))[:1])
    score(site, uid(1), triage="clear", partial=True)
    shown = client.get("/studies", headers=headers).json()["studies"][0]["score_id"]
    score(site, uid(1), triage="flag")
    for answer in (
        client.post(path, headers=headers, json={"score_id": shown}),
        client.post(path, headers=headers, json={"score_id": None}),
        client.post(path, headers=headers, data={"score_id": ""}),
    ):
        assert answer.status_code == 409
        expected = "a newer result says more than what was shown; nothing acknowledged, look at it again"
        assert answer.json() == {"error": expected}
    assert client.get("/studies", headers=headers).json()["studies"][0]["is_raised"]
    assert client.post(path, headers=headers, data={"score_id": str(shown + 1)}).json() == {"changed": True}


@pytest.mark.parametrize("body", [{}, {"score_id": "x"}, {"score_id": -1}, {"score_id": 10**20}, {"score_id": [1]}])
def test_acknowledging_needs_the_result_that_was_shown(client, site, body):
    receive(site, uid(1), phantom_files(uid(1))[:1])
    answer = client.post(f"/studies/{uid(1)}/acknowledge", headers=bearer(site), json=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("score_id: expected the number of the result that was shown, or null")


def test_facts_25_no_name_or_id_in_logs_metrics_events_and_audit(client, site, caplog):
    caplog.set_level(logging.DEBUG)
    about = Description(patient_id="SECRET-ID", patient_name="SECRET^NAME", accession_number="SECRET-ACC")
    receive(site, uid(1), phantom_files(uid(1))[:2], about)
    score(site, uid(1), triage="flag")
    headers = bearer(site, "admin")
    for path in ("/", "/worklist", f"/studies/{uid(1)}", f"/studies/{uid(1)}/slices/0.png", "/studies/9.9"):
        client.get(path, headers=headers)
    client.post(f"/studies/{uid(1)}/acknowledge", headers=headers, json={"score_id": 1})
    told = [client.get(path, headers=headers).text for path in ("/metrics", "/health/ready", "/dead-letters", "/drift")]
    audit = (site.folder / "spool" / "audit.jsonl").read_text()
    assert uid(1) in audit
    told += [caplog.text, audit, *(json.dumps(dict(event.values)) for event in site.store.events_after(0, 100))]
    assert all("SECRET" not in text for text in told)
    assert not [path for path in site.folder.rglob("*") if "SECRET" in path.name]
