import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from fastich import compare, metrics
from fastich.compare import CompareConfig
from fastich.errors import CheckpointError, RecordError, UsageError
from fastich.labels import LABELS, enforce_any
from fastich.study_metrics import PROBABILITIES, study_table


def predictions(skill: float, seed: int, num_studies: int = 40) -> pd.DataFrame:
    """Six slices a study, two studies for each of the first ten patients; epidural never occurs."""
    truth_rng, rng = np.random.default_rng(0), np.random.default_rng(seed)
    study = np.repeat(np.arange(num_studies), 6)
    truth = ((truth_rng.random((num_studies, 6)) < 0.25)[study] & (truth_rng.random((len(study), 6)) < 0.6)).astype(int)
    truth[:, 0] = 0
    truth[:, 5] = truth[:, :5].max(axis=1)
    table = pd.DataFrame({"row": np.arange(len(study)) + 7, "sop_uid": [f"i{row}" for row in range(len(study))]})
    table["study_uid"] = [f"s{number:02d}" for number in study]
    table["patient_id"] = [f"p{number // 2 if number < 20 else number - 10}" for number in study]
    table[list(LABELS)] = truth
    noise = truth_rng.normal(size=truth.shape) + rng.normal(size=truth.shape)
    table[PROBABILITIES] = enforce_any(1 / (1 + np.exp(1.5 - skill * truth - noise)))
    return table


