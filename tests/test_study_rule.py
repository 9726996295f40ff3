import math
from pathlib import Path

import numpy as np
import pytest
from toy_model import write_model
from toy_study import add_study, sequence_model

from fastich.artifact import Thresholds
from fastich.dicom import Series, Study
from fastich.geometry import SeriesGeometry
from fastich.serve.session import open_session
from fastich.serve.study_session import StudySession, open_study_session
from fastich.study_rule import HEAD_RULE, MAX_RULE, SliceAnswer, gaps_mm, judge, place, rule_of, thresholds_of
from fastich.types import SliceHeader

CHANNELS = 1024  # the toy model's


def header(path: str) -> SliceHeader:
    return SliceHeader(
        path=path,
        frame=0,
        sop_uid=path,
        study_uid="s",
        series_uid="e",
        patient_id="p",
        rows=2,
        columns=2,
        pixel_spacing_mm=None,
        position_mm=None,
        orientation=None,
        thickness_mm=None,
        header_tilt_deg=None,
        instance_number=None,
        transfer_syntax="",
        bits_stored=16,
        signed=True,
        encoding="",
        window=None,
    )


def series(name: str, z_mm: list[float]) -> Series:
    geometry = SeriesGeometry(
        order=tuple(range(len(z_mm))),
        z_mm=tuple(z_mm),
        spacing_mm=None,
        tilt_deg=0.0,
        distances_mm=(),
        gaps_mm=(),
        duplicates=(),
        problems=(),
    )
    headers = tuple(header(f"{name}{index}") for index in range(len(z_mm)))
    return Series(series_uid=name, headers=headers, geometry=geometry)


def study(*parts: Series) -> Study:
    return Study(study_uid="s", patient_id="p", series=parts)


def answers(of: Study, seed: int = 0) -> dict[tuple[str, int], SliceAnswer]:
    random = np.random.default_rng(seed)
    found = {}
    for one in (header for part in of.series for header in part.headers):
        logit = random.normal(size=6).astype(np.float32)
        embedding = random.normal(size=CHANNELS).astype(np.float32)
        found[place(one)] = SliceAnswer(probability=1 / (1 + np.exp(-logit)), logit=logit, embedding=embedding)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    write_model(made)
    add_study(made, sequence_model(CHANNELS), study_thresholds=Thresholds(values=(0.3,) * 6, rule="of the study"))
    return made


@pytest.fixture(scope="module")
def session(folder: Path) -> StudySession:
    opened = open_study_session(folder)
    assert opened is not None
    return opened


def test_gaps_are_differences_of_place_and_unknown_at_the_first() -> None:
    np.testing.assert_array_equal(gaps_mm(series("a", [2, 7, 7, 9.5])), [np.nan, 5, 0, 2.5])


def test_gaps_are_unknown_where_places_are() -> None:
    assert np.isnan(gaps_mm(series("a", [math.nan] * 3))).all()


def test_without_a_sequence_model_a_study_is_its_largest_slice() -> None:
    of = study(series("a", [0, 5]), series("b", [0]))
    found = answers(of)
    judged = judge(of, found, None)
    every = np.stack([one.probability for one in found.values()])
    np.testing.assert_array_equal(judged.study_probability, every.max(axis=0))
    np.testing.assert_array_equal(np.concatenate(judged.slice_probability), every)
    np.testing.assert_array_equal(judged.study_logit, np.stack([one.logit for one in found.values()]).max(axis=0))


def test_with_a_sequence_model_its_answers_count(session: StudySession) -> None:
    of = study(series("a", [0, 5, 11]))
    found = answers(of)
    judged = judge(of, found, session)
    said = session.run(
        np.stack([one.embedding for one in found.values()]),
        np.stack([one.logit for one in found.values()]),
        np.array([np.nan, 5, 6]),
    )
    np.testing.assert_array_equal(judged.slice_probability[0], said.slice_probability)
    np.testing.assert_array_equal(judged.slice_logit[0], said.slice_logit)
    np.testing.assert_array_equal(judged.study_probability, said.study_probability)
    np.testing.assert_array_equal(judged.study_logit, said.study_logit)
    assert np.abs(judged.slice_logit[0] - np.stack([one.logit for one in found.values()])).max() > 0.1


def test_of_several_series_the_largest_counts_for_each_label(session: StudySession) -> None:
    parts = (series("a", [0, 5, 11]), series("b", [0, 4]))
    both = study(*parts)
    found = answers(both)
    alone = np.stack([judge(study(part), found, session).study_probability for part in parts])
    assert len(set(alone.argmax(axis=0))) == 2, "each series must win for some label"
    np.testing.assert_array_equal(judge(both, found, session).study_probability, alone.max(axis=0))


@pytest.mark.parametrize("z_mm", [[3.0], [math.nan], [1.0, 1.0], [math.nan] * 4, [0.0, 5.0, 5.0, 90.0]])
def test_one_slice_doubles_and_missing_places_are_judged(session: StudySession, z_mm: list[float]) -> None:
    of = study(series("a", z_mm))
    judged = judge(of, answers(of), session)
    assert judged.slice_probability[0].shape == (len(z_mm), 6)
    assert np.isfinite(judged.study_probability).all()


def test_rule_and_thresholds_follow_the_folder(folder: Path, session: StudySession) -> None:
    network = open_session(folder)
    assert (rule_of(None), rule_of(session)) == (MAX_RULE, HEAD_RULE)
    assert thresholds_of(network, None) == (network.artifact.thresholds, network.artifact.thresholds)
    slices, studies = thresholds_of(network, session)
    assert slices == Thresholds()
    assert studies.rule == "of the study"
