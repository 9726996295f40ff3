import dataclasses
import io
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dicom_peer import dicom_peer
from http_peer import http_peer
from outputs_data import CREATED_AT, Scored, description, left_out, phantom_study
from pydicom import dcmread
from serve_data import Clock

from fastich.errors import FastichError, StoreError
from fastich.serve.config import DeliveryConfig, Destination, ServeConfig, WebhookConfig
from fastich.serve.entities import DeliveryState, InstanceState, Outcome, Priority, StudyState
from fastich.serve.outputs import build, dimse_client, sender
from fastich.serve.outputs.send_error import SendError
from fastich.serve.outputs.sender import Sender
from fastich.serve.store import Store, open_store

PACS = Destination(name="pacs", host="127.0.0.1", port=1, ae_title="PACS")
BOTH = [("pacs", "sr"), ("pacs", "sc")]


@pytest.fixture
def clock() -> Clock:
    return Clock(CREATED_AT)


@pytest.fixture
def study(tmp_path: Path) -> Scored:
    return phantom_study(tmp_path / "in")


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = open_store(tmp_path / "store.sqlite", clock=clock)
    yield opened
    opened.close()


def fill(store: Store, study: Scored, deliveries: list[tuple[str, str]] = BOTH) -> None:
    """The study in the store, final, with something to send."""
    for instance in study.instances:
        store.add_instance(instance, description())
        slices = [one for one in study.slices if one.header.path == instance.object_name]
        store.finish_instance(instance.sop_uid, InstanceState.SCORED, slices=slices)
    finish(store, study, deliveries)


def finish(store: Store, study: Scored, deliveries: list[tuple[str, str]], outcome: Outcome | None = None) -> None:
    found = store.study(study.score.study_uid)
    assert found is not None
    assert store.finish_study(found.study_uid, found.revision, outcome or study.score.outcome, deliveries)


def arrive(store: Store, study: Scored) -> None:
    """One more instance, that is not scored: the study is receiving again."""
    from_study = study.instances[0]
    late = dataclasses.replace(from_study, sop_uid=from_study.sop_uid + "9", object_name="f" * 64)
    store.add_instance(late, description())
    store.finish_instance(late.sop_uid, InstanceState.NOT_EVALUATED, reason="localizer")


def sending(store: Store, study: Scored, clock: Clock, *destinations: Destination, **changes: Any) -> Sender:
    config = ServeConfig(destinations=destinations, delivery=DeliveryConfig(timeout_s=5), **changes)
    return Sender(store, study, config, clock=clock)


def states(store: Store, study: Scored) -> list[DeliveryState]:
    return [one.state for one in store.deliveries_of(study.score.study_uid)]


def replace_send(monkeypatch: pytest.MonkeyPatch, send: Callable[[], str]) -> None:
    monkeypatch.setattr(dimse_client, "send", lambda *args: send())


def test_report_and_key_image_arrive_once(store: Store, study: Scored, clock: Clock) -> None:
    fill(store, study)
    with dicom_peer() as peer:
        sends = sending(store, study, clock, peer.destination())
        assert sends.send_due("pacs") == 2
        assert sends.send_due("pacs") == 0
    assert [one.Modality for one in peer.stored] == ["SR", "OT"]
    assert {one.StudyInstanceUID for one in peer.stored} == {study.score.study_uid}
    assert states(store, study) == [DeliveryState.DELIVERED] * 2


def test_object_is_known_as_our_own_before_it_is_sent(
    store: Store, study: Scored, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, study, [("pacs", "sr")])
    sent: list[bool] = []

    def send(where: Destination, title: str, data: bytes, timeout_s: float) -> str:
        sent.append(store.is_own(str(dcmread(io.BytesIO(data)).SOPInstanceUID)))
        return ""

    monkeypatch.setattr(dimse_client, "send", send)
    sending(store, study, clock, PACS).send_due("pacs")
    assert sent == [True]


def test_kept_score_is_built_into_the_same_bytes_each_time(store: Store, study: Scored) -> None:
    fill(store, study)
    (score,) = store.scores_of(study.score.study_uid)
    for kind in ("sr", "sc"):
        assert build.build(store, study, score, kind) == build.build(store, study, score, kind)


