"""What a study scores, from its slices alone: the rules that a learned study head must beat.

Each takes the probabilities of one study's slices [n, 6] in any order and gives [6], with p(any) at least the largest
subtype's. The largest slice is hard to beat on thick slices and grows with their number; the mean of the k largest
forgives one bad slice; noisy-or takes slices for independent witnesses, which they are not, so it is near 1 for long
studies. Microseconds a study; numpy only, for training and serving both use it.
"""

import numpy as np
from numpy.typing import NDArray

from fastich.labels import enforce_any

Floats = NDArray[np.float64]
TOP_K = 3
_LARGEST_BELOW_ONE = 1 - 1e-15
"""The clip of the challenge's metric; keeps the logarithm finite."""


def largest(probability_N6: NDArray[np.floating]) -> Floats:
    """The largest probability of each label, [6]."""
    return _with_any(probability_N6.max(axis=0))


def top_k_mean(probability_N6: NDArray[np.floating], k: int = TOP_K) -> Floats:
    """Mean of the ``k`` largest probabilities of each label (of all, where there are fewer), [6]."""
    return _with_any(np.sort(probability_N6, axis=0)[::-1][:k].mean(axis=0))


def noisy_or(probability_N6: NDArray[np.floating]) -> Floats:
    """1 - prod(1 - p) over the slices, [6]: the chance that one slice shows it, were they independent."""
    doubt = np.log1p(-np.minimum(probability_N6.astype(np.float64), _LARGEST_BELOW_ONE))
    return _with_any(-np.expm1(doubt.sum(axis=0)))


def _with_any(probability_6: NDArray[np.floating]) -> Floats:
    return np.asarray(enforce_any(probability_6.astype(np.float64)[None])[0], dtype=np.float64)
