"""Pack: right pixels, labels, order and splits; nothing lost in silence; the same bytes whatever happens on the way."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from pack_data import (
    SIDE,
    SPACING_MM,
    STEP_MM,
    clean_input,
    config,
    edit,
    folder_bytes,
    head,
    make_folder,
    rejects_of,
    sop_uid,
    write_labels,
    write_slice,
)

from fastich import dicom, files
from fastich.errors import DicomError, FastichError, LabelError, UsageError
from fastich.hu import to_hu, to_record
from fastich.labels import LABELS
from fastich.pack import PackConfig, pack
from fastich.packing import shard
from fastich.packing.headers import read_many
from fastich.packing.plan import shard_numbers
from fastich.records.reader import RecordReader
from fastich.types import Reject
from fastich.verify import verify
from fastich.windowing import resize_area

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Clean input: folder, label table and labels by SOP UID."""
    return clean_input(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def packed(data, tmp_path_factory):
    """The clean input packed without disturbance by one worker."""
    out = tmp_path_factory.mktemp("packed") / "records"
    return out, pack(config(data, out))


def test_records_hold_the_pixels_labels_and_places_of_the_files(data, packed):
    reader = RecordReader(packed[0])
    assert len(reader) == len(data[2])
    for row, entry in enumerate(reader.index.itertuples()):
        source = pydicom.dcmread(data[0] / entry.source)
        record = to_record(to_hu(source.pixel_array, 1, -1024))
        assert np.array_equal(reader.stored(row), record)
        assert entry.pixel_sha1 == hashlib.sha1(record.tobytes()).hexdigest()
        assert entry.sop_uid == source.SOPInstanceUID
        assert tuple(reader.labels()[row]) == data[2][entry.sop_uid]
        assert entry.z_mm == float(source.ImagePositionPatient[2])
        assert (entry.row_spacing_mm, entry.slice_spacing_mm, entry.tilt_deg) == (SPACING_MM, STEP_MM, 0)


def test_records_stand_by_patient_study_and_place(packed):
    index = RecordReader(packed[0]).index
    assert index.equals(index.sort_values(["patient_id", "study_uid", "series_uid", "z_mm"], ignore_index=True))
    assert index.groupby("study_uid")["shard"].nunique().max() == 1


def test_verify_passes_and_the_summary_says_what_was_done(data, packed):
    out, summary = packed
    assert verify(out).problems == []
    assert (summary["num_slices"], summary["num_studies"], summary["num_shards"]) == (len(data[2]), 14, 8)
    assert summary["num_rejects"] == {}
    assert summary["ratio"] == pytest.approx(len(data[2]) * SIDE * SIDE * 2 / summary["record_bytes"], abs=1e-3)
    assert summary["slices_per_s"] > 0
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".tfrecord") == [
        "dataset.json",
        "index.parquet",
        "rejects.csv",
    ]


def test_splits_part_patients_and_reach_every_label(packed):
    index = RecordReader(packed[0]).index
    assert set(index["split"]) == {"train", "val", "test"}
    assert index.groupby("patient_id")["split"].nunique().max() == 1
    for label in LABELS:
        assert index[index[label] == 1]["split"].nunique() == 3


def test_two_workers_write_the_same_bytes_as_one(data, packed, tmp_path):
    pack(config(data, tmp_path / "out", workers=2))
    assert folder_bytes(tmp_path / "out") == folder_bytes(packed[0])


def test_an_output_inside_the_input_is_not_taken_for_input(data, packed, tmp_path):
    for path in data[0].rglob("*.dcm"):
        target = tmp_path / path.relative_to(data[0])
        target.parent.mkdir(exist_ok=True)
        target.hardlink_to(path)
    pack(config((tmp_path, data[1]), tmp_path / "records"))
    assert folder_bytes(tmp_path / "records") == folder_bytes(packed[0])


