"""docs/records.md is a specification: what it shows must be what the code does."""

import re
from pathlib import Path

import numpy as np
import pytest
from records_data import make_dataset, make_pixels

from fastich.labels import LABELS
from fastich.records import codec
from fastich.records.format import build_example, frame
from fastich.records.index import SCHEMA, parse_dataset
from fastich.records.reader import RecordReader

PAGE = (Path(__file__).parents[1] / "docs" / "records.md").read_text()


def block(kind):
    (text,) = re.findall(rf"^```{kind}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return text


@pytest.fixture
def folder(tmp_path):
    make_dataset(tmp_path / "records")
    return tmp_path / "records"


def test_worked_example_is_what_the_code_writes():
    payload = codec.encode(np.array([[5, 7, 4], [6, 7, 9]], np.uint16))
    example, _ = build_example(payload, 2, 3, [0, 1, 0, 0, 0, 1], "ID_0a1b2c3d4")
    shown = "".join(re.match(r"(?:[0-9a-f]{2} {0,2})*(?= {3}|$)", line)[0] for line in block("hex").splitlines())
    assert shown.replace(" ", "") == frame(example).hex()


def test_reader_of_a_stranger_gets_every_pixel(folder):
    names = {}
    exec(block("python standalone"), names)
    found = list(names["slices"](folder))
    assert len(found) == 10
    for (row, hu), pixels in zip(found, make_pixels(), strict=True):
        assert np.array_equal(hu, pixels.astype(int) - 1024), row.sop_uid


def test_dali_example_runs(folder):
    names = {}
    exec(block("python dali"), names)
    index = RecordReader(folder).index
    shards, lists = [], []
    for number in (0, 1):
        rows = index[index["shard"] == number]
        shards.append(str(folder / f"shard-0000{number}-of-00002.tfrecord"))
        lists.append(str(folder.parent / f"{number}.idx"))
        text = "".join(f"{offset} {size}\n" for offset, size in zip(rows["offset"], rows["size"], strict=True))
        Path(lists[-1]).write_text(text)
    pipe = names["read"](shards, lists, batch_size=10)
    pipe.build()
    pixels, heights, widths, labels, sops = (list(map(np.asarray, part)) for part in pipe.run())
    for row in range(10):
        decoded = codec.decode(pixels[row].tobytes(), int(heights[row][0]), int(widths[row][0]), "lbp")
        assert np.array_equal(decoded, make_pixels()[row])
        assert labels[row].tolist() == index[list(LABELS)].iloc[row].tolist()
        assert sops[row].tobytes().decode() == index["sop_uid"][row]


def test_page_names_every_column_and_every_key(folder):
    columns = PAGE[PAGE.index("## index.parquet") : PAGE.index("## dataset.json")]
    keys = PAGE[PAGE.index("## dataset.json") : PAGE.index("## A whole record")]
    assert [name for name in SCHEMA.names if f"`{name}`" not in columns] == list(LABELS[1:5])
    assert [key for key in parse_dataset((folder / "dataset.json").read_bytes()) if f"`{key}`" not in keys] == []
