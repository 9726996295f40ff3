import hashlib

import numpy as np
import pandas as pd
import pytest

from fastich import fingerprints
from fastich.fingerprints import common, id_set, of_rows, pack, shared, unpack


def rows(*lines: tuple[str, str, str]) -> pd.DataFrame:
    """(patient, study, image) a row; the slice's uid is its place."""
    frame = pd.DataFrame(lines, columns=["patient_id", "study_uid", "pixel_sha1"])
    return frame.assign(series_uid=frame["study_uid"] + ".1", sop_uid=[f"slice {i}" for i in range(len(frame))])


def test_a_code_is_eight_bytes_of_a_salted_sha256() -> None:
    wanted = int.from_bytes(hashlib.sha256(b"fastich leakage 1\0ID_0219ef88").digest()[:8], "little")
    assert id_set(["ID_0219ef88"]).codes.tolist() == [wanted]


def test_packed_ids_come_back_and_take_eleven_characters_each() -> None:
    ids = id_set([f"ID_{i}" for i in range(300)])
    back = unpack(pack(ids))
    assert np.array_equal(back.codes, ids.codes)
    assert back.names is None
    assert back.digest() == ids.digest() != id_set(["ID_1"]).digest()
    assert len(pack(ids)) == 300 * 8 * 4 // 3


@pytest.mark.parametrize(
    ("text", "match"), [("not base64!", "expected base64"), (pack(id_set(["a"])) * 2, "base64|ascending")]
)
def test_damaged_packed_ids_are_refused(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        unpack(text)


def test_what_is_common_goes_by_the_names_that_are_known() -> None:
    named, packed = id_set(["a", "b", "c"]), unpack(pack(id_set(["b", "c", "d"])))
    for found in (common(named, packed), common(packed, named)):
        assert set(found.names.tolist()) == {"b", "c"}
    assert common(packed, packed).names is None


def test_every_kind_is_counted_once() -> None:
    held = of_rows(rows(("p", "s1", "x"), ("p", "s1", "y"), ("p", "s2", "x")))
    assert {kind: len(ids) for kind, ids in held.items()} == {
        "patients": 1,
        "studies": 2,
        "series": 2,
        "pixels": 2,
        "copies": 1,
    }


def test_a_study_filed_again_under_other_ids_is_a_copy() -> None:
    first = of_rows(rows(("p", "s", "x"), ("p", "s", "y")))
    again = of_rows(rows(("q", "t", "y"), ("q", "t", "x")))
    found = shared(first, {"copies": unpack(pack(again["copies"]))})
    assert found["copies"].names.tolist() == ["slice 0"]
    assert found["pixels"] is None
    assert len(shared(first, again)["patients"]) == 0


def test_blank_images_are_left_out_and_only_repeated_ones_are_looked_at() -> None:
    index = rows(("p", "s", "blank"), ("p", "s", "x"), ("q", "t", "blank"), ("q", "t", "same"), ("r", "u", "same"))
    asked: list[int] = []
    blank = fingerprints.blank_hashes(index, lambda row: asked.append(row) or row == 0)
    assert (blank, asked) == ({"blank"}, [0, 3])
    assert len(of_rows(index, blank)["pixels"]) == 2


def test_an_id_of_unknown_kind_is_compared_with_every_kind_but_images() -> None:
    held = of_rows(rows(("ID_a", "ID_b", "ID_c")))
    named = {"ids": id_set(["ID_a", "ID_b", "ID_c"])}
    found = {kind: None if ids is None else len(ids) for kind, ids in shared(held, named).items()}
    assert found == {"patients": 1, "studies": 1, "series": 0, "pixels": None, "copies": None}
    assert {kind: len(ids) for kind, ids in shared(named, named).items()} == {"ids": 3}
