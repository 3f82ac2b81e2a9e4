"""Percentiles as the lab counts them."""

import math
from collections.abc import Sequence


def percentile_of(values: Sequence[float], percentile: float) -> float:
    """The nearest-rank percentile (0 to 100); NaN of nothing."""
    if not values:
        return math.nan
    ranked = sorted(values)
    return ranked[max(0, math.ceil(percentile / 100 * len(ranked)) - 1)]
