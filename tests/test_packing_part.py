"""Parts: what became of a shard's slices, read back as written; damage is told, never believed."""

import json
from pathlib import Path

import pytest

from fastich.errors import FastichError
from fastich.packing.part import Outcome, part_path, read_part, write_part
from fastich.records.shard_file import RecordPlace, ShardInfo

INFO = ShardInfo(file="shard-00000-of-00001.tfrecord", sha256="0" * 64, size_bytes=321, num_slices=1)
OUTCOMES = [
    Outcome(
        place=RecordPlace(offset=0, size=321, payload_offset=40, payload_size=200, crc32c=2**32 - 1),
        height=512,
        width=256,
        pixel_sha1="ab" * 20,
        blank=True,
    ),
    Outcome(reason="damaged pixels", detail='3 bytes, "expected" 5 \udcff é'),
]


def test_a_part_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_part(tmp_path / "part", OUTCOMES, INFO)
    columns, info = read_part(tmp_path / "part", 2)
    assert info == INFO
    assert columns["offset"] == [0, 0]
    assert columns["crc32c"] == [2**32 - 1, 0]
    assert columns["blank"] == [True, False]
    assert columns["reason"] == ["", "damaged pixels"]
    assert columns["detail"] == [outcome.detail for outcome in OUTCOMES]
    assert (columns["height"], columns["width"]) == ([512, 0], [256, 0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-9], "Unterminated string"),
        (lambda text: "[]", "list indices"),
        (lambda text: text.replace('"sha256"', '"sha"'), "sha"),
        (lambda text: text.replace('"crc32c"', '"crc"'), "'crc32c'"),
        (lambda text: json.dumps(json.loads(text) | {"outcomes": None}), "subscriptable"),
        (lambda text: text.replace("[512, 0]", "[512]"), "not one outcome for each of 2 slices"),
    ],
)
def test_a_damaged_part_is_refused(change, message: str, tmp_path: Path) -> None:
    path = part_path(tmp_path, 3)
    write_part(path, OUTCOMES, INFO)
    path.write_text(change(path.read_text()))
    with pytest.raises(
        FastichError, match=f"part-00003.json: damaged .*{message}.*; remove it and go on with --resume"
    ):
        read_part(path, 2)


def test_a_part_of_another_number_of_slices_is_refused(tmp_path: Path) -> None:
    write_part(tmp_path / "part", OUTCOMES, INFO)
    with pytest.raises(FastichError, match="not one outcome for each of 3 slices"):
        read_part(tmp_path / "part", 3)
