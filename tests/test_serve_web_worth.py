import contextlib
import dataclasses

import pytest
from starlette.testclient import TestClient
from web_data import BASE, bearer, open_site, small_model

from fastich.serve.session import open_session
from fastich.serve.web.app import build_app
from fastich.serve.web.worth import UNKNOWN, operating_points

METRICS = {
    "split": "test",
    "sensitivity": {"any": {"value": 0.94}},
    "specificity": {"any": {"value": None}},
    "studies": {"sensitivity": {"any": {"value": 0.9}}, "specificity": {"any": {"value": 0.8}}},
}


@pytest.fixture
def session(tmp_path):
    return open_session(small_model(tmp_path / "model"))


def evaluated(session):
    session.artifact = dataclasses.replace(session.artifact, metrics=METRICS)
    return session


def test_points_are_those_that_the_evaluation_measured(session):
    studies, slices = operating_points(evaluated(session), None)
    assert (studies["title"], studies["sensitivity"], studies["specificity"]) == ("Studies", 0.9, 0.8)
    assert studies["ppv"] == pytest.approx(0.09 / 0.27)
    assert (slices["title"], slices["specificity"], slices["ppv"]) == ("Slices", None, None)


def test_without_an_evaluation_it_is_unknown(session, tmp_path):
    assert operating_points(session, None) == []
    with contextlib.closing(open_site(tmp_path, tmp_path / "model")) as site:
        with TestClient(build_app(site.parts()), base_url=BASE, headers=bearer(site)) as client:
            assert UNKNOWN in client.get("/").text
        evaluated(site.session)
        with TestClient(build_app(site.parts()), base_url=BASE, headers=bearer(site)) as client:
            text = client.get("/").text
    assert UNKNOWN not in text
    assert 'data-sensitivity="0.9" data-specificity="0.8"' in text
