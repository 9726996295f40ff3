import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from records_data import make_dataset, make_pixels, make_rows
from toy_model import write_model

from fastich import artifact, checkpoint, leakage, leakage_sides
from fastich.artifact import read_manifest, write_manifest
from fastich.errors import ArtifactError, CheckpointError, RecordError, UsageError
from fastich.fingerprints import common
from fastich.records.reader import RecordReader

OTHER = {"s0": "t0", "s1": "t1", "s2": "t2", "s3": "t3", "p0": "q0", "p1": "q1", "p2": "q2", "p3": "q3"}


def records(folder: Path, *, seed: int = 0, rename: dict[str, str] | None = None, same_pixels: Any = ()) -> Path:
    """Ten slices of four patients; ``same_pixels`` are pairs of rows that get one image, or (row, "blank")."""
    rows, pixels = make_rows(), make_pixels(seed=seed)
    for row in rows:
        row |= {key: (rename or {}).get(row[key], row[key]) for key in ("study_uid", "patient_id")}
        row["series_uid"] = row["study_uid"] + ".1"
    for first, second in same_pixels:
        pixels[first] = np.full_like(pixels[first], 1024) if second == "blank" else pixels[second].copy()
    make_dataset(folder, rows=rows, pixels=pixels)
    return folder


def run_folder(folder: Path, trained_on: Path, *, certificate: bool = True, known: Path | None = None) -> Path:
    """A run without a network, trained on ``trained_on``, which it thinks lies at ``known``."""
    with RecordReader(trained_on) as reader:
        meta = {
            "config": {"records": str(known or trained_on)},
            "dataset_sha256": reader.dataset_sha256,
            "leakage_certificate": leakage.certify(reader) if certificate else None,
        }
    checkpoint.save(folder / checkpoint.BEST, meta, {"model.a": torch.zeros(1)})
    return folder


def check(*args: Any, **kwargs: Any) -> dict[str, Any]:
    return leakage.document(leakage.check(*(args + (None,) * (3 - len(args))), **kwargs))


def test_clean_splits_are_clean_and_the_exit_status_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = records(tmp_path / "records")
    assert leakage.main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(
        "train: 1 patients, 1 studies, 1 series, 3 images; val: 1 patients, 1 studies, 1 series, 2 images; "
        "test: 1 patients, 1 studies, 1 series, 3 images; no split: 1 patients, 1 studies, 1 series, 2 images"
    )
    assert lines[1:] == [f"{pair}: nothing shared" for pair in ("train / val", "train / test", "val / test")] + [
        "clean"
    ]


