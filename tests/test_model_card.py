import dataclasses
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from toy_model import write_model
from toy_study import add_study, sequence_model

from fastich.artifact import MANIFEST, read_manifest, to_document
from fastich.errors import ArtifactError
from fastich.files import write_json
from fastich.labels import LABELS
from fastich.metrics import NO_POSITIVES
from fastich.model_card import HTML_FILE, MARKDOWN_FILE, main, publish
from fastich.report.card import normalised, sections, to_html, to_markdown
from fastich.report.card_parts import NOT_STATED, estimated

TITLES = [
    "Intended use",
    "Data",
    "Architecture and input",
    "Metrics",
    "Operating points",
    "Calibration",
    "Triage",
    "Subgroups",
    "Limits",
    "Leakage certificate",
    "Parity",
    "Files and versions",
]
HOSTILE = "<script>alert(1)</script> | [x](http://x) `y`\n# z"


def estimate(value: float | None) -> dict[str, float | None]:
    return {"value": value, "low": None if value is None else value - 0.1, "high": None if value is None else value}


def metrics(**changed: Any) -> dict[str, Any]:
    each = dict.fromkeys(LABELS, estimate(0.9))
    return {
        "split": "test",
        "num_slices": 2348,
        "num_studies": 69,
        "num_patients": 60,
        "prevalence": dict.fromkeys(LABELS, 0.143),
        "num_positive": dict.fromkeys(LABELS, 12),
        "auc": each,
        "average_precision": each,
        "sensitivity": each,
        "specificity": each,
        "log_loss": estimate(0.1234),
        "intervals": {"level": 0.95, "num_resamples": 1000, "unit": "patient"},
        "study_any": {"rule": "max over slices", "num_positive": 3, "auc": estimate(0.98)},
        "dataset_sha256": "77" * 32,
    } | changed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path)
    return tmp_path


def document(folder: Path, **fields: Any) -> dict[str, Any]:
    return normalised(to_document(dataclasses.replace(read_manifest(folder), **fields)))


def of_section(text: str, title: str) -> str:
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_card_has_every_section_in_order(folder: Path) -> None:
    found = document(folder, metrics=metrics())
    assert [section.title for section in sections(found)] == TITLES
    assert re.findall(r"^## (.*)$", to_markdown(found), re.MULTILINE) == TITLES
    assert re.findall(r"<h2>(.*?)</h2>", to_html(found)) == TITLES


def test_what_is_absent_is_not_stated(folder: Path) -> None:
    text = to_markdown(document(folder))
    assert of_section(text, "Metrics").strip() == "Not stated."
    for title in ("Subgroups", "Leakage certificate", "Parity"):
        assert of_section(text, title).strip() == "Not stated.", title
    assert "| split rule | not stated |" in text
    assert "| network | not stated |" in text
    assert "No leakage certificate: nothing says that judged patients were not trained on." in text
    assert "Nothing was measured: no evaluation was given to the export." in text


def test_figures_have_their_intervals(folder: Path) -> None:
    text = to_markdown(document(folder, metrics=metrics()))
    assert "| any | 12 | 14.3 % | 0.900 (0.800 to 0.900) | 0.900 (0.800 to 0.900) |" in of_section(text, "Metrics")
    assert "Challenge log loss, slices, each alone: 0.1234 (0.0234 to 0.1234)." in text
    assert "| any | 0.5 | 0.900 (0.800 to 0.900) | 0.900 (0.800 to 0.900) |" in of_section(text, "Operating points")
    assert "Judged on 60 patients only" in of_section(text, "Limits")


def test_a_label_without_positives_is_undefined_in_words(folder: Path) -> None:
    without = metrics()
    without["num_positive"] = without["num_positive"] | {"epidural": 0}
    for kind in ("auc", "average_precision", "sensitivity"):
        without[kind] = without[kind] | {"epidural": estimate(None)}
    text = to_markdown(document(folder, metrics=without))
    assert f"| epidural | 0 | 14.3 % | {NO_POSITIVES} | {NO_POSITIVES} |" in text
    assert "No slice with epidural was judged: what it does there is undefined." in text
    nothing = " | ".join(["undefined / undefined"] * 6)
    assert f"| epidural | {nothing} |" in of_section(text, "Operating points")


