import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from records_data import make_dataset, make_pixels, make_rows

from fastich import verify
from fastich.errors import RecordError
from fastich.records.index import read_index, render_dataset

FIRST, SECOND = "shard-00000-of-00002.tfrecord", "shard-00001-of-00002.tfrecord"


@pytest.fixture
def folder(tmp_path):
    make_dataset(tmp_path / "records")
    return tmp_path / "records"


def index_of(folder):
    return read_index((folder / "index.parquet").read_bytes())


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 0x10
    path.write_bytes(raw)


def problems(folder):
    return [str(problem) for problem in verify.verify(folder, num_threads=2).problems]


def rewrite_dataset(folder, **changes):
    value = json.loads((folder / "dataset.json").read_text()) | changes
    (folder / "dataset.json").write_text(render_dataset(value))


@pytest.mark.parametrize("codec_name", ["lbp", "raw"])
def test_good_folder_is_ok_in_one_line_with_counts_and_rate(tmp_path, capsys, codec_name):
    make_dataset(tmp_path / "records", codec_name=codec_name)
    assert verify.main([str(tmp_path / "records")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ok: 10 slices, 2 shards, 0.0 MB at ")
    assert out.count("\n") == 1


def test_json_tells_the_same(folder, capsys):
    assert verify.main([str(folder), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["ok"], value["num_slices"], value["num_shards"], value["problems"]) == (True, 10, 2, [])
    flip(folder / FIRST, 0)
    assert verify.main([str(folder), "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert not value["ok"]
    assert {"file", "offset", "what"} == set(value["problems"][0])


def damaged_at(folder, row, column, extra):
    """Flip a byte ``extra`` bytes after what ``column`` of ``row`` points at; gives file and record offset."""
    index = index_of(folder)
    name = (FIRST, SECOND)[index["shard"][row]]
    flip(folder / name, int(index[column][row]) + extra)
    return f"{name}:{index['offset'][row]}: "


@pytest.mark.parametrize("row", [0, 3, 9])
@pytest.mark.parametrize(
    ("column", "extra", "message"),
    [
        ("offset", 0, "checksum of the record's length is"),
        ("offset", 5, "checksum of the record's length is"),
        ("offset", 9, "checksum of the record's length is"),
        ("offset", 14, "checksum of the record's data is"),
        ("payload_offset", 0, "checksum of the record's data is"),
        ("payload_offset", 500, "checksum of the record's data is"),
    ],
)
def test_a_flipped_byte_is_found_with_file_and_record_offset_and_nothing_else(folder, row, column, extra, message):
    where = damaged_at(folder, row, column, extra)
    whole, record = problems(folder)
    assert record.startswith(where + message)
    assert whole.startswith(where.split(":")[0] + ": SHA-256 is")


def test_a_flipped_byte_in_the_uid_is_found(folder):
    raw = (folder / SECOND).read_bytes()
    flip(folder / SECOND, raw.index(b"ID_000000006"))
    assert any(
        f"{SECOND}:{index_of(folder)['offset'][6]}: checksum of the record's data" in line for line in problems(folder)
    )


def test_a_flipped_byte_in_a_record_checksum_is_found(folder):
    index = index_of(folder)
    flip(folder / FIRST, int(index["offset"][2] + index["size"][2]) - 1)
    assert any(f"{FIRST}:{index['offset'][2]}: checksum of the record's data" in line for line in problems(folder))


def test_every_flipped_byte_of_a_shard_is_found(tmp_path):
    make_dataset(tmp_path / "records", rows=make_rows()[:4], pixels=[image[:, :20] for image in make_pixels(4)])
    path = tmp_path / "records" / FIRST
    raw = path.read_bytes()
    for at in range(0, len(raw), len(raw) // 60):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        assert len(verify.verify(tmp_path / "records", num_threads=1).problems) >= 2


def test_a_flipped_byte_in_the_index_is_found_and_the_shards_are_still_checked(folder):
    flip(folder / "index.parquet", 200)
    flip(folder / FIRST, 60)
    lines = problems(folder)
    assert any(line.startswith("index.parquet: SHA-256 is") for line in lines)
    assert any(line.startswith(f"{FIRST}:0: checksum of the record's data") for line in lines)


def test_a_flipped_byte_in_dataset_json_is_found(folder):
    raw = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(raw.replace('"num_studies": 4', '"num_studies": 5', 1))
    (line,) = problems(folder)
    assert line.startswith("dataset.json: changed since it was written")


def test_missing_dataset_json_is_found(folder):
    (folder / "dataset.json").unlink()
    (line,) = problems(folder)
    assert "not a complete records folder: no dataset.json" in line


def test_other_format_version_is_found(folder):
    rewrite_dataset(folder, format_version=2)
    (line,) = problems(folder)
    assert line.startswith("dataset.json: format version is 2, this fastich reads 1")


def test_truncated_shard_is_found_and_the_rest_of_it_checked(folder):
    index, path = index_of(folder), folder / FIRST
    size = path.stat().st_size
    cut = int(index["offset"][3]) + 100
    os.truncate(path, cut)
    lines = problems(folder)
    assert f"{FIRST}:{cut}: truncated: {cut} bytes, expected {size}; restore it or pack again" in lines
    assert any(line.startswith(f"{FIRST}:{index['offset'][3]}: a record of") for line in lines)
    assert f"{FIRST}:{index['offset'][4]}: the index has a record here, the shard has none" in lines
    assert not any(line.startswith(f"{FIRST}:{index['offset'][2]}:") for line in lines)


def test_emptied_shard_is_found(folder):
    (folder / FIRST).write_bytes(b"")
    assert any(line.startswith(f"{FIRST}:0: truncated: 0 bytes") for line in problems(folder))


def test_deleted_shard_is_found(folder):
    (folder / SECOND).unlink()
    assert problems(folder) == [f"{SECOND}: missing, but dataset.json lists it; restore it or pack again"]


def test_swapped_shards_are_found(folder):
    shutil.move(folder / FIRST, folder / "aside")
    shutil.move(folder / SECOND, folder / FIRST)
    shutil.move(folder / "aside", folder / SECOND)
    lines = problems(folder)
    for name in (FIRST, SECOND):
        assert any(line.startswith(f"{name}: SHA-256 is") for line in lines)
    assert any(line.startswith(f"{FIRST}:0: sop_uid is ID_000000005, the index says ID_000000000") for line in lines)


def test_extra_files_are_found(folder):
    shutil.copy(folder / FIRST, folder / "shard-00002-of-00003.tfrecord")
    (folder / "index.parquet.tmp").write_bytes(b"")
    (folder / "notes.txt").write_text("the user's own")
    assert problems(folder) == [
        "index.parquet.tmp: extra file: dataset.json does not list it",
        "shard-00002-of-00003.tfrecord: extra file: dataset.json does not list it",
    ]


def test_missing_reject_list_is_found(tmp_path):
    make_dataset(tmp_path / "records", meta={"rejects": "rejects.csv"})
    assert problems(tmp_path / "records") == ["rejects.csv: missing, but dataset.json lists it"]


def test_label_in_the_shard_other_than_in_the_index_is_found(tmp_path):
    make_dataset(tmp_path / "records", example_labels={1: [0, 0, 0, 0, 1, 1]})
    offset = index_of(tmp_path / "records")["offset"][1]
    assert problems(tmp_path / "records") == [
        f"{FIRST}:{offset}: intraparenchymal is 0, the index says 1",
        f"{FIRST}:{offset}: subdural is 1, the index says 0",
    ]


def altered(tmp_path, change):
    """A folder whose index was changed by ``change`` and signed again: only the contents can give it away."""
    make_dataset(tmp_path / "good")
    frame = index_of(tmp_path / "good")
    change(frame)
    from fastich.records.writer import META_KEYS, ShardInfo, finish_dataset

    dataset = json.loads((tmp_path / "good" / "dataset.json").read_text())
    meta = {key: dataset[key] for key in META_KEYS} | {"shards": [ShardInfo(**shard) for shard in dataset["shards"]]}
    finish_dataset(tmp_path / "good", frame, meta)
    return problems(tmp_path / "good")


def test_wrong_checksum_and_sha1_in_the_index_are_found(tmp_path):
    def change(frame):
        frame.loc[2, "crc32c"] = np.uint32(7)
        frame.loc[3, "pixel_sha1"] = "0" * 40

    lines = altered(tmp_path, change)
    assert len(lines) == 2
    assert "crc32c is" in lines[0]
    assert "the index says 7" in lines[0]
    assert "pixel_sha1 is" in lines[1]


def test_wrong_place_in_the_index_is_found(tmp_path):
    def change(frame):
        frame.loc[0, "payload_size"] -= 1
        frame.loc[1, "size"] += 1

    lines = altered(tmp_path, change)
    assert any("payload_size is" in line for line in lines)
    assert any(": size is" in line for line in lines)
    assert any(line.startswith("dataset.json: record_bytes") for line in lines) is False


def test_two_rows_on_one_record_are_found(tmp_path):
    def change(frame):
        for column in ("offset", "size", "payload_offset", "payload_size", "crc32c", "sop_uid", "pixel_sha1"):
            frame.loc[1, column] = frame.loc[0, column]

    lines = altered(tmp_path, change)
    assert "index.parquet: row 1: an earlier row names the same record" in lines
    assert any(line.endswith("a record that the index does not list") for line in lines)


def test_patient_in_two_splits_is_found(tmp_path):
    lines = altered(tmp_path, lambda frame: frame.__setitem__("patient_id", frame["patient_id"].replace("p1", "p0")))
    assert lines == ["index.parquet: patient p0 is in the splits train and val: rows [0, 3]"]


def test_image_in_two_splits_is_found(tmp_path):
    pixels = make_pixels()
    pixels[4] = pixels[1]
    make_dataset(tmp_path / "records", pixels=pixels)
    (line,) = problems(tmp_path / "records")
    assert line.startswith("index.parquet: image with pixel_sha1 ")
    assert line.endswith("is in the splits train and val: rows [1, 4]")


@pytest.mark.parametrize("size", [None, 40])
def test_blank_image_may_stand_in_two_splits(tmp_path, size):
    pixels = make_pixels()
    pixels[4] = np.zeros((40, 50), np.uint16)
    pixels[4][5:30, 5:40] = 24
    if size:
        pixels[4][5, 5:40] = np.arange(35) % 12 + 6
    pixels[1] = pixels[4]
    make_dataset(tmp_path / "records", pixels=pixels, meta={"size": size})
    assert problems(tmp_path / "records") == []


def test_any_that_is_not_the_or_is_found(tmp_path):
    rows = make_rows()
    rows[0]["any"] = 0
    make_dataset(tmp_path / "records", rows=rows)
    assert problems(tmp_path / "records") == [
        "index.parquet: row 0: 'any' of [1, 0, 0, 0, 0, 0] is not the OR of the five others"
    ]


def test_slice_in_a_split_without_labels_is_found(tmp_path):
    rows = make_rows()
    rows[9]["split"] = "train"
    make_dataset(tmp_path / "records", rows=rows)
    assert problems(tmp_path / "records") == [
        "index.parquet: row 9: labels [-1, -1, -1, -1, -1, -1] in split 'train': unknown"
    ]


def test_row_with_some_labels_only_is_found(tmp_path):
    rows = make_rows()
    rows[9]["any"] = 0
    make_dataset(tmp_path / "records", rows=rows)
    assert problems(tmp_path / "records") == [
        "index.parquet: row 9: labels [-1, -1, -1, -1, -1, 0] in split '': unknown"
    ]


def test_wrong_counts_are_found(folder):
    dataset = json.loads((folder / "dataset.json").read_text())
    dataset["shards"][0]["num_slices"] = 6
    rewrite_dataset(folder, num_patients=9, shards=dataset["shards"])
    assert problems(folder) == [
        "dataset.json: num_patients is 9, the index says 4",
        f"{FIRST}: dataset.json says 6 slices, the index 5",
    ]


def test_resized_records_are_not_held_to_the_hash_of_the_native_pixels(tmp_path):
    def change(frame):
        frame["pixel_sha1"] = [f"{row:040x}" for row in range(10)]

    assert len(altered(tmp_path, change)) == 10
    rewrite_dataset(tmp_path / "good", size=40)
    assert problems(tmp_path / "good") == []


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(RecordError, match=r"not a folder; expected the output of fastich\.pack"):
        verify.verify(tmp_path / "nowhere")


def test_command_exits_1_and_prints_file_and_offset(folder):
    where = damaged_at(folder, 0, "payload_offset", 3)
    done = subprocess.run([sys.executable, "-m", "fastich.verify", str(folder)], capture_output=True, text=True)
    assert done.returncode == 1
    assert where + "checksum of the record's data" in done.stdout
    assert done.stderr == ""
