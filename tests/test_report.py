import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from fastich import calibration
from fastich.errors import UsageError
from fastich.labels import LABELS, enforce_any
from fastich.report import figures, folder, gallery, html, pictures, results
from fastich.report.choices import Choices, Rules, Tables, calibrated, choose
from fastich.report.style import COLOURS, to_png
from fastich.report.trust import apply, trust
from fastich.study_metrics import study_table

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil/$x_1$>"


def make_table(num_studies: int = 12, seed: int = 0, uid: str = "study") -> pd.DataFrame:
    """A prediction table: 10 slices a study, two studies a patient, every second study with two bleeds."""
    rng = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = []
    for study in range(num_studies):
        truth = np.zeros((10, 6), dtype=np.int64)
        if study % 2:
            truth[2:6, study % 5] = truth[4:8, (study + 2) % 5] = 1
        truth[:, 5] = truth[:, :5].max(axis=1)
        scores = enforce_any(1 / (1 + np.exp(-(rng.normal(size=(10, 6)) * 1.5 + 5 * truth - 3))))
        for z in range(10):
            ids = {"sop_uid": f"{uid}.{study}.{z}", "study_uid": f"{uid}.{study}", "patient_id": f"p{study // 2}"}
            columns = [*LABELS, *results.PROBABILITY_COLUMNS, *results.LOGIT_COLUMNS]
            values = dict(zip(columns, [*truth[z], *scores[z], *np.log(scores[z] / (1 - scores[z]))], strict=True))
            lines.append({"row": len(lines), **ids, **values})
    return pd.DataFrame(lines)


def read_hu(row: int) -> np.ndarray:
    hu = np.full((48, 64), -1000, dtype=np.int16)
    hu[10:40, 20:50] = 30 + row % 7
    return hu


def tables_of(slices: pd.DataFrame) -> Tables:
    return Tables(slices=slices, studies=study_table(slices), decision="largest slice")


def decided(validation: pd.DataFrame, **rules: Any) -> Choices:
    made = tables_of(validation)
    return choose(made, Rules(**rules))