def test_message_sent_and_not_noted_is_sent_again_as_the_same_object(
    store: Store, study: Scored, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the peer's answer and the table: the next process sends the same object."""
    fill(store, study, [("pacs", "sr")])

    def die(self: Store, delivery_id: int, at: float) -> None:
        raise StoreError("killed here")

    with dicom_peer() as peer:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "delivered", die)
            with pytest.raises(StoreError, match="killed here"):
                sending(store, study, clock, peer.destination()).send_due("pacs")
        clock.now += 3
        again = sending(store, study, clock, peer.destination())
        again.start()
        wait_for(lambda: states(store, study) == [DeliveryState.DELIVERED])
        assert again.stop()
    first, second = peer.stored
    assert first.SOPInstanceUID == second.SOPInstanceUID
    assert first == second


def test_peer_that_is_down_for_an_hour_gets_it_once(
    store: Store, study: Scored, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, study, [("pacs", "sr")])
    tries: list[float] = []

    def send() -> str:
        tries.append(clock.now - CREATED_AT)
        if clock.now < CREATED_AT + 3600:
            raise SendError("pacs: no association")
        return ""

    replace_send(monkeypatch, send)
    sends = sending(store, study, clock, PACS)
    while clock.now < CREATED_AT + 7200:
        sends.send_due("pacs")
        clock.now += 1
    waits = [later - earlier for earlier, later in itertools.pairwise(tries)]
    assert waits == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600, 600, 600]
    assert states(store, study) == [DeliveryState.DELIVERED]
    assert 3600 <= tries[-1] <= 3600 + 600


def test_peer_that_comes_back_gets_it(store: Store, study: Scored, clock: Clock) -> None:
    fill(store, study, [("pacs", "sr")])
    with dicom_peer() as peer:
        destination = peer.destination()
    sends = sending(store, study, clock, destination)
    with dicom_peer(0xA700, 0, port=peer.port) as peer:
        assert sends.send_due("pacs") == 1
        assert states(store, study) == [DeliveryState.PENDING]
        clock.now += 5
        assert sends.send_due("pacs") == 1
    assert len(peer.stored) == 1
    assert states(store, study) == [DeliveryState.DELIVERED]


def test_last_try_makes_a_dead_letter_that_a_person_can_send_again(
    store: Store, study: Scored, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, study, [("pacs", "sr")])
    peer = {"up": False}

    def send() -> str:
        if not peer["up"]:
            raise SendError("pacs: no association")
        return ""

    replace_send(monkeypatch, send)
    config = ServeConfig(destinations=(PACS,), delivery=DeliveryConfig(max_attempts=3))
    sends = Sender(store, study, config, clock=clock)
    for _ in range(5):
        sends.send_due("pacs")
        clock.now += 3600
    (dead,) = store.dead_letters()
    assert (dead.attempts, dead.last_error) == (3, "pacs: no association")
    peer["up"] = True
    assert store.requeue(dead.delivery_id)
    sends.send_due("pacs")
    assert states(store, study) == [DeliveryState.DELIVERED]


def test_permanent_refusal_is_a_dead_letter_at_once(store: Store, study: Scored, clock: Clock) -> None:
    fill(store, study, [("pacs", "sr")])
    with dicom_peer(0x0122) as peer:
        sending(store, study, clock, peer.destination()).send_due("pacs")
    (dead,) = store.dead_letters()
    assert "0x0122 (SOP class not supported)" in dead.last_error
    assert dead.attempts == 1


def test_warning_is_delivered_and_logged(
    store: Store, study: Scored, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, study, [("pacs", "sr")])
    with dicom_peer(0xB000) as peer:
        sending(store, study, clock, peer.destination()).send_due("pacs")
    assert states(store, study) == [DeliveryState.DELIVERED]
    (line,) = (one for one in caplog.records if one.name == sender.__name__)
    assert line.levelno == logging.WARNING
    assert "delivered: 0xB000" in line.getMessage()


def test_no_log_line_and_no_error_names_the_patient(
    store: Store, study: Scored, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="fastich")
    fill(store, study)
    with dicom_peer(0xC000) as peer:
        sending(store, study, clock, peer.destination()).send_due("pacs")
    said = caplog.text + "".join(one.last_error for one in store.deliveries_of(study.score.study_uid))
    assert "failed, 0xC000" in said
    assert not any(secret in said for secret in ("MUELLER", "4711", "A-1", "19500102"))


