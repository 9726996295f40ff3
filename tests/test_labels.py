import numpy as np

from fastich import labels


def test_order_is_the_challenges() -> None:
    assert labels.LABELS == ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
    assert labels.ANY == 5
    assert sum(labels.CHALLENGE_WEIGHTS) == 7


def test_any_must_be_the_or_of_the_subtypes() -> None:
    rows = np.array([[0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0]])
    assert labels.any_is_consistent(rows).tolist() == [True, True, False, False]


def test_any_is_raised_to_the_largest_subtype_and_never_lowered() -> None:
    probability = np.array([[0.1, 0.9, 0.2, 0.0, 0.0, 0.5], [0.1, 0.1, 0.1, 0.1, 0.1, 0.8]])
    out = labels.enforce_any(probability)
    assert out[:, 5].tolist() == [0.9, 0.8]
    assert probability[0, 5] == 0.5, "the input is left as it was"
