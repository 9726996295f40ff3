import pytest

from fastich.errors import UsageError
from fastich.serve.config import Destination, ServeConfig, WebhookConfig
from fastich.serve.entities import Delivery, DeliveryState, Outcome, Priority, StudyState
from fastich.serve.outputs.policy import deliveries_for, names_of

PACS = Destination(name="pacs")
RAISED_ONLY = Destination(name="reading", only_raised=True)
REPORTS = Destination(name="archive", send=("sr",))


def outcome(priority: Priority, state: StudyState = StudyState.SCORED) -> Outcome:
    document = {"any": "thing"} if state is StudyState.SCORED else None
    return Outcome(state=state, priority=priority, document=document)


def config(*destinations: Destination, **webhook: object) -> ServeConfig:
    return ServeConfig(destinations=destinations, webhook=WebhookConfig(**webhook))


@pytest.mark.parametrize("priority", [Priority.FLAGGED, Priority.HUMAN_FIRST])
def test_raised_study_sends_all_that_each_destination_takes(priority: Priority) -> None:
    found = deliveries_for(config(PACS, RAISED_ONLY, REPORTS), outcome(priority))
    assert found == [("pacs", "sr"), ("pacs", "sc"), ("reading", "sr"), ("reading", "sc"), ("archive", "sr")]


def test_study_that_is_not_raised_sends_reports_and_no_picture() -> None:
    found = deliveries_for(config(PACS, RAISED_ONLY, REPORTS), outcome(Priority.ROUTINE))
    assert found == [("pacs", "sr"), ("archive", "sr")]


def sent(destination: str, kind: str) -> Delivery:
    state = DeliveryState.PENDING
    return Delivery(
        delivery_id=1,
        study_uid="1.2",
        score_id=1,
        destination=destination,
        kind=kind,
        state=state,
        attempts=0,
        next_at=0.0,
    )


def test_13_who_was_sent_a_raised_report_is_sent_the_correction_too() -> None:
    both, clear = config(PACS, RAISED_ONLY, url="http://x"), outcome(Priority.ROUTINE)
    assert deliveries_for(both, clear, [sent("reading", "sr")]) == [("pacs", "sr"), ("reading", "sr")]
    assert deliveries_for(both, clear, [sent("webhook", "webhook")]) == [("pacs", "sr"), ("webhook", "webhook")]
    assert deliveries_for(both, clear, [sent("pacs", "sr")]) == [("pacs", "sr")]


@pytest.mark.parametrize("state", [StudyState.NOT_EVALUATED, StudyState.FAILED])
def test_study_without_a_score_sends_no_object(state: StudyState) -> None:
    assert deliveries_for(config(PACS), outcome(Priority.ROUTINE, state)) == []


def test_webhook_hears_of_raised_studies_by_default() -> None:
    told = [("webhook", "webhook")]
    assert deliveries_for(config(url="http://x"), outcome(Priority.FLAGGED)) == told
    assert deliveries_for(config(url="http://x"), outcome(Priority.ROUTINE)) == []
    assert deliveries_for(config(url="http://x", only_raised=False), outcome(Priority.ROUTINE)) == told
    assert deliveries_for(config(only_raised=False), outcome(Priority.FLAGGED)) == []


def test_webhook_hears_of_studies_without_a_score_but_not_as_fhir() -> None:
    lost = outcome(Priority.ROUTINE, StudyState.NOT_EVALUATED)
    assert deliveries_for(config(url="http://x", only_raised=False), lost) == [("webhook", "webhook")]
    assert deliveries_for(config(url="http://x", only_raised=False, body="fhir"), lost) == []


def test_names_are_those_of_destinations_and_webhook() -> None:
    assert names_of(config(PACS, REPORTS)) == ["pacs", "archive"]
    assert names_of(config(PACS, url="http://x")) == ["pacs", "webhook"]


@pytest.mark.parametrize("names", [("",), ("webhook",), ("a", "a")])
def test_destinations_need_names_of_their_own(names: tuple[str, ...]) -> None:
    where = [Destination(name=name) for name in names]
    with pytest.raises(UsageError, match=rf"destinations\]\] number {len(names)}: name: expected one of its own"):
        names_of(config(*where))


def test_destination_takes_sr_and_sc_only() -> None:
    with pytest.raises(UsageError, match=r"pacs: send: expected sr or sc, found 'pdf'"):
        names_of(config(Destination(name="pacs", send=("sr", "pdf"))))
