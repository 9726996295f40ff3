import pytest

from fastich.artifact import Thresholds
from fastich.errors import ArtifactError
from fastich.study_contract import StudyPart, from_document, to_document

PART = StudyPart(
    variant="difference",
    embedding_size=7,
    weights_sha256="ab" * 32,
    cnn_weights_sha256="cd" * 32,
    slice_thresholds=Thresholds(values=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), rule="max-f1 on val"),
    study_thresholds=Thresholds(values=(0.6, 0.5, 0.4, 0.3, 0.2, 0.1), rule="sensitivity 0.95 on val"),
    triage={"alpha": 0.1},
    metrics={"auc": 1.0},
    config={"epochs": 3},
)


def test_what_was_written_is_what_is_read() -> None:
    assert from_document(to_document(PART), "model.json") == PART


def test_document_states_the_tensors_with_their_sizes() -> None:
    document = to_document(PART)
    assert [spec["shape"] for spec in document["inputs"]] == [("L", 7), ("L", 6), ("L",)]
    assert [spec["name"] for spec in document["outputs"]] == [
        "slice_probability",
        "study_probability",
        "slice_logit",
        "study_logit",
    ]


@pytest.mark.parametrize("key", ["file", "variant", "thresholds", "calibration", "triage", "cnn_weights_sha256"])
def test_document_without_a_field_is_refused(key: str) -> None:
    document = to_document(PART)
    del document[key]
    with pytest.raises(ArtifactError, match=rf"model\.json: damaged, study: KeyError '{key}'; export again"):
        from_document(document, "model.json")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"file": "other.onnx"}, "ValueError file: expected study.onnx, found 'other.onnx'"),
        ({"thresholds": {"slices": {"rule": "x", "values": {}}}}, "ValueError thresholds: expected one for each label"),
        ({"embedding_size": None}, "TypeError"),
    ],
)
def test_document_with_a_wrong_value_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ArtifactError, match=f"damaged, study: {message}"):
        from_document(to_document(PART) | changed, "model.json")