def measure(table: pd.DataFrame, validation: pd.DataFrame, **dataset: Any) -> dict[str, Any]:
    sha = {"dataset_sha256": "ab" * 32, "trained_on_sha256": "ab" * 32, "same_as_training": True}
    choices = decided(validation)
    before, judged = (apply(choices, tables_of(one)) for one in (validation, table))
    return {
        "split": "test",
        "dataset": {"records": "records", **sha, **dataset},
        "model": {"run": "run", "checkpoint": "best", "epoch": 3},
        **trust(before, judged, choices, num_resamples=50, seed=0),
        "subgroups": [],
        "training": None,
        "slices_per_s": 10.0,
        "machine": {"device": "cpu", "versions": {"fastich": "0"}},
        "config": {"size": 64, "note": HOSTILE},
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation folder whose ids are hostile."""
    path = tmp_path_factory.mktemp("report") / "evaluation"
    table, validation = make_table(uid=HOSTILE), make_table(seed=1)
    folder.check(path, overwrite=False)
    folder.make(path)
    choices = decided(validation)
    before, judged = (apply(choices, tables_of(one)) for one in (validation, table))
    measured = measure(table, validation, records=HOSTILE)
    folder.write(path, measured, judged, before, choices, read_hu=read_hu)
    return path


class Page(HTMLParser):
    """Collects tags with their attributes, and open tags that are never closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_folder_holds_every_promised_file(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {
        *("metrics.json", "report.csv", "roc.csv", "predictions.parquet", "predictions-val.parquet"),
        *("studies.parquet", "studies-val.parquet", "thresholds.json", "study-thresholds.json", "calibration.json"),
        *("study-calibration.json", "triage.json", "figures", "report.html"),
    }
    names = {path.stem for path in (written / "figures").glob("*.png")}
    assert {f"roc_{label}" for label in LABELS} <= names
    assert {"roc_all", "pr_all", "histograms", "confusion_0.5", "confusion_thresholds", "reliability"} <= names
    assert any(name.startswith("case_hit_") for name in names)
    json.loads((written / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def test_page_fetches_nothing(written: Path) -> None:
    page = Page((written / "report.html").read_text())
    sources = [attrs[name] for _, attrs in page.tags for name in ("src", "href", "srcset") if name in attrs]
    assert len(sources) > 20
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    style = re.search("<style>(.*?)</style>", (written / "report.html").read_text(), re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|https?:", style.group(1))


def test_page_escapes_hostile_ids(written: Path) -> None:
    text = (written / "report.html").read_text()
    assert "alert(" in text
    assert "<script" not in text
    assert "<img src=http" not in text
    assert HOSTILE in Page(text).text


def test_page_shows_the_headline_and_that_it_is_for_research(written: Path) -> None:
    measured = json.loads((written / "metrics.json").read_text())
    text = Page((written / "report.html").read_text()).text
    assert "Research use only. Not a medical device." in text
    for value in (measured["auc"]["any"]["value"], measured["auc"]["any"]["low"], measured["auc"]["any"]["high"]):
        assert f"{value:.3f}" in text
    assert f"{measured['log_loss']['value']:.4f}" in text
    assert "Only 6 patients" in text
    assert "Another data set" not in text


@pytest.mark.parametrize(
    ("sensitivity", "specificity", "found", "called"),
    [
        (0.82, 0.95, ("82", 82), ("5", 5)),
        (0.999, 0.9994, ("more than 99", 99), ("fewer than 1", 1)),
        (1.0, 1.0, ("100", 100), ("0", 0)),
        (0.0, 0.0, ("0", 0), ("100", 100)),
    ],
)
def test_of_a_hundred_slices_none_or_all_only_if_it_is_so(
    sensitivity: float, specificity: float, found: tuple[str, int], called: tuple[str, int]
) -> None:
    table = make_table()
    measured = measure(table, table)
    measured["operating_points"]["at_thresholds"]["any"] |= {"sensitivity": sensitivity, "specificity": specificity}
    page = html.render_report(measured, {})
    halves = page[page.index('class="hundred"') : page.index("Label by label")].split('class="dots"')[1:]
    for half, (words, dots), end in zip(halves, (found, called), ("are found", "by mistake"), strict=True):
        assert f'aria-label="{words} of 100"' in half
        assert half.count("background:") == dots
        assert f"<strong>{words}</strong>" in half
        assert half[: half.index("</p>")].endswith(end)


def test_page_stays_below_three_megabytes(written: Path) -> None:
    assert (written / "report.html").stat().st_size < 3_000_000


def test_page_says_when_the_data_set_is_another_one() -> None:
    table = make_table()
    page = html.render_report(measure(table, table, same_as_training=False), {})
    assert "Another data set than the one trained on" in page


def test_page_of_one_class_only_says_why_and_has_no_nan() -> None:
    table = make_table()
    table[list(LABELS)] = 0
    measured = measure(table, table)
    json.dumps(measured, allow_nan=False)
    assert {found["value"] for found in measured["auc"].values()} == {None}
    drawn, cases = pictures.draw(table, measured, read_hu)
    page = html.render_report(measured, drawn, cases)
    text = Page(page).text
    assert text.count("undefined: no positives") > 50
    of_labels = page[page.index("Label by label") : page.index("<h2>Studies")]
    assert not re.search(r">\s*–\s*<", of_labels)
    assert "None" not in of_labels
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert "no positive in the validation split" in text


def test_thresholds_come_from_validation_only() -> None:
    validation, table = make_table(seed=1), make_table(seed=2)
    table[results.LOGIT_COLUMNS] -= 1.5  # on these slices other thresholds would be better
    chosen, better = (decided(one, calibration="none").thresholds for one in (validation, table))
    measured = measure(table, validation)
    assert measured["thresholds"] == decided(validation).thresholds
    assert better["thresholds"]["any"] < 0.5 * chosen["thresholds"]["any"]
    shifted = calibrated(table, calibration.NONE)
    found = [results.summarise(shifted, one, num_resamples=10) for one in (chosen, better)]
    assert (
        found[0]["reports"]["at_thresholds"]["any"]["f1-score"]
        < found[1]["reports"]["at_thresholds"]["any"]["f1-score"]
    )


def test_report_csv_and_roc_csv_say_what_metrics_json_says(written: Path) -> None:
    measured = json.loads((written / "metrics.json").read_text())
    table = pd.read_csv(written / "report.csv")
    assert len(table) == 2 * (len(LABELS) + 4)
    line = table[(table["threshold"] == "thresholds") & (table["row"] == "samples avg")].iloc[0]
    assert line["f1-score"] == pytest.approx(measured["reports"]["at_thresholds"]["samples avg"]["f1-score"])
    roc = pd.read_csv(written / "roc.csv")
    assert list(roc.columns) == ["label", "threshold", "fpr", "tpr"]
    for label in LABELS:
        curve = roc[roc["label"] == label]
        assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(measured["auc"][label]["value"])


def test_gallery_chooses_hits_misses_and_alarms_one_a_study() -> None:
    table = make_table()
    thresholds = np.full(6, 0.5)
    table.loc[table["row"] == 12, "p_any"] = 0.001  # a slice with a bleed
    table.loc[table["row"] == 3, "p_any"] = 0.999  # one without
    cases = gallery.build_cases(table, thresholds, read_hu)
    by_group = {group: [case for case in cases if case.group == group] for group in gallery.GROUPS}
    assert by_group["miss"][0].row == 12
    assert by_group["alarm"][0].row == 3
    for case in by_group["hit"]:
        assert case.label in case.truth
        assert case.probability[case.label] >= 0.5
    assert all("any" in case.truth and case.probability["any"] < 0.5 for case in by_group["miss"])
    assert all(not case.truth and case.probability["any"] >= 0.5 for case in by_group["alarm"])
    for shown in by_group.values():
        studies = [case.study_uid for case in shown]
        assert len(studies) == len(set(studies)) <= 6


def test_slice_picture_is_the_head_through_the_brain_window(tmp_path: Path) -> None:
    hu = np.full((100, 100), -1000, dtype=np.int16)
    hu[40:80, 20:60] = 40
    hu[40:80, 40:60] = 90
    (tmp_path / "slice.png").write_bytes(gallery.slice_png(hu, size=46))
    grey = imread(tmp_path / "slice.png")[..., 0]
    assert grey.shape == (46, 46)
    assert grey[0, 0] == 0
    assert grey[23, 10] == pytest.approx(0.5, abs=0.01)  # 40 HU lies in the middle of 40/80
    assert grey[23, 35] == 1
    assert gallery.crop_to_head(np.full((9, 9), -1000, dtype=np.int16)).shape == (9, 9)


def test_strips_show_the_ends_of_both_kinds_of_study() -> None:
    table = make_table()
    strips = gallery.choose_studies(table)
    score = table.groupby("study_uid")["p_any"].max()
    bleeding = table.groupby("study_uid")["any"].max() == 1
    ends = {score[bleeding].idxmax(), score[bleeding].idxmin(), score[~bleeding].idxmax(), score[~bleeding].idxmin()}
    assert ends <= {strip.study_uid for strip in strips}
    assert len(strips) == 6
    assert all(len(strip.probability) == len(strip.truth) == 10 for strip in strips)


def test_reliability_by_hand() -> None:
    score = np.array([0.05] * 10 + [0.95] * 8 + [0.5] * 2)
    truth = np.array([1] + [0] * 9 + [1] * 6 + [0] * 2 + [1] * 2)
    mean, observed, count = figures.reliability(truth, score)
    assert mean == pytest.approx([0.05, 0.95])
    assert observed == pytest.approx([0.1, 0.75])
    assert count.tolist() == [10, 8]  # two slices at 0.5 are too few to draw


def test_roc_figure_draws_the_curve_and_both_operating_points() -> None:
    truth, scores = results.truth_and_scores(make_table())
    figure = figures.roc_figure("any", truth, scores, np.full(6, 0.3), "(0.9 to 1.0)")
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels == ["at 0.5", "at 0.300 (validation)"]
    assert any("AUC" in text.get_text() for text in axes.texts)
    empty = figures.roc_figure("any", np.zeros_like(truth), scores, np.full(6, 0.3))
    assert "not defined" in empty.axes[0].texts[0].get_text()


def test_figures_have_a_transparent_ground(tmp_path: Path) -> None:
    truth, scores = results.truth_and_scores(make_table())
    figure = figures.roc_overview(truth, scores)
    assert isinstance(figure, Figure)
    (tmp_path / "roc.png").write_bytes(to_png(figure))
    assert imread(tmp_path / "roc.png")[0, 0, 3] == 0
    assert set(COLOURS) == set(LABELS)


def test_existing_folder_is_kept_unless_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not empty; give --overwrite"):
        folder.check(tmp_path, overwrite=False)
    with pytest.raises(UsageError, match="found a file"):
        folder.check(tmp_path / "notes.txt", overwrite=True)
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").touch()
    folder.make(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["figures", "notes.txt"]


def one_patient_has_the_epidurals() -> pd.DataFrame:
    """24 patients; the epidurals are all in one."""
    table = make_table(48, seed=3)
    table.loc[table["patient_id"] != "p0", "epidural"] = 0
    table.loc[table["study_uid"] == "study.1", "epidural"] = table.loc[table["study_uid"] == "study.1", "any"]
    return table


def test_a_figure_that_rests_on_one_patient_has_no_interval_anywhere() -> None:
    measured = measure(one_patient_has_the_epidurals(), make_table(48, seed=1))
    studies = measured["studies"]
    rule = studies["rules"][studies["decision"]]["epidural"]
    for found in (
        *(measured[name]["epidural"] for name in ("auc", "average_precision", "sensitivity")),
        *(studies[name]["epidural"] for name in ("auc", "average_precision", "sensitivity")),
        *(report["epidural"]["recall"] for report in measured["report_intervals"].values()),
        *(rule["auc"], rule["sensitivity_at_specificity"]["0.90"], rule["specificity_at_sensitivity"]["0.95"]),
    ):
        assert (found["low"], found["high"], found["note"]) == (None, None, "no interval: one patient")
    assert measured["specificity"]["epidural"]["low"] is not None
    assert measured["auc"]["any"]["low"] is not None
    line = next(line for line in results.text_table(measured).splitlines() if line.startswith("epidural"))
    assert "(no interval: one patient)" in line
    page = html.render_report(measured, {})
    row = page[page.index("Label by label") :]
    row = row[row.index("</i>epidural</th>") :]
    assert row[: row.index("</tr>")].count("no interval: one patient") == 3


def test_terminal_and_csv_say_what_is_undefined_in_words() -> None:
    table = make_table()
    table["epidural"] = 0
    measured = measure(table, table)
    line = next(line for line in results.text_table(measured).splitlines() if line.startswith("epidural"))
    assert "undefined: no positives" in line
    assert "-" not in line.split()
    table[list(LABELS)] = 0
    nothing = measure(table, table)
    text = results.text_table(nothing)
    assert text.count("undefined: no positives") == len(LABELS) + 1  # and of studies
    rows = results.report_table(nothing)
    assert rows[["precision", "recall", "f1-score"]].isna().all(axis=None)
    assert set(rows["undefined"]) == {"undefined: no positives"}


def test_text_table_names_every_label() -> None:
    table = make_table()
    lines = results.text_table(measure(table, table)).splitlines()
    assert [line.split()[0] for line in lines[1:7]] == list(LABELS)
    assert "weighted log loss" in lines[-1]


def test_triage_says_what_its_coverage_is_worth() -> None:
    results_of = measure(make_table(12, 1), make_table(8, 2))
    page = html.render_report(results_of, {})
    told = results_of["triage"]["coverage"]["told"]["miss_rate"]
    assert told.startswith("undefined: a threshold, and such studies to judge, in 0 of 100 only; alpha 0.1 needs 9")
    assert f"<td>{told}</td>" in page
    assert "of 4 and 4 patients; training chose its best epoch on these studies too" in page
    results_of["triage"] |= {"coverage": None, "guarantee": "No guarantee: of an ensemble."}
    page = html.render_report(results_of, {})
    assert "No guarantee: of an ensemble." in page
    assert "resamplings" not in page
    assert "guarantee is approximate" not in page


def test_labels_that_some_folds_cannot_calibrate_are_named_on_the_page() -> None:
    results_of = measure(make_table(12, 1), make_table(12, 2))
    results_of["calibration"]["slices"]["cross_fitted"]["unfitted"] = {"epidural": "not in 1 of 5 folds"}
    assert "Cross-fitted, epidural: not in 1 of 5 folds." in html.render_report(results_of, {})
