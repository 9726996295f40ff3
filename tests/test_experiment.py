import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_report import make_table, measure

from fastich import experiment, metrics
from fastich.experiment import ExperimentConfig
from fastich.report import experiment_table
from fastich.report.folder import PREDICTIONS_FILE
from fastich.report.results import PROBABILITY_COLUMNS, truth_and_scores


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    """A summary.json whose two models are of made-up tables."""
    study, cnn = (measure(make_table(40, seed), make_table(40, 7)) for seed in (1, 2))
    rates = {"value": 0.8, "low": 0.7, "high": 0.9}
    pointing = {"num_slices": 30, "cell_hit": rates, "cell_chance": {"value": 0.1, "low": 0.05, "high": 0.15}}
    return {
        "seconds": {"train_study": 50.0, "total": 1000.0},
        "cnn": cnn,
        "study": study,
        "log_loss_gain": {"value": 0.25, "low": 0.1, "high": 0.3},
        "explanation": {
            "pointing": {"tolerance_mm": 10.0, "labels": {"any": {experiment_table.FOUND: pointing}}},
        },
        "training": {"seconds": 600.0, "slices_per_s": {"train": 45.0}},
    }


def test_the_table_holds_goals_both_models_and_intervals(summary: dict[str, Any]) -> None:
    text = experiment_table.text(summary)
    met = {goal: row for goal, *row in experiment_table.goals(summary)}
    assert met["slice log loss, lower than 2D by"][0] == ">= 20%"
    assert met["slice log loss, lower than 2D by"][1].startswith("0.250 (0.100 to 0.300): ")
    assert met["slice log loss, lower than 2D by"][2] == "met"
    assert "epidural" in text
    assert "0.42" in text  # the seed study's recall of any
    assert "not stated" in text
    assert "30 slices whose bleed is found, in 0.800 (0.700 to 0.900) the cell" in text
    assert "nan" not in text.lower()
    assert "to 0.000)" not in text
    assert "(1.000 to" not in text


def test_a_goal_that_is_missed_says_so(summary: dict[str, Any]) -> None:
    worse = copy.deepcopy(summary)
    worse["log_loss_gain"]["value"] = 0.19
    worse["study"]["studies"]["auc"]["any"]["value"] = None
    found = {goal: row[-1] for goal, *row in experiment_table.goals(worse)}
    assert found["slice log loss, lower than 2D by"] == "not met"
    assert found["study AUC any"] == "not judged"


def test_a_recall_that_only_equals_its_goal_is_not_above_it(summary: dict[str, Any]) -> None:
    equal = copy.deepcopy(summary)
    equal["study"]["reports"]["at_thresholds"]["epidural"]["recall"] = experiment_table.EPIDURAL_RECALL
    equal["log_loss_gain"]["value"] = experiment_table.LOG_LOSS_GAIN
    found = {goal: row for goal, *row in experiment_table.goals(equal)}
    assert found["epidural recall at the chosen threshold"][0] == "> 0.7"
    assert found["epidural recall at the chosen threshold"][-1] == "not met"
    assert found["slice log loss, lower than 2D by"][0] == ">= 20%"
    assert found["slice log loss, lower than 2D by"][-1] == "met"


def test_the_gain_is_the_share_of_the_log_loss_that_b_saves(tmp_path: Path) -> None:
    tables = [make_table(12, 3), make_table(12, 3)]
    tables[1][PROBABILITY_COLUMNS] = 0.5 + (tables[1][PROBABILITY_COLUMNS] - 0.5) * 0.9
    for name, table in zip("ab", tables, strict=True):
        (tmp_path / name).mkdir()
        table.to_parquet(tmp_path / name / PREDICTIONS_FILE)
    found = experiment.log_loss_gain(tmp_path / "a", tmp_path / "b", 200, 0)
    a, b = (metrics.log_loss_weighted(*truth_and_scores(table)) for table in tables)
    assert found["value"] == pytest.approx(1 - b / a)
    assert found["low"] < found["value"] < found["high"]


def test_steps_are_the_commands_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def step(verb: str, *words: object, **_: Any) -> float:
        asked.append((verb, [str(word) for word in words]))
        return 1.0

    monkeypatch.setattr(experiment, "step", step)
    monkeypatch.setattr(experiment, "_summary", lambda config, seconds: {"seconds": seconds})
    monkeypatch.setattr(experiment_table, "text", lambda found: "table")
    index = pd.DataFrame(
        {"study_uid": ["a", "a", "b", "c"], "source": ["1", "2", "3", "4"], "split": ["test"] * 3 + ["train"]}
        | {"any": [0, 1, 0, 1]}
    )
    monkeypatch.setattr(experiment.pd, "read_parquet", lambda *_, **__: index)
    out = tmp_path / "out"
    found = experiment.experiment(ExperimentConfig(out=out, studies=4, workers=1))
    assert [verb for verb, _ in asked] == [
        *("phantom", "pack", "leakage", "train", "train_study"),
        *("evaluate", "evaluate", "compare", "export", "explain"),
    ]
    words = dict(asked)["train_study"]
    assert words[words.index("--embedding-passes") + 1] == "4"
    assert asked[-1][1][-2:] == [str(out / "dicom" / "stage_2_train" / name) for name in ("1", "2")]
    assert found["seconds"]["total"] >= 0
    assert json.loads((out / "summary.json").read_text())["seconds"]["train"] == 1.0
    assert np.isclose(sum(found["seconds"][name] for name in ("phantom", "pack", "leakage", "export")), 4.0)


def test_a_bound_that_nothing_could_break_is_not_met() -> None:
    few = measure(make_table(6, 1), make_table(8, 2))["triage"]
    (miss, _) = experiment_table._coverage(few)
    assert miss[:2] == ("triage miss rate, 100 resamplings", "<= 0.1")
    assert miss[2].startswith("undefined: a threshold, and such studies to judge, in 0 of 100 only")
    assert miss[3] == "not judged"
    enough = measure(make_table(60, 1), make_table(60, 7))["triage"]
    assert experiment_table._coverage(enough)[0][3] in ("met", "not met")
