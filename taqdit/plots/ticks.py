"""Ends and ticks of logarithmic axes and colour bars, as plain numbers."""

from __future__ import annotations

import numpy as np


def log_limits(values: np.ndarray, *, tight: bool = False) -> tuple[float, float]:
    """Ends of the values above zero, widened to 1, 2 or 5 times a power of ten; 1, 10 if none.

    `tight` keeps the very ends if three such marks lie between them.
    """
    positive = values[values > 0]
    if not len(positive):
        return 1.0, 10.0
    low, high = float(positive.min()), float(positive.max())
    if tight and len(log_marks(low, high, most=10_000)) >= 3:
        return low, high
    marks = np.array(log_marks(low / 10, 10 * high, most=10_000))
    low, high = marks[marks <= low].max(), marks[marks >= high].min()
    return float(low), float(high if low < high else 10 * low)


def log_marks(low: float, high: float, *, most: int = 10) -> list[float]:
    """At most so many ticks in low .. high: 1, 2, 5 times the powers of ten, or powers alone."""
    exponents = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    powers = 10.0**exponents
    marks = np.outer(powers, (1.0, 2.0, 5.0)).ravel()
    coarser = [powers[exponents % stride == 0] for stride in (1, 2, 4, 8, 16, 32)]
    for ticks in (marks, *coarser):
        inside = ticks[(ticks > low * (1 - 1e-9)) & (ticks < high * (1 + 1e-9))]
        if len(inside) <= most:
            break
    return inside.tolist()
