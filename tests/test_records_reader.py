import hashlib
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from records_data import make_dataset, make_pixels, slice_labels

from fastich.errors import RecordError, UsageError
from fastich.files import sha256_file
from fastich.hu import from_record
from fastich.records.index import render_dataset
from fastich.records.reader import RecordReader

SHARDS = ("shard-00000-of-00002.tfrecord", "shard-00001-of-00002.tfrecord")


@pytest.fixture
def folder(tmp_path):
    make_dataset(tmp_path / "records")
    return tmp_path / "records"


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x10
    path.write_bytes(raw)


@pytest.mark.parametrize("codec_name", ["lbp", "raw"])
def test_reader_gives_back_every_slice(tmp_path, codec_name):
    make_dataset(tmp_path / "records", codec_name=codec_name)
    with RecordReader(tmp_path / "records") as reader:
        assert reader.codec == codec_name
        assert len(reader) == 10
        for row, pixels in enumerate(make_pixels()):
            assert np.array_equal(reader.stored(row), pixels)
            assert reader.stored(row).dtype == np.uint16
            assert np.array_equal(reader.hu(row), from_record(pixels))
            assert reader.index["pixel_sha1"][row] == hashlib.sha1(reader.stored(row).tobytes()).hexdigest()


def test_identity_is_the_hash_of_dataset_json(folder):
    assert RecordReader(folder).dataset_sha256 == sha256_file(folder / "dataset.json")


def test_rows_and_labels_follow_the_index(folder):
    reader = RecordReader(folder)
    assert reader.rows("train").tolist() == [0, 1, 2]
    assert reader.rows("val").tolist() == [3, 4]
    assert reader.rows("").tolist() == [8, 9]
    assert reader.rows("test").dtype == np.int64
    assert reader.labels().dtype == np.int8
    assert reader.labels()[7].tolist() == slice_labels("test", 7)
    assert reader.labels()[8].tolist() == [-1] * 6


def test_unknown_split_is_a_usage_error(folder):
    with pytest.raises(UsageError, match="split 'dev': expected one of train, val, test"):
        RecordReader(folder).rows("dev")


def test_neighbours_stay_inside_the_series(folder):
    reader = RecordReader(folder)
    found = [reader.neighbours(row) for row in range(10)]
    assert found == [(0, 1), (0, 2), (1, 2), (3, 4), (3, 4), (5, 6), (5, 7), (6, 7), (8, 9), (8, 9)]


@pytest.mark.parametrize("row", [-1, 10])
def test_row_outside_the_data_set_is_an_index_error(folder, row):
    with pytest.raises(IndexError, match=f"row {row} of a data set of 10"):
        RecordReader(folder).payload(row)


def test_many_threads_read_the_same_as_one(folder):
    reader, pixels = RecordReader(folder), make_pixels()
    with ThreadPoolExecutor(8) as pool:
        for row, found in zip(list(range(10)) * 20, pool.map(reader.stored, list(range(10)) * 20), strict=True):
            assert np.array_equal(found, pixels[row])


def test_payload_outlives_the_reader(folder):
    reader = RecordReader(folder)
    view = reader.payload(0)
    before = bytes(view)
    reader.close()
    del reader
    assert bytes(view) == before
    assert view.readonly


def test_folder_without_dataset_json_is_not_complete(folder):
    (folder / "dataset.json").unlink()
    message = f"{re.escape(str(folder))}: not a complete records folder: no dataset.json in it; finish it with"
    with pytest.raises(RecordError, match=message):
        RecordReader(folder)


def test_changed_index_is_refused_at_open(folder):
    flip(folder / "index.parquet", 100)
    with pytest.raises(RecordError, match=r"index\.parquet: SHA-256 is .*the index is damaged or from another"):
        RecordReader(folder)


def test_missing_index_is_refused_at_open(folder):
    (folder / "index.parquet").unlink()
    with pytest.raises(RecordError, match=r"index\.parquet: missing, but dataset\.json names it"):
        RecordReader(folder)


def test_reader_names_file_and_offset_of_a_damaged_payload(folder):
    offset = int(RecordReader(folder).index["payload_offset"][6])
    flip(folder / SHARDS[1], offset + 30)
    reader = RecordReader(folder)
    with pytest.raises(RecordError, match=rf"{SHARDS[1]}:{offset}: checksum of the payload of row 6 is"):
        reader.stored(6)
    assert np.array_equal(reader.stored(5), make_pixels()[5])


def test_damage_that_the_codec_sees_names_file_and_offset_without_the_checksum(folder):
    offset = int(RecordReader(folder).index["payload_offset"][6])
    flip(folder / SHARDS[1], offset)
    with pytest.raises(RecordError, match=rf"{SHARDS[1]}:{offset}: row 6: LBP magic at payload byte 0"):
        RecordReader(folder).stored(6, check_crc=False)


def test_reader_rejects_truncated_shard(folder):
    path = folder / SHARDS[0]
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(RecordError, match=rf"{SHARDS[0]}:{whole - 7}: truncated: {whole - 7} bytes, expected {whole}"):
        RecordReader(folder).stored(0)


def test_reader_rejects_a_shard_that_grew(folder):
    with (folder / SHARDS[0]).open("ab") as handle:
        handle.write(b"more")
    with pytest.raises(RecordError, match=rf"{SHARDS[0]}:\d+: too long"):
        RecordReader(folder).stored(0)


def test_reader_rejects_missing_shard_but_reads_the_others(folder):
    (folder / SHARDS[0]).unlink()
    reader = RecordReader(folder)
    with pytest.raises(RecordError, match=rf"{SHARDS[0]}: missing, but dataset\.json lists it"):
        reader.stored(0)
    assert reader.stored(9).shape == (40, 50)


def test_index_past_the_end_of_its_shard_is_named_not_read(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    make_dataset(first)
    make_dataset(second, codec_name="raw")
    small = (first / SHARDS[0]).read_bytes()
    reader = RecordReader(second)
    (second / SHARDS[0]).write_bytes(small)
    reader.dataset["shards"][0]["size_bytes"] = len(small)
    with pytest.raises(RecordError, match=rf"{SHARDS[0]}:\d+: payload of row 4 ends at \d+, file at {len(small)}"):
        reader.payload(4)


def test_index_of_another_data_set_is_refused(tmp_path):
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "b", pixels=make_pixels(seed=1))
    shutil.copy(tmp_path / "b" / "index.parquet", tmp_path / "a" / "index.parquet")
    with pytest.raises(RecordError, match="from another data set"):
        RecordReader(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(num_slices=11), r"index\.parquet: holds 10 rows, dataset\.json says 11"),
        (lambda value: value["shards"].pop(), r"index\.parquet: names shard 1, dataset\.json lists 1"),
    ],
)
def test_dataset_json_that_does_not_fit_its_index_is_refused(folder, change, message):
    value = json.loads((folder / "dataset.json").read_text())
    change(value)
    (folder / "dataset.json").write_text(render_dataset(value))
    with pytest.raises(RecordError, match=message):
        RecordReader(folder)
