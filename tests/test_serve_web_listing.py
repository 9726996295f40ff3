import contextlib
import sys
import threading

import pytest
from web_data import open_site, phantom_files, receive, score, small_model, uid

from fastich.serve.web import listing
from fastich.serve.web.listing import MAX_HTML_AGE_S, Listing


@pytest.fixture
def site(tmp_path):
    with contextlib.closing(open_site(tmp_path, small_model(tmp_path / "model"))) as made:
        for number in (1, 2):
            receive(made, uid(number), phantom_files(uid(number))[:1])
            score(made, uid(number), triage="flag")
        yield made


@pytest.fixture
def rendered(monkeypatch):
    """The UIDs of the rows that were rendered, in turn."""
    found: list[str] = []
    plain = listing.render

    def counted(template, **values):
        found.append(values["row"]["study_uid"])
        return plain(template, **values)

    monkeypatch.setattr(listing, "render", counted)
    return found


def test_event_shows_at_once_and_only_what_changed_is_rendered(site, rendered):
    made = Listing(site.parts())
    first = made.rows()
    assert made.rows() is first
    site.store.acknowledge(uid(2), "kim", score_id=site.store.study(uid(2)).score_id)
    changed = {row["study_uid"]: row for row in made.rows()}
    assert changed[uid(2)]["acknowledged"]["by"] == "kim"
    assert rendered == [uid(1), uid(2), uid(2)]
    assert changed[uid(1)]["mark"] == first[0]["mark"]


def test_what_has_no_event_shows_a_moment_later(site, monkeypatch):
    made = Listing(site.parts())
    made.rows()
    site.store.expect(uid(1), 34)
    monkeypatch.setattr(listing, "MAX_AGE_S", -1.0)
    assert made.rows()[0]["expected_instances"] == 34


def test_ages_are_never_older_than_they_say_without_a_script(site, rendered, monkeypatch):
    monkeypatch.setattr(listing, "MAX_AGE_S", -1.0)
    made = Listing(site.parts())
    made.rows()
    site.clock.now += MAX_HTML_AGE_S + 1
    assert "31 s</time> unseen" in made.rows()[0]["html"]
    assert len(rendered) == 4


def test_threads_that_ask_together_are_served_by_one(site, rendered):
    made = Listing(site.parts())
    threads = [threading.Thread(target=made.rows) for _ in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sorted(rendered) == [uid(1), uid(2)]
