import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fastich.embeddings import EMBEDDING, LOGIT, META, ROWS, Chunk, Identity, open_store, write_store
from fastich.errors import FastichError, RecordError
from fastich.files import sha256_file

IDENTITY = Identity(weights_sha256="ab" * 32, dataset_sha256="cd" * 32, input={"size": 32}, precision="float32")
NUM_ROWS, SIZE = 10, 4
EVERY = np.arange(NUM_ROWS)


def chunks(rows: np.ndarray = EVERY, *, scale: float = 1.0) -> Iterator[Chunk]:
    """Row r has embedding r + 0..3 and logits -r, in two chunks, the later rows first."""
    for some in (rows[4:], rows[:4]):
        embedding = (some[:, None] + np.arange(SIZE)).astype(np.float32) * np.float32(scale)
        yield some, embedding, np.repeat(-some[:, None], 6, axis=1).astype(np.float32)


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_store_says_what_was_written(tmp_path: Path) -> None:
    write_store(tmp_path, IDENTITY, EVERY, chunks())
    store = open_store(tmp_path, IDENTITY, EVERY)
    assert store is not None
    assert store.folder == tmp_path / "side" / "embeddings-abababababab-float32"
    assert store.embedding.dtype == np.float16
    assert store.embedding.tolist() == [[row + place for place in range(SIZE)] for row in range(NUM_ROWS)]
    assert (store.logit == -np.arange(NUM_ROWS, dtype=np.float32)[:, None]).all()
    assert store.rows.tolist() == EVERY.tolist()
    assert (store.embedding_size, sorted(p.name for p in store.folder.parent.iterdir())) == (SIZE, [store.folder.name])


def test_meta_names_what_the_store_was_made_from(tmp_path: Path) -> None:
    write_store(tmp_path, IDENTITY, EVERY, chunks())
    meta = json.loads((IDENTITY.folder(tmp_path) / META).read_text())
    assert {key: meta[key] for key in vars(IDENTITY)} == vars(IDENTITY)
    assert (meta["embedding_size"], meta["num_rows"]) == (SIZE, NUM_ROWS)


@pytest.mark.parametrize(
    "other",
    [
        {"weights_sha256": "abababababab" + "0" * 52},
        {"dataset_sha256": "ef" * 32},
        {"input": {"size": 64}},
        {"precision": "bfloat16"},
    ],
)
def test_a_store_of_anything_else_is_not_used(tmp_path: Path, other: dict[str, object]) -> None:
    write_store(tmp_path, IDENTITY, EVERY, chunks())
    assert open_store(tmp_path, dataclasses.replace(IDENTITY, **other), EVERY) is None


def test_a_store_of_other_rows_is_not_used(tmp_path: Path) -> None:
    write_store(tmp_path, IDENTITY, EVERY[:8], chunks(EVERY[:8]))
    assert open_store(tmp_path, IDENTITY, EVERY) is None


def test_a_pass_lies_below_its_store_and_is_another(tmp_path: Path) -> None:
    write_store(tmp_path, IDENTITY, EVERY, chunks())
    augmented = dataclasses.replace(IDENTITY, augmented_pass=2)
    assert open_store(tmp_path, augmented, EVERY[5:]) is None
    write_store(tmp_path, augmented, EVERY[5:], chunks(EVERY[5:]))
    assert augmented.folder(tmp_path) == IDENTITY.folder(tmp_path) / "pass-2"
    found = open_store(tmp_path, augmented, EVERY[5:])
    assert found is not None
    assert found.rows.tolist() == [5, 6, 7, 8, 9]
    assert open_store(tmp_path, IDENTITY, EVERY) is not None


@pytest.mark.parametrize("name", [EMBEDDING, LOGIT, ROWS])
def test_damage_names_the_file(tmp_path: Path, name: str) -> None:
    write_store(tmp_path, IDENTITY, EVERY, chunks())
    path = IDENTITY.folder(tmp_path) / name
    whole = path.read_bytes()
    damaged(path)
    with pytest.raises(RecordError, match=f"{name}: damaged: SHA-256 is .* remove that folder: it is made again"):
        open_store(tmp_path, IDENTITY, EVERY)
    path.write_bytes(whole[:-3])
    with pytest.raises(RecordError, match=f"{name}: expected {len(whole)} bytes, found {len(whole) - 3}"):
        open_store(tmp_path, IDENTITY, EVERY)
    path.unlink()
    with pytest.raises(RecordError, match=f"{name}: missing, but meta.json names it"):
        open_store(tmp_path, IDENTITY, EVERY)


def test_a_damaged_meta_is_named(tmp_path: Path) -> None:
    write_store(tmp_path, IDENTITY, EVERY, chunks())
    (IDENTITY.folder(tmp_path) / META).write_text('{"format')
    with pytest.raises(RecordError, match=r"meta.json: expected a JSON object"):
        open_store(tmp_path, IDENTITY, EVERY)


def replace(folder: Path, name: str, array: np.ndarray) -> None:
    """Put another array in a file's place and let meta.json vouch for it, as another program would."""
    np.save(folder / name, array)
    meta = json.loads((folder / META).read_text())
    meta["files"][name] = {"sha256": sha256_file(folder / name), "size_bytes": (folder / name).stat().st_size}
    (folder / META).write_text(json.dumps(meta))


def test_arrays_of_another_kind_are_refused(tmp_path: Path) -> None:
    write_store(tmp_path, IDENTITY, EVERY, chunks())
    folder = IDENTITY.folder(tmp_path)
    replace(folder, EMBEDDING, np.zeros((NUM_ROWS, SIZE), np.float32))
    with pytest.raises(RecordError, match=r"embedding.npy: expected float16 of 2 dimensions, found float32"):
        open_store(tmp_path, IDENTITY, EVERY)
    replace(folder, EMBEDDING, np.zeros((NUM_ROWS - 1, SIZE), np.float16))
    with pytest.raises(RecordError, match="expected as many embeddings and logits"):
        open_store(tmp_path, IDENTITY, EVERY)


def test_values_that_do_not_fit_are_refused_and_the_old_store_stays(tmp_path: Path) -> None:
    write_store(tmp_path, IDENTITY, EVERY, chunks())
    with pytest.raises(FastichError, match="not finite in float16 for row 7"):
        write_store(tmp_path, IDENTITY, EVERY, chunks(scale=7000.0))
    assert open_store(tmp_path, IDENTITY, EVERY) is not None
    assert len(list((tmp_path / "side").iterdir())) == 1


def test_a_row_that_never_came_is_named(tmp_path: Path) -> None:
    with pytest.raises(FastichError, match="found no embedding of row 9"):
        write_store(tmp_path, IDENTITY, EVERY, chunks(EVERY[:9]))
    assert not list((tmp_path / "side").iterdir())


def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    left = IDENTITY.folder(tmp_path).with_suffix(".tmp")
    left.mkdir(parents=True)
    (left / EMBEDDING).write_bytes(b"half")
    assert open_store(tmp_path, IDENTITY, EVERY) is None
    write_store(tmp_path, IDENTITY, EVERY, chunks())
    assert not left.exists()
