from pathlib import Path

import numpy as np
import pydicom
import pytest
from outputs_data import PATIENT, REAL_HEAD, Scored, phantom_study, real_study
from peers import needs
from pydicom.dataset import Dataset
from validators import assert_valid

from fastich.dicom import read_file
from fastich.errors import DicomError
from fastich.labels import ANY
from fastich.serve import render
from fastich.serve.outputs import key_image, source
from fastich.serve.outputs.result import PRELIMINARY
from fastich.types import HuArray

VALIDATORS = needs("dciodvfy", "dcmdump")


def key_of(study: Scored) -> tuple[HuArray, np.ndarray]:
    key = study.result.key_slices["any"]
    (cam,) = (one.answer.cam for one in study.slices if one.header.path == key.object_name)
    assert cam is not None
    return read_file(study.key_path)[0].hu, cam[ANY]


def built(study: Scored) -> Dataset:
    hu, cam = key_of(study)
    return key_image.build(study.result, source.read_header(study.key_path), study.sop_classes, hu, cam)


def written(study: Scored, folder: Path) -> Path:
    path = folder / "key.dcm"
    path.write_bytes(source.to_bytes(built(study)))
    return path


@VALIDATORS
def test_key_image_of_a_phantom_is_valid(tmp_path: Path) -> None:
    assert_valid(written(phantom_study(tmp_path / "in"), tmp_path), "SCImage")


@VALIDATORS
@pytest.mark.skipif(not REAL_HEAD.is_dir(), reason="needs ../shared/data/head_ct_tilt")
def test_key_image_of_a_real_head_is_valid(tmp_path: Path) -> None:
    assert_valid(written(real_study(tmp_path / "in"), tmp_path), "SCImage")


@VALIDATORS
def test_key_image_without_patient_data_is_valid(tmp_path: Path) -> None:
    assert_valid(written(phantom_study(tmp_path / "in", **dict.fromkeys(PATIENT)), tmp_path), "SCImage")


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    study = phantom_study(tmp_path)
    assert source.to_bytes(built(study)) == source.to_bytes(built(study))


def test_picture_shows_the_slice_plain_and_coloured_above_the_words(tmp_path: Path) -> None:
    study = phantom_study(tmp_path)
    hu, cam = key_of(study)
    made = key_image.picture(study.result, hu, cam)
    plain, coloured = made[:384, :384], made[:384, 384:]
    np.testing.assert_array_equal(plain[::6, ::6], np.repeat(render.grey(hu, key_image.WINDOW)[..., None], 3, axis=-1))
    np.testing.assert_array_equal(coloured[3::6, 3::6], render.overlay(hu, cam, key_image.WINDOW))
    assert (plain != coloured).any()
    words = made[384:]
    assert (words == key_image.WARNING).all(axis=-1).sum() > 500
    assert (words == key_image.WORDS).all(axis=-1).sum() > 2000


def test_words_differ_where_the_probability_does() -> None:
    one = key_image.caption(["any 0.96"], 400)
    assert one.shape[1:] == (400, 3)
    assert (one != key_image.caption(["any 0.97"], 400)).any()


def test_long_lines_are_broken_between_words_and_none_is_lost() -> None:
    narrow, wide = key_image.caption(["word " * 30], 300), key_image.caption(["word " * 30], 3000)
    assert narrow.shape[0] > wide.shape[0]
    lit = [(image == key_image.WARNING).all(axis=-1).sum() for image in (narrow, wide)]
    assert lit[0] == pytest.approx(lit[1], rel=0.01)  # a letter's overhang is cut at the start of a line


def test_picture_says_what_it_is(tmp_path: Path) -> None:
    study = phantom_study(tmp_path).with_document(findings=["subdural", "any"])
    words = key_image.lines(study.result)
    result = study.result
    assert words[0] == PRELIMINARY
    assert f"Any bleed {result.probability['any']:.2f} (threshold 0.50): flag" in words
    assert f"Subtypes at threshold: subdural {result.probability['subdural']:.2f}" in words
    assert any(result.model["sha256"][:16] in line for line in words)
    assert any(line.startswith(f"slice {result.key_slices['any'].number} of 9, z ") for line in words)


def test_no_patient_data_is_in_the_words(tmp_path: Path) -> None:
    words = " ".join(key_image.lines(phantom_study(tmp_path).result))
    assert "MUELLER" not in words
    assert "4711" not in words


def test_object_says_that_it_is_derived_and_shows_nobody(tmp_path: Path) -> None:
    study = phantom_study(tmp_path)
    made = pydicom.dcmread(written(study, tmp_path))
    assert list(made.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
    assert (made.BurnedInAnnotation, made.ConversionType, made.Modality) == ("NO", "WSD", "OT")
    assert made.StudyInstanceUID == study.score.study_uid
    (reference,) = made.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == study.result.key_slices["any"].sop_uid
    assert made.pixel_array.shape == (made.Rows, made.Columns, 3)
    np.testing.assert_array_equal(made.pixel_array, key_image.picture(study.result, *key_of(study)))


def test_loss_in_the_source_is_said_of_the_picture(tmp_path: Path) -> None:
    study = phantom_study(
        tmp_path,
        LossyImageCompression="01",
        LossyImageCompressionRatio="12",
        LossyImageCompressionMethod="ISO_15444_1",
    )
    made = built(study)
    assert (made.LossyImageCompression, made.LossyImageCompressionRatio) == ("01", 12)
    assert "LossyImageCompression" not in built(phantom_study(tmp_path / "other"))


def test_our_own_reader_never_scores_it(tmp_path: Path) -> None:
    with pytest.raises(DicomError, match="not CT: Modality is 'OT'"):
        read_file(written(phantom_study(tmp_path / "in"), tmp_path))
