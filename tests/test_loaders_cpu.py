import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loaders_data import KINDS, collect, damage, write_records

from fastich import ops
from fastich.errors import FastichError, RecordError, UsageError
from fastich.loaders import LoaderConfig, choose_backend, open_loader
from fastich.loaders.augment import draw
from fastich.loaders.source import split_rows
from fastich.windowing import WINDOWS, preprocess, preprocess_adjacent

TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def even(tmp_path_factory):
    folder = tmp_path_factory.mktemp("even")
    return folder, write_records(folder, [(64, 64)] * 12)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed")
    return folder, write_records(folder, [(64, 64), (50, 70), (64, 64), (70, 50), (50, 70)], series_length=1)


def config(folder, **changes) -> LoaderConfig:
    return LoaderConfig(**{"records": folder, "split": "all", "batch_size": 5, "size": 32, "backend": "cpu"} | changes)


@pytest.mark.parametrize("size", [32, 64, 27])
def test_images_equal_the_numpy_truth(even, size):
    folder, images = even
    found = torch.cat([batch.images for batch in collect(open_loader(config(folder, size=size)))])
    np.testing.assert_allclose(found.numpy(), np.stack([preprocess(hu, size) for hu in images]), atol=TOLERANCE)


def test_batch_has_the_promised_types(even):
    batch = collect(open_loader(config(even[0])))[0]
    assert batch.images.dtype == batch.labels.dtype == torch.float32
    assert batch.images.shape == (5, 3, 32, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.rows.dtype == torch.int64
    assert batch.rows.tolist() == [0, 1, 2, 3, 4]
    assert batch.labels.tolist() == list(KINDS[:5])


def test_slices_of_several_sizes_keep_their_order(mixed):
    folder, images = mixed
    (batch,) = collect(open_loader(config(folder)))
    np.testing.assert_allclose(batch.images.numpy(), np.stack([preprocess(hu, 32) for hu in images]), atol=TOLERANCE)


def test_adjacent_channels_stop_at_the_series_ends(even):
    folder, images = even
    batches = collect(open_loader(config(folder, adjacent=True, windows=(WINDOWS["soft"],))))
    found = torch.cat([batch.images for batch in batches]).numpy()
    for row, near in {0: (0, 0, 1), 3: (2, 3, 4), 5: (4, 5, 5), 6: (6, 6, 7), 11: (10, 11, 11)}.items():
        expected = preprocess_adjacent([images[one] for one in near], 32, WINDOWS["soft"])
        np.testing.assert_allclose(found[row], expected, atol=TOLERANCE)


def test_adjacent_slices_of_other_size_are_an_error(tmp_path):
    write_records(tmp_path, [(64, 64), (50, 70)])
    with pytest.raises(RecordError, match=r"slices beside row 0 are .*expected \(64, 64\)"):
        collect(open_loader(config(tmp_path, adjacent=True)))


def test_intensity_follows_the_area_mean(tmp_path):
    """Flat slices: away from the border the affine map and the area mean change nothing, only gain and offset do."""
    write_records(
        tmp_path, [(64, 64)] * 5, image=lambda height, width, seed: np.full((height, width), 30 + seed, np.int16)
    )
    (batch,) = collect(open_loader(config(tmp_path, windows=(WINDOWS["brain"],), augment=True, seed=4)))
    hu = (batch.images[:, 0, 16, 16] * 0.229 + 0.485) * 80
    drawn = draw(4, 0, np.arange(5))
    np.testing.assert_allclose(hu, np.arange(30, 35) * drawn.gain + drawn.offset_hu, atol=1e-3)


def test_named_split_leaves_unlabelled_rows_out(even):
    assert [row for batch in collect(open_loader(config(even[0], split="train"))) for row in batch.rows.tolist()] == [
        row for row in range(12) if KINDS[row % 6][0] >= 0
    ]
    unlabelled = collect(open_loader(config(even[0], split="")))
    assert [row for batch in unlabelled for row in batch.rows.tolist()] == [5, 11]


def test_rows_without_labels_are_left_out_of_a_named_split():
    labels = np.zeros((4, 6), np.int8)
    labels[2] = -1
    reader = SimpleNamespace(rows=lambda split: np.array([1, 2, 3]))
    assert [
        split_rows(reader, labels, SimpleNamespace(split=split, folds=0)).tolist() for split in ("train", "", "all")
    ] == [
        [1, 3],
        [1, 2, 3],
        [0, 1, 2, 3],
    ]


def test_resuming_mid_epoch_equals_the_tail(even):
    wanted = config(even[0], shuffle=True, augment=True, batch_size=3)
    whole, tail = collect(open_loader(wanted), 2), collect(open_loader(wanted), 2, 2)
    assert len(tail) == len(whole) - 2 > 0
    for one, other in zip(whole[2:], tail, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.rows, other.rows)


def test_a_slice_is_augmented_alike_for_any_number_of_ranks(even):
    alone = collect(open_loader(config(even[0], shuffle=True, augment=True)), 1)
    images = {int(row): image for batch in alone for row, image in zip(batch.rows, batch.images, strict=True)}
    for rank in range(2):
        shared = config(even[0], shuffle=True, augment=True, rank=rank, world_size=2, batch_size=2)
        for batch in collect(open_loader(shared), 1):
            for row, image in zip(batch.rows, batch.images, strict=True):
                assert torch.allclose(image, images[int(row)], atol=1e-5)


def test_loader_counts_slices_and_batches(even):
    loader = open_loader(config(even[0], batch_size=5))
    assert (loader.num_slices, loader.num_batches, loader.backend) == (12, 3, "torch-cpu")
    assert len(collect(loader)) == 3
    assert open_loader(config(even[0], batch_size=5, drop_last=True)).num_batches == 2


def test_damaged_record_names_file_and_offset_after_the_batches_before_it(tmp_path):
    write_records(tmp_path, [(64, 64)] * 12)
    offset = damage(tmp_path, row=8)
    found = []
    with pytest.raises(RecordError, match=rf"shard-00000-of-00001.tfrecord:{offset}: "):
        found.extend(open_loader(config(tmp_path, batch_size=2)).epoch(0))
    assert [batch.rows.tolist() for batch in open_loader(config(tmp_path, batch_size=2)).epoch(0, 5)] == [[10, 11]]


def test_an_epoch_may_be_left_early(even):
    loader = open_loader(config(even[0], batch_size=2))
    for _ in range(3):
        assert next(loader.epoch(0)).rows.tolist() == [0, 1]
    assert len(collect(loader)) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "val"}, "no slices in split 'val'; pack with --labels"),
        ({"split": "train", "batch_size": 50, "drop_last": True}, "10 slices in split 'train' do not fill one batch"),
        ({"split": "nothing"}, "split 'nothing': expected one of train, val, test"),
    ],
)
def test_split_without_a_batch_is_refused(even, changes, message):
    with pytest.raises(FastichError, match=message):
        open_loader(config(even[0], **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, found 0"),
        ({"seed": -1}, "seed must be >= 0, found -1"),
        ({"rank": 2, "world_size": 2}, "rank must be 0 to 1, found 2"),
        ({"windows": ()}, "at least one window"),
        ({"backend": "magic"}, "backend must be one of auto, native, dali, dali-stock, cpu, found 'magic'"),
        ({"device": "tpu"}, "device must be one of cpu, cuda, found 'tpu'"),
    ],
)
def test_config_refuses_values_out_of_range(changes, message):
    with pytest.raises(UsageError, match=message):
        config("anywhere", **changes)