def test_a_patient_in_two_splits_is_found_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = records(tmp_path / "records", rename={"p2": "p0"})
    assert leakage.main([str(path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["clean"] is False
    pair = next(row for row in found["shared"] if (row["a"], row["b"]) == ("train", "test"))
    assert (pair["patients"], pair["studies"], pair["pixels"]) == (1, 0, 0)
    assert pair["examples"] == {"patients": ["p0"]}
    leakage.main([str(path)])
    printed = capsys.readouterr().out
    assert "train / test: 1 patients\n  patients: p0\n" in printed
    assert printed.endswith("LEAKING: figures of one on the other would be too good\n")


def test_an_image_in_two_splits_is_found_but_not_a_blank_one(tmp_path: Path) -> None:
    blank = records(tmp_path / "blank", same_pixels=[(0, "blank"), (6, "blank")])
    assert check(blank)["clean"] is True
    equal = check(records(tmp_path / "equal", same_pixels=[(6, 1)]))
    pair = equal["shared"][1]
    assert (pair["a"], pair["b"], pair["pixels"], pair["patients"]) == ("train", "test", 1, 0)
    assert pair["examples"]["pixels"] == ["ID_000000001"]


def test_without_pixels_to_look_at_a_blank_image_counts(tmp_path: Path) -> None:
    with RecordReader(records(tmp_path / "r", same_pixels=[(0, "blank"), (6, "blank")])) as reader:
        blind = leakage.certificate(reader.index, reader.index["split"])
        seen = leakage.certify(reader)
    assert (blind["clean"], blind["blank_images"], seen["clean"], seen["blank_images"]) == (False, None, True, 1)


def test_two_data_sets_are_compared_split_by_split(tmp_path: Path) -> None:
    first = records(tmp_path / "a", rename=OTHER, seed=1, same_pixels=[(0, "blank")])
    second = records(tmp_path / "b", same_pixels=[(0, "blank")])
    assert check(first, second)["clean"] is True
    again = check(second, second)
    same = {(row["a"], row["b"]): row["patients"] for row in again["shared"]}
    assert same["train", "train"] == same["no split", "no split"] == 1
    assert same["train", "test"] == 0


def test_a_copy_under_other_ids_is_found_by_its_images(tmp_path: Path) -> None:
    found = check(records(tmp_path / "a"), records(tmp_path / "b", rename=OTHER))
    assert found["clean"] is False
    row = next(row for row in found["shared"] if (row["a"], row["b"]) == ("train", "train"))
    assert (row["patients"], row["studies"], row["pixels"], row["copies"]) == (0, 0, 3, 1)


def test_a_run_is_what_it_has_seen(tmp_path: Path) -> None:
    path = records(tmp_path / "records")
    found = check(run_folder(tmp_path / "run", path), path)
    assert found["a"]["told_by"] == "records"
    assert {row["a"] for row in found["shared"]} == {"train", "val"}
    of_test = [row for row in found["shared"] if row["b"] == "test"]
    assert all(row["patients"] == row["pixels"] == 0 for row in of_test)


def test_a_run_whose_records_are_gone_is_told_by_its_certificate(tmp_path: Path) -> None:
    path = records(tmp_path / "records")
    run = run_folder(tmp_path / "run", path, known=tmp_path / "gone")
    found = check(run, path)
    assert found["a"]["told_by"] == "certificate"
    row = next(row for row in found["shared"] if (row["a"], row["b"]) == ("train", "train"))
    assert (row["patients"], row["studies"], row["copies"], row["pixels"]) == (1, 1, 1, None)
    assert row["examples"]["patients"] == ["p0"]
    assert check(run)["clean"] is True


def test_a_blank_image_is_no_copy_of_a_study_in_a_certificate(tmp_path: Path) -> None:
    """Its hash happens to be the smallest of both studies, and stands once in either data set."""
    trained_on = records(tmp_path / "a", rename=OTHER, same_pixels=[(0, "blank")])
    run = run_folder(tmp_path / "run", trained_on, known=tmp_path / "gone")
    path = records(tmp_path / "b", seed=1, same_pixels=[(6, "blank")])
    with RecordReader(trained_on) as one, RecordReader(path) as other:
        codes = [leakage_sides.records_side(reader).splits for reader in (one, other)]
        assert len(common(codes[0]["train"]["copies"], codes[1]["test"]["copies"])) == 1
    assert check(run, path)["clean"] is True


def test_records_of_another_run_are_refused(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", records(tmp_path / "a"))
    other = records(tmp_path / "b", rename=OTHER)
    with pytest.raises(RecordError, match=r"expected the records that .*run was trained on \([0-9a-f]{12}\), found"):
        leakage.check(run, None, other)


def test_a_run_from_before_certificates_needs_its_records(tmp_path: Path) -> None:
    path = records(tmp_path / "records")
    run = run_folder(tmp_path / "run", path, certificate=False, known=tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"expected a leakage certificate .* --records, or train again"):
        leakage.check(run, path, None)
    assert check(run, None, path)["clean"] is True


def test_a_model_folder_carries_the_certificate(tmp_path: Path) -> None:
    path = records(tmp_path / "records")
    made = write_model(tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"model.json: expected a leakage certificate, found none"):
        leakage.check(tmp_path / "model", path, None)
    with RecordReader(path) as reader:
        document = {**vars_of(made), "leakage_certificate": leakage.certify(reader)}
    write_manifest(tmp_path / "model", artifact.Artifact(**document))
    assert read_manifest(tmp_path / "model").leakage_certificate["clean"] is True
    assert check(tmp_path / "model")["a"]["told_by"] == "certificate"
    assert check(tmp_path / "model", path)["clean"] is False


def vars_of(made: artifact.Artifact) -> dict[str, Any]:
    return {name: getattr(made, name) for name in made.__slots__}


def test_a_damaged_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="its leakage certificate is damaged, KeyError 'splits'"):
        leakage_sides.certificate_side(tmp_path, {"clean": True})
    bad = {"splits": {"train": {"ids": {"patients": "*"}}}}
    with pytest.raises(ArtifactError, match="damaged, ValueError packed ids: expected base64"):
        leakage_sides.certificate_side(tmp_path, bad)


def test_ids_in_file_names_are_found_among_patients_and_studies(tmp_path: Path) -> None:
    path = records(tmp_path / "records", rename={"p2": "ID_0219ef88", "s2": "ID_e5a1ff1be1", "p0": "ID_00000001"})
    (tmp_path / "bhsd" / "images").mkdir(parents=True)
    for name in ("ID_0219ef88_ID_e5a1ff1be1.nii.gz", "ID_ffff0000_ID_ffff0001.nii.gz", "ID_00000001.txt"):
        (tmp_path / "bhsd" / "images" / name).touch()
    found = check(path, tmp_path / "bhsd")
    assert found["b"]["told_by"] == "names of 2 files"
    rows = {row["a"]: row for row in found["shared"]}
    assert (rows["test"]["patients"], rows["test"]["studies"], rows["test"]["pixels"]) == (1, 1, None)
    assert rows["train"]["patients"] == 0
    assert check(tmp_path / "bhsd", tmp_path / "bhsd")["shared"][0]["ids"] == 4


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="expected a records, run or model folder, or NIfTI files, found none"):
        leakage.check(tmp_path, None, None)
    (tmp_path / "scan_1.nii").touch()
    with pytest.raises(RecordError, match="expected ids like ID_0219ef88 in the names of 1 NIfTI files"):
        leakage.check(tmp_path, None, None)
    (tmp_path / "ID_0219ef88.nii").touch()
    with pytest.raises(UsageError, match="expected two splits to compare, found 1; name a second data set"):
        leakage.check(tmp_path, None, None)


def test_certificate_holds_no_id_in_the_clear(tmp_path: Path) -> None:
    with RecordReader(records(tmp_path / "r", rename={"p0": "ID_0219ef88"})) as reader:
        found = leakage.certify(reader, folds={"number": 5, "fold": 0, "seed": 0})
        assert found["dataset_sha256"] == reader.dataset_sha256
    assert found["rule"] == "by patient"
    assert found["folds"] == {"number": 5, "fold": 0, "seed": 0}
    assert "ID_0219ef88" not in json.dumps(found)
    assert set(found["splits"]["train"]["ids"]) == {"patients", "studies", "copies"}


def test_a_fold_is_certified_by_its_own_splits(tmp_path: Path) -> None:
    with RecordReader(records(tmp_path / "r")) as reader:
        split = np.where(reader.index["patient_id"] == "p1", "train", reader.index["split"])
        split[0] = "val"
        found = leakage.certify(reader, split)
    assert found["clean"] is False
    assert found["shared"][0] == {"a": "train", "b": "val", "patients": 1, "studies": 1, "series": 1} | {
        "pixels": 0,
        "copies": 0,
    }
