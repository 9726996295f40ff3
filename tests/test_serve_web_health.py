import contextlib
import dataclasses

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient
from web_data import BASE, bearer, open_site, phantom_files, receive, score, small_model, uid

from fastich.errors import ArtifactError, StoreError
from fastich.serve.config import ModelConfig
from fastich.serve.web import health
from fastich.serve.web.app import build_app


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def site(tmp_path, model):
    with contextlib.closing(open_site(tmp_path, model)) as made:
        yield made


def told(parts) -> tuple[int, dict]:
    with TestClient(build_app(parts), base_url=BASE) as client:
        assert client.get("/health/live").json() == {"live": True}
        answer = client.get("/health/ready")
        assert client.get("/v2/health/ready").status_code == answer.status_code
        return answer.status_code, answer.json()["checks"]


def test_ready_where_everything_holds(site):
    status, checks = told(site.parts())
    assert status == 200
    assert list(checks) == ["provider", "model", "self-test", "scoring", "threads", "disk", "database"]
    assert site.session.sha256 in checks["model"]["detail"]


def test_other_provider_than_asked_for_is_not_ready(site):
    config = dataclasses.replace(site.config, model=ModelConfig(device="cuda"))
    status, checks = told(site.parts(config=config))
    assert status == 503
    assert checks["provider"] == {"ok": False, "detail": "onnxruntime CPUExecutionProvider float32, asked for cuda"}


def test_engine_that_is_not_at_work_is_not_ready(site):
    status, checks = told(site.parts(engine_trouble=lambda: "the model thread ended"))
    assert (status, checks["scoring"]["detail"]) == (503, "the model thread ended")


def test_full_disk_is_not_ready(tmp_path, model):
    with contextlib.closing(open_site(tmp_path, model, min_free_mib=2**40)) as site:
        status, checks = told(site.parts())
    assert (status, checks["disk"]["ok"]) == (503, False)


def test_silent_database_is_not_ready(site, monkeypatch):
    def fails() -> None:
        raise StoreError("secret path")

    monkeypatch.setattr(site.store, "ping", fails)
    status, checks = told(site.parts())
    assert (status, checks["database"]["detail"]) == (503, "does not answer (StoreError)")


class Moved:
    """A session whose model says something else from the second run on."""

    def __init__(self, session, by: float) -> None:
        self._session, self._by, self.runs = session, by, 0

    def run(self, hu):
        self.runs += 1
        found = self._session.run(hu)
        if self._by < 0 and self.runs > 1:
            raise ArtifactError("x")
        return dataclasses.replace(found, probability=found.probability + np.float32(self._by * (self.runs > 1)))


@pytest.mark.parametrize(
    ("by", "words"),
    [
        (0.0, ""),
        (0.01, "a probability of the golden slice moved by 0.01"),
        (-1.0, "the model failed on the golden slice (ArtifactError)"),
    ],
)
def test_model_that_is_no_longer_itself_is_found_out(site, monkeypatch, by, words):
    golden = health.Golden(Moved(site.session, by))
    assert golden.trouble() == ""
    monkeypatch.setattr(health, "GOLDEN_S", 0.0)
    assert golden.trouble() == words


def test_golden_slice_is_a_head_with_a_lens():
    hu = health.golden_slice(64)
    assert hu.shape == (1, 64, 64)
    assert {-1024, 32, 68, 900} == set(np.unique(hu))


def families(text: str) -> dict[str, dict[tuple, float]]:
    return {
        family.name: {tuple(sorted(sample.labels.items())): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(text)
    }


def test_metrics_count_what_is_in_the_store(site):
    receive(site, uid(1), phantom_files(uid(1))[:2])
    score(site, uid(1), triage="flag")
    site.clock.now += 10
    receive(site, uid(2), phantom_files(uid(2))[:3])
    site.clock.now += 5
    with TestClient(build_app(site.parts()), base_url=BASE) as client:
        client.get("/studies", headers=bearer(site))
        found = families(client.get("/metrics", headers=bearer(site)).text)
    assert found["fastich_studies"][(("state", "scored"),)] == 1
    assert found["fastich_waiting_instances"][()] == 3
    assert found["fastich_oldest_waiting_seconds"][()] == 5
    assert found["fastich_notification_studies"][()] == 1
    assert found["fastich_notification_seconds"][(("quantile", "0.5"),)] == 0
    assert found["fastich_ready"][()] == 1
    assert found["fastich_disk_free_bytes"][()] > 0
    assert found["fastich_dead_letters"][()] == 0
    assert found["fastich_http_answers"][(("code", "2xx"), ("method", "GET"))] == 1
    (labels,) = found["fastich_build_info"]
    assert dict(labels)["model_sha256"] == site.session.sha256


def test_metrics_need_no_token_from_this_machine_only(site):
    for address, headers, status in (
        ("127.0.0.1", {}, 200),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.1"}, 401),
        ("192.0.2.1", {}, 401),
        ("192.0.2.1", bearer(site), 200),
    ):
        with TestClient(build_app(site.parts()), base_url=BASE, client=(address, 1)) as client:
            assert client.get("/metrics", headers=headers).status_code == status
