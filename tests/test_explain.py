import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from small_dense import SIZE, SmallDense, write_folder
from toy_model import write_model

from fastich import class_maps, explain
from fastich.dicom import read_file
from fastich.errors import FastichError, UsageError
from fastich.explain import FINDINGS_FILE, INDEX_FILE, ExplainConfig, main
from fastich.labels import LABELS
from fastich.models.onnx_graph import onnx_bytes
from fastich.models.serving import Front, ServingModel
from fastich.phantom import PhantomConfig, generate
from fastich.pointing import SUBJECTS
from fastich.report.html import render_explanation
from fastich.report.overlay import Overlay, draw
from fastich.score import ScoreConfig, score
from fastich.serve.session import open_session
from fastich.windowing import DEFAULT_WINDOWS


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom")
    generate(PhantomConfig(out=out, studies=3, size=64, healthy=0.3, seed=5))
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    network = SmallDense()
    write_folder(folder, onnx_bytes(ServingModel(Front(SIZE, DEFAULT_WINDOWS, False), network)))
    document = json.loads((folder / "model.json").read_text())
    document["outputs"][2]["shape"][1] = network.embedding_size
    values = dict(zip(LABELS, (0.0, 1.0, 0.4, 0.4, 0.4, 0.0), strict=True))
    document["thresholds"] = {"rule": "made for a test", "values": values}
    (folder / "model.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def written(phantom: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out") / "pages"
    config = ExplainConfig(model=model, out=out, masks=phantom / "masks", batch_size=7)
    return out, explain.explain([phantom / "stage_2_train"], config)


def test_findings_are_the_labels_that_score_finds_on_their_likeliest_slices(
    written: tuple[Path, dict[str, Any]], phantom: Path, model: Path
) -> None:
    _, report = written
    scored = score([phantom / "stage_2_train"], open_session(model), ScoreConfig(model=model))
    rows = {row["study_uid"]: row for row in scored["studies"]}
    assert {study["study_uid"] for study in report["studies"]} == rows.keys()
    for study in report["studies"]:
        row = rows[study["study_uid"]]
        assert [finding["label"] for finding in study["findings"]] == row["findings"]
        slices = row["series"][0]["slices"]
        for finding in study["findings"]:
            values = [one["probability"][finding["label"]] for one in slices]
            chosen = slices[finding["slice"]["number"] - 1]
            assert chosen["sop_uid"] == finding["slice"]["sop_uid"]
            assert finding["slice"]["probability"] == pytest.approx(max(values))
            assert finding["probability"] == pytest.approx(row["probability"][finding["label"]])
            assert finding["slice"]["z_mm"] == chosen["z_mm"]
    assert sum(len(study["findings"]) for study in report["studies"]) > len(report["studies"])


def test_every_finding_has_a_picture_and_no_id_is_in_its_name(written: tuple[Path, dict[str, Any]]) -> None:
    out, report = written
    named = [finding["picture"] for study in report["studies"] for finding in study["findings"]]
    assert sorted(named) == sorted(f"pictures/{path.name}" for path in (out / "pictures").iterdir())
    assert all(re.fullmatch(r"pictures/study-\d{4}-[a-z]+\.png", name) for name in named)
    assert all(imread(out / name).std() > 0.05 for name in named)


def test_peak_is_that_of_the_graphs_own_class_map(written: tuple[Path, dict[str, Any]], model: Path) -> None:
    _, report = written
    finding = report["studies"][0]["findings"][0]
    hu = read_file(Path(finding["slice"]["path"]))[0].hu
    cam = open_session(model).run(hu[None]).cam[0, LABELS.index(finding["label"])]
    expected = class_maps.peak(class_maps.to_slice(cam, (64, 64)), class_maps.head(hu))
    assert (finding["peak"]["row"], finding["peak"]["column"]) == expected
    assert report["map_cells"] == list(cam.shape)


def test_pointing_counts_the_slices_that_carry_each_label(written: tuple[Path, dict[str, Any]], phantom: Path) -> None:
    _, report = written
    lines = (phantom / "stage_2_train.csv").read_text().splitlines()[1:]
    counts = {label: sum(line.endswith(f"_{label},1") for line in lines) for label in LABELS}
    assert sum(counts.values()) > 0
    for label, count in counts.items():
        found = report["pointing"]["labels"][label][SUBJECTS[0]]
        assert (0 if found is None else found["num_slices"]) == count, label
    assert report["pointing"]["tolerance_mm"] == 10


