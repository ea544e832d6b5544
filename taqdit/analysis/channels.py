"""Static quantizers per channel, from moments and extremes: uniform noise, nothing clipped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from taqdit.activations import StepStatistics
from taqdit.quantizer import BITS, decibel


def channel_sqnr(
    steps: Sequence[StepStatistics],
    site: int,
    chosen: Sequence[Sequence[int]],
    weights: np.ndarray,
) -> np.ndarray:
    """SQNR (R, 3) dB at BITS of a site whose channels have a scale each, from the range of every
    channel at the `chosen` steps of each of R selections.

    The error is taken as uniform over one level, scale^2 / 12, and nothing as clipped: narrower
    ranges always look better, so it compares granularities and not selections. The signal is that
    of all steps, weighted by `weights` (n,).
    """
    span = steps[0].layout.span(site)
    low = np.stack([step.low[span] for step in steps])
    high = np.stack([step.high[span] for step in steps])
    signal = float(np.average([_power(step, site) for step in steps], weights=weights))
    levels = 2.0 ** np.array(BITS) - 1
    decibels = []
    for selected in map(list, chosen):
        ends = low[selected].min(axis=0), high[selected].max(axis=0)
        least, most = (end.astype(np.float64) for end in ends)
        ranges = np.maximum(most, 0) - np.minimum(least, 0)
        noise = np.square(ranges[:, None] / levels).sum(axis=0) / 12
        decibels.append(decibel(signal, noise))
    return np.stack(decibels)


def _power(step: StepStatistics, site: int) -> float:
    """Mean square of every channel of a site, summed over the channels."""
    span = step.layout.span(site)
    count = step.tokens[site] - (step.missing[span] if len(step.missing) else 0)
    return float((step.mean[span] ** 2 + step.m2[span] / np.maximum(count, 1)).sum())
