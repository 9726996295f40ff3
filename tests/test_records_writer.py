import hashlib
import json
import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from records_data import make_dataset, make_pixels, make_rows

from fastich.errors import RecordError
from fastich.records import codec
from fastich.records.format import crc32c, parse_example, read_frame
from fastich.records.index import SCHEMA, index_frame
from fastich.records.writer import ShardWriter, finish_dataset


def test_append_tells_where_the_record_and_its_payload_lie(tmp_path):
    payloads = [codec.encode(image) for image in make_pixels(3)]
    with ShardWriter(tmp_path / "a.tfrecord") as writer:
        places = [writer.append(payload, 40, 50, [0] * 6, f"1.{n}") for n, payload in enumerate(payloads)]
    shard = (tmp_path / "a.tfrecord").read_bytes()
    assert [place.offset for place in places] == [0, places[0].size, places[0].size + places[1].size]
    assert sum(place.size for place in places) == len(shard)
    for n, (place, payload) in enumerate(zip(places, payloads, strict=True)):
        assert shard[place.payload_offset :][: place.payload_size] == payload
        assert place.crc32c == crc32c(payload)
        assert parse_example(read_frame(memoryview(shard), place.offset, "a")).sop == f"1.{n}"


def test_close_gives_name_hash_size_and_count_of_the_file(tmp_path):
    with ShardWriter(tmp_path / "a.tfrecord") as writer:
        writer.append(b"payload", 1, 1, [0] * 6, "1")
    info = writer.close()
    raw = (tmp_path / "a.tfrecord").read_bytes()
    assert (info.file, info.sha256, info.size_bytes, info.num_slices) == (
        "a.tfrecord",
        hashlib.sha256(raw).hexdigest(),
        len(raw),
        1,
    )


def test_nothing_stands_under_the_name_before_close(tmp_path):
    writer = ShardWriter(tmp_path / "a.tfrecord")
    writer.append(b"payload", 1, 1, [0] * 6, "1")
    assert os.listdir(tmp_path) == ["a.tfrecord.tmp"]
    writer.close()
    assert os.listdir(tmp_path) == ["a.tfrecord"]


def test_an_error_while_writing_leaves_no_file(tmp_path):
    with pytest.raises(OSError, match="disk full"), ShardWriter(tmp_path / "a.tfrecord") as writer:
        writer.append(b"payload", 1, 1, [0] * 6, "1")
        raise OSError("disk full")
    assert os.listdir(tmp_path) == []


def test_a_rest_of_a_killed_run_is_overwritten(tmp_path):
    (tmp_path / "a.tfrecord.tmp").write_bytes(b"x" * 10000)
    with ShardWriter(tmp_path / "a.tfrecord") as writer:
        place = writer.append(b"payload", 1, 1, [0] * 6, "1")
    assert (tmp_path / "a.tfrecord").stat().st_size == place.size


def test_equal_input_gives_equal_bytes(tmp_path):
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b")
    names = sorted(os.listdir(tmp_path / "a"))
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_equal_rows_give_equal_bytes_whatever_frame_holds_them(tmp_path):
    make_dataset(tmp_path / "a")
    frame = pd.read_parquet(tmp_path / "a" / "index.parquet")
    other = frame.astype({field.name: object for field in SCHEMA if field.type == "string"})
    other.attrs["note"] = "pandas metadata"
    before = (tmp_path / "a" / "index.parquet").read_bytes()
    dataset = json.loads((tmp_path / "a" / "dataset.json").read_text())
    meta = {key: dataset[key] for key in ("codec", "size", "split", "rejects", "versions")}
    finish_dataset(tmp_path / "a", other, meta | {"shards": []})
    assert (tmp_path / "a" / "index.parquet").read_bytes() == before


def test_index_has_the_columns_and_types_of_the_format(tmp_path):
    make_dataset(tmp_path / "a")
    schema = pq.read_schema(tmp_path / "a" / "index.parquet")
    assert schema.names == SCHEMA.names
    assert schema.types == SCHEMA.types
    assert pq.read_metadata(tmp_path / "a" / "index.parquet").metadata is None


def test_dataset_json_counts_slices_labels_and_bytes(tmp_path):
    dataset = make_dataset(tmp_path / "a")
    assert (dataset["num_slices"], dataset["num_studies"], dataset["num_patients"]) == (10, 4, 4)
    assert dataset["pixel_bytes"] == 10 * 40 * 50 * 2
    assert dataset["record_bytes"] == sum(path.stat().st_size for path in (tmp_path / "a").glob("*.tfrecord"))
    assert dataset["ratio"] == round(dataset["pixel_bytes"] / dataset["record_bytes"], 4)
    assert dataset["splits"]["train"]["labels"]["any"] == {"known": 3, "positive": 2, "prevalence": 0.666667}
    assert dataset["splits"][""]["labels"]["any"] == {"known": 0, "positive": 0, "prevalence": None}
    assert [shard["num_slices"] for shard in dataset["shards"]] == [5, 5]
    assert dataset["index"]["sha256"] == hashlib.sha256((tmp_path / "a" / "index.parquet").read_bytes()).hexdigest()


def test_dataset_json_keeps_what_the_caller_adds(tmp_path):
    assert make_dataset(tmp_path / "a", meta={"sample": 0.25})["sample"] == 0.25


def test_finish_removes_nothing_and_writes_dataset_json_last(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "index.parquet").mkdir()
    with pytest.raises(OSError, match="directory"):
        make_dataset(folder)
    assert sorted(os.listdir(folder)) == [
        "index.parquet",
        "notes.txt",
        "shard-00000-of-00002.tfrecord",
        "shard-00001-of-00002.tfrecord",
    ]


def test_finish_refuses_an_index_of_another_format_before_writing(tmp_path):
    frame = index_frame([])
    with pytest.raises(RecordError, match=r"missing \['tilt_deg'\]"):
        finish_dataset(tmp_path, frame.drop(columns="tilt_deg"), dict.fromkeys(make_meta()))
    assert os.listdir(tmp_path) == []


def make_meta():
    return {"codec": "lbp", "size": None, "split": {}, "shards": [], "rejects": None, "versions": {}}


def test_finish_writes_an_empty_data_set_that_opens(tmp_path):
    dataset = finish_dataset(tmp_path, index_frame([]), make_meta())
    assert (dataset["num_slices"], dataset["ratio"]) == (0, None)


def test_index_frame_gives_the_types_of_the_format():
    row = make_rows()[0] | {"offset": 0, "size": 99, "payload_offset": 40, "payload_size": 3, "crc32c": 2**32 - 1}
    frame = index_frame([row | {"pixel_sha1": "0"}])
    assert frame["crc32c"].dtype == np.uint32
    assert frame["any"].dtype == np.int8
    assert frame["offset"].dtype == np.int64
