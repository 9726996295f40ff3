"""The label table: both forms, every oddity named, and the size of the real one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastich.errors import LabelError
from fastich.labels import LABELS
from fastich.rsna import read_labels

ROWS = {"ID_0a": (1, 0, 0, 0, 0, 1), "ID_0b": (0, 0, 0, 0, 0, 0), "ID_0c": (0, 1, 0, 0, 1, 1)}


def long_rows(rows=ROWS):
    return [
        f"{name}_{label},{value}" for name, values in rows.items() for label, value in zip(LABELS, values, strict=True)
    ]


def write(tmp_path: Path, lines, *, end="\n", encoding="utf-8") -> Path:
    path = tmp_path / "labels.csv"
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path


def as_dict(table):
    return {name: tuple(row) for name, row in zip(table.ids, table.labels.tolist(), strict=True)}


def test_long_form_gives_one_row_an_id(tmp_path):
    table = read_labels(write(tmp_path, ["Id,Label", *long_rows()]))
    assert as_dict(table) == ROWS
    assert table.labels.dtype == np.int8
    assert list(table.ids) == list(ROWS)
    assert table.num_duplicates == 0
    assert table.notes == ()


def test_row_order_of_the_long_form_does_not_matter(tmp_path):
    shuffled = np.random.default_rng(0).permutation(long_rows()).tolist()
    assert as_dict(read_labels(write(tmp_path, ["Id,Label", *shuffled]))) == ROWS


@pytest.mark.parametrize("id_name", ["ID", "Id"])
def test_wide_form_with_columns_in_any_order_gives_the_same(tmp_path, id_name):
    order = [3, 5, 0, 1, 4, 2]
    lines = [",".join([*(LABELS[i] for i in order), id_name])]
    lines += [",".join([*(str(values[i]) for i in order), name]) for name, values in ROWS.items()]
    assert as_dict(read_labels(write(tmp_path, lines))) == ROWS


def test_wide_form_says_which_columns_it_does_not_use(tmp_path):
    lines = ["ID,site," + ",".join(LABELS), "ID_0a,x,1.0,0.0,0.0,0.0,0.0,1.0"]
    table = read_labels(write(tmp_path, lines))
    assert as_dict(table) == {"ID_0a": ROWS["ID_0a"]}
    assert table.notes == ("columns not used: site",)


@pytest.mark.parametrize(
    ("end", "encoding", "quote"), [("\r\n", "utf-8", ""), ("\n", "utf-8-sig", ""), ("\n", "utf-8", '"')]
)
def test_crlf_bom_and_quotes_are_read_as_plain(tmp_path, end, encoding, quote):
    lines = [",".join(f"{quote}{cell}{quote}" for cell in line.split(",")) for line in ["Id,Label", *long_rows()]]
    assert as_dict(read_labels(write(tmp_path, lines, end=end, encoding=encoding))) == ROWS


def test_ids_split_from_the_right_and_may_be_uids(tmp_path):
    rows = {"ID_a_b_c": ROWS["ID_0a"], "1.2.840.1": ROWS["ID_0b"]}
    assert as_dict(read_labels(write(tmp_path, ["Id,Label", *long_rows(rows)]))) == rows


def test_hemorrhage_suffix_is_taken_off_and_said(tmp_path):
    lines = [line.replace(",", "_hemorrhage,") if "_any" not in line else line for line in long_rows()]
    table = read_labels(write(tmp_path, ["Id,Label", *lines]))
    assert as_dict(table) == ROWS
    assert table.notes == ("ids end in _hemorrhage: taken off",)


def test_exact_duplicates_are_dropped_counted_and_named(tmp_path):
    table = read_labels(write(tmp_path, ["Id,Label", *long_rows(), *long_rows()[:6]]))
    assert as_dict(table) == ROWS
    assert table.num_duplicates == 6
    assert table.notes[0].startswith("6 repeated rows dropped: ID_0a (epidural, ")


def test_duplicate_rows_of_the_wide_form_count_labels(tmp_path):
    row = "ID_0a,1,0,0,0,0,1"
    assert read_labels(write(tmp_path, ["ID," + ",".join(LABELS), row, row])).num_duplicates == 6


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["Id,Label", *long_rows(), "ID_0b_any,1"], r"the same id has label 0 and label 1: ID_0b \(any\)"),
        (["Id,Label", *long_rows()[:-2]], r"missing: ID_0c \(subdural, any\)"),
        (
            ["Id,Label", *long_rows(), "ID_0d_stroke,0"],
            r"row 20: unknown subtype in 'ID_0d_stroke', expected one of epi",
        ),
        (["Id,Label", *long_rows(), "ID_0d_any,2"], r"row 20: the label of 'ID_0d_any' must be 0 or 1, found '2'"),
        (["Id,Label", *long_rows(), "ID_0d_any,nan"], r"must be 0 or 1, found 'nan'"),
        (["Id,Label", *long_rows(), "ID_0d_any,"], r"must be 0 or 1, found ''"),
        (["Id,Label", *long_rows(), "any,1"], r"expected an Id like ID_0a1b2c3d4_any, found 'any'"),
        (["Id,Label", *long_rows(), "_any,1"], r"empty id"),
        (["Id,Label", *long_rows(), "ID_0d_any,1,1"], r"Expected 2 columns, got 3"),
        (["Id,Label"], r"has a header but no rows"),
        (["Id;Label", "ID_0a_any;1"], r"expected a CSV with the header Id,Label .* found the header 'Id;Label'"),
        (["ID," + ",".join(LABELS[:5]), "ID_0a,1,0,0,0,0"], r"found the header 'ID,epidural"),
        (["Id,Label,Id", "a,b,c"], r"a column name stands twice"),
        (["Id,Label", *long_rows({"ID_0e": (1, 0, 0, 0, 0, 0)})], r"not the OR .* for 1 ids: ID_0e \(any 0\)"),
        (["Id,Label", *long_rows({"ID_0e": (0, 0, 0, 0, 0, 1)})], r"not the OR .* for 1 ids: ID_0e \(any 1\)"),
    ],
)
def test_reader_names_what_is_wrong_in_one_line(tmp_path, lines, message):
    path = write(tmp_path, lines)
    with pytest.raises(LabelError, match=message) as caught:
        read_labels(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_many_bad_ids_are_cut_to_the_first_three(tmp_path):
    lines = [f"ID_{i}_any,0" for i in range(10)]
    with pytest.raises(LabelError, match=r"ID_2 \([a-z, ]+\) and 7 more ids$"):
        read_labels(write(tmp_path, ["Id,Label", *lines]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"\n\n", "found an empty first line"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "not UTF-8 text"),
        ("Id,Label\nID_0a_any,1\n".encode("utf-16"), "not UTF-8 text"),
        (b"Id,Label\nID_\xff\xfe_any,1\n", "found: .*UTF"),
    ],
)
def test_files_that_are_no_csv_are_refused(tmp_path, content, message):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(LabelError, match=message):
        read_labels(path)


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path / "none.csv")


BIG = """
import resource, sys, time
from pathlib import Path
from fastich.rsna import read_labels
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
table = read_labels(Path(sys.argv[1]))
seconds = time.perf_counter() - start
print(len(table.ids), seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_tenth_of_the_real_table_takes_less_than_a_tenth_of_the_budget(tmp_path):
    num_ids = 75_280
    names = [f"ID_{i * 2654435761 % 2**36:09x}" for i in range(num_ids)]
    path = tmp_path / "big.csv"
    with path.open("w") as handle:
        handle.write("Id,Label\n")
        for label in LABELS:
            handle.writelines(f"{name}_{label},0\n" for name in names)
    done = subprocess.run([sys.executable, "-c", BIG, str(path)], capture_output=True, text=True, check=True)
    ids, seconds, extra_bytes = (float(word) for word in done.stdout.split())
    assert ids == num_ids
    assert seconds < 1.5
    assert extra_bytes < 200e6
