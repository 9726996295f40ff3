"""What became of the slices of one shard, kept beside the plan in ``OUT/.packing`` until all shards are done.

The shard is renamed into place first, its part after it, so a part means that its shard is complete. JSON, column by
column, for it is written by worker processes, which load no table library.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastich import files
from fastich.errors import FastichError
from fastich.records.shard_file import RecordPlace, ShardInfo

NO_PLACE = RecordPlace(offset=0, size=0, payload_offset=0, payload_size=0, crc32c=0)
PLACE_COLUMNS = RecordPlace.__slots__


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of one planned slice: a place in the shard, or a reason."""

    place: RecordPlace = NO_PLACE
    height: int = 0
    width: int = 0
    pixel_sha1: str = ""
    blank: bool = False
    reason: str = ""
    detail: str = ""


OTHER_COLUMNS = tuple(name for name in Outcome.__slots__ if name != "place")


def part_path(parts: Path, number: int) -> Path:
    """``part-00003.json`` in the folder of parts."""
    return parts / f"part-{number:05d}.json"


def write_part(path: Path, outcomes: Sequence[Outcome], info: ShardInfo) -> None:
    """Write the outcomes of a shard's planned slices, in the plan's order, and what the shard is."""
    columns: dict[str, list[Any]] = {
        **{name: [getattr(outcome.place, name) for outcome in outcomes] for name in PLACE_COLUMNS},
        **{name: [getattr(outcome, name) for outcome in outcomes] for name in OTHER_COLUMNS},
    }
    files.write_text(path, json.dumps({"shard": asdict(info), "outcomes": columns}))


def read_part(path: Path, num_slices: int) -> tuple[dict[str, list[Any]], ShardInfo]:
    """The outcomes of the ``num_slices`` planned slices of a shard, by column, and what the part says of the shard.

    Raises:
        FastichError: the part is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        columns = {name: list(value["outcomes"][name]) for name in (*PLACE_COLUMNS, *OTHER_COLUMNS)}
        info = ShardInfo(**value["shard"])
        if {len(column) for column in columns.values()} != {num_slices}:
            raise ValueError(f"not one outcome for each of {num_slices} slices")
    except (KeyError, TypeError, ValueError) as error:
        raise FastichError(f"{path}: damaged ({error}); remove it and go on with --resume") from error
    return columns, info