def test_estimates_read_as_words_where_there_is_no_number() -> None:
    assert estimated(None) == NOT_STATED
    assert estimated(estimate(None), 0) == NO_POSITIVES
    assert estimated(estimate(None), 3) == "undefined"
    assert estimated({"value": 0.5, "low": None, "high": None}) == "0.500 (no interval)"
    few = {"value": 0.5, "low": 0.25, "high": 0.75, "note": "few patients: 9"}
    assert estimated(few) == "0.500 (0.250 to 0.750; few patients: 9)"
    assert estimated(few | {"low": None, "high": None, "note": "no interval: one patient"}).endswith(": one patient)")
    assert estimated({"value": None, "note": "undefined: no negatives"}, 3) == "undefined: no negatives"


def test_predictive_values_follow_prevalence(folder: Path) -> None:
    rates = {"sensitivity": dict.fromkeys(LABELS, estimate(0.9)), "specificity": dict.fromkeys(LABELS, estimate(0.8))}
    text = of_section(to_markdown(document(folder, metrics=metrics(**rates))), "Operating points")
    line = next(line for line in text.splitlines() if line.startswith("| any | 0.043"))
    assert line.split(" | ")[4] == "0.333 / 0.986"  # at 10 %: 0.09 of 0.27, 0.72 of 0.73


def test_triage_states_guarantee_alpha_and_count(folder: Path) -> None:
    triage = {
        "alpha_miss": 0.05,
        "num_bleed": 31,
        "clear": 0.2,
        "flag": None,
        "guarantee": "At most 0.05.",
        "outcomes": [],
    }
    text = of_section(to_markdown(document(folder, study={"triage": triage})), "Triage")
    assert "Studies, sequence model: At most 0.05." in text
    for row in ("| alpha_miss | 0.05 |", "| num_bleed | 31 |", "| clear | 0.2 |", "| flag | not stated |"):
        assert row in text


def test_certificate_and_calibration_are_summarised(folder: Path) -> None:
    certificate = {
        "clean": False,
        "rule": "patients joined by identical pixels",
        "splits": {"train": {"patients": 40, "studies": 44, "series": 44, "pixels": 1500}},
        "shared": [{"a": "train", "b": "test", "patients": 1}],
    }
    calibration = {"method": "platt", "labels": {}, "uncalibrated": {"epidural": "undefined: no positives"}}
    text = to_markdown(document(folder, leakage_certificate=certificate, calibration=calibration))
    assert "The splits share patients, studies or images." in text
    assert "| train | test | 1 |" in text
    assert "| train | 40 | 44 | 44 | 1,500 |" in text
    assert "| split rule | patients joined by identical pixels |" in text
    assert "Slices, each alone: platt." in text
    assert "Slices, each alone, epidural: not calibrated, undefined: no positives." in text


def test_sequence_model_has_its_own_operating_points(folder: Path) -> None:
    reach = {"auc": estimate(0.7), "sensitivity_at_specificity": {"0.90": estimate(0.6)}}
    rules = {rule: dict.fromkeys(LABELS, reach) for rule in ("study head", "noisy-or")}
    of_studies = metrics(decision="study head", rules=rules)
    errors = {name: {"ece": {"macro": estimate(value)}} for name, value in (("raw", 0.03), ("calibrated", 0.01))}
    quality = {"studies": {"judged": errors, "cross_fitted": None}}
    did = {"judged": {"miss_rate": estimate(0.05)}}
    add_study(
        folder,
        sequence_model(5),
        triage={"guarantee": "At most.", "alpha_miss": 0.1},
        metrics=metrics(studies=of_studies, calibration=quality, triage=did),
    )
    text = to_markdown(document(folder))
    assert text.count("*studies, sequence model*") == 2
    assert "*ROC AUC of studies by rule (study head decides)*" in text
    assert "| noisy-or | 0.700 (0.600 to 0.700) |" in text
    assert "| label | sensitivity at specificity 0.90 |\n| --- | --- |\n| epidural | 0.600 (0.500 to 0.600) |" in text
    assert "| macro | 0.030 (-0.070 to 0.030) | 0.010 (-0.090 to 0.010) | not stated |" in text
    assert "| miss_rate | 0.050 (-0.050 to 0.050) |" in of_section(text, "Triage")
    assert "Judged on 60 patients only" in text
    assert "| sequence model | gru |" in text
    assert "| study.onnx | sequence model over the slices of a study" in text