def test_result_that_was_replaced_is_superseded_by_the_newer_one(store: Store, study: Scored, clock: Clock) -> None:
    fill(store, study, [("pacs", "sr")])
    arrive(store, study)
    newer = study.with_document(left_out=[left_out("damaged pixels", missed=True)])
    finish(store, study, [("pacs", "sr")], newer.score.outcome)
    told: list[tuple[str, str]] = []
    with dicom_peer() as peer:
        config = ServeConfig(destinations=(peer.destination(),))
        sends = Sender(store, study, config, clock=clock, on_told=lambda one, what, words: told.append((what, words)))
        assert sends.send_due("pacs") == 2
    assert states(store, study) == [DeliveryState.SUPERSEDED, DeliveryState.DELIVERED]
    assert store.deliveries_of(study.score.study_uid)[0].last_error == "superseded by score 2"
    assert told == [("superseded", "by score 2"), ("delivered", "")]
    assert [one.CompletionFlag for one in peer.stored] == ["PARTIAL"]


def test_13_flagged_report_is_sent_though_its_study_cannot_be_judged_any_more(
    store: Store, study: Scored, clock: Clock
) -> None:
    """The newer result goes nowhere: a flag must not vanish with it."""
    fill(store, study, [("pacs", "sr")])
    arrive(store, study)
    finish(store, study, [], Outcome(state=StudyState.FAILED, reason="gaps", priority=Priority.FLAGGED))
    with dicom_peer() as peer:
        sending(store, study, clock, peer.destination()).send_due("pacs")
    assert [one.Modality for one in peer.stored] == ["SR"]
    assert states(store, study) == [DeliveryState.DELIVERED]


def test_clear_report_is_not_sent_once_its_study_cannot_be_judged_any_more(
    store: Store, study: Scored, clock: Clock
) -> None:
    fill_with = dataclasses.replace(study.score.outcome, priority=Priority.ROUTINE)
    clear = dataclasses.replace(study, score=dataclasses.replace(study.score, outcome=fill_with))
    fill(store, clear, [("pacs", "sr")])
    arrive(store, study)
    finish(store, study, [], Outcome(state=StudyState.NOT_EVALUATED, reason="gaps", priority=Priority.ROUTINE))
    with dicom_peer() as peer:
        sending(store, study, clock, peer.destination()).send_due("pacs")
    assert peer.stored == []
    assert states(store, study) == [DeliveryState.SUPERSEDED]


def test_key_image_is_not_sent_after_a_newer_report_without_one(store: Store, study: Scored, clock: Clock) -> None:
    fill(store, study, [("pacs", "sc"), ("other", "sr")])
    arrive(store, study)
    finish(store, study, [("pacs", "sr")])
    with dicom_peer() as peer:
        sending(store, study, clock, peer.destination()).send_due("pacs")
    assert [one.Modality for one in peer.stored] == ["SR"]
    assert states(store, study) == [DeliveryState.SUPERSEDED, DeliveryState.PENDING, DeliveryState.DELIVERED]


def test_study_judged_again_without_news_sends_the_same_object(store: Store, study: Scored, clock: Clock) -> None:
    fill(store, study, [("pacs", "sr")])
    with dicom_peer() as peer:
        sends = sending(store, study, clock, peer.destination())
        sends.send_due("pacs")
        clock.now += 60
        arrive(store, study)
        finish(store, study, [("pacs", "sr")])
        sends.send_due("pacs")
    first, second = peer.stored
    assert first == second


def test_slow_destination_does_not_hold_up_another(store: Store, study: Scored, clock: Clock) -> None:
    fill(store, study, [("slow", "sr"), ("pacs", "sr")])
    with dicom_peer() as peer, http_peer() as slow:
        slow.delay = threading.Event()
        stow = Destination(name="slow", kind="stow", url=slow.url)
        sends = sending(store, study, clock, stow, peer.destination())
        sends.start()
        wait_for(lambda: len(slow.asked) == 1 and len(peer.stored) == 1)
        wait_for(lambda: states(store, study) == [DeliveryState.PENDING, DeliveryState.DELIVERED])
        slow.delay.set()
        wait_for(lambda: states(store, study) == [DeliveryState.DELIVERED] * 2)
        assert sends.stop()


