import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fastich import metrics, subgroups
from fastich.errors import RecordError
from fastich.labels import LABELS, SUBTYPES
from fastich.resampling import Resampling
from fastich.study_metrics import PROBABILITIES, study_table

THRESHOLDS = dict.fromkeys(LABELS, 0.5)


def judged(num_studies: int = 24) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Slices, studies and index: eight slices a study, a patient each; study n has n % 4 subtypes on four slices."""
    rng = np.random.default_rng(0)
    study = np.repeat(np.arange(num_studies), 8)
    truth = np.zeros((len(study), 6), dtype=int)
    for subtype in range(3):
        truth[:, subtype] = (study % 4 > subtype) & (np.arange(len(study)) % 8 < 4)
    truth[:, 5] = truth[:, :5].max(axis=1)
    rows = np.arange(len(study)) * 2 + 1
    table = pd.DataFrame(
        {"row": rows, "study_uid": [f"s{n:02d}" for n in study], "patient_id": [f"p{n}" for n in study]}
    )
    table[list(LABELS)] = truth
    table[PROBABILITIES] = 1 / (1 + np.exp(-(rng.normal(size=truth.shape) + 2 * truth - 1)))
    index = pd.DataFrame(
        {"study_uid": "another", "encoding": "z", "tilt_deg": 9.0, "slice_spacing_mm": 9.0}, range(400)
    )
    index.loc[rows, "study_uid"] = table["study_uid"].to_numpy()
    index.loc[rows, "encoding"] = np.where(study < 6, "unsigned12", "signed16")
    index.loc[rows, "tilt_deg"] = np.choose(study % 3, [0.2, -12.0, np.nan])
    index.loc[rows, "slice_spacing_mm"] = np.choose(study % 4, [1.0, 2.5, 5.0, 10.0])
    return table, study_table(table), index


def truth_of(studies: pd.DataFrame) -> pd.DataFrame:
    """Volumes that grow with the study's number; none where it has no bleed."""
    made = pd.DataFrame({"study_uid": studies["study_uid"], **{f"{name}_ml": 0.0 for name in SUBTYPES}})
    made["epidural_ml"] = np.where(studies["epidural"] == 1, np.arange(len(studies)) * 1.0, 0.0)
    made["subdural_ml"] = np.where(studies["epidural"] == 1, 0.5, 0.0)
    return made


def line(table: pd.DataFrame, factor: str, group: str) -> dict[str, object]:
    found = table[(table["factor"] == factor) & (table["group"] == group)]
    assert len(found) == 1
    return found.iloc[0].to_dict()


def test_groups_stand_in_order_and_each_study_is_in_one_of_each_factor() -> None:
    slices, studies, index = judged()
    table = subgroups.subgroup_table(slices, studies, index, THRESHOLDS, truth_of(studies), num_resamples=20)
    assert list(zip(table["factor"], table["group"], strict=True)) == [
        ("all", "all"),
        ("encoding", "signed16"),
        ("encoding", "unsigned12"),
        ("gantry tilt", "none (< 1 degree)"),
        ("gantry tilt", "tilted (>= 1 degree)"),
        ("gantry tilt", "unknown"),
        ("slice spacing", "< 2 mm"),
        ("slice spacing", "2 to < 4 mm"),
        ("slice spacing", "4 to < 6 mm"),
        ("slice spacing", ">= 6 mm"),
        ("bleeds in the study", "0"),
        ("bleeds in the study", "1"),
        ("bleeds in the study", "2"),
        ("bleeds in the study", "3 or more"),
        ("bleed volume", "none"),
        ("bleed volume", "1 to < 5 ml"),
        ("bleed volume", "5 to < 20 ml"),
        ("bleed volume", ">= 20 ml"),
    ]
    for _, lines in table.groupby("factor"):
        assert lines["num_studies"].sum() == 24
        assert lines["num_slices"].sum() == 24 * 8
    assert line(table, "encoding", "unsigned12")["num_patients"] == 6


def test_figures_of_a_group_are_those_of_its_slices_alone() -> None:
    slices, studies, index = judged()
    table = subgroups.subgroup_table(slices, studies, index, THRESHOLDS, num_resamples=100, seed=3)
    of_group = slices[slices["study_uid"] < "s06"]
    found = line(table, "encoding", "unsigned12")
    point = metrics.operating_points(of_group[list(LABELS)], of_group[PROBABILITIES], 0.5)["any"]
    draws = Resampling.of(of_group["patient_id"], num_resamples=100, seed=3)
    spans = metrics.bootstrap_intervals(of_group[list(LABELS)], of_group[PROBABILITIES], draws)
    assert found["auc"] == pytest.approx(metrics.roc_auc(of_group[list(LABELS)], of_group[PROBABILITIES])["any"])
    for name in ("sensitivity", "specificity"):
        assert found[name] == point[name]
    for name in ("auc", "sensitivity", "specificity"):
        assert (found[f"{name}_low"], found[f"{name}_high"]) == (spans[name]["any"].low, spans[name]["any"].high)
    few = studies[studies["study_uid"] < "s06"]
    assert found["study_sensitivity"] == pytest.approx((few["p_any"] >= 0.5)[few["any"] == 1].mean())
    assert found["study_auc"] == metrics.binary_auc(few["any"].to_numpy() == 1, few["p_any"].to_numpy())