def test_subgroups_are_a_row_each(folder: Path) -> None:
    row = {"factor": "gantry tilt", "group": "none (< 1 degree)", "num_slices": 12, "num_studies": 2, "num_patients": 1}
    row |= {"num_positive_slices": 0, "num_positive_studies": 0, "auc": None, "specificity": 0.5}
    row |= {"specificity_low": 0.25, "specificity_high": 0.75}
    bleeding = row | {"group": "tilted", "num_positive_slices": 12, "auc": None}
    text = of_section(to_markdown(document(folder, metrics=metrics(subgroups=[bleeding]))), "Subgroups")
    assert "| gantry tilt: tilted | 12 | 2 | 1 | undefined: no negatives |" in text
    text = of_section(to_markdown(document(folder, metrics=metrics(subgroups=[row]))), "Subgroups")
    said = f"| gantry tilt: none (&lt; 1 degree) | 12 | 2 | 1 | {NO_POSITIVES} | not stated | 0.500 (0.250 to 0.750) |"
    assert said in text
    lone = row | {"specificity_low": None, "specificity_high": None, "specificity_note": "no interval: one patient"}
    text = of_section(to_markdown(document(folder, metrics=metrics(subgroups=[lone]))), "Subgroups")
    assert "| 0.500 (no interval: one patient) |" in text


def test_hostile_text_stays_text_in_both_forms(folder: Path) -> None:
    found = document(folder, config={"weights": HOSTILE, HOSTILE: 1}, versions={"torch": HOSTILE})
    markdown, page = to_markdown(found), to_html(found)
    assert "<script" not in markdown
    assert "\n# z" not in markdown
    assert "\\[x](http://x) \\`y\\`" in markdown
    assert all(
        line.count("|") - line.count("\\|") == 3 for line in markdown.splitlines() if line.startswith("| weights")
    )
    assert "<script" not in page
    assert html.escape("<script>alert(1)</script>", quote=False) in page


def test_page_fetches_nothing(folder: Path) -> None:
    page = to_html(document(folder, metrics=metrics()))
    assert not re.search(r"<(script|link|iframe|img)\b|@import|url\(|\bsrc=|\bhref=", page)


def test_card_is_a_function_of_model_json_and_names_its_hash(folder: Path) -> None:
    publish(folder, dataclasses.replace(read_manifest(folder), metrics=metrics()))
    written = {name: (folder / name).read_bytes() for name in (MARKDOWN_FILE, HTML_FILE)}
    found = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    assert all(found.encode() in content for content in written.values())
    for name in written:
        (folder / name).unlink()
    assert main([str(folder)]) == 0
    assert {name: (folder / name).read_bytes() for name in written} == written


def test_manifest_comes_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = read_manifest(folder)
    (folder / MANIFEST).unlink()
    monkeypatch.setattr("fastich.report.card.to_html", lambda document: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        publish(folder, artifact)
    assert not (folder / MANIFEST).exists()


def test_a_damaged_folder_gets_no_card(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"model\.onnx: expected \d+ bytes, found 1"):
        main([str(folder)])
    assert not (folder / MARKDOWN_FILE).exists()


def test_old_manifest_without_newer_keys_has_a_card(folder: Path) -> None:
    old = json.loads((folder / MANIFEST).read_text())
    for key in ("study", "triage"):
        old.pop(key, None)
    write_json(folder / MANIFEST, old)
    assert read_manifest(folder).study is None
    assert main([str(folder)]) == 0
    assert hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest() in (folder / MARKDOWN_FILE).read_text()
    assert "there is no sequence model" in (folder / MARKDOWN_FILE).read_text()


def test_triage_says_what_its_coverage_is_worth(folder: Path) -> None:
    told = {"miss_rate": "undefined: a threshold in 9 of 100 only", "alarm_rate": "0.050 (s.e. 0.010)"}
    did = {"judged": {"miss_rate": estimate(0.05)}, "coverage": {"told": told}}
    found = document(folder, triage={"guarantee": "At most."}, metrics=metrics(triage=did))
    text = of_section(to_markdown(found), "Triage")
    assert "Studies, largest slice, miss_rate over resamplings: undefined: a threshold in 9 of 100 only." in text
    assert "Studies, largest slice, alarm_rate over resamplings: 0.050 (s.e. 0.010)." in text
    without = document(folder, triage={"guarantee": "At most."}, metrics=metrics(triage=did | {"coverage": None}))
    assert "resamplings" not in of_section(to_markdown(without), "Triage")