@pytest.fixture
def troubled(tmp_path):
    """Input with one of each trouble, and what must become of it."""
    root = tmp_path / "dicom"
    labels = make_folder(root, num_patients=4)
    rng = np.random.default_rng(1)
    by_sop = {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID: path for path in root.rglob("*.dcm")}
    edit(by_sop[sop_uid(3)], lambda content: content[:-500])
    (root / "zz_copy.dcm").write_bytes(by_sop[sop_uid(7)].read_bytes())
    first = pydicom.dcmread(by_sop[sop_uid(8)])
    common = {"study": first.StudyInstanceUID, "patient": first.PatientID}
    write_slice(root / "zz_other.dcm", sop=sop_uid(8), z_mm=15.0, pixels=head(rng), **common)
    write_slice(root / "zz_after_damage.dcm", sop=sop_uid(3), z_mm=15.0, pixels=head(rng), study="1.2.3.0", patient="x")
    write_slice(root / "unlabelled.dcm", sop="1.9.1", z_mm=0.0, pixels=head(rng), study="1.9", patient="ID_99")
    write_slice(root / "mr.dcm", sop="1.9.2", z_mm=0.0, pixels=head(rng), study="1.9", patient="ID_99", modality="MR")
    (root / "notes.txt").write_text("no image")
    (root / "empty.dcm").touch()
    (root / "dangling.dcm").symlink_to("nowhere")
    labels |= {"by_name": (0, 0, 0, 0, 1, 1), "ID_ghost": (0,) * 6, "notes": (0,) * 6}
    write_slice(root / "by_name.dcm", sop="1.9.3", z_mm=0.0, pixels=head(rng), study="1.8", patient="")
    return (root, write_labels(tmp_path / "labels.csv", labels)), by_sop[sop_uid(3)].relative_to(root).as_posix()


def test_every_input_is_a_record_or_a_named_reject(troubled, tmp_path, capsys):
    data, damaged = troubled
    out = tmp_path / "out"
    summary = pack(config(data, out))
    rejects, index = rejects_of(out), RecordReader(out).index
    assert {path: reason for path, (reason, _) in rejects.items()} == {
        damaged: "damaged pixels",
        "zz_copy.dcm": "duplicate instance",
        "zz_other.dcm": "same UID, other pixels",
        "unlabelled.dcm": "no label",
        "mr.dcm": "not CT",
        "notes.txt": "not DICOM",
        "empty.dcm": "empty file",
        "dangling.dcm": "unreadable file",
    }
    assert set(index["source"]) | set(rejects) == {p.relative_to(data[0]).as_posix() for p in data[0].rglob("*.*")}
    assert rejects["unlabelled.dcm"][1] == f"{data[1]} has no row for it"
    assert index.set_index("sop_uid").loc[sop_uid(3), "source"] == "zz_after_damage.dcm"
    assert index.set_index("sop_uid").loc["1.9.3", list(LABELS)].tolist() == [0, 0, 0, 0, 1, 1]
    assert index.set_index("sop_uid").loc["1.9.3", "patient_id"] == "1.8", "no patient id: the study stands for it"
    assert summary["num_rejects"]["no label"] == 1
    assert summary["unmatched_labels"] == 1
    assert (out / "unmatched_labels.csv").read_text() == "id\nID_ghost\n"
    assert "1 ids match no file (ID_ghost): see unmatched_labels.csv" in capsys.readouterr().err
    assert verify(out).problems == []


def test_mixed_series_and_shared_study_uids_are_told_apart(data, tmp_path):
    root, rng = tmp_path / "dicom", np.random.default_rng(2)
    for number in range(6):
        pixels = head(rng)[:, : SIDE - 8 * (number % 2)]
        common = {"study": "1.2.3", "patient": "b" if number < 4 else "a"}
        write_slice(root / f"{number}.dcm", sop=f"1.{number}", z_mm=-STEP_MM * number, pixels=pixels, **common)
    pack(config((root, None), tmp_path / "out"))
    index = RecordReader(tmp_path / "out").index
    names = index[["sop_uid", "patient_id", "study_uid", "series_uid"]].to_numpy().tolist()
    assert names == [
        ["1.4", "a", "1.2.3", "1.2.3.1"],
        ["1.5", "a", "1.2.3", "1.2.3.1#2"],
        ["1.2", "b", "1.2.3#2", "1.2.3.1"],
        ["1.0", "b", "1.2.3#2", "1.2.3.1"],
        ["1.3", "b", "1.2.3#2", "1.2.3.1#2"],
        ["1.1", "b", "1.2.3#2", "1.2.3.1#2"],
    ]
    assert verify(tmp_path / "out").problems == []


