import json

import numpy as np
import pandas as pd
import pytest
from records_data import make_dataset

from fastich.errors import RecordError
from fastich.records.index import (
    check_index,
    parse_dataset,
    read_index,
    render_dataset,
    series_codes,
    series_numbers,
    shard_name,
)


@pytest.fixture
def frame(tmp_path):
    make_dataset(tmp_path / "a")
    return read_index((tmp_path / "a" / "index.parquet").read_bytes())


@pytest.fixture
def raw(tmp_path):
    make_dataset(tmp_path / "a")
    return (tmp_path / "a" / "dataset.json").read_bytes()


def test_shard_name_is_numbered_with_five_digits():
    assert shard_name(3, 12) == "shard-00003-of-00012.tfrecord"


def test_index_that_was_written_is_accepted(frame):
    check_index(frame)


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("height", 2, 0, "row 2: height and width must be 1 or more"),
        ("shard", 1, -1, "row 1: shard and offset must not be negative"),
        ("offset", 0, -1, "row 0: shard and offset must not be negative"),
        ("payload_size", 3, 10**6, "row 3: the payload is not inside its record"),
        ("payload_offset", 3, 0, "row 3: the payload is not inside its record"),
        ("any", 4, 2, r"row 4: labels must be 0, 1 or -1"),
        ("epidural", 4, -2, r"row 4: labels must be 0, 1 or -1"),
        ("split", 5, "dev", "row 5: split must be one of"),
        ("z_mm", 1, -1.0, "row 1: z_mm falls within a series"),
        ("study_uid", 9, "s0", "row 9: its study is split"),
        ("series_uid", 1, "other", "row 2: its series is split"),
    ],
)
def test_check_names_column_and_row(frame, column, row, value, message):
    frame.loc[row, column] = value
    with pytest.raises(RecordError, match=message):
        check_index(frame)


def test_unknown_z_is_accepted(frame):
    frame["z_mm"] = np.nan
    check_index(frame)


def test_check_refuses_wrong_columns_types_and_numbering(frame):
    with pytest.raises(RecordError, match=r"missing \['sop_uid'\], unknown \['sop'\]"):
        check_index(frame.rename(columns={"sop_uid": "sop"}))
    with pytest.raises(RecordError, match="column any is int64, expected int8"):
        check_index(frame.astype({"any": np.int64}))
    with pytest.raises(RecordError, match="column source must hold text in every row"):
        check_index(frame.assign(source=[None] * 10))
    with pytest.raises(RecordError, match="expected rows numbered from 0"):
        check_index(frame.iloc[1:])


def test_series_codes_tell_equal_series_names_in_two_studies_apart():
    frame = pd.DataFrame({"study_uid": ["a", "a", "b", "b"], "series_uid": ["1", "2", "1", "1"]})
    codes = series_codes(frame)
    assert len(set(codes[:3])) == 3
    assert codes[2] == codes[3]


def test_read_index_refuses_what_is_not_parquet():
    with pytest.raises(RecordError, match=r"^index.parquet: cannot be read as Parquet"):
        read_index(b"PAR1 no")


def test_render_then_parse_gives_the_value_back(raw):
    value = parse_dataset(raw)
    assert render_dataset(value).encode() == raw


def test_every_single_changed_byte_of_dataset_json_is_noticed(raw):
    for at in range(len(raw)):
        with pytest.raises(RecordError):
            parse_dataset(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])


def test_truncated_dataset_json_is_refused(raw):
    with pytest.raises(RecordError, match="not JSON"):
        parse_dataset(raw[:100])
    with pytest.raises(RecordError, match="changed since it was written"):
        parse_dataset(raw[:-1])


def rewritten(raw, **changes):
    value = json.loads(raw) | changes
    return render_dataset({key: item for key, item in value.items() if item is not ...}).encode()


def test_other_format_version_is_named_with_the_ways_out(raw):
    with pytest.raises(RecordError, match=r"format version is 2, this fastich reads 1; pack the data set again"):
        parse_dataset(rewritten(raw, format_version=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": ...}, "key 'shards' is missing or of the wrong type"),
        ({"num_slices": "10"}, "key 'num_slices' is missing or of the wrong type"),
        ({"shards": [{"file": "a"}]}, "shards: key 'sha256' is missing"),
        ({"index": {"file": "../index.parquet", "sha256": ""}}, "file '../index.parquet' is not a plain name"),
        ({"rejects": "/etc/passwd"}, "file '/etc/passwd' is not a plain name"),
        ({"codec": "zip"}, "codec is 'zip', expected one of lbp, raw"),
    ],
)
def test_parse_refuses_a_dataset_json_that_makes_no_sense(raw, changes, message):
    with pytest.raises(RecordError, match=message):
        parse_dataset(rewritten(raw, **changes))


@pytest.mark.parametrize("junk", [b"", b"[]", b"null", b"\xff\xfe", b"[" * 100000])
def test_parse_refuses_junk(junk):
    with pytest.raises(RecordError, match=r"dataset\.json"):
        parse_dataset(junk)


def test_series_are_numbered_in_the_order_of_the_index():
    frame = pd.DataFrame({"study_uid": list("bbbaac"), "series_uid": list("xxyxxx")})
    assert series_numbers(frame).tolist() == [0, 0, 1, 2, 2, 3]