def test_folder_holds_the_page_and_findings_last(written: tuple[Path, dict[str, Any]]) -> None:
    out, report = written
    assert json.loads((out / FINDINGS_FILE).read_text()) == report
    page = (out / INDEX_FILE).read_text()
    for study in report["studies"]:
        assert study["study_uid"] in page
        assert all(finding["picture"] in page for finding in study["findings"])
    assert "research use only, not a medical device" in page
    assert "<script" not in page


def test_page_escapes_what_comes_from_files(written: tuple[Path, dict[str, Any]]) -> None:
    report = json.loads(json.dumps(written[1]))
    report["studies"][0]["study_uid"] = "<script>1</script>"
    report["not_scored"] = [{"path": "<b>", "reason": "r", "detail": '"><img src=x>'}]
    page = render_explanation(report, SUBJECTS)
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;1&lt;/script&gt;" in page


def test_main_prints_counts_and_rates(
    phantom: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(model), "--out", str(tmp_path / "o"), str(phantom / "stage_2_train")]
    assert main([*words, "--masks", str(phantom / "masks")]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("3 studies, 3 with a finding, ")
    assert "do class maps point at the masks?" in shown.out
    assert "undefined: no positives" in shown.out
    assert shown.err.splitlines()[-1] == f"pages: {tmp_path / 'o' / INDEX_FILE}"
    with pytest.raises(UsageError, match="exists and is not empty"):
        main(words)
    assert main([*words, "--overwrite"]) == 0
    assert "masks" not in capsys.readouterr().out


def test_folder_without_slices_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "note").write_text("hello")
    with pytest.raises(FastichError, match=r"in: expected CT slices, found none among 1 files"):
        explain.explain([tmp_path / "in"], ExplainConfig(model=tmp_path / "model", out=tmp_path / "o"))
    assert not (tmp_path / "o").exists()


def test_masks_of_another_size_are_refused(phantom: Path, model: Path, tmp_path: Path) -> None:
    for path in (phantom / "masks").iterdir():
        with np.load(path) as file:
            np.savez(tmp_path / path.name, masks=file["masks"][:, ::2], sop_uids=file["sop_uids"])
    config = ExplainConfig(model=model, out=tmp_path / "o", masks=tmp_path)
    with pytest.raises(FastichError, match=r"expected a pixel spacing and a mask of \[64, 64\], found .*\[32, 64\]"):
        explain.explain([phantom / "stage_2_train"], config)


@pytest.mark.parametrize(("field", "value"), [("batch_size", 0), ("tolerance_mm", -1.0), ("tolerance_mm", np.nan)])
def test_values_that_mean_nothing_are_bad_usage(field: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} must be >= "):
        ExplainConfig(model=Path("m"), out=Path("o"), **{field: value})  # type: ignore[arg-type]


def picture(map_HW: np.ndarray, mask: np.ndarray | None = None, title: str = "any") -> np.ndarray:
    hu = np.full((32, 32), 30, dtype=np.int16)
    made = Overlay(hu=hu, map_HW=map_HW, title=title, subtitle="slice 1", peak=(16, 16), mask_HW=mask)
    return imread(io.BytesIO(draw(made)))


def test_colour_lies_where_the_map_is_large() -> None:
    map_HW = np.zeros((32, 32))
    map_HW[:8] = 4.0
    shown = picture(map_HW)
    colour = shown[..., 0] - shown[..., 2]  # warm against grey
    right = colour[:, shown.shape[1] // 2 : int(shown.shape[1] * 0.9)]
    left = colour[:, : int(shown.shape[1] * 0.44)]
    assert right[: shown.shape[0] // 3].max() > 0.2
    assert left.max() < 0.1


def test_flat_map_titles_with_dollars_and_a_mask_can_be_drawn() -> None:
    mask = np.zeros((32, 32), dtype=bool)
    mask[4:9, 4:9] = True
    assert picture(np.zeros((32, 32)), mask, title="$x^2$ <b> _").std() > 0.05


def test_explain_loads_no_torch() -> None:
    code = "import sys, fastich.explain; print([m for m in ('torch', 'nvidia.dali', 'onnx') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
