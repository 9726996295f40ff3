"""The six labels, their order, and the rule that binds them.

The order is that of the RSNA 2019 challenge's table and is the same in records, checkpoints, exports and reports.
Source: https://www.kaggle.com/competitions/rsna-intracranial-hemorrhage-detection/data
"""

import numpy as np
from numpy.typing import NDArray

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
LABELS = (*SUBTYPES, "any")
NUM_LABELS = len(LABELS)
ANY = LABELS.index("any")
UNKNOWN = -1
"""Stands in all six places of a slice whose label is not known."""

CHALLENGE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 1.0, 2.0)
"""Weights of the challenge's mean log loss, in label order (any counts twice)."""


def any_is_consistent(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tell for each row of ``labels`` [N, 6] whether ``any`` is the OR of the five subtypes."""
    return np.asarray(labels[:, :ANY].max(axis=1) == labels[:, ANY], dtype=np.bool_)


def enforce_any(probability: NDArray[np.floating]) -> NDArray[np.floating]:
    """Raise p(any) of ``probability`` [N, 6] to at least the largest subtype's (returns a copy)."""
    out = probability.copy()
    out[:, ANY] = np.maximum(out[:, ANY], out[:, :ANY].max(axis=1))
    return out
