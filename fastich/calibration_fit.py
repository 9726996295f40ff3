"""The two fits behind ``calibration.py``, of one label: a sigmoid by logistic regression, and a rising line by knots.

Shapes: N rows, C columns of the design. Milliseconds for 100,000 rows.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

Floats = NDArray[np.float64]

NEWTON_STEPS, NEWTON_TOLERANCE, RIDGE = 100, 1e-12, 1e-12
"""Newton on this convex loss needs about ten steps; the ridge (a row) only keeps a flat direction solvable."""
LEAST_DIFFERENCE = 2.0**-20
"""Logits nearer to each other than this millionth are one: a network's float32 sums tell no more."""


def smoothed_targets(num_positive: int, num_negative: int) -> tuple[float, float]:
    """What a positive and a negative count as, so that few of them never ask for certainty.

    Source: Platt 1999, section 2.2: (N+ + 1) / (N+ + 2) and 1 / (N- + 2).
    """
    return (num_positive + 1) / (num_positive + 2), 1 / (num_negative + 2)


def sigmoid_constants(logit_N: Floats, truth_N: NDArray[np.bool_], *, with_bias: bool) -> tuple[float, float]:
    """Scale and bias, as float32 holds them, that fit the smoothed targets best; the bias is 0 unless asked for.

    A scale of 0 where the logits do not differ.
    """
    high, low = smoothed_targets(int(truth_N.sum()), int((~truth_N).sum()))
    target_N = np.where(truth_N, high, low)
    centre = float(logit_N.mean()) if with_bias else 0.0
    spread = float(np.sqrt(np.mean((logit_N - centre) ** 2)))
    if spread < LEAST_DIFFERENCE:
        return 0.0, 0.0
    columns = [(logit_N - centre) / spread] + ([np.ones(len(logit_N))] if with_bias else [])
    weight_C = logistic_regression(np.stack(columns, axis=1), target_N)
    scale = float(np.float32(weight_C[0] / spread))
    return scale, float(np.float32(weight_C[1] - weight_C[0] * centre / spread)) if with_bias else 0.0


def logistic_regression(design_NC: Floats, target_N: Floats) -> Floats:
    """Weights [C] of the smallest log loss against soft targets in 0..1: Newton's method with halved steps.

    Source: Lin, Lin and Weng, "A note on Platt's probabilistic outputs for support vector machines", 2007.
    """
    weight_C = np.zeros(design_NC.shape[1])
    loss = _log_loss(design_NC @ weight_C, target_N)
    for _ in range(NEWTON_STEPS):
        p_N = expit(design_NC @ weight_C)
        gradient_C = design_NC.T @ (p_N - target_N)
        curvature_CC = (design_NC * (p_N * (1 - p_N))[:, None]).T @ design_NC
        step_C = np.linalg.solve(curvature_CC + RIDGE * len(target_N) * np.eye(len(weight_C)), gradient_C)
        size = 1.0
        while (lower := _log_loss(design_NC @ (weight_C - size * step_C), target_N)) > loss and size > RIDGE:
            size /= 2
        if loss - lower <= NEWTON_TOLERANCE * len(target_N):
            break
        weight_C, loss = weight_C - size * step_C, lower
    return weight_C


def _log_loss(score_N: Floats, target_N: Floats) -> float:
    return float(np.sum(np.logaddexp(0.0, score_N) - target_N * score_N))


def isotonic_knots(logit_N: Floats, truth_N: NDArray[np.bool_]) -> tuple[tuple[float, float], ...]:
    """Knots of the isotonic fit, held between the smoothed targets: it would call the ends 0 and 1 otherwise."""
    high, low = smoothed_targets(int(truth_N.sum()), int((~truth_N).sum()))
    fitted = IsotonicRegression(y_min=low, y_max=high, out_of_bounds="clip")
    apart_N = np.rint(logit_N / LEAST_DIFFERENCE) * LEAST_DIFFERENCE
    fitted.fit(apart_N.astype(np.float32).astype(np.float64), truth_N.astype(np.float64))
    x, y = fitted.X_thresholds_, fitted.y_thresholds_.astype(np.float32)
    return tuple((float(logit), float(probability)) for logit, probability in zip(x, y, strict=True))
