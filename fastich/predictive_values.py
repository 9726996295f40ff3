"""What a positive or negative answer means where a site works: PPV and NPV at a local prevalence. No library at all.

Apart from ``operating_points`` because the server shows it and must not load scikit-learn. Source: Bayes.
"""


def ppv_npv(
    sensitivity: float | None, specificity: float | None, prevalence: float
) -> tuple[float | None, float | None]:
    """Positive and negative predictive value at a local prevalence, by Bayes; ``None`` where undefined.

    Raises:
        ValueError: a value lies outside 0..1.
    """
    for name, value in (("sensitivity", sensitivity), ("specificity", specificity), ("prevalence", prevalence)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name}: expected 0 to 1, found {value}")
    if sensitivity is None or specificity is None:
        return None, None
    hits, alarms = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    misses, rejections = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
    return _ratio(hits, alarms), _ratio(rejections, misses)


def _ratio(right: float, wrong: float) -> float | None:
    return right / (right + wrong) if right + wrong > 0 else None