def test_stop_finishes_what_is_being_sent_and_leaves_no_thread(store: Store, study: Scored, clock: Clock) -> None:
    fill(store, study, [("slow", "sr"), ("slow", "sc")])
    before = set(threading.enumerate())
    with http_peer() as slow:
        slow.delay = threading.Event()
        sends = sending(store, study, clock, Destination(name="slow", kind="stow", url=slow.url))
        sends.start()
        wait_for(lambda: len(slow.asked) == 1)
        assert not sends.stop(drain_s=0.05)
        slow.delay.set()
        assert sends.stop()
        assert len(slow.asked) == 1
    assert states(store, study) == [DeliveryState.DELIVERED, DeliveryState.PENDING]
    assert set(threading.enumerate()) <= before


def test_wake_saves_the_wait(store: Store, study: Scored, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "POLL_S", 3600)
    replace_send(monkeypatch, lambda: "")
    sends = sending(store, study, clock, PACS)
    sends.start()
    fill(store, study)
    sends.wake()
    wait_for(lambda: states(store, study) == [DeliveryState.DELIVERED] * 2)
    assert sends.stop()


def test_destination_that_was_removed_leaves_dead_letters(store: Store, study: Scored, clock: Clock) -> None:
    fill(store, study, [("gone", "sr"), ("gone", "sc")])
    sending(store, study, clock, PACS).bury_unknown()
    assert {one.last_error for one in store.dead_letters()} == {"gone: not among the destinations of the configuration"}
    assert states(store, study) == [DeliveryState.DEAD] * 2


def test_image_that_is_gone_makes_a_dead_letter_that_says_so(store: Store, study: Scored, clock: Clock) -> None:
    fill(store, study, [("pacs", "sc")])
    study.key_path.unlink()
    sending(store, study, clock, PACS).send_due("pacs")
    (dead,) = store.dead_letters()
    assert dead.last_error.endswith("expected in the spool, found nothing; retention may have deleted it")


def test_class_map_that_was_not_kept_is_said(store: Store, study: Scored) -> None:
    fill(store, study)
    (score,) = store.scores_of(study.score.study_uid)
    bare = [dataclasses.replace(one, answer=dataclasses.replace(one.answer, cam=None)) for one in study.slices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "scored_slices", lambda self, study_uid: bare)
        with pytest.raises(FastichError, match=r"frame 0: expected a class map, found none stored$"):
            build.build(store, study, score, "sc")


def test_score_without_a_result_cannot_be_built(store: Store, study: Scored) -> None:
    score = dataclasses.replace(study.score, outcome=Outcome(state=StudyState.FAILED, reason="broken"))
    with pytest.raises(FastichError, match=r"^score 1: expected a result, found none: broken$"):
        build.build(store, study, score, "sr")


def test_mistake_of_ours_is_tried_again_and_logged(
    store: Store, study: Scored, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, study, [("pacs", "sr")])

    def send() -> str:
        raise RuntimeError("MUELLER^ANNA")

    replace_send(monkeypatch, send)
    sending(store, study, clock, PACS).send_due("pacs")
    (one,) = store.deliveries_of(study.score.study_uid)
    assert (one.state, one.last_error) == (DeliveryState.PENDING, "unexpected RuntimeError")
    assert "delivery 1: unexpected RuntimeError at test_outputs_sender.py:" in caplog.text
    assert "MUELLER" not in caplog.text


def test_webhook_is_told_once(store: Store, study: Scored, clock: Clock) -> None:
    fill(store, study, [("webhook", "webhook")])
    with http_peer((503, {}, b""), (200, {}, b"")) as peer:
        sends = sending(store, study, clock, webhook=WebhookConfig(url=peer.url))
        for _ in range(3):
            sends.send_due("webhook")
            clock.now += 60
    first, second = peer.asked
    assert first.body == second.body
    assert first.headers["Fastich-Delivery"] == second.headers["Fastich-Delivery"] == "1"
    assert states(store, study) == [DeliveryState.DELIVERED]


def wait_for(condition: Callable[[], bool], limit_s: float = 20) -> None:
    done = threading.Event()
    for _ in range(int(limit_s / 0.02)):
        if condition():
            return
        done.wait(0.02)
    raise AssertionError("it did not happen in time")
