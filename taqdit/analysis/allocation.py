"""What error an average number of bits buys, and how bits are given out one after the other.

SQNR is in dB, (S, 3): a row per site or linear, a column per width as in `quantizer.BITS`. Errors
of independent layers add up as noise-to-signal ratios 10^(-SQNR / 10), not as decibels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from taqdit.analysis.weights import GRANULARITIES
from taqdit.quantizer import BITS

if TYPE_CHECKING:
    from taqdit.analysis.analyse import Analysis

Point = tuple[float, float]  # mean bits, dB


def greedy(sqnr: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean bits and dB as sites (S, 3) get more bits: all start at the fewest, and the next step up
    goes to the site whose noise-to-signal ratio falls most (marginal analysis: Fox, Management
    Science 13, 1966). Sites without numbers are left out; two empty lists if none is left."""
    known = sqnr[~np.isnan(sqnr).any(axis=1)]
    if not len(known):
        return [], []
    widths = BITS[::-1]
    noise = noise_to_signal(known[:, ::-1])
    gains = -np.diff(noise, axis=1)
    # a site's second step up comes after its first, and at once if it gains more
    order = np.argsort(-np.minimum.accumulate(gains, axis=1), axis=None, kind="stable")
    added = np.tile(np.diff(widths), len(known))[order]
    bits = widths[0] + np.append(0, np.cumsum(added)) / len(known)
    # summed from the end, where the noise is least, so that nothing is lost to rounding
    left = np.cumsum(np.append(noise[:, -1].sum(), gains.ravel()[order][::-1]))[::-1]
    return bits.tolist(), signal_to_noise(left / len(known)).tolist()


def mean_decibel(sqnr: np.ndarray) -> float:
    """SQNR of the mean noise-to-signal ratio of layers, dB, from theirs: what their errors add up
    to. NaN are left out; NaN if there is no other."""
    known = sqnr[~np.isnan(sqnr)]
    return float(signal_to_noise(noise_to_signal(known).mean())) if len(known) else float("nan")


def noise_to_signal(sqnr: np.ndarray) -> np.ndarray:
    """Noise-to-signal ratio, float64, of an SQNR in dB; 0 where that is Inf."""
    return 10 ** (-np.asarray(sqnr, np.float64) / 10)


def signal_to_noise(noise: np.ndarray) -> np.ndarray:
    """SQNR in dB of a noise-to-signal ratio; Inf where that is 0."""
    with np.errstate(divide="ignore"):
        return -10 * np.log10(noise)


def weight_sqnr(analysis: Analysis) -> np.ndarray | None:
    """SQNR of the weights (L, 3) dB at the granularity that the widths were chosen for; None where
    no weights were analysed."""
    if analysis.weights is None:
        return None
    granularity = analysis.bits.granularity or GRANULARITIES[0]
    return analysis.weights.sqnr[:, GRANULARITIES.index(granularity)]


def suggested(analysis: Analysis) -> list[Point]:
    """Where the suggested widths lie: of the sites, then of the weights if these were analysed."""
    layers = analysis.bits.layers
    widths = {layer.site: layer.activation_bits for layer in layers if layer.activation_bits}
    names = [site.name for site in analysis.outliers.sites]
    points = [_point(analysis.comparison.scores.oracle, names, widths)]
    if analysis.weights is not None and (weights := weight_sqnr(analysis)) is not None:
        widths = {layer.layer: layer.weight_bits for layer in layers if layer.weight_bits}
        points.append(_point(weights, analysis.weights.layers, widths))
    return points


def _point(sqnr: np.ndarray, names: Sequence[str], widths: Mapping[str | None, int]) -> Point:
    """Mean bits and dB of the rows that have a width by their name; NaN if none has."""
    rows = [row for row, name in enumerate(names) if name in widths]
    if not rows:
        return float("nan"), float("nan")
    bits = [widths[names[row]] for row in rows]
    chosen = sqnr[rows, [BITS.index(width) for width in bits]]
    return float(np.mean(bits)), mean_decibel(chosen)
