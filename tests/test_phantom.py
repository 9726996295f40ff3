"""The phantom data set: its files say what was simulated, byte for byte the same for the same seed."""

import csv
import errno
import hashlib
import json
import math
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import pytest

from fastich import hu as rescale
from fastich.errors import FastichError, UsageError
from fastich.labels import ANY, LABELS, SUBTYPES, any_is_consistent
from fastich.phantom import PhantomConfig, dicom_bytes, generate, scanner, write
from fastich.phantom.__main__ import main
from fastich.phantom.cohort import make_id, make_plan
from fastich.phantom.montage import draw_montage
from fastich.phantom.study import VISIBLE_MM2, count_classes, make_study

SIZE = 64


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def data_set(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "set"
    generate(PhantomConfig(out=out, studies=7, seed=3, size=SIZE, healthy=0.0))
    return out


def table_labels(folder: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    with (folder / "stage_2_train.csv").open() as handle:
        for row in csv.DictReader(handle):
            uid, name = row["Id"].rsplit("_", 1)
            found.setdefault(uid, [-1] * len(LABELS))[LABELS.index(name)] = int(row["Label"])
    return found


def truth(folder: Path) -> list[dict[str, str]]:
    with (folder / "truth.csv").open() as handle:
        return list(csv.DictReader(handle))


def masks_of(folder: Path, study_uid: str) -> dict[str, np.ndarray]:
    with np.load(folder / "masks" / f"{study_uid}.npz") as arrays:
        return dict(arrays)


def read(path: Path) -> pydicom.Dataset:
    """pydicom warns of each id that is no legal UID; that they are none is the point here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Invalid value for VR UI")
        dataset = pydicom.dcmread(path)
        str(dataset)
    return dataset


def test_same_seed_gives_same_bytes_for_one_and_two_workers(tmp_path):
    for workers in (1, 2):
        generate(PhantomConfig(out=tmp_path / str(workers), studies=3, seed=5, size=SIZE, workers=workers))
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


def test_other_seed_gives_other_pixels_and_ids():
    plan = make_plan(0, 1, 1.0)[0]
    assert not np.array_equal(make_study(plan, 0, SIZE).hu[:20], make_study(plan, 1, SIZE).hu[:20])
    assert not set(write.sop_uids(0, 0, 64)) & set(write.sop_uids(1, 0, 64))


def test_every_slice_has_one_file_and_six_labels(data_set):
    names = {path.stem for path in (data_set / "stage_2_train").iterdir()}
    labels = table_labels(data_set)
    assert names == set(labels)
    assert len(names) == sum(int(row["num_slices"]) for row in truth(data_set))
    assert min(min(values) for values in labels.values()) == 0


def test_label_rows_are_shuffled(data_set):
    rows = (data_set / "stage_2_train.csv").read_text().splitlines()[1:]
    neighbours = sum(a.rsplit("_", 1)[0] == b.rsplit("_", 1)[0] for a, b in pairwise(rows))
    assert neighbours < len(rows) / 50


def test_labels_follow_from_masks_by_visible_area(data_set):
    labels = table_labels(data_set)
    for row in truth(data_set):
        arrays = masks_of(data_set, row["study_uid"])
        visible = count_classes(arrays["masks"]) * float(arrays["pixel_mm"]) ** 2 >= VISIBLE_MM2
        for uid, classes in zip(arrays["sop_uids"], visible, strict=True):
            assert labels[str(uid)] == [*classes.astype(int), int(classes.any())]


def test_any_is_the_or_of_the_subtypes(data_set):
    assert any_is_consistent(np.asarray(list(table_labels(data_set).values()))).all()


def test_truth_volumes_are_voxel_volumes_along_the_slice_normal(data_set):
    for row in truth(data_set):
        arrays = masks_of(data_set, row["study_uid"])
        first = read(data_set / "stage_2_train" / f"{arrays['sop_uids'][0]}.dcm")
        cosine = math.cos(math.radians(float(row["tilt_deg"])))
        assert first.ImageOrientationPatient[4] == pytest.approx(cosine, abs=1e-5)
        steps_mm = {float(step) for step in row["table_step_mm"].split("/")}
        assert {round(t / cosine, 3) for t in arrays["thickness_mm"]} == steps_mm
        pixel_mm2 = float(first.PixelSpacing[0]) * float(first.PixelSpacing[1])
        volumes = count_classes(arrays["masks"]).T @ arrays["thickness_mm"] * pixel_mm2 / 1000
        for name, volume in zip(SUBTYPES, volumes, strict=True):
            assert float(row[f"{name}_ml"]) == pytest.approx(volume, abs=2e-4, rel=1e-4)


def test_positions_shift_along_z_by_the_table_steps(data_set):
    for row in truth(data_set):
        uids = masks_of(data_set, row["study_uid"])["sop_uids"]
        at = np.asarray([read(data_set / "stage_2_train" / f"{u}.dcm").ImagePositionPatient for u in uids], float)
        assert np.ptp(at[:, :2]) == pytest.approx(abs(at[0, 0] - at[0, 1]))
        steps = [float(step) for step in row["table_step_mm"].split("/")]
        assert np.diff(at[:, 2]).min() == pytest.approx(min(steps), abs=1e-5)
        assert np.diff(at[:, 2]).max() == pytest.approx(max(steps), abs=1e-5)


def test_every_subtype_bleeds_somewhere_in_the_images(data_set):
    assert np.asarray(list(table_labels(data_set).values())).any(axis=0).all()


def test_volumes_stay_within_what_is_promised(data_set):
    volumes = [float(row[f"{name}_ml"]) for row in truth(data_set) for name in SUBTYPES]
    assert max(volumes) < 75
    assert sum(0 < volume < 0.2 for volume in volumes) == 0


@pytest.mark.parametrize("encoding", [scanner.ENCODING_12, scanner.ENCODING_16, scanner.ENCODING_WRAPPED])
@pytest.mark.parametrize("implicit_vr", [False, True])
def test_each_encoding_gives_back_the_intended_hu(tmp_path, encoding, implicit_vr):
    study = make_study(make_plan(1, 1, 0.0)[0], 1, SIZE)
    intercept = {scanner.ENCODING_WRAPPED: 1}.get(encoding, -1024)
    study = replace(study, scan=replace(study.scan, encoding=encoding, intercept=intercept, implicit_vr=implicit_vr))
    (tmp_path / "stage_2_train").mkdir()
    (tmp_path / "masks").mkdir()
    write.write_study(tmp_path, 1, study)
    low, high = {scanner.ENCODING_12: (-1024, 3071), scanner.ENCODING_WRAPPED: (-1000, 3095)}.get(
        encoding, (-3024, 31743)
    )
    axis = np.arange(SIZE) - (SIZE - 1) / 2
    circle = axis[None, :] ** 2 + axis[:, None] ** 2 <= (SIZE / 2) ** 2
    for uid, intended in zip(write.sop_uids(1, study.plan.number, len(study.hu)), study.hu, strict=True):
        found = pixels_hu(read(tmp_path / "stage_2_train" / f"{uid}.dcm"))
        assert np.array_equal(found[circle], np.clip(intended, low, high)[circle])
        if encoding == scanner.ENCODING_16:
            assert (found[~circle] == scanner.PADDING_STORED - 1024).all()
        else:
            assert np.array_equal(found, np.clip(intended, low, high))


def pixels_hu(dataset: pydicom.Dataset) -> np.ndarray:
    stored, intercept = dataset.pixel_array, float(dataset.RescaleIntercept)
    if rescale.is_wrapped_12_bit(dataset.BitsStored, bool(dataset.PixelRepresentation), intercept):
        return rescale.to_hu(rescale.unwrap_12_bit(stored), 1.0, -1000.0)
    return rescale.to_hu(stored, float(dataset.RescaleSlope), intercept)


def slice_file(**changes) -> dicom_bytes.SliceFile:
    made = dicom_bytes.SliceFile(
        sop_uid="ID_0a1b2c3d4",
        study_uid="ID_00000000a",
        series_uid="ID_00000000b",
        patient_id="ID_00000000c",
        position_mm=(-125.0, -141.318, 20.5),
        orientation=(1, 0, 0, 0, 0.974370, -0.224951),
        pixel_mm=0.488281,
        intercept=-1024,
        window=("00036\\00036", "00080\\00080"),
        pixels=np.arange(24, dtype=np.uint16).reshape(4, 6),
        implicit_vr=False,
    )
    return replace(made, **changes)


RSNA_ELEMENTS = [
    "SOPInstanceUID",
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "StudyID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "WindowCenter",
    "WindowWidth",
    "RescaleIntercept",
    "RescaleSlope",
    "PixelData",
]


@pytest.mark.parametrize("implicit_vr", [False, True])
def test_header_holds_the_22_elements_of_rsna_and_no_more(tmp_path, implicit_vr):
    path = tmp_path / "x.dcm"
    path.write_bytes(dicom_bytes.encode(slice_file(implicit_vr=implicit_vr)))
    dataset = read(path)
    assert [element.keyword for element in dataset] == RSNA_ELEMENTS
    assert dataset.SOPInstanceUID == "ID_0a1b2c3d4"
    assert list(dataset.WindowCenter) == [36, 36]
    assert np.array_equal(dataset.pixel_array, slice_file().pixels)
    assert dataset.file_meta.TransferSyntaxUID == (dicom_bytes.IMPLICIT_VR if implicit_vr else dicom_bytes.EXPLICIT_VR)


@pytest.mark.parametrize(("implicit_vr", "has_length"), [(False, True), (True, False)])
def test_only_explicit_files_hold_the_group_length(implicit_vr, has_length):
    data = dicom_bytes.encode(slice_file(implicit_vr=implicit_vr))
    assert (data[132:136] == b"\x02\x00\x00\x00") is has_length


def test_media_storage_uid_is_legal_and_differs_from_the_illegal_sop_uid(tmp_path):
    path = tmp_path / "x.dcm"
    path.write_bytes(dicom_bytes.encode(slice_file()))
    stored = read(path).file_meta.MediaStorageSOPInstanceUID
    assert stored.is_valid
    assert stored != "ID_0a1b2c3d4"
    assert stored == dicom_bytes.legal_uid("ID_0a1b2c3d4")


def test_first_bytes_of_a_file_are_as_ps3_10_says():
    data = dicom_bytes.encode(slice_file(implicit_vr=True))
    assert data[:128] == b"\0" * 128
    assert data[128:146] == b"DICM" + b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"
    assert data.endswith(slice_file().pixels.tobytes())


def test_ids_never_repeat():
    ids = [make_id(0, kind, number, 9) for kind in range(4) for number in range(20_000)]
    assert len(set(ids)) == len(ids)
    assert all(len(each) == 12 and each.startswith("ID_") for each in ids)


def test_plan_puts_every_subtype_into_several_patients():
    for seed in range(20):
        plan = make_plan(seed, 60, 0.5)
        for name in SUBTYPES:
            assert len({study.patient for study in plan if name in study.subtypes}) >= 4
        assert any(study.visit == 1 for study in plan)
        healthy = {study.patient for study in plan if not study.subtypes}
        assert len(healthy) / (plan[-1].patient + 1) == pytest.approx(0.5, abs=0.02)


def test_summary_counts_what_was_written(tmp_path):
    summary = generate(PhantomConfig(out=tmp_path / "a", studies=2, seed=1, size=SIZE, healthy=1.0))
    assert summary["slices"] == len(list((tmp_path / "a" / "stage_2_train").iterdir()))
    assert summary["prevalence"]["any"] == 0
    assert summary["studies"] == 2


def test_refuses_an_output_folder_that_holds_something(tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UsageError, match="expected an empty or absent folder"):
        generate(PhantomConfig(out=tmp_path, studies=1, size=SIZE))
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"studies": 0}, "--studies must be at least 1"),
        ({"size": 100}, "multiple of 8"),
        ({"size": 32}, "from 64 to"),
        ({"healthy": 1.5}, "must lie in 0..1"),
        ({"workers": 0}, "--workers must be at least 1"),
        ({"seed": -1}, "--seed must not be negative"),
    ],
)
def test_config_refuses_what_cannot_be_made(changes, message):
    with pytest.raises(ValueError, match=message):
        PhantomConfig(out=Path("x"), **changes)


def test_any_column_is_last_in_the_labels_of_a_study():
    study = make_study(make_plan(1, 1, 0.0)[0], 1, SIZE)
    assert np.array_equal(study.labels[:, ANY], study.labels[:, :ANY].max(axis=1))
    assert study.hu.dtype == np.int16
    assert 20 <= len(study.hu) <= 40


def test_verb_prints_its_summary_as_json(tmp_path, capsys):
    flags = ["--out", str(tmp_path / "set"), "--studies", "1", "--size", "64", "--json"]
    assert main(flags) == 0
    assert json.loads(capsys.readouterr().out)["studies"] == 1
    with pytest.raises(UsageError, match="choose another --out"):
        main(flags)


def test_montage_is_a_png_small_enough_for_the_readme(tmp_path):
    draw_montage(tmp_path / "phantom.png", 2)
    data = (tmp_path / "phantom.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) <= 400_000


def test_a_full_disk_names_the_folder_that_is_not_complete(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "write_study", full)
    with pytest.raises(FastichError, match=r"out: No space left on device; .*out is not complete, remove it"):
        generate(PhantomConfig(out=tmp_path / "out", studies=1, size=SIZE))
