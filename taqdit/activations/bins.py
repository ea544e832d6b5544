"""Histogram bins from a float32's own bits: sign, exponent, and the first four mantissa bits.

A code is the top 13 bits: bit 12 the sign, bits 4..11 the exponent, bits 0..3 of the mantissa. So
every finite float32 has a bin, bins are at most 1/16 of their lower edge wide (below 2^-126 they
are 2^-130 wide), and codes of magnitudes are ordered as the magnitudes are. A row is the top 9
bits of a code: sign and exponent, with 16 bins.
"""

from __future__ import annotations

import numpy as np

SHIFT = 19  # float32 bits below a code
SIGN_BIT = 12  # of a code
SIGN = 1 << SIGN_BIT
BINS = 1 << 13
PER_ROW = 16
ROWS = BINS // PER_ROW
INFINITE = 255 * PER_ROW  # magnitude code of Inf; NaNs lie above


def edges_of(magnitudes: np.ndarray) -> np.ndarray:
    """Lower edge of the bin of each magnitude code, float64; a bin ends where the next begins."""
    bits = np.asarray(magnitudes, np.uint32) << np.uint32(SHIFT)
    return bits.view(np.float32).astype(np.float64)


def octave_of(magnitudes: np.ndarray) -> np.ndarray:
    """Biased exponent of non-negative float32 numbers, int32: 1 .. 254, 0 below 2^-126."""
    return (np.ascontiguousarray(magnitudes, np.float32).view(np.uint32) >> 23).astype(np.int32)


def bounds_of(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edge of bins that are numbered in the order of their values.

    Bin k > 0 holds the magnitude code k, bin -k its negative; bin 0 reaches both ways from zero.
    """
    inner, outer = edges_of(np.abs(ordered)), edges_of(np.abs(ordered) + 1)
    low = np.where(ordered > 0, inner, -outer)
    high = np.where(ordered < 0, -inner, outer)
    return low, high
