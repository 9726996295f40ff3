"""The submission file: every slice, six rows, the sample's order, and the score that the challenge would give it."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from fastich import metrics, rsna
from fastich.errors import LabelError, RecordError
from fastich.labels import ANY, LABELS
from fastich.submission import arrange, packed_ids, read_names, rejected_ids, write

IDS = ["ID_00a", "ID_00b", "ID_00c"]
EVERY_ROW = [f"{name}_{label}" for name in IDS for label in LABELS]


def written(path: Path) -> dict[str, float]:
    with path.open(newline="", encoding="utf-8") as handle:
        return {line["ID"]: float(line["Label"]) for line in csv.DictReader(handle)}


def challenge_score(path: Path, truth: dict[str, int]) -> float:
    """The challenge's score of a file, from its description: log loss over all rows, those of any weigh double."""
    found = written(path)
    assert found.keys() == truth.keys()
    weights = [2.0 if name.endswith("_any") else 1.0 for name in truth]
    return float(log_loss(list(truth.values()), [found[name] for name in truth], sample_weight=weights, labels=[0, 1]))


def test_file_of_labels_parses_back_with_the_reader_of_the_challenges_table(tmp_path: Path) -> None:
    labels = np.array([[0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1]])
    write(tmp_path / "a.csv", arrange(IDS, [], None, ""), labels.astype(np.float64))
    assert (tmp_path / "a.csv").read_text().splitlines()[:2] == ["ID,Label", "ID_00a_epidural,0"]
    table = rsna.read_labels(tmp_path / "a.csv")
    assert table.ids.tolist() == IDS
    assert table.labels.tolist() == labels.tolist()
    assert not table.num_duplicates


