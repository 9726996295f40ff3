"""Do two forms of one model say the same? Largest differences and flipped decisions, on real-looking HU. Numpy only.

It costs each form's own time on the slices that it is given, 32 by default.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.artifact import Thresholds
from fastich.errors import ArtifactError
from fastich.types import HuArray

MAX_PROBABILITY_DIFFERENCE = 1e-3
MAX_LOGIT_DIFFERENCE = 1e-2
"""Measured differences are near 1e-5 (float32 sums in another order): these limits catch mistakes, not rounding."""
PARITY_BATCH = 8

Answer = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Probability and logit, float32 [N, 6] each."""
Runner = Callable[[HuArray], Answer]


def parity(runners: Mapping[str, Runner], batches: list[HuArray], thresholds: Thresholds) -> dict[str, dict[str, Any]]:
    """How far each pair of ``runners`` is apart on ``batches``: ``{"model.onnx vs torch": {...}}``.

    ``max_abs_logit`` and ``max_abs_probability`` over all labels; ``flips_at_half`` and ``flips_at_thresholds`` count
    decisions (slice, label) that differ at 0.5 and at ``thresholds``, of ``num_slices`` x 6.
    """
    answers: dict[str, Answer] = {}
    for name, ask in runners.items():
        probability, logit = (np.concatenate(part) for part in zip(*map(ask, batches), strict=True))
        answers[name] = probability, logit
    return {
        f"{second} vs {first}": difference(answers[first], answers[second], thresholds)
        for first, second in itertools.combinations(answers, 2)
    }


def difference(first: Answer, second: Answer, thresholds: Thresholds) -> dict[str, Any]:
    """What ``parity`` says of one pair."""
    (p_first, logit_first), (p_second, logit_second) = first, second
    return {
        "num_slices": len(p_first),
        "max_abs_logit": float(np.abs(logit_first - logit_second).max()),
        "max_abs_probability": float(np.abs(p_first - p_second).max()),
        "flips_at_half": _flips(p_first, p_second, 0.5),
        "flips_at_thresholds": _flips(p_first, p_second, np.asarray(thresholds.values)),
    }


def worse_of(slices: Mapping[str, Any], studies: Mapping[str, Any]) -> dict[str, Any]:
    """What ``parity`` says of a sequence model, from the differences of its slices and of its studies."""
    worst = {key: max(slices[key], studies[key]) for key in ("max_abs_logit", "max_abs_probability")}
    flips = {key: slices[key] + studies[key] for key in ("flips_at_half", "flips_at_thresholds")}
    return {"num_slices": slices["num_slices"], "num_studies": studies["num_slices"]} | worst | flips


def _flips(first: NDArray[np.float32], second: NDArray[np.float32], threshold: float | NDArray[np.float64]) -> int:
    return int(((first.astype(np.float64) >= threshold) != (second.astype(np.float64) >= threshold)).sum())


def check_parity(report: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a file that does not say what the network says.

    A decision can then flip only where the probability lies within ``MAX_PROBABILITY_DIFFERENCE`` of its threshold.

    Raises:
        ArtifactError: a difference is over its limit or is not a number.
    """
    limits = {"max_abs_probability": MAX_PROBABILITY_DIFFERENCE, "max_abs_logit": MAX_LOGIT_DIFFERENCE}
    for pair, found in report.items():
        for key, limit in limits.items():
            if not found[key] <= limit:
                raise ArtifactError(
                    f"parity {pair}: expected {key} up to {limit:g}, found {found[key]:g} "
                    f"on {found['num_slices']} slices; nothing was written"
                )


def batches_of(slices: list[HuArray]) -> Iterator[HuArray]:
    """Stack slices of equal size, at most ``PARITY_BATCH`` at a time, in order."""
    for _, equal in itertools.groupby(slices, key=lambda hu: hu.shape):
        same = list(equal)
        for start in range(0, len(same), PARITY_BATCH):
            yield np.stack(same[start : start + PARITY_BATCH])


def synthetic_heads(count: int, seed: int = 0) -> list[HuArray]:
    """``count`` slices that exercise every window: skull, brain, ventricles, noise, a bleed in every other one.

    Three of four are 512 x 512 px, then some are 400 x 340 px, so that free sizes and padding are exercised too.
    """
    random = np.random.default_rng([seed, count])
    small = count // 4
    return [_head(random, (400, 340) if i >= count - small else (512, 512), bleed=i % 2 == 0) for i in range(count)]


def _head(random: np.random.Generator, shape: tuple[int, int], *, bleed: bool) -> HuArray:
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    radius = np.hypot(y / random.uniform(0.75, 0.9), x / random.uniform(0.6, 0.75))
    hu = np.where(radius < 1, 1100.0, -1000.0)
    hu[radius < 0.93] = 33
    hu[np.hypot(y / 0.3, (np.abs(x) - 0.12) / 0.07) < 1] = 8
    if bleed:
        row, column, size = random.uniform(-0.4, 0.4), random.uniform(-0.3, 0.3), random.uniform(0.05, 0.25)
        hu[np.hypot(y - row, x - column) < size] = random.uniform(55, 85)
    hu += random.normal(0, 5, shape)
    return np.rint(hu).astype(np.int16)
