"""The challenge's label table, read strictly: a wrong label is worse than a stop, so every oddity has one named error.

Why not pandas: the training table has 4.5 million rows, ``ID_<hex>_<subtype>,Label``; pyarrow reads it column by column
and the pivot is two ``bincount`` calls. Measured: 3.2 s and 0.9 GB for 4.5 million rows on 2 cores
(``tests/test_rsna.py`` holds a tenth of it to its share of 15 s and 2 GB).

Source: https://www.kaggle.com/competitions/rsna-intracranial-hemorrhage-detection/data; its quirks (four ids are
repeated, the order is not guaranteed, the id itself holds an underscore) were counted in the table itself.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from fastich.errors import LabelError
from fastich.labels import ANY, LABELS, NUM_LABELS, any_is_consistent

LONG_HEADER = ("id", "label")
LABEL_VALUES = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
"""What a label may look like: as the challenge writes it, and as a pandas pivot of it does."""
LONG_SUFFIX = "_hemorrhage"
"""Some copies of the table write ``ID_x_epidural_hemorrhage``; the suffix is taken off."""
MAX_NAMED = 3
EXPECTED = "expected a CSV with the header Id,Label (one row a label) or ID," + ",".join(LABELS)


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """The labels of N ids, each id once.

    Attributes:
        ids: object array [N] of str, in the order of first appearance.
        labels: int8 [N, 6], 0 or 1, in the order of ``labels.LABELS``.
        num_duplicates: rows dropped because they repeat another row exactly.
        notes: one line for each thing that was put right.
    """

    ids: NDArray[np.object_]
    labels: NDArray[np.int8]
    num_duplicates: int
    notes: tuple[str, ...]


def read_labels(path: Path) -> LabelTable:
    """Read the challenge's table, long (Id,Label) or wide (ID and the six labels in any order).

    Raises:
        LabelError: not such a table, a label other than 0 or 1, an unknown subtype, an id without all six labels, the
            same id with two different labels, or ``any`` that is not the OR of the subtypes. Names the first ids.
        OSError: the file cannot be opened.
    """
    names = _read_header(path)
    folded = [name.strip().lower() for name in names]
    if sorted(folded) == sorted(LONG_HEADER):
        keys, cells, values, notes = _read_long(path, names, folded)
    elif "id" in folded and set(LABELS) <= set(folded):
        keys, cells, values, notes = _read_wide(path, names, folded)
    else:
        raise LabelError(f"{path}: {EXPECTED}, found the header {','.join(names)[:200]!r}")
    return _pivot(path, keys, cells, values, notes)


def _read_header(path: Path) -> list[str]:
    with path.open("rb") as handle:
        first = handle.readline(1 << 16)
    if not first.strip():
        raise LabelError(f"{path}: {EXPECTED}, found an empty {'file' if not first else 'first line'}")
    try:
        names = next(csv.reader([first.decode("utf-8-sig").rstrip("\r\n")]))
    except (UnicodeDecodeError, csv.Error):
        raise LabelError(f"{path}: {EXPECTED}, found bytes that are not UTF-8 text") from None
    folded = [name.strip().lower() for name in names]
    if len(set(folded)) != len(folded):
        raise LabelError(f"{path}: a column name stands twice in the header {','.join(names)[:200]!r}")
    return names


def _read_columns(path: Path, names: list[str], wanted: list[int], dictionary: list[int]) -> list[Any]:
    """The ``wanted`` columns as arrow arrays of str, those in ``dictionary`` encoded as dictionaries."""
    types = {names[i]: pa.dictionary(pa.int32(), pa.string()) if i in dictionary else pa.string() for i in wanted}
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1),
            convert_options=pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types)),
        )
    except pa.ArrowInvalid as error:
        raise LabelError(f"{path}: {EXPECTED}, found: {' '.join(str(error).split())[:300]}") from None
    if table.num_rows == 0:
        raise LabelError(f"{path}: the table has a header but no rows")
    return [table[names[i]].combine_chunks() for i in wanted]


def _read_long(path: Path, names: list[str], folded: list[str]) -> tuple[Any, Any, Any, list[str]]:
    at_id, at_label = folded.index("id"), folded.index("label")
    full_ids, raw = _read_columns(path, names, [at_id, at_label], [at_label])
    full_ids = pc.utf8_trim_whitespace(full_ids)
    notes = []
    if pc.any(pc.ends_with(full_ids, LONG_SUFFIX)).as_py():
        full_ids = pc.replace_substring_regex(full_ids, pattern=LONG_SUFFIX + "$", replacement="")
        notes.append(f"ids end in {LONG_SUFFIX}: taken off")
    parts = pc.split_pattern(full_ids, "_", max_splits=1, reverse=True)
    short = pc.not_equal(pc.list_value_length(parts), 2)
    if pc.any(short).as_py():
        row = pc.index(short, True).as_py()
        raise LabelError(
            f"{path}: row {row + 2}: expected an Id like ID_0a1b2c3d4_any, found {full_ids[row].as_py()!r}"
        )
    ids = pc.list_element(parts, 0).dictionary_encode()
    kinds = pc.list_element(parts, 1).dictionary_encode()
    kind_of = np.asarray([LABELS.index(k) if k in LABELS else -1 for k in kinds.dictionary.to_pylist()])
    kind = kind_of[kinds.indices.to_numpy()]
    if kind.min() < 0:
        row = int(np.argmin(kind))
        raise LabelError(
            f"{path}: row {row + 2}: unknown subtype in {full_ids[row].as_py()!r}, expected one of {', '.join(LABELS)}"
        )
    values = _label_values(path, raw, full_ids)
    return ids.dictionary, ids.indices.to_numpy().astype(np.int64) * NUM_LABELS + kind, values, notes


def _read_wide(path: Path, names: list[str], folded: list[str]) -> tuple[Any, Any, Any, list[str]]:
    wanted = [folded.index("id"), *(folded.index(label) for label in LABELS)]
    full_ids, *columns = _read_columns(path, names, wanted, wanted[1:])
    full_ids = pc.utf8_trim_whitespace(full_ids)
    ids = full_ids.dictionary_encode()
    code = ids.indices.to_numpy().astype(np.int64) * NUM_LABELS
    cells = np.concatenate([code + kind for kind in range(NUM_LABELS)])
    values = np.concatenate([_label_values(path, column, full_ids) for column in columns])
    extra = [names[i] for i in range(len(names)) if i not in wanted]
    return ids.dictionary, cells, values, [f"columns not used: {', '.join(extra)}"] if extra else []


def _label_values(path: Path, raw: Any, row_ids: Any) -> NDArray[np.int8]:
    """Labels 0 and 1 from a dictionary-encoded column of text; the row of any other text is named."""
    meaning = np.asarray([LABEL_VALUES.get(text.strip(), -1) for text in raw.dictionary.to_pylist()], dtype=np.int8)
    values = meaning[raw.indices.to_numpy()]
    if values.min() < 0:
        row = int(np.argmin(values))
        raise LabelError(
            f"{path}: row {row + 2}: the label of {row_ids[row].as_py()!r} must be 0 or 1, found {raw[row].as_py()!r}"
        )
    return np.asarray(values)


def _pivot(path: Path, keys: Any, cells: NDArray[np.int64], values: Any, notes: list[str]) -> LabelTable:
    """Rows (cell = id * 6 + label, value) to one row an id; checks what only the whole table can show."""
    ids = np.asarray(keys.to_pylist(), dtype=object)
    if "" in ids:
        raise LabelError(f"{path}: a row has an empty id")
    seen = np.bincount(cells, minlength=len(ids) * NUM_LABELS)
    ones = np.bincount(cells[values == 1], minlength=len(ids) * NUM_LABELS)
    conflict, missing = (ones > 0) & (ones < seen), seen == 0
    if conflict.any():
        raise LabelError(f"{path}: the same id has label 0 and label 1: {_name_cells(ids, conflict)}")
    if missing.any():
        raise LabelError(f"{path}: expected six labels for each id, missing: {_name_cells(ids, missing)}")
    labels = (ones > 0).reshape(-1, NUM_LABELS).astype(np.int8)
    wrong = np.flatnonzero(~any_is_consistent(labels))
    if wrong.size:
        first = ", ".join(f"{ids[row]} (any {labels[row, ANY]})" for row in wrong[:MAX_NAMED])
        raise LabelError(
            f"{path}: any is not the OR of the five subtypes for {wrong.size} ids: {first}; correct the table"
        )
    duplicates = int((seen - 1).sum())
    if duplicates:
        notes.append(f"{duplicates} repeated rows dropped: {_name_cells(ids, seen > 1)}")
    return LabelTable(ids=ids, labels=labels, num_duplicates=duplicates, notes=tuple(notes))


def _name_cells(ids: NDArray[np.object_], chosen: NDArray[np.bool_]) -> str:
    """``ID_a (epidural, any), ID_b (any) and 7 more ids`` for the chosen cells [N * 6]."""
    table = chosen.reshape(-1, NUM_LABELS)
    rows = np.flatnonzero(table.any(axis=1))
    named = [f"{ids[r]} ({', '.join(LABELS[c] for c in np.flatnonzero(table[r]))})" for r in rows[:MAX_NAMED]]
    return ", ".join(named) + (f" and {rows.size - MAX_NAMED} more ids" if rows.size > MAX_NAMED else "")
