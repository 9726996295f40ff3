"""What stands beside the shards: index.parquet (one row a slice) and dataset.json (the folder's table of contents).

The index makes every access random (balanced sampling, neighbours, whole studies, exact resume) for about 50 bytes a
slice. dataset.json is written last, so its presence means "complete"; it holds the hash of each shard, of the index
and of itself, so one short file vouches for the whole folder. Both depend on the input only, not on time or machine.
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fastich.errors import RecordError
from fastich.labels import LABELS, UNKNOWN
from fastich.records.codec import CODECS
from fastich.records.format import FORMAT_VERSION, FRAME_FOOTER, FRAME_HEADER

DATASET_FILE = "dataset.json"
INDEX_FILE = "index.parquet"
SPLITS = ("train", "val", "test", "")
"""The last one: rows that belong to no split, because they have no label."""

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("sop_uid", "study_uid", "series_uid", "patient_id")),
        *(
            (name, pa.float64())
            for name in ("z_mm", "row_spacing_mm", "col_spacing_mm", "slice_spacing_mm", "tilt_deg")
        ),
        *((name, pa.int32()) for name in ("height", "width", "shard")),
        *((name, pa.int64()) for name in ("offset", "size", "payload_offset", "payload_size")),
        ("crc32c", pa.uint32()),
        ("pixel_sha1", pa.string()),
        *((name, pa.int8()) for name in LABELS),
        *((name, pa.string()) for name in ("split", "encoding", "source")),
    ]
)
_NO_HASH = "0" * 64
_REQUIRED_KEYS = {
    "format_version": int,
    "codec": str,
    "size": int | None,
    "num_slices": int,
    "num_studies": int,
    "num_patients": int,
    "pixel_bytes": int,
    "record_bytes": int,
    "ratio": float | None,
    "splits": dict,
    "split": dict,
    "shards": list,
    "index": dict,
    "rejects": str | None,
    "versions": dict,
    "sha256": str,
}
_SHARD_KEYS = {"file": str, "sha256": str, "size_bytes": int, "num_slices": int}


def shard_name(number: int, num_shards: int) -> str:
    """``shard-00003-of-00012.tfrecord``."""
    return f"shard-{number:05d}-of-{num_shards:05d}.tfrecord"


def index_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """An index with the dtypes of ``SCHEMA`` from one mapping a slice (column name to plain Python value)."""
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    frame: pd.DataFrame = table.to_pandas()
    return frame


def label_matrix(frame: pd.DataFrame) -> NDArray[np.int8]:
    """The six label columns of an index, int8 [N, 6], -1 unknown."""
    return np.ascontiguousarray(frame[list(LABELS)].to_numpy(dtype=np.int8))


def series_codes(frame: pd.DataFrame) -> NDArray[np.int64]:
    """A number for each row's series, int64 [N]; equal where study and series are equal."""
    study, _ = pd.factorize(frame["study_uid"])
    series, names = pd.factorize(frame["series_uid"])
    return study.astype(np.int64) * (len(names) + 1) + series


def series_numbers(frame: pd.DataFrame) -> NDArray[np.int64]:
    """The number of each row's series in the order of the index, from 0, int64 [N]."""
    return np.cumsum(np.diff(series_codes(frame), prepend=-1) != 0).astype(np.int64) - 1


def check_index(frame: pd.DataFrame, name: str = INDEX_FILE) -> None:
    """Check columns, dtypes, ranges and order of an index, before it is written and after it is read.

    Raises:
        RecordError: names the column, and the row where there is one.
    """
    if list(frame.columns) != SCHEMA.names:
        missing = [column for column in SCHEMA.names if column not in frame.columns]
        extra = [column for column in frame.columns if column not in SCHEMA.names]
        raise RecordError(
            f"{name}: columns are not those of the format: missing {missing}, unknown {extra}, or reordered"
        )
    if not (isinstance(frame.index, pd.RangeIndex) and frame.index.equals(pd.RangeIndex(len(frame)))):
        raise RecordError(f"{name}: expected rows numbered from 0")
    for field in SCHEMA:
        _check_dtype(frame[field.name], field.type, name)
    _check_ranges(frame, name)
    _check_order(frame, name)


def write_index(path: Path, frame: pd.DataFrame) -> None:
    """Write a checked index to ``path`` with fixed settings and no pandas metadata: equal rows, equal bytes."""
    columns = [pa.array(frame[field.name].to_numpy(), type=field.type) for field in SCHEMA]
    table = pa.Table.from_arrays(columns, schema=SCHEMA)
    pq.write_table(table, path, version="2.6", compression="zstd", store_schema=False, row_group_size=65536)


def read_index(raw: bytes, name: str = INDEX_FILE) -> pd.DataFrame:
    """The index in the bytes of an index.parquet, checked.

    Raises:
        RecordError: the bytes are not Parquet, or not an index.
    """
    try:
        frame: pd.DataFrame = pq.read_table(io.BytesIO(raw), use_threads=False).to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RecordError(f"{name}: cannot be read as Parquet ({' '.join(str(error).split())}); pack again") from error
    check_index(frame, name)
    return frame