def write(folder: Path, table: pd.DataFrame, *, thresholds: float = 0.5, **changes: Any) -> Path:
    """What evaluation leaves behind, as far as a comparison reads it."""
    folder.mkdir(parents=True)
    table.to_parquet(folder / "predictions.parquet")
    measured = {
        "split": "test",
        "dataset": {"dataset_sha256": "ab" * 32},
        "model": {"run": "run", "epoch": 1},
        "thresholds": {"thresholds": dict.fromkeys(LABELS, thresholds)},
    }
    (folder / "metrics.json").write_text(json.dumps(measured | changes))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two run folders, the second with more skill and other thresholds."""
    write(tmp_path / "a" / "evaluation-test", predictions(1.5, 1))
    write(tmp_path / "b" / "evaluation-test", predictions(4.0, 2), thresholds=0.4)
    return tmp_path / "a", tmp_path / "b"


def rows_of(found: dict[str, Any], metric: str, label: str = "any") -> list[dict[str, Any]]:
    return [row for row in found["rows"] if (row["metric"], row["label"]) == (metric, label)]


def test_every_figure_is_that_of_its_own_run(runs: tuple[Path, Path]) -> None:
    found = compare.compare(*runs, CompareConfig(bootstrap=200))
    for key, skill, seed, threshold in (("a", 1.5, 1, 0.5), ("b", 4.0, 2, 0.4)):
        table = predictions(skill, seed)
        truth, score = table["any"], table["p_any"]
        assert rows_of(found, "auc")[0][key] == pytest.approx(sk.roc_auc_score(truth, score))
        assert rows_of(found, "average_precision")[0][key] == pytest.approx(sk.average_precision_score(truth, score))
        assert rows_of(found, "log_loss")[0][key] == pytest.approx(sk.log_loss(truth, score))
        assert rows_of(found, "log_loss", "all")[0][key] == pytest.approx(
            metrics.log_loss_weighted(table[list(LABELS)], table[PROBABILITIES])
        )
        assert rows_of(found, "sensitivity")[0][key] == pytest.approx(
            ((score >= threshold) & truth).sum() / truth.sum()
        )
        studies = study_table(table)
        assert rows_of(found, "study_auc")[0][key] == pytest.approx(sk.roc_auc_score(studies["any"], studies["p_any"]))


def test_a_better_run_is_seen_to_be_better(runs: tuple[Path, Path]) -> None:
    found = compare.compare(*runs, CompareConfig(bootstrap=200))
    for metric in ("auc", "average_precision"):
        row = rows_of(found, metric)[0]
        assert 0 < row["low"] < row["difference"] < row["high"]
        assert row["p_value"] < 0.05
    assert rows_of(found, "log_loss", "all")[0]["high"] < 0
    turned = compare.compare(runs[1], runs[0], CompareConfig(bootstrap=200))
    assert rows_of(turned, "auc")[0]["difference"] == -rows_of(found, "auc")[0]["difference"]


def test_a_run_against_itself_differs_in_nothing(runs: tuple[Path, Path]) -> None:
    found = compare.compare(runs[0], runs[0] / "evaluation-test", CompareConfig(bootstrap=20))
    assert all(row["difference"] in (0, None) for row in found["rows"])
    assert all(row["p_value"] in (1, None) for row in found["rows"])


def test_a_label_of_one_patient_has_neither_interval_nor_p_value(tmp_path: Path) -> None:
    for name, skill, seed in (("a", 1.5, 1), ("b", 4.0, 2)):
        table = predictions(skill, seed)
        table["epidural"] = ((table["patient_id"] == "p25") & (table.index % 2 == 0)).astype(int)
        write(tmp_path / name / "evaluation-test", table)
    found = compare.compare(tmp_path / "a", tmp_path / "b", CompareConfig(bootstrap=100))
    for metric in ("auc", "average_precision", "sensitivity"):
        row = rows_of(found, metric, "epidural")[0]
        assert row["difference"] is not None
        assert (row["low"], row["high"], row["p_value"]) == (None, None, None)
        assert (row["note"], row["num_units"], row["undefined"]) == ("no interval: one patient", 1, None)
    assert rows_of(found, "log_loss", "epidural")[0]["p_value"] is not None
    lines = [line for line in compare.table(found) if line.startswith("epidural")]
    assert [line.split()[-1] for line in lines if "one patient" in line] == ["none"] * 3


def test_one_patient_alone_is_not_compared(tmp_path: Path) -> None:
    for name, skill, seed in (("a", 1.5, 1), ("b", 4.0, 2)):
        write(tmp_path / name / "evaluation-test", predictions(skill, seed).assign(patient_id="p"))
    found = compare.compare(tmp_path / "a", tmp_path / "b", CompareConfig(bootstrap=100))
    assert {row["p_value"] for row in found["rows"]} == {row["low"] for row in found["rows"]} == {None}
    assert rows_of(found, "log_loss", "all")[0]["difference"] is not None


def test_few_patients_are_told_beside_the_interval(runs: tuple[Path, Path]) -> None:
    found = compare.compare(*runs, CompareConfig(bootstrap=100))
    row = next(row for row in rows_of(found, "study_auc") if row["method"] == "DeLong")
    assert row["note"] == f"few patients: {row['num_units']}"
    line = next(line for line in compare.table(found) if line.endswith("DeLong, one study a patient"))
    assert row["note"] in line


def test_delong_gets_the_first_study_of_each_patient(runs: tuple[Path, Path]) -> None:
    found = compare.compare(*runs, CompareConfig(bootstrap=20))
    assert (found["num_studies"], found["num_patients"]) == (40, 30)
    row = next(row for row in rows_of(found, "study_auc") if row["method"] == "DeLong")
    studies = study_table(predictions(1.5, 1)).drop_duplicates("patient_id")
    assert len(studies) == 30
    assert row["a"] == pytest.approx(sk.roc_auc_score(studies["any"], studies["p_any"]))


def test_a_study_table_of_its_own_is_used_whatever_its_order(runs: tuple[Path, Path]) -> None:
    own = study_table(predictions(4.0, 2)).iloc[::-1]
    own["p_any"] = own["any"] * 0.5
    own.to_parquet(runs[1] / "evaluation-test" / "studies.parquet")
    found = compare.compare(*runs, CompareConfig(bootstrap=20))
    assert (found["a"]["studies"], found["b"]["studies"]) == ("max over slices", "studies.parquet")
    assert rows_of(found, "study_auc")[0]["b"] == 1.0


def test_verb_prints_a_table_and_writes_both_files(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*map(str, runs), "--bootstrap", "20", "--out", str(tmp_path / "out")]
    assert compare.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["label", "metric", "A", "B", "B", "-", "A", "95", "%", "interval", "p"]
    assert sum(line.startswith("epidural") and "undefined: no positives" in line for line in lines) == 3
    assert any(line.endswith("DeLong, one study a patient") for line in lines)
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert len(pd.read_csv(tmp_path / "out" / "compare.csv")) == len(written["rows"]) == 1 + 6 * 5 + 2
    with pytest.raises(UsageError, match=r"compare.json exists; remove it, or choose another --out"):
        compare.main(flags)
    compare.main([*map(str, runs), "--bootstrap", "20", "--json"])
    assert json.loads(capsys.readouterr().out)["rows"] == written["rows"]


@pytest.mark.parametrize(
    ("changes", "edit", "match"),
    [
        ({"split": "val"}, None, "expected the split of .*, test, found val"),
        ({"dataset": {"dataset_sha256": "cd" * 32}}, None, "the records of .*, abababababab, found cdcdcdcdcdcd"),
        ({}, lambda table: table.iloc[:-1], "expected the number of slices of .*, 240, found 239"),
        ({}, lambda table: table.assign(row=table["row"] + 1), "its slices differ from those of .* in row;"),
        ({}, lambda table: table.assign(any=1 - table["any"]), "in any; evaluate both again"),
    ],
)
def test_evaluations_of_other_slices_are_refused(
    runs: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], edit: Any, match: str
) -> None:
    table = predictions(4.0, 2)
    other = write(tmp_path / "other", table if edit is None else edit(table), **changes)
    with pytest.raises(RecordError, match=match):
        compare.compare(runs[0], other, CompareConfig())


def test_missing_and_damaged_evaluations_say_what_to_do(runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found neither; run python -m fastich.evaluate --run .* --split val"):
        compare.compare(*runs, CompareConfig(split="val"))
    (runs[0] / "evaluation-test" / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(CheckpointError, match=r"expected what fastich.evaluate writes, found .*; evaluate again"):
        compare.compare(*runs, CompareConfig())
    with pytest.raises(UsageError, match="--bootstrap must be >= 1, found 0"):
        CompareConfig(bootstrap=0)