@pytest.mark.parametrize("seed", range(3))
def test_challenges_score_is_log_loss_weighted(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = [f"ID_{number:x}" for number in range(200)]
    subtypes = (rng.random((200, 5)) < 0.1).astype(int)
    labels = np.concatenate([subtypes, subtypes.max(axis=1, keepdims=True)], axis=1)
    said = 1 / (1 + np.exp(-rng.normal(0, 4, (200, 6))))
    said[:, ANY] = np.maximum(said[:, ANY], said[:, :ANY].max(axis=1))
    write(tmp_path / "a.csv", arrange(ids, [], None, ""), said)
    truth = {f"{name}_{label}": int(labels[i, j]) for i, name in enumerate(ids) for j, label in enumerate(LABELS)}
    assert metrics.log_loss_weighted(labels, said) == pytest.approx(
        challenge_score(tmp_path / "a.csv", truth), rel=1e-6
    )


def test_rows_stand_in_the_order_of_the_sample(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(len(EVERY_ROW))
    rows = [EVERY_ROW[i] for i in order]
    (tmp_path / "sample.csv").write_text("ID,Label\n" + "".join(f"{row},0.5\n" for row in rows))
    said = np.arange(18).reshape(3, 6) / 100
    layout = arrange(IDS, [], read_names(tmp_path / "sample.csv"), "sample.csv")
    write(tmp_path / "a.csv", layout, said)
    assert written(tmp_path / "a.csv") == dict(zip(rows, said.reshape(-1)[order], strict=True))
    assert list(written(tmp_path / "a.csv")) == rows


def test_rejected_slices_follow_the_packed_ones() -> None:
    layout = arrange(IDS[:2], [IDS[2]], None, "")
    assert layout.names.tolist() == EVERY_ROW
    assert layout.left_out == (IDS[2],)
    assert layout.slices.tolist() == [0] * 6 + [1] * 6 + [2] * 6


def test_only_rejected_slices_of_the_sample_are_written(tmp_path: Path) -> None:
    layout = arrange([IDS[0]], ["ID_0ff", IDS[1]], EVERY_ROW[6:12] + EVERY_ROW[:6], "sample.csv")
    assert layout.left_out == (IDS[1],)
    said = np.stack([np.full(6, 0.25), np.full(6, 0.75)])
    write(tmp_path / "a.csv", layout, said)
    assert written(tmp_path / "a.csv") == dict.fromkeys(EVERY_ROW[6:12], 0.75) | dict.fromkeys(EVERY_ROW[:6], 0.25)


@pytest.mark.parametrize(
    ("packed", "rows", "message"),
    [
        (IDS[:2], EVERY_ROW, r"s.csv: row 14: expected only slices that were packed .*, found 'ID_00c_epidural'"),
        (
            IDS,
            EVERY_ROW[:12],
            "s.csv: expected rows for every packed slice, found none for ID_00c; is it another set's",
        ),
        (IDS, EVERY_ROW[:-1], "s.csv: expected each row once, found 0 of ID_00c_any"),
        (IDS, [*EVERY_ROW, EVERY_ROW[7]], "s.csv: expected each row once, found 2 of ID_00b_intraparenchymal"),
        (
            IDS,
            [*EVERY_ROW, "ID_00a_skull"],
            "s.csv: row 20: expected an ID that ends in one of epidural, .* 'ID_00a_skull'",
        ),
        (IDS, [*EVERY_ROW, "nonsense"], "s.csv: row 20: expected an ID that ends in one of epidural, .* 'nonsense'"),
    ],
)
def test_sample_that_does_not_fit_the_records_names_the_first_row(
    packed: list[str], rows: list[str], message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        arrange(packed, [], rows, "s.csv")


@pytest.mark.parametrize("content", [b"", b"a,b,c\n1,2,3\n", b"ID\nx\n", b"ID,Label\n1,2\n1,2,3,4\n", b"\xff\xfe\x00"])
def test_sample_that_is_no_such_table_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(LabelError, match=r"s\.csv: expected a CSV with the header ID,Label, found "):
        read_names(tmp_path / "s.csv")


def test_any_is_raised_and_tiny_probabilities_are_kept(tmp_path: Path) -> None:
    said = np.array([[1e-12, 0.5, 0, 0, 0, 0.25]])
    write(tmp_path / "a.csv", arrange(IDS[:1], [], None, ""), said)
    found = written(tmp_path / "a.csv")
    assert found["ID_00a_any"] == 0.5
    assert found["ID_00a_epidural"] == 1e-12


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.1, np.inf])
def test_values_that_are_no_probabilities_are_refused(tmp_path: Path, bad: float) -> None:
    with pytest.raises(ValueError, match="expected finite values from 0 to 1"):
        write(tmp_path / "a.csv", arrange(IDS[:1], [], None, ""), np.full((1, 6), bad))
    assert not (tmp_path / "a.csv").exists()


def index(sop_uids: list[str], sources: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"sop_uid": sop_uids, "source": sources})


def test_id_is_the_uid_or_the_files_name() -> None:
    assert packed_ids(index(["ID_01", "1.2.3"], ["x.dcm", "test/ID_02.dcm"]), Path("r")) == ["ID_01", "ID_02"]
    with pytest.raises(RecordError, match=r"r: expected slices of the challenge, .* found 1\.2\.4 \(b/c\.dcm\)"):
        packed_ids(index(["ID_01", "1.2.4"], ["a", "b/c.dcm"]), Path("r"))
    with pytest.raises(RecordError, match="expected each id once, found ID_01 twice"):
        packed_ids(index(["ID_01", "1.2.3"], ["a", "ID_01.dcm"]), Path("r"))


def test_rejected_files_of_the_challenge_are_found_by_name(tmp_path: Path) -> None:
    lines = ["notes.txt,not DICOM,", "a/ID_0aa.dcm,damaged pixels,short", "ID_0ab.dcm,x,", "b/ID_0aa.dcm,double,"]
    (tmp_path / "rejects.csv").write_text("\n".join(["path,reason,detail", *lines]))
    assert rejected_ids(tmp_path / "rejects.csv", ["ID_0ab"]) == ["ID_0aa"]
