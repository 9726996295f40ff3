import dataclasses
from pathlib import Path

import pytest
from outputs_data import CREATED_AT, Scored, left_out, phantom_study

from fastich.labels import LABELS
from fastich.serve.entities import Score
from fastich.serve.outputs import result
from fastich.serve.outputs.result import result_of


@pytest.fixture
def study(tmp_path: Path) -> Scored:
    return phantom_study(tmp_path)


def again(score: Score, **changes: object) -> Score:
    return dataclasses.replace(score, **{"score_id": 2, "revision": 2, "created_at": CREATED_AT + 60, **changes})


def test_each_label_has_the_slice_that_it_is_likeliest_on(study: Scored) -> None:
    for index, label in enumerate(LABELS[:-1]):
        best = max(study.slices, key=lambda one: one.answer.probability[index])
        key = study.result.key_slices[label]
        assert key.sop_uid == best.header.sop_uid
        assert key.probability == pytest.approx(float(best.answer.probability[index]))
        assert 1 <= key.number <= key.num_slices == 9


def test_key_slice_of_any_is_the_one_that_the_score_names(study: Scored) -> None:
    document = study.score.outcome.document
    assert document is not None
    assert study.result.key_slices["any"].sop_uid == document["key_slice"]["sop_uid"]


def test_same_result_again_is_the_first_one(study: Scored) -> None:
    later = again(study.score)
    found = result_of(later, [study.score, later])
    assert found.created_at == CREATED_AT
    assert found.uid("sr") == study.result.uid("sr")


def test_other_words_on_the_same_slices_are_another_object(study: Scored) -> None:
    changed = study.with_document(left_out=[left_out("damaged pixels", missed=True)])
    assert changed.result.uid("sr") != study.result.uid("sr")
    partial = dataclasses.replace(study.score, partial=True)
    assert result_of(partial, [partial]).uid("sr") != study.result.uid("sr")


def test_kinds_have_uids_of_their_own(study: Scored) -> None:
    assert study.result.uid("sr") != study.result.uid("sc")


@pytest.mark.parametrize("missed", [[], [False], [False, False], [True], [False, True]])
def test_slices_that_a_series_lacks_make_a_result_partial(study: Scored, missed: list[bool]) -> None:
    found = study.with_document(left_out=[left_out("some reason", missed=one) for one in missed]).result
    assert found.complete is not any(missed)
    assert found.left_out == ({"some reason": len(missed)} if missed else {})


def test_score_of_a_study_on_its_way_is_partial(study: Scored) -> None:
    partial = dataclasses.replace(study.score, partial=True)
    assert not result_of(partial, [partial]).complete


@pytest.mark.parametrize(("flagged", "word"), [(True, "flagged"), (False, "not flagged")])
def test_without_a_three_way_rule_the_threshold_decides(study: Scored, flagged: bool, word: str) -> None:
    assert study.with_document(triage=None, flagged=flagged).result.triage == word


def test_frames_of_one_instance_are_one_instance(study: Scored) -> None:
    document = study.score.outcome.document
    assert document is not None
    (series,) = document["series"]
    rows = [dict(series["slices"][0], sop_uid="1.2.3"), dict(series["slices"][1], sop_uid="1.2.3#1", frame=1)]
    key = {name: rows[1][name] for name in ("sop_uid", "path", "frame", "z_mm")} | {"probability": 0.5}
    found = study.with_document(series=[dict(series, slices=rows)], key_slice=key).result
    assert [sop_uid for sop_uid, _ in found.scored] == ["1.2.3"]
    assert (found.key_slices["any"].sop_uid, found.key_slices["any"].frame) == ("1.2.3", 1)


def test_23_object_of_another_version_has_another_uid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = phantom_study(tmp_path).result
    before = {kind: found.uid(kind) for kind in ("sr", "sc")}
    assert before == {kind: found.uid(kind) for kind in ("sr", "sc")}
    for versions in (("0.0.1", result.VERSIONS[1]), (result.VERSIONS[0], "0.0.1")):
        monkeypatch.setattr(result, "VERSIONS", versions)
        assert all(found.uid(kind) != uid for kind, uid in before.items())
