import numpy as np
import pytest
import torch
from loaders_data import write_records

from fastich import ops
from fastich.loaders import LoaderConfig, open_loader
from fastich.loaders.augment import Augmentation
from fastich.loaders.cached import plane_matrix
from fastich.windowing import Window

pytestmark = pytest.mark.skipif(not ops.KERNELS, reason="the native kernels are not built")

WIDE = Window(0, 8000)
HU_PER_UNIT = 8000 * 0.229
"""Nothing is clipped: normalised values are HU over this."""


def smooth(height: int, width: int, seed: int) -> np.ndarray:
    """A head-sized bump above air with slow waves of 40 HU on it (period 64 pixels at 512), air near the border."""
    y, x = ((np.arange(count) + 0.5) / count for count in (height, width))
    bump_y, bump_x = (np.where(np.abs(u - 0.5) < 0.3, np.sin(np.pi * (u - 0.2) / 0.6) ** 2, 0) for u in (y, x))
    waves = 40 * np.cos(16 * np.pi * x + seed) * np.cos(16 * np.pi * y)[:, None]
    return np.rint(-1024 + bump_x * bump_y[:, None] * (1064 + waves)).astype(np.int16)


def hu(folder, cache, **changes):
    usual = {"split": "all", "batch_size": 16, "size": 256, "windows": (WIDE,), "backend": "native"}
    loader = open_loader(LoaderConfig(records=folder, cache=cache, **usual | changes))
    batches = list(loader.epoch(1))
    loader.close()
    return torch.cat([batch.images for batch in batches]) * HU_PER_UNIT, batches


@pytest.fixture(scope="module")
def square(tmp_path_factory):
    folder = tmp_path_factory.mktemp("square")
    write_records(folder, [(512, 512)] * 16, image=smooth)
    return folder


def test_half_first_records_give_the_very_images_of_the_native_loader(square):
    cached, from_cache = hu(square, "host", shuffle=True, seed=5)
    read, from_disk = hu(square, "none", shuffle=True, seed=5)
    assert torch.equal(cached, read)
    for one, other in zip(from_cache, from_disk, strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.labels, other.labels)
        assert one.images.is_contiguous(memory_format=torch.channels_last)


def test_other_sizes_are_within_half_a_hounsfield_unit(square):
    error_hu = (hu(square, "host", size=200)[0] - hu(square, "none", size=200)[0]).abs().max().item()
    assert 0.1 < error_hu <= 0.51


@pytest.mark.parametrize(
    ("shape", "size", "tolerance_hu"),
    [((512, 512), 256, 2.0), ((512, 512), 200, 2.0), ((384, 512), 256, 2.0), ((512, 300), 256, 3.0)],
)
def test_warping_the_plane_is_warping_natively_and_averaging(tmp_path, shape, size, tolerance_hu):
    """On smooth images; a map that is off by half a pixel of the plane would be 10 HU off and more."""
    write_records(tmp_path, [shape] * 16, image=smooth)
    error_hu = (
        hu(tmp_path, "host", size=size, augment=True)[0] - hu(tmp_path, "none", size=size, augment=True)[0]
    ).abs()
    assert 0 < error_hu.max().item() < tolerance_hu
    assert error_hu.mean().item() < 0.5


def test_a_plane_matrix_scales_the_translation_only():
    matrix = np.array([[0.9, 0.1, 40.0], [-0.1, 0.9, -20.0]])
    assert np.allclose(plane_matrix(matrix, 512, 512, 256), [[0.9, 0.1, 20.0], [-0.1, 0.9, -10.0]])


def test_a_plane_matrix_is_the_native_one_seen_from_the_padded_square():
    change = Augmentation(
        flip=np.array([True]), rotation_deg=np.array([7.0]), scale=np.array([1.05]), shift_x=np.array([0.03]),
        shift_y=np.array([-0.02]), gain=np.ones(1, np.float32), offset_hu=np.zeros(1, np.float32),
    )  # fmt: skip
    height, width, side = 300, 512, 128
    native = change.matrix(0, height, width)
    point = np.array([100.0, 250.0])
    to_plane = lambda x: (x + np.array([0, (width - height) // 2])) * side / width  # noqa: E731
    plane = plane_matrix(native, height, width, side)
    assert np.allclose(plane[:, :2] @ to_plane(point) + plane[:, 2], to_plane(native[:, :2] @ point + native[:, 2]))


def test_resume_gives_the_tail_of_the_epoch(square):
    config = LoaderConfig(records=square, split="all", batch_size=5, size=64, shuffle=True, augment=True, cache="host")
    loader = open_loader(config)
    assert loader.backend == "native-cpu"
    whole, tail = list(loader.epoch(2)), list(loader.epoch(2, 1))
    assert len(tail) == len(whole) - 1 == 3
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[1:], tail, strict=True))
