import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from toy_model import write_model

from fastich.artifact import read_manifest, write_manifest
from fastich.errors import ArtifactError, CheckpointError, UsageError
from fastich.simulation.scores import Measured, of_evaluation, of_model, of_rates


def evaluation(folder: Path, bleed: list[int], p_any: list[float], threshold: float = 0.4) -> Path:
    folder.mkdir(exist_ok=True)
    pd.DataFrame({"any": bleed, "p_any": p_any}).to_parquet(folder / "studies.parquet")
    (folder / "study-thresholds.json").write_text(json.dumps({"thresholds": {"any": threshold}}))
    return folder


def test_two_normal_curves_have_the_rates_that_they_are_drawn_through() -> None:
    model, rng = of_rates(0.93, 0.88, "test"), np.random.default_rng(0)
    said = {bleed: model.draw(np.full(40_000, bleed), rng) >= model.threshold for bleed in (True, False)}
    assert said[True].mean() == pytest.approx(0.93, abs=0.006)
    assert said[False].mean() == pytest.approx(0.12, abs=0.007)
    moved = model.draw(np.full(40_000, False), rng) >= model.threshold_at(0.03)
    assert moved.mean() == pytest.approx(0.03, abs=0.004)


@pytest.mark.parametrize(("sensitivity", "specificity", "name"), [(1, 0.9, "sensitivity"), (0.9, 0, "specificity")])
def test_rates_of_0_and_1_have_no_curves(sensitivity: float, specificity: float, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: expected more than 0 and less than 1"):
        of_rates(sensitivity, specificity, "test")


def test_measured_scores_are_drawn_within_their_class(tmp_path: Path) -> None:
    model = of_evaluation(evaluation(tmp_path / "e", [1, 1, 0, 0], [0.9, 0.3, 0.1, 0.2]), None)
    assert model.threshold == 0.4
    assert "2 studies with and 2 without a bleed of e, cut at 0.4" in model.origin
    bleed = np.arange(200) % 2 == 0
    drawn = model.draw(bleed, np.random.default_rng(0))
    assert set(drawn[bleed]) == {0.9, 0.3}
    assert set(drawn[~bleed]) == {0.1, 0.2}
    assert of_evaluation(tmp_path / "e", 0.25).threshold == 0.25


def test_threshold_of_a_share_of_false_alarms_by_hand() -> None:
    model = Measured(with_bleed=np.ones(1), without=np.arange(10) / 10, threshold=0.5, origin="")
    for rate, alarms in ((0.1, 1), (0.3, 3), (0.29, 2), (0.0, 0), (1.0, 10)):
        assert int((model.without >= model.threshold_at(rate)).sum()) == alarms


def test_an_evaluation_of_one_class_or_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected studies with and without a bleed, found 0 of 2 with one"):
        of_evaluation(evaluation(tmp_path / "e", [0, 0], [0.1, 0.2]), None)
    with pytest.raises(CheckpointError, match=r"studies\.parquet: expected what fastich\.evaluate writes"):
        of_evaluation(tmp_path / "none", None)


def model_with(folder: Path, metrics: object) -> Path:
    write_model(folder)
    artifact = read_manifest(folder)
    object.__setattr__(artifact, "metrics", metrics)
    write_manifest(folder, artifact)
    return folder


def studies(sensitivity: float | None, specificity: float | None) -> dict[str, object]:
    rates = {"sensitivity": sensitivity, "specificity": specificity}
    return {"studies": {name: {"any": {"value": value}} for name, value in rates.items()}}


def test_model_json_gives_the_operating_point_of_studies(tmp_path: Path) -> None:
    model = of_model(model_with(tmp_path / "m", studies(0.9, 0.8)))
    assert (model.sensitivity, model.specificity) == (0.9, 0.8)
    assert "sensitivity 0.9 and specificity 0.8 (model.json of m)" in model.origin


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (None, "expected the sensitivity of studies in model.json's metrics, found none"),
        (studies(0.9, None), "expected the specificity of studies in model.json's metrics, found none"),
        (studies(1.0, 0.9), "its sensitivity of studies is 1, through which no normal curves go; give --evaluation"),
    ],
)
def test_a_model_without_rates_of_studies_is_refused(tmp_path: Path, metrics: object, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        of_model(model_with(tmp_path / "m", metrics))