def test_studies_may_have_a_threshold_of_their_own() -> None:
    slices, studies, index = judged()
    own = dict.fromkeys(LABELS, 0.99)
    table = subgroups.subgroup_table(slices, studies, index, THRESHOLDS, num_resamples=5, study_thresholds=own)
    all_ = line(table, "all", "all")
    assert all_["study_sensitivity"] == pytest.approx((studies["p_any"] >= 0.99)[studies["any"] == 1].mean())
    assert all_["sensitivity"] > all_["study_sensitivity"]


def test_what_is_undefined_is_none_and_says_why() -> None:
    slices, studies, index = judged()
    table = subgroups.subgroup_table(slices, studies, index, THRESHOLDS, num_resamples=10)
    healthy, bleeding = (line(table, "bleeds in the study", group) for group in ("0", "1"))
    assert (healthy["auc"], healthy["sensitivity"], healthy["auc_low"]) == (None, None, None)
    assert healthy["specificity"] is not None
    assert (bleeding["study_auc"], bleeding["study_specificity"]) == (None, None)
    text = subgroups.to_text(table)
    rows = {row.split("  ")[0] + re.split(r"\s{2,}", row)[1]: row for row in text.splitlines()[1:]}
    assert rows["bleeds in the study0"].count("undefined: no positives") == 4
    assert rows["bleeds in the study1"].count("undefined: no negatives") == 2
    assert "nan" not in text.lower()
    assert "None" not in text


def test_one_patient_alone_has_no_interval() -> None:
    slices, studies, index = judged()
    index.loc[slices.loc[slices["study_uid"] == "s03", "row"], "encoding"] = "odd"
    table = subgroups.subgroup_table(slices, studies, index, THRESHOLDS, num_resamples=10)
    found = line(table, "encoding", "odd")
    assert found["sensitivity"] is not None
    assert found["sensitivity_low"] is None
    assert found["sensitivity_note"] == "no interval: one patient"
    assert "(no interval: one patient)" in subgroups.to_text(table)


def test_a_rate_of_one_bleeding_patient_among_many_has_no_interval() -> None:
    slices, studies, index = judged()
    bleeds = studies.loc[(studies["any"] == 1) & (studies["study_uid"] < "s06"), "study_uid"].iloc[1:]
    for table in (slices, studies):
        table.loc[table["study_uid"].isin(bleeds), list(LABELS)] = 0
    found = line(
        subgroups.subgroup_table(slices, studies, index, THRESHOLDS, num_resamples=50), "encoding", "unsigned12"
    )
    assert (found["num_patients"], found["num_positive_studies"]) == (6, 1)
    for name in ("auc", "sensitivity", "study_auc", "study_sensitivity"):
        assert (found[f"{name}_low"], found[f"{name}_note"]) == (None, "no interval: one patient")
    assert found["specificity_low"] is not None


def test_html_escapes_what_headers_say() -> None:
    slices, studies, index = judged()
    index["encoding"] = "<script>"
    page = subgroups.to_html(subgroups.subgroup_table(slices, studies, index, THRESHOLDS, num_resamples=5))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<tr>") == 1 + page.count("</tr>\n")


def test_truth_is_read_from_a_table_with_volumes(tmp_path: Path) -> None:
    _, studies, _ = judged()
    truth_of(studies).assign(noise_hu=3).to_csv(tmp_path / "truth.csv", index=False)
    pd.testing.assert_frame_equal(
        subgroups.read_truth(tmp_path / "truth.csv"),
        truth_of(studies)[["study_uid", *subgroups.VOLUME_COLUMNS]],
        check_dtype=False,
    )
    (tmp_path / "other.csv").write_text("study_uid,ml\ns0,1\n")
    for name in ("other.csv", "absent.csv"):
        with pytest.raises(RecordError, match=r"expected a CSV with study_uid, epidural_ml, .*, found"):
            subgroups.read_truth(tmp_path / name)


def test_truth_of_other_studies_is_refused() -> None:
    slices, studies, index = judged()
    with pytest.raises(RecordError, match="expected a volume of each of 24 studies, found none of s23"):
        subgroups.subgroup_table(slices, studies, index, THRESHOLDS, truth_of(studies).iloc[:-1], num_resamples=5)
