import contextlib
from typing import Any

import pytest
from starlette.testclient import TestClient
from web_data import BASE, START, bearer, open_site, phantom_files, receive, rng_documents, score, small_model, uid

from fastich.serve.drift import FEWEST, MEASURES, WEEK_S, counts, drifts, in_words, stability, week_of
from fastich.serve.entities import Outcome, Score, StudyState
from fastich.serve.web.app import build_app

SCORE, HU = MEASURES[0], MEASURES[1]


def results(documents: list[dict[str, Any]], at: float, first: int = 0) -> list[Score]:
    return [
        Score(
            score_id=first + i,
            study_uid=f"1.2.{first + i}",
            revision=1,
            created_at=at,
            partial=False,
            outcome=Outcome(state=StudyState.SCORED, document=document),
        )
        for i, document in enumerate(documents)
    ]


def test_weeks_begin_on_monday():
    monday = 1_779_667_200.0  # 2026-05-25
    assert week_of(monday) == monday
    assert week_of(monday - 1) == monday - WEEK_S


def test_values_outside_join_the_outer_bins():
    found = counts(SCORE, [{"probability": {"any": value}} for value in (-1.0, 0.0, 0.07, 2.0)])
    assert found[:2] == (2, 1)
    assert found[-1] == 1


def test_results_that_do_not_say_are_left_out():
    odd: list[dict[str, Any]] = [{}, {"probability": None}, {"probability": {"any": float("nan")}}]
    assert sum(counts(SCORE, [*odd, {"probability": {"any": True}}])) == 0


def test_fractions_of_a_study_add_to_one():
    bins = len(HU.edges) - 1
    document = {"protocol": {"hu_fractions": [1 / bins] * bins}}
    assert sum(counts(HU, [document] * 3)) == pytest.approx(3)
    assert sum(counts(HU, [{"protocol": {"hu_fractions": [1.0]}}])) == 0


def test_what_moved_is_told_and_what_did_not_is_steady():
    history = [
        score for week in range(4) for score in results(rng_documents(50, 0.3, week), START + week * WEEK_S, 100 * week)
    ]
    history += results(rng_documents(50, 0.3, 9), START + 4 * WEEK_S, 900)
    history += results(rng_documents(50, 0.7, 9), START + 5 * WEEK_S, 1900)
    found = drifts(history)[0]
    assert found.num_reference == 4
    assert [in_words(week.index) for week in found.weeks[-2:]] == ["steady", "moved"]


def test_few_studies_say_nothing():
    assert stability([FEWEST - 1, 0], [100, 100]) is None
    assert in_words(None) == "fewer than 20 studies"


def test_a_study_counts_once_with_its_last_result():
    first, last = results([{"probability": {"any": 0.0}}], START)[0], results([{"probability": {"any": 1.0}}], START)[0]
    (week,) = drifts([first, last])[0].weeks
    assert (sum(week.counts), week.counts[-1]) == (1, 1)


def test_without_results_there_is_no_week():
    assert drifts([])[0].weeks == ()


def test_page_draws_weeks_and_says_what_the_reference_is(tmp_path):
    with contextlib.closing(open_site(tmp_path, small_model(tmp_path / "model"))) as site:
        for number in range(3):
            receive(site, uid(number), phantom_files(uid(number))[:1])
            score(site, uid(number), triage="flag")
            site.clock.now += WEEK_S
        with TestClient(build_app(site.parts()), base_url=BASE, headers=bearer(site)) as client:
            text = client.get("/drift").text
    assert "The reference is the first 4 weeks with results here" in text
    assert text.count('<svg class="histogram"') == 4 * 3
    assert "No result says it." in text
    assert "fewer than 20 studies" in text
