import pytest
import torch
from loaders_data import damage, folders_of_all_kinds, write_records

from fastich import ops
from fastich.errors import RecordError, UsageError
from fastich.loaders import LoaderConfig, open_loader
from fastich.preprocess import Preprocess
from fastich.records.reader import RecordReader
from fastich.windowing import WINDOWS, Window

pytestmark = pytest.mark.skipif(not ops.KERNELS, reason="the native kernels are not built")

TOLERANCE, TOLERANCE_AUGMENTED = 1e-4, 1e-3
"""Normalised units: the same float32 arithmetic in another order; the warp finds its pixels in float32."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return folders_of_all_kinds(tmp_path_factory)


CASES = {
    "factor 1": ("even", {"size": 96}),
    "factor 2": ("even", {"size": 48}),
    "factor 3": ("even", {"size": 32}),
    "other factor": ("even", {"size": 64}),
    "enlarged": ("even", {"size": 128}),
    "512 to 128": ("large", {"size": 128}),
    "512 to 200": ("large", {"size": 200}),
    "not square": ("wide", {"size": 48}),
    "mixed sizes": ("mixed", {"size": 48}),
    "one window": ("even", {"windows": (WINDOWS["stroke"],)}),
    "five windows": ("even", {"windows": tuple(WINDOWS.values())}),
    "balanced": ("even", {"split": "train", "balanced": True}),
    "two ranks": ("even", {"rank": 1, "world_size": 2}),
}


def images(folder, backend, **changes):
    usual = {"split": "all", "batch_size": 5, "size": 32, "shuffle": True, "seed": 3}
    loader = open_loader(LoaderConfig(records=folder, backend=backend, **usual | changes))
    batches = list(loader.epoch(1))
    loader.close()
    return batches


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
@pytest.mark.parametrize("case", CASES)
def test_native_gives_the_tensors_of_the_torch_reference(folders, case, augment):
    name, changes = CASES[case]
    fast = images(folders[name], "native", augment=augment, **changes)
    slow = images(folders[name], "cpu", augment=augment, **changes)
    assert len(fast) == len(slow) > 0
    for one, other in zip(fast, slow, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.labels, other.labels)
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        tolerance = TOLERANCE_AUGMENTED if augment else TOLERANCE
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=tolerance)


def test_half_first_at_half_size_is_within_half_a_hounsfield_unit(folders):
    wide = Window(0, 2000)  # 2000 HU to the unit: nothing is clipped
    reader = RecordReader(folders["large"])
    assert bytes(reader.payload(0))[5] == 1, "512 px records are stored half-first"
    exact = Preprocess(256, (wide,), False)(torch.from_numpy(reader.hu(0))[None])
    (batch,) = images(folders["large"], "native", size=256, windows=(wide,), shuffle=False)
    hu_per_unit = 2000 * 0.229
    error_hu = (batch.images[0] - exact[0]).abs().max().item() * hu_per_unit
    assert 0 < error_hu <= 0.51


def test_a_damaged_record_names_file_and_offset_after_the_batches_before_it(tmp_path):
    write_records(tmp_path, [(64, 64)] * 6, series_length=6)
    damage(tmp_path, 4)
    config = LoaderConfig(records=tmp_path, split="all", batch_size=2, size=32, backend="native")
    seen = open_loader(config).epoch(0)
    assert len(next(seen).rows) == 2
    assert len(next(seen).rows) == 2
    with pytest.raises(RecordError, match=r"shard-.*tfrecord:\d+"):
        next(seen)


def test_resume_gives_the_tail_of_the_epoch(folders):
    config = LoaderConfig(
        records=folders["even"], split="all", batch_size=5, shuffle=True, augment=True, backend="native"
    )
    loader = open_loader(config)
    whole, tail = list(loader.epoch(2)), list(loader.epoch(2, 1))
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[1:], tail, strict=True))
    assert len(tail) == len(whole) - 1


def test_auto_takes_the_native_loader_on_a_cpu(folders):
    loader = open_loader(LoaderConfig(records=folders["even"], split="all", batch_size=4))
    assert loader.backend == "native-cpu"


def test_adjacent_slices_are_left_to_the_others(folders):
    config = {"records": folders["even"], "split": "all", "batch_size": 4, "adjacent": True}
    assert open_loader(LoaderConfig(**config)).backend != "native-cpu"
    with pytest.raises(UsageError, match="does not take adjacent slices"):
        open_loader(LoaderConfig(**config, backend="native"))


def test_demanding_kernels_that_are_not_built_is_an_error(folders, monkeypatch):
    monkeypatch.setattr(ops, "KERNELS", None)
    with pytest.raises(UsageError, match="the kernels are not built"):
        open_loader(LoaderConfig(records=folders["even"], split="all", batch_size=4, backend="native"))
