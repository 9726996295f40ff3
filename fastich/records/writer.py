"""Write a records folder: shards first, index next, dataset.json last; each file is whole or absent.

A shard (``shard_file``) is written under a temporary name, hashed as it grows (no second read), fsynced and renamed, so
a kill at any moment leaves nothing that looks finished. The bytes depend on the arguments only.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from fastich import files
from fastich.records.format import FORMAT_VERSION
from fastich.records.index import (
    DATASET_FILE,
    INDEX_FILE,
    check_index,
    parse_dataset,
    render_dataset,
    summarise,
    write_index,
)
from fastich.records.shard_file import RecordPlace, ShardInfo, ShardWriter

__all__ = ["META_KEYS", "RecordPlace", "ShardInfo", "ShardWriter", "finish_dataset"]

META_KEYS = ("codec", "size", "split", "shards", "rejects", "versions")
"""What the caller of ``finish_dataset`` knows and the index does not."""


def finish_dataset(folder: Path, index: pd.DataFrame, meta: dict[str, Any]) -> dict[str, Any]:
    """Write index.parquet, then dataset.json, and return the latter's value; nothing else in ``folder`` is touched.

    ``index`` has the columns of ``index.SCHEMA``; its order is study, series, z. ``meta`` has ``META_KEYS``: codec,
    size (None or pixels), split ({"rule", "seed", ...}), shards (``ShardInfo`` in order of number), rejects (file name
    or None) and versions ({"fastich", "numpy", "pydicom", ...}); more keys are kept as they are. Nothing in it may
    change from run to run: equal input must give equal bytes.

    Raises:
        RecordError: the index is not one of this format.
    """
    assert set(META_KEYS) <= set(meta), f"meta lacks {set(META_KEYS) - set(meta)}"
    check_index(index)
    with files.atomic_path(folder / INDEX_FILE) as temporary:
        write_index(temporary, index)
    value = {
        "format_version": FORMAT_VERSION,
        "codec": meta["codec"],
        "size": meta["size"],
        **summarise(index),
        **{key: item for key, item in meta.items() if key not in ("codec", "size", "shards")},
        "shards": [asdict(shard) for shard in meta["shards"]],
        "index": {"file": INDEX_FILE, "sha256": files.sha256_file(folder / INDEX_FILE)},
    }
    text = render_dataset(value)
    files.write_text(folder / DATASET_FILE, text)
    return parse_dataset(text.encode())