def test_labels_that_match_nothing_are_one_error_and_leave_nothing(data, tmp_path):
    labels = write_labels(tmp_path / "labels.csv", {"ID_ghost": (0,) * 6})
    with pytest.raises(LabelError, match=r"none of its 1 ids .* first id is ID_ghost, the first slice 1\.2\.3\.4\."):
        pack(config((data[0], labels), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_ct_says_why_and_leaves_nothing(data, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(FastichError, match="no usable CT slice: the folder holds no file"):
        pack(config((tmp_path / "in", data[1]), tmp_path / "out"))
    (tmp_path / "in" / "a.txt").write_text("no image")
    (tmp_path / "in" / "b.txt").touch()
    with pytest.raises(FastichError, match="no usable CT slice: 1 empty file, 1 not DICOM"):
        pack(config((tmp_path / "in", data[1]), tmp_path / "out"))
    with pytest.raises(FastichError, match="expected a folder of DICOM files, found none"):
        pack(config((tmp_path / "none", data[1]), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_damaged_pixels_only_leaves_nothing(data, tmp_path):
    labels = make_folder(tmp_path / "in", num_patients=1)
    for path in (tmp_path / "in").rglob("*.dcm"):
        edit(path, lambda content: content[:-100])
    own = (tmp_path / "in", write_labels(tmp_path / "labels.csv", labels))
    with pytest.raises(FastichError, match="no usable CT slice: 5 damaged pixels"):
        pack(config(own, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_labels_every_label_is_unknown_and_no_split_is_made(data, tmp_path):
    summary = pack(config(data, tmp_path / "out", labels=None))
    reader = RecordReader(tmp_path / "out")
    assert (reader.labels() == -1).all()
    assert set(reader.index["split"]) == {""}
    assert summary["splits"] == {"train": 0, "val": 0, "test": 0}
    assert verify(tmp_path / "out").problems == []


def test_studies_without_a_patient_id_are_told_of(tmp_path, capsys):
    for number, patient in enumerate(("", "", "p")):
        pixels = head(np.random.default_rng(number))
        study = f"1.2.{number}"
        path = tmp_path / "dicom" / f"{number}.dcm"
        write_slice(path, sop=sop_uid(number), study=study, patient=patient, z_mm=0.0, pixels=pixels)
    pack(PackConfig(dicom=tmp_path / "dicom", out=tmp_path / "out", workers=1))
    assert "note: 2 studies have no PatientID; each counts as a patient of its own" in capsys.readouterr().err


def test_sample_takes_whole_patients_and_names_the_rest(data, tmp_path):
    summary = pack(config(data, tmp_path / "out", sample=0.5))
    index, rejects = RecordReader(tmp_path / "out").index, rejects_of(tmp_path / "out")
    assert len(index) == len(data[2]) // 2
    assert (index.groupby("patient_id").size() == 5).all()
    assert summary["num_rejects"] == {"not sampled": len(data[2]) // 2}
    assert {reason for reason, _ in rejects.values()} == {"not sampled"}


@pytest.mark.parametrize("size", [8, 12])
def test_size_is_the_area_mean_in_hu_and_scales_the_spacing(data, packed, tmp_path, size):
    pack(config(data, tmp_path / "out", size=size))
    small, native = RecordReader(tmp_path / "out"), RecordReader(packed[0])
    for row in range(0, len(small), 7):
        exact = resize_area(native.hu(row), size)
        assert np.abs(small.hu(row) - exact).max() <= 0.501
    assert (small.index["row_spacing_mm"] == SPACING_MM * SIDE / size).all()
    assert small.index["pixel_sha1"].equals(native.index["pixel_sha1"])
    assert small.index["split"].equals(native.index["split"])
    assert verify(tmp_path / "out").problems == []


def test_patients_with_an_identical_image_share_a_split_but_blank_images_join_nobody(data, tmp_path):
    root = tmp_path / "dicom"
    labels = dict(make_folder(root))
    rng, same = np.random.default_rng(5), head(np.random.default_rng(6))
    for patient in range(14):
        common = {"study": f"1.2.3.{patient}", "patient": f"ID_{patient:02d}"}
        pixels = same if patient < 5 else head(rng)
        write_slice(root / f"s{patient}.dcm", sop=f"1.7.{patient}", z_mm=50.0, pixels=pixels, **common)
        blank = np.full((SIDE, SIDE), 24)
        write_slice(root / f"b{patient}.dcm", sop=f"1.6.{patient}", z_mm=60.0, pixels=blank, **common)
        labels |= {f"1.7.{patient}": (0,) * 6, f"1.6.{patient}": (0,) * 6}
    pack(config((root, write_labels(tmp_path / "labels.csv", labels)), tmp_path / "out"))
    index = RecordReader(tmp_path / "out").index
    joined = index[index["patient_id"].isin([f"ID_{patient:02d}" for patient in range(5)])]
    assert joined["split"].nunique() == 1
    assert index["split"].nunique() == 3
    assert verify(tmp_path / "out").problems == []


def test_raw_codec_stores_little_endian_pixels(data, tmp_path):
    pack(config(data, tmp_path / "out", codec="raw", shards=3))
    reader = RecordReader(tmp_path / "out")
    assert bytes(reader.payload(0)) == reader.stored(0).astype("<u2").tobytes()
    assert reader.index["shard"].nunique() == 3


def test_dataset_json_tells_how_it_was_made(data, packed):
    dataset = json.loads((packed[0] / "dataset.json").read_text())
    assert dataset["split"] == {
        "rule": "patients joined by identical pixels, stratified by label, rarest first",
        "seed": 0,
        "val": 0.15,
        "test": 0.15,
    }
    assert dataset["settings"]["labels_sha256"] == files.sha256_file(data[1])
    assert set(dataset["versions"]) == {"fastich", "numpy", "pydicom"}
    assert str(data[0]) not in (packed[0] / "dataset.json").read_text()


def test_shards_are_cut_at_study_borders_into_about_equal_parts():
    sizes = [30, 20, 40, 25, 35, 30, 20, 40]
    shards = shard_numbers(np.repeat(np.arange(8), sizes), 4)
    assert shards.tolist() == np.repeat([0, 0, 1, 1, 2, 2, 3, 3], sizes).tolist()
    assert shard_numbers(np.repeat([0, 1], [5, 5]), 100).tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": 0.0}, r"--sample must be in \(0, 1\], found 0.0"),
        ({"val": 0.6, "test": 0.4}, "--val and --test must be >= 0 and below 1 together"),
        ({"size": 0}, "--size must be 1 or more, found 0"),
        ({"size": 5000}, "--size must be at most 4096, found 5000"),
        ({"shard_mb": 0}, "--shard-mb must be 1 or more"),
        ({"seed": -1}, "--seed must be 0 or more"),
    ],
)
def test_values_without_a_meaning_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        PackConfig(dicom=Path("in"), out=Path("out"), **changes)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared sample data are not beside this checkout")
def test_a_real_tilted_head_ct_packs_to_two_fifths(tmp_path):
    summary = pack(PackConfig(dicom=SHARED / "head_ct_tilt", out=tmp_path / "out", workers=1))
    index = RecordReader(tmp_path / "out").index
    assert summary["num_slices"] == 28
    assert summary["ratio"] > 2.6  # half plane first; flat gives 3.5
    assert index["tilt_deg"].abs().max() > 5
    assert (np.diff(index["z_mm"]) > 0).all()
    assert verify(tmp_path / "out").problems == []
    assert pd.read_csv(tmp_path / "out" / "rejects.csv")["path"].tolist() == ["LICENSE"]


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 32])
def test_block_means_are_the_bytes_of_the_general_resize(factor, monkeypatch):
    rng = np.random.default_rng(factor)
    size = 64 // factor
    images = [rng.integers(0, 65536, (64, 64)), rng.integers(1000, 1004, (64, 64)), np.full((64, 64), 65535)]
    quick = [shard.resize_record(image.astype(np.uint16), size) for image in images]
    with monkeypatch.context() as patch:
        patch.setattr(shard, "divmod", lambda *_: (1, 1), raising=False)  # as for a factor that is not whole
        slow = [shard.resize_record(image.astype(np.uint16), size) for image in images]
    assert all(np.array_equal(one, other) for one, other in zip(quick, slow, strict=True))
    assert quick[0].dtype == np.uint16


@pytest.mark.skipif(not SHARED.exists(), reason="the shared sample data are not beside this checkout")
def test_headers_without_pixels_are_those_of_the_whole_file():
    root, num_compared = SHARED / "dicom_torture", 0
    paths = dicom.find_files(root)
    found = {}
    for item in read_many(root, paths):
        found.setdefault(item.path, []).append(item)
    with dicom.Decoder() as decoder:
        for path in paths:
            name = path.relative_to(root).as_posix()
            try:
                whole = [one.header for one in dicom.read_file(path, root=root, decoder=decoder)]
            except DicomError as refused:
                rejected = [item.reason for item in found[name] if isinstance(item, Reject)]
                disagree = set(rejected) - {refused.reason}
            else:
                disagree = found[name] != whole
                num_compared += 1
            assert not disagree, name
    assert num_compared > 20