def test_missing_records_are_one_clear_error(tmp_path):
    with pytest.raises(RecordError, match="not a complete records folder"):
        open_loader(config(tmp_path / "none"))


def test_cuda_demanded_and_absent_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device cuda was demanded"):
        choose_backend("auto", "cuda")


def test_backend_is_chosen_as_documented(monkeypatch):
    monkeypatch.setattr("fastich.loaders.HAS_DALI", True)
    monkeypatch.setattr("fastich.ops.KERNELS", object())
    asked = ("auto", "native", "dali", "cpu")
    assert [choose_backend(one, "cpu") for one in asked] == ["native-cpu", "native-cpu", "dali-cpu", "torch-cpu"]
    assert choose_backend("auto", "cpu", adjacent=True) == "dali-stock-cpu"
    monkeypatch.setattr("fastich.ops.KERNELS", None)
    assert choose_backend("auto", "cpu") == "dali-cpu"
    monkeypatch.setattr("fastich.loaders.HAS_DALI", False)
    assert choose_backend("auto", "cpu") == "torch-cpu"
    with pytest.raises(UsageError, match="backend dali was demanded but cannot be imported"):
        choose_backend("dali", "cpu")


def test_the_backend_is_said_once(even, capsys):
    from fastich import loaders

    loaders._announce.cache_clear()
    for _ in range(2):
        open_loader(config(even[0])).close()
    assert capsys.readouterr().err == f"loader: torch-cpu; cache: none; kernels: {ops.backend()}\n"


def test_config_is_frozen(even):
    with pytest.raises(dataclasses.FrozenInstanceError):
        config(even[0]).size = 3
