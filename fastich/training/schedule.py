"""The learning rate as a pure function of the step: nothing to save, so nothing to get wrong on resume."""

import math

SCHEDULES = ("constant", "one-cycle", "cosine")
WARMUP_SHARE = 0.2
START_DIVISOR, END_DIVISOR = 25.0, 1000.0
"""One cycle from peak / 25 up to peak, then down to peak / 1000, both by cosine.

Source: Smith, "Super-Convergence", arXiv 1708.07120; the cosine form is torch.optim.lr_scheduler.OneCycleLR's.
"""


def learning_rate(schedule: str, peak: float, step: int, num_steps: int, num_warmup: int = 0) -> float:
    """The rate of ``step`` (from 0) out of ``num_steps``.

    ``constant`` is the study's, ``one-cycle`` rises and falls, ``cosine`` rises over ``num_warmup`` steps in a straight
    line to ``peak`` and falls to 0.

    Source: Loshchilov and Hutter, "SGDR", arXiv 1608.03983 (cosine, one cycle of it); Goyal et al., arXiv 1706.02677,
    section 2.2 (gradual warm-up).
    """
    if schedule == "constant":
        return peak
    if schedule == "cosine":
        if step < num_warmup:
            return peak * (step + 1) / num_warmup
        return _cosine(peak, 0.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    num_rising = max(1, round(WARMUP_SHARE * num_steps))
    if step < num_rising:
        return _cosine(peak / START_DIVISOR, peak, step / num_rising)
    return _cosine(peak, peak / END_DIVISOR, (step - num_rising) / max(1, num_steps - num_rising))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
