"""The learning rate as a pure function of the step: nothing to save, so nothing to get wrong on resume."""

import math

WARMUP_SHARE = 0.2
START_DIVISOR, END_DIVISOR = 25.0, 1000.0
"""One cycle from peak / 25 up to peak, then down to peak / 1000, both by cosine.

Source: Smith, "Super-Convergence", arXiv 1708.07120; the cosine form is torch.optim.lr_scheduler.OneCycleLR's.
"""


def learning_rate(schedule: str, peak: float, step: int, num_steps: int) -> float:
    """The rate of ``step`` (from 0) out of ``num_steps``: ``constant`` is the study's, ``one-cycle`` rises, falls."""
    if schedule == "constant":
        return peak
    num_warmup = max(1, round(WARMUP_SHARE * num_steps))
    if step < num_warmup:
        return _cosine(peak / START_DIVISOR, peak, step / num_warmup)
    return _cosine(peak, peak / END_DIVISOR, (step - num_warmup) / max(1, num_steps - num_warmup))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
