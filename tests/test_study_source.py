import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small_dense import SmallDense
from study_records import LENGTH, NUM_STUDIES, loaded_cnn, write_studies
from torch import nn

from fastich import ops
from fastich.loaders import HAS_DALI
from fastich.records.index import series_numbers
from fastich.records.reader import RecordReader
from fastich.training.embedder import stores_of
from fastich.training.feed import Feed
from fastich.training.precision import Precision
from fastich.training.study_data import Changes, StudySet, series_of
from fastich.training.study_source import EndToEnd, Stored

FEED = Feed(precision=Precision(dtype=torch.float32, device=torch.device("cpu")), batch_size=64, loader="cpu")
CHANGES = Changes(subsample=0.5, reverse=True)
NUM_TRAIN = LENGTH * NUM_STUDIES["train"]
VAL_ROWS = np.arange(NUM_TRAIN, NUM_TRAIN + LENGTH * NUM_STUDIES["val"])


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("source") / "records"
    write_studies(made)
    return made


def sources(records: Path, *, augment: bool = False, batch_size: int = 64) -> tuple[Stored, EndToEnd]:
    """The same studies out of the store and out of the very CNN."""
    run = dataclasses.replace(loaded_cnn(records), model=SmallDense(), size=32, config={"augment": augment})
    with RecordReader(records) as reader:
        stores = stores_of(run, records, reader, np.arange(NUM_TRAIN), 0, FEED)
        training, val = (series_of(reader.index, rows) for rows in (np.arange(NUM_TRAIN), VAL_ROWS))
        labels, places = reader.labels(), series_numbers(reader.index)
    feed = dataclasses.replace(FEED, batch_size=batch_size)
    end_to_end = EndToEnd(
        run=run, records=records, labels=labels, places=places, training=training, val=val, feed=feed, seed=0
    )
    return (
        Stored(
            training=StudySet(series=training, labels=labels, stores=stores),
            val=StudySet(series=val, labels=labels, stores=stores),
        ),
        end_to_end,
    )


def test_end_to_end_sees_what_is_in_the_store(records: Path) -> None:
    stored, end_to_end = sources(records)
    assert (stored.num_series, stored.embedding_size) == (end_to_end.num_series, end_to_end.embedding_size) == (24, 32)
    pairs = zip(stored.training_batches(1, 2, CHANGES), end_to_end.training_batches(1, 2, CHANGES), strict=True)
    for old, new in pairs:
        assert new.embedding.requires_grad
        for name in ("mask", "labels", "rows"):
            assert torch.equal(getattr(old, name), getattr(new, name))
        torch.testing.assert_close(new.gap_mm, old.gap_mm, equal_nan=True)
        torch.testing.assert_close(new.embedding, old.embedding, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(new.logit, old.logit, rtol=1e-4, atol=1e-4)


def test_validation_is_what_the_store_holds(records: Path) -> None:
    stored, end_to_end = sources(records, batch_size=7)
    (old,), (new,) = (source.validation().batches(8) for source in (stored, end_to_end))
    assert torch.equal(old.rows, new.rows)
    torch.testing.assert_close(new.embedding, old.embedding, rtol=2e-3, atol=2e-3)


def gradient(records: Path, batch_size: int) -> torch.Tensor:
    _, end_to_end = sources(records, batch_size=batch_size)
    batch = next(iter(end_to_end.training_batches(0, 2, CHANGES)))
    (batch.embedding.sum() + batch.logit.square().sum()).backward()
    return torch.cat([parameter.grad.flatten() for parameter in end_to_end.run.model.parameters()])


def test_parts_of_a_study_add_up_to_the_whole_gradient(records: Path) -> None:
    whole, parts = gradient(records, 64), gradient(records, 3)
    assert float(whole.abs().sum()) > 0
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


def test_batch_norms_keep_their_statistics(records: Path) -> None:
    _, end_to_end = sources(records)
    model = end_to_end.run.model.train()
    before = copy.deepcopy(dict(model.named_buffers()))
    for _ in end_to_end.training_batches(0, 4, CHANGES):
        pass
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_slices_are_augmented_where_the_cnn_was_trained_so(records: Path) -> None:
    plain, augmented = (sources(records, augment=augment)[1] for augment in (False, True))
    plain_again = sources(records)[1]

    def seen(source: EndToEnd) -> torch.Tensor:
        with torch.inference_mode():
            return next(iter(source.training_batches(0, 4, Changes()))).embedding

    assert torch.equal(seen(plain), seen(plain_again))
    assert not torch.allclose(seen(plain), seen(augmented), rtol=1e-2)


@pytest.mark.parametrize(
    "loader",
    [
        pytest.param("native", marks=pytest.mark.skipif(not ops.KERNELS, reason="the native kernels are not built")),
        pytest.param("dali", marks=pytest.mark.skipif(not HAS_DALI, reason="DALI is not installed")),
    ],
)
def test_every_loader_takes_studies_as_batches(records: Path, loader: str) -> None:
    _, wanted = sources(records)
    found = dataclasses.replace(wanted, feed=dataclasses.replace(FEED, loader=loader))
    with torch.inference_mode():
        pairs = zip(*(source.training_batches(2, 3, CHANGES) for source in (wanted, found)), strict=True)
        for one, other in pairs:
            assert torch.equal(one.rows, other.rows)
            torch.testing.assert_close(other.embedding, one.embedding, rtol=2e-3, atol=2e-3)