def summarise(frame: pd.DataFrame) -> dict[str, Any]:
    """The counts that dataset.json states about an index, in its own keys."""
    pixel_bytes = int((frame["height"].astype(np.int64) * frame["width"] * 2).sum())
    record_bytes = int(frame["size"].sum())
    return {
        "num_slices": len(frame),
        "num_studies": int(frame["study_uid"].nunique()),
        "num_patients": int(frame["patient_id"].nunique()),
        "pixel_bytes": pixel_bytes,
        "record_bytes": record_bytes,
        "ratio": round(pixel_bytes / record_bytes, 4) if record_bytes else None,
        "splits": {split: _summarise_split(frame[frame["split"] == split]) for split in SPLITS},
    }


def render_dataset(value: dict[str, Any]) -> str:
    """dataset.json as text; ``sha256`` is the SHA-256 of the text with that value's 64 digits as zeros."""
    text = json.dumps({**value, "sha256": _NO_HASH}, indent=2, allow_nan=False) + "\n"
    return text.replace(_NO_HASH, _own_hash(text.encode()))


def parse_dataset(raw: bytes, name: str = DATASET_FILE) -> dict[str, Any]:
    """The value of dataset.json's bytes, checked against its own hash and the keys of the format.

    Raises:
        RecordError: it is not JSON, of another format version, changed since it was written, or lacks a key.
    """
    try:
        value: dict[str, Any] = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{name}: not JSON ({error}); the file is damaged, pack again") from error
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise RecordError(
            f"{name}: format version is {version!r}, this fastich reads {FORMAT_VERSION}; "
            "pack the data set again with this version, or use the fastich that packed it"
        )
    _check_keys(value, _REQUIRED_KEYS, name)
    if _own_hash(raw.replace(value["sha256"].encode(), _NO_HASH.encode())) != value["sha256"]:
        raise RecordError(
            f"{name}: changed since it was written (its own sha256 does not fit); restore it or pack again"
        )
    for shard in value["shards"]:
        _check_keys(shard, _SHARD_KEYS, f"{name}: shards")
    _check_keys(value["index"], {"file": str, "sha256": str}, f"{name}: index")
    for file in (value["index"]["file"], value["rejects"], *(shard["file"] for shard in value["shards"])):
        if file is not None and Path(file).name != file:
            raise RecordError(f"{name}: file {file!r} is not a plain name")
    if value["codec"] not in CODECS:
        raise RecordError(f"{name}: codec is {value['codec']!r}, expected one of {', '.join(CODECS)}")
    return value


def _own_hash(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _check_keys(value: Any, keys: dict[str, Any], name: str) -> None:
    for key, kind in keys.items():
        if not isinstance(value, dict) or key not in value or not isinstance(value[key], kind):
            raise RecordError(f"{name}: key {key!r} is missing or of the wrong type")


def _check_dtype(column: "pd.Series[Any]", kind: pa.DataType, name: str) -> None:
    if kind == pa.string():
        if pd.api.types.infer_dtype(column, skipna=False) not in ("string", "empty"):
            raise RecordError(f"{name}: column {column.name} must hold text in every row")
    elif column.dtype != kind.to_pandas_dtype():
        raise RecordError(f"{name}: column {column.name} is {column.dtype}, expected {kind}")


def _refuse(bad: Any, what: str, name: str) -> None:
    rows = np.flatnonzero(np.asarray(bad))
    if rows.size:
        raise RecordError(f"{name}: row {rows[0]}: {what}")


def _check_ranges(frame: pd.DataFrame, name: str) -> None:
    payload_end = frame["payload_offset"] + frame["payload_size"] + FRAME_FOOTER.size
    inside = (frame["payload_offset"] >= frame["offset"] + FRAME_HEADER.size) & (
        payload_end <= frame["offset"] + frame["size"]
    )
    labels = label_matrix(frame)
    _refuse((frame["height"] < 1) | (frame["width"] < 1), "height and width must be 1 or more", name)
    _refuse((frame["shard"] < 0) | (frame["offset"] < 0), "shard and offset must not be negative", name)
    _refuse((frame["payload_size"] < 0) | ~inside, "the payload is not inside its record", name)
    _refuse(((labels < UNKNOWN) | (labels > 1)).any(axis=1), "labels must be 0, 1 or -1 (unknown)", name)
    _refuse(~frame["split"].isin(SPLITS), f"split must be one of {SPLITS}", name)


def _check_order(frame: pd.DataFrame, name: str) -> None:
    """Rows stand study by study, series by series, along z: what neighbours and sequence models rely on."""
    for what, codes in (("study", pd.factorize(frame["study_uid"])[0]), ("series", series_codes(frame))):
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        again = pd.Series(codes[starts]).duplicated().to_numpy()
        if again.any():
            raise RecordError(
                f"{name}: row {starts[again][0]}: its {what} is split; rows of one {what} must be together"
            )
    same_series = np.diff(series_codes(frame)) == 0
    falls = np.diff(frame["z_mm"].to_numpy()) < 0
    _refuse(np.append(False, same_series & falls)[: len(frame)], "z_mm falls within a series; rows must follow z", name)


def _summarise_split(frame: pd.DataFrame) -> dict[str, Any]:
    counts = {}
    for label in LABELS:
        known, positive = int((frame[label] >= 0).sum()), int((frame[label] == 1).sum())
        prevalence = round(positive / known, 6) if known else None
        counts[label] = {"known": known, "positive": positive, "prevalence": prevalence}
    studies, patients = int(frame["study_uid"].nunique()), int(frame["patient_id"].nunique())
    return {"num_slices": len(frame), "num_studies": studies, "num_patients": patients, "labels": counts}
