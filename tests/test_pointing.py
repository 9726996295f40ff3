from pathlib import Path

import numpy as np
import pytest

from fastich.class_maps import Pointing
from fastich.errors import FastichError
from fastich.labels import LABELS
from fastich.pointing import SUBJECTS, Masks, Row, labels_of, summary


def row(study: str, label: str = "any", *, hit: bool = True, found: bool = True, energy: float | None = 0.5) -> Row:
    pointing = Pointing(hit=hit, chance=0.1, cell_hit=hit, cell_chance=0.3, energy=energy, mask_share=0.05)
    return Row(study_uid=study, label=label, found=found, pointing=pointing)


def write_masks(folder: Path, study: str) -> np.ndarray:
    masks = np.zeros((2, 8, 8), dtype=np.uint8)
    masks[1, 2:4] = 5
    np.savez(folder / f"{study}.npz", masks=masks, sop_uids=np.array(["a", "b"]))
    return masks


def test_masks_come_by_sop_uid(tmp_path: Path) -> None:
    written = write_masks(tmp_path, "s")
    found = Masks(tmp_path).of_study("s")
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["b"], written[1])


@pytest.mark.parametrize("study_uid", ["unknown", "../s", "/etc/passwd", ""])
def test_study_without_masks_has_none_whatever_its_id(tmp_path: Path, study_uid: str) -> None:
    (tmp_path / "masks").mkdir()
    write_masks(tmp_path, "s")
    assert Masks(tmp_path / "masks").of_study(study_uid) == {}


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FastichError, match="nowhere: expected the masks folder of a phantom, found none"):
        Masks(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip file at all"])
def test_damaged_masks_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(FastichError, match=r"s\.npz: expected masks \[N, H, W\] and sop_uids \[N\], found"):
        Masks(tmp_path).of_study("s")


def test_masks_without_uids_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", masks=np.zeros((1, 2, 2)))
    with pytest.raises(FastichError, match="found KeyError"):
        Masks(tmp_path).of_study("s")


def test_label_needs_an_area_that_can_be_seen_and_any_is_their_union() -> None:
    mask = np.zeros((20, 20), dtype=np.uint8)
    mask[0, :10] = 1  # 10 mm2
    mask[5:10, :10] = 3  # 50 mm2
    found = dict(labels_of(mask, (1.0, 1.0)))
    assert list(found) == ["intraventricular", "any"]
    np.testing.assert_array_equal(found["any"], mask == 3)
    assert list(dict(labels_of(mask, (2.0, 2.0)))) == ["epidural", "intraventricular", "any"]
    assert list(labels_of(np.zeros((4, 4), dtype=np.uint8), (1.0, 1.0))) == []


def test_rates_are_means_over_slices_with_their_chance() -> None:
    rows = [row("a"), row("a", hit=False), row("b"), row("c", energy=None)]
    rows += [row(study, hit=hit, energy=None) for study in "def" for hit in (True, True, True, False)]
    found = summary(rows, 10)["labels"]["any"][SUBJECTS[0]]
    assert (found["num_slices"], found["num_studies"], found["num_energy"]) == (16, 6, 3)
    assert found["hit"]["value"] == 0.75
    assert found["hit"]["low"] < 0.75 < found["hit"]["high"]
    assert found["chance"]["value"] == pytest.approx(0.1)
    assert found["energy"]["value"] == pytest.approx(0.5)


def test_slices_that_are_found_are_told_apart() -> None:
    rows = [row("a"), row("b", hit=False, found=False)]
    found = summary(rows, 10)["labels"]["any"]
    assert [found[name]["hit"]["value"] for name in SUBJECTS] == [0.5, 1.0]
    assert [found[name]["num_slices"] for name in SUBJECTS] == [2, 1]


def test_label_that_no_slice_carries_is_undefined() -> None:
    found = summary([row("a")], 10)["labels"]
    assert {label for label in LABELS if found[label][SUBJECTS[0]] is None} == set(LABELS[:-1])


def test_one_study_has_no_interval() -> None:
    found = summary([row("a"), row("a", hit=False)], 10)["labels"]["any"][SUBJECTS[0]]["hit"]
    assert found["value"] == 0.5
    assert found["low"] is found["high"] is None
    assert found["note"] == "no interval: one study"


def test_a_handful_of_studies_of_which_some_hit_has_no_interval() -> None:
    rows = [row(study, hit=study != "a") for study in "abcde"]
    found = summary(rows, 10)["labels"]["any"][SUBJECTS[0]]
    assert (found["hit"]["low"], found["hit"]["note"]) == (None, "no interval: 5 studies, fewer than 6")


def test_all_hits_have_the_exact_interval_of_as_many_trials_as_studies() -> None:
    found = summary([row("a"), row("b"), row("b"), row("c")], 10)["labels"]["any"][SUBJECTS[0]]["hit"]
    assert (found["value"], found["high"]) == (1, 1)
    assert found["low"] == pytest.approx(0.025 ** (1 / 3))


def test_energy_that_is_nowhere_defined_is_none() -> None:
    found = summary([row("a", energy=None), row("b", energy=None)], 10)["labels"]["any"][SUBJECTS[0]]
    assert (found["energy"]["value"], found["energy"]["low"], found["energy"]["num_units"]) == (None, None, None)
    assert found["energy"]["note"] == "undefined: no map is positive anywhere"
    assert found["num_energy"] == 0


def test_equal_rows_give_equal_intervals() -> None:
    rows = [row("a"), row("b", hit=False), row("c")]
    assert summary(rows, 10, seed=3) == summary(rows, 10, seed=3)
