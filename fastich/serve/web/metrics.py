"""GET /metrics: what a Prometheus scrapes. Counted when asked, from the store; no patient data in any name or label."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fastich import __version__
from fastich.serve.web.events import Hub
from fastich.serve.web.health import Golden, checks, free_bytes
from fastich.serve.web.parts import Parts

QUANTILES = (0.5, 0.9, 0.95, 0.99)
MIB = 2**20


class Answers:
    """How many requests got which answer. Safe from any thread: one key is written by the event loop only."""

    def __init__(self) -> None:
        self.found: Counter[tuple[str, str]] = Counter()

    def note(self, method: str, status: int) -> None:
        """Count one answer by its class: 2xx, 3xx, 4xx, 5xx."""
        known = method if method in ("GET", "HEAD", "POST", "DELETE", "PUT", "OPTIONS") else "other"
        self.found[known, f"{status // 100}xx"] += 1


class StoreCollector(Collector):
    """Everything, as it stands at the moment of a scrape."""

    def __init__(self, parts: Parts, golden: Golden, hub: Hub, answers: Answers) -> None:
        self._parts, self._golden, self._hub, self._answers = parts, golden, hub, answers

    def collect(self) -> Iterator[Metric]:
        """Every family."""
        yield from self._store()
        yield from self._notification()
        yield from self._machine()
        answers = CounterMetricFamily("fastich_http_answers", "HTTP answers", labels=("method", "code"))
        for (method, code), count in sorted(self._answers.found.items()):
            answers.add_metric((method, code), count)
        yield answers

    def _store(self) -> Iterator[Metric]:
        counts = self._parts.store.counts()
        for what in ("instances", "studies", "deliveries"):
            family = GaugeMetricFamily(f"fastich_{what}", f"{what} in the store, by state", labels=("state",))
            for state, count in sorted(counts[what].items()):
                family.add_metric((state,), count)
            yield family
        yield _gauge("fastich_waiting_instances", "instances that wait for scoring", counts["waiting"])
        oldest = counts["oldest_waiting_s"] or 0.0
        yield _gauge("fastich_oldest_waiting_seconds", "age of the oldest waiting instance", oldest)
        yield _gauge("fastich_dead_letters", "messages that wait for a person", counts["deliveries"]["dead"])

    def _notification(self) -> Iterator[Metric]:
        times = self._parts.store.notification_times()
        text = "last instance stored to worklist entry, of the newest 1,000 studies, quiet time within"
        family = GaugeMetricFamily("fastich_notification_seconds", text, labels=("quantile",))
        for quantile in QUANTILES if times else ():
            family.add_metric((str(quantile),), float(np.quantile(times, quantile)))
        yield family
        yield _gauge("fastich_notification_studies", "studies that the quantiles are of", len(times))

    def _machine(self) -> Iterator[Metric]:
        parts, session = self._parts, self._parts.session
        yield _gauge("fastich_disk_free_bytes", "free bytes of the spool's disk", free_bytes(parts))
        least = parts.config.spool.min_free_mib * MIB
        yield _gauge("fastich_disk_needed_bytes", "below this nothing is taken in", least)
        ready = all(check.is_ok for check in checks(parts, self._golden))
        yield _gauge("fastich_ready", "1 where every check of /health/ready holds", int(ready))
        yield _gauge("fastich_event_clients", "open event streams", self._hub.num_clients)
        study = parts.study_session
        about = {
            "version": __version__,
            "model_sha256": session.sha256,
            "study_sha256": "" if study is None else study.sha256,
            "backend": session.backend,
            "provider": session.provider,
            "precision": session.precision,
        }
        family = GaugeMetricFamily("fastich_build_info", "what runs", labels=tuple(about))
        family.add_metric(tuple(about.values()), 1)
        yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def metrics(request: Request) -> Response:
    """The exposition."""
    registry: CollectorRegistry = request.app.state.registry
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


ROUTES = [Route("/metrics", metrics)]
