import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from small_dense import SmallDense
from study_records import LENGTH, NUM_STUDIES, changed, loaded_cnn, write_studies

from fastich.checkpoint import LoadedRun
from fastich.embeddings import Store
from fastich.loaders import LoaderConfig, open_loader, source
from fastich.loaders.augment import Augmentation
from fastich.records.reader import RecordReader
from fastich.training import embedder
from fastich.training.embedder import Embedder, ensure_store, stores_of
from fastich.training.feed import Feed
from fastich.training.precision import Precision

NUM_SLICES = LENGTH * sum(NUM_STUDIES.values())
TRAIN_ROWS = np.arange(LENGTH * NUM_STUDIES["train"])
FEED = Feed(precision=Precision(dtype=torch.float32, device=torch.device("cpu")), batch_size=50, loader="cpu")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("embedder") / "records"
    write_studies(made)
    return made


def fill(run: LoadedRun, records: Path, passes: int = 0, feed: Feed = FEED) -> tuple[Store, ...]:
    with RecordReader(records) as reader:
        return stores_of(run, records, reader, TRAIN_ROWS, passes, feed)


def test_embedding_and_logits_are_the_networks_own() -> None:
    network, images = SmallDense(), torch.rand(3, 3, 32, 32)
    found = Embedder(network)(images)
    assert torch.equal(found[:, :-6], network.embedding(images))
    assert torch.equal(found[:, -6:], network(images))


def test_the_store_holds_every_row_as_the_network_sees_it(records: Path) -> None:
    run = loaded_cnn(records)
    (store,) = fill(run, records)
    config = LoaderConfig(records=records, split="all", batch_size=NUM_SLICES, size=run.size, backend="cpu")
    with contextlib.closing(open_loader(config)) as loader, torch.inference_mode():
        (batch,) = loader.epoch(0)
        wanted = Embedder(run.model)(batch.images)
    assert store.rows.tolist() == list(range(NUM_SLICES))
    np.testing.assert_allclose(store.embedding, wanted[:, :-6].numpy().astype(np.float16))
    np.testing.assert_allclose(store.logit, wanted[:, -6:].numpy())


def test_a_store_is_made_once(records: Path) -> None:
    run = loaded_cnn(records)
    fill(run, records, passes=1)
    before = run.model.num_calls
    fill(run, records, passes=1)
    assert run.model.num_calls == before


def test_another_network_does_not_get_this_ones_store(records: Path) -> None:
    run = loaded_cnn(records)
    (mine,) = fill(run, records)
    other = changed(run)
    (its,) = fill(other, records)
    assert other.model.num_calls > 0
    assert its.folder != mine.folder
    assert not np.array_equal(its.embedding, mine.embedding)


def test_what_was_seen_in_another_precision_is_another_store(records: Path) -> None:
    run = loaded_cnn(records)
    (exact,) = fill(run, records)
    mixed = Feed(**{**vars(FEED), "precision": Precision(dtype=torch.bfloat16, device=torch.device("cpu"))})
    before = run.model.num_calls
    (rounded,) = fill(run, records, feed=mixed)
    assert rounded.folder != exact.folder
    assert run.model.num_calls > before
    before = run.model.num_calls
    (again,) = fill(run, records)
    assert (again.folder, run.model.num_calls) == (exact.folder, before)


def test_passes_hold_training_rows_each_changed_in_its_own_way(records: Path) -> None:
    run = loaded_cnn(records)
    plain, *passes = fill(run, records, passes=2)
    assert [one.rows.tolist() for one in passes] == [TRAIN_ROWS.tolist()] * 2
    seen = [plain.embedding[TRAIN_ROWS], *(one.embedding for one in passes)]
    assert all((one != other).any(axis=1).mean() > 0.9 for one, other in zip(seen, [*seen[1:], seen[0]], strict=True))


def test_slices_of_a_series_are_changed_alike(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, set[bytes]] = {}

    def draw(seed: int, epoch: int, positions: np.ndarray) -> Augmentation:
        made = real(seed, epoch, positions)
        for item, place in enumerate(positions.tolist()):
            seen.setdefault(place, set()).add(made.matrix(item, 16, 16).tobytes())
        return made

    real = source.draw
    monkeypatch.setattr(source, "draw", draw)
    fill(changed(loaded_cnn(records)), records, passes=1)
    assert len(seen) == NUM_STUDIES["train"]
    assert all(len(changes) == 1 for changes in seen.values())
    assert len(set.union(*seen.values())) == NUM_STUDIES["train"]


def test_threads_change_nothing(records: Path) -> None:
    run = loaded_cnn(records)
    (alone,) = fill(run, records)
    wanted = np.array(alone.embedding)
    alone.folder.rename(alone.folder.with_name("aside"))
    (shared,) = fill(run, records, feed=Feed(**{**vars(FEED), "threads": 2, "batch_size": 16}))
    np.testing.assert_allclose(shared.embedding, wanted, rtol=1e-3)


def test_two_writers_at_once_are_noticed(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedder.embeddings, "open_store", lambda *_: None)
    with (
        RecordReader(records) as reader,
        pytest.raises(ValueError, match="another process wrote there; run one at a time"),
    ):
        ensure_store(loaded_cnn(records), records, reader, np.arange(NUM_SLICES), 0, FEED)
