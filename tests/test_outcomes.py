import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from fastich.errors import FastichError, LabelError
from fastich.labels import LABELS
from fastich.outcomes import join, read_outcomes, read_scores


def table(folder: Path, text: str) -> Path:
    path = folder / "outcomes.csv"
    path.write_text(text, encoding="utf-8")
    return path


def scores(*studies: tuple[str, str, dict[str, list[float]]]) -> dict[str, object]:
    """What score prints, as far as it is read: patient, study, slices with the first of six rising logits."""
    return {
        "model": {"weights_sha256": "ab" * 32},
        "studies": [
            {
                "study_uid": study,
                "patient_id": patient,
                "series": [
                    {
                        "slices": [
                            {"sop_uid": uid, "logit": {label: value + i for i, label in enumerate(LABELS)}}
                            for uid, (value,) in slices.items()
                        ]
                    }
                ],
            }
            for patient, study, slices in studies
        ],
    }


TWO = scores(("P1", "S1", {"a": [0.0], "b": [3.0]}), ("P2", "S2", {"c": [-1.0]}))


def test_labels_are_read_with_blank_as_unknown_and_missing_columns_as_blank(tmp_path: Path) -> None:
    path = table(tmp_path, "any,sop_uid, epidural\n1,a,0\n0, b ,\n\n,c,1\n")
    found = read_outcomes(path)
    assert found.unit == "slice"
    assert found.labels == {
        "a": (0, -1, -1, -1, -1, 1),
        "b": (-1, -1, -1, -1, -1, 0),
        "c": (1, -1, -1, -1, -1, 1),
    }
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.csv"
    path.write_bytes(b"\xef\xbb\xbfstudy_uid,any\r\nS1,1\r\n")
    assert read_outcomes(path).labels == {"S1": (-1, -1, -1, -1, -1, 1)}


def test_two_rows_of_one_uid_fill_each_others_blanks(tmp_path: Path) -> None:
    found = read_outcomes(table(tmp_path, "sop_uid,any,epidural\na,1,\na,,0\na,1,0\n"))
    assert found.labels == {"a": (0, -1, -1, -1, -1, 1)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one column sop_uid or study_uid and at least one label, each once, found no header"),
        ("any\n1\n", "at least one label, each once, found any"),
        ("sop_uid\na\n", "at least one label, each once, found sop_uid"),
        ("sop_uid,study_uid,any\na,b,1\n", "each once, found sop_uid, study_uid, any"),
        ("sop_uid,any,any\na,1,1\n", "each once, found sop_uid, any, any"),
        ("sop_uid,any,comment,date\na,1,x,y\n", "and any of epidural, .*, any, found comment, date"),
        ("sop_uid,any\n", "expected a row for each slice below the header, found none"),
        ("study_uid,any\n\n", "expected a row for each study below the header, found none"),
        ("sop_uid,any\na,1,0\n", "row 2: expected 2 cells, found 3"),
        ("sop_uid,any\n,1\n", "row 2: expected a sop_uid, found none"),
        ("sop_uid,any\na,1\nb,yes\n", "row 3: any: expected 0, 1 or blank, found 'yes'"),
        ("sop_uid,any\na,1.0\n", "row 2: any: expected 0, 1 or blank, found '1.0'"),
        ("sop_uid,any\na,1\na,0\n", "row 3, sop_uid a: any is 0 here and 1 in an earlier row; keep one of them"),
        ("sop_uid,any,subdural\na,0,1\n", "row 2, sop_uid a: any is 0 although subdural is 1; correct one of them"),
        ("sop_uid,any,subdural\na,,1\na,0,\n", "row 3, sop_uid a: any is 0 although subdural is 1"),
        ('sop_uid,any\n"a,1\n', "expected a CSV file in UTF-8, found unexpected end of data"),
    ],
)
def test_table_that_is_malformed_or_contradicts_itself_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LabelError, match=rf"outcomes\.csv: .*{message}"):
        read_outcomes(table(tmp_path, text))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "outcomes.csv"
    path.write_bytes(b"sop_uid,any\n\xff\xfe,1\n")
    with pytest.raises(LabelError, match="expected a CSV file in UTF-8, found 'utf-8' codec"):
        read_outcomes(path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model": {"weights_sha256": "a"}}', '{"model": {}, "studies": []}', "[" * 100_000]
)
def test_scores_of_another_shape_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(FastichError, match=r"scores\.json: expected what this version's python -m fastich\.score"):
        read_scores(tmp_path / "scores.json")


def test_scores_without_logits_are_refused(tmp_path: Path) -> None:
    old = json.loads(json.dumps(TWO).replace('"logit"', '"probability"'))
    (tmp_path / "scores.json").write_text(json.dumps(old))
    with pytest.raises(FastichError, match="with the logit of each slice, found KeyError 'logit'; score again"):
        read_scores(tmp_path / "scores.json")


def test_slices_are_joined_by_uid_in_the_order_of_the_table(tmp_path: Path) -> None:
    found = join(read_outcomes(table(tmp_path, "sop_uid,any\nc,0\nx,1\nb,1\ny,\n")), TWO, "here")
    np.testing.assert_array_equal(found.logit, [[-1, 0, 1, 2, 3, 4], [3, 4, 5, 6, 7, 8]])
    assert found.labels[:, 5].tolist() == [0, 1]
    assert found.patients.tolist() == ["P2", "P1"]
    assert found.without_score == ("x", "y")


def test_studies_are_joined_by_their_largest_slice(tmp_path: Path) -> None:
    found = join(read_outcomes(table(tmp_path, "study_uid,any\nS1,1\nS2,0\n")), TWO, "here")
    np.testing.assert_array_equal(found.logit[:, 0], [3, -1])
    assert found.patients.tolist() == ["P1", "P2"]


def test_studies_are_joined_by_the_logit_that_they_state(tmp_path: Path) -> None:
    stated = json.loads(json.dumps(TWO))
    stated["studies"][0]["logit"] = {label: 0.5 - i for i, label in enumerate(LABELS)}
    found = join(read_outcomes(table(tmp_path, "study_uid,any\nS1,1\nS2,0\n")), stated, "here")
    np.testing.assert_array_equal(found.logit, [[0.5, -0.5, -1.5, -2.5, -3.5, -4.5], [-1, 0, 1, 2, 3, 4]])
    by_slice = join(read_outcomes(table(tmp_path, "sop_uid,any\na,1\n")), stated, "here")
    np.testing.assert_array_equal(by_slice.logit[0], [0, 1, 2, 3, 4, 5])


def test_study_whose_logit_is_damaged_is_refused(tmp_path: Path) -> None:
    damaged = json.loads(json.dumps(TWO))
    damaged["studies"][0]["logit"] = {"any": 1.0}
    (tmp_path / "scores.json").write_text(json.dumps(damaged))
    with pytest.raises(FastichError, match="found KeyError 'epidural'; score again"):
        read_scores(tmp_path / "scores.json")


def test_outcomes_that_were_never_scored_are_named(tmp_path: Path) -> None:
    outcomes = read_outcomes(table(tmp_path, "study_uid,any\nS6,1\nS7,0\nS8,0\nS9,1\n"))
    with pytest.raises(
        FastichError,
        match="here: expected a study that was scored, found none of 4, first S6, S7, S8; give",
    ):
        join(outcomes, TWO, "here")
