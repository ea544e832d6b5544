"""What a quantizer makes of a histogram: the expected squared error of a value in each bin."""

from __future__ import annotations

import numpy as np

from taqdit.quantizer import Quantizer

NARROW = 1e-6  # of a level: narrower bins are taken as one value
_AT_ONCE = 64  # quantizers: what of them is under way fits in a core's cache


def bin_errors(left: np.ndarray, right: np.ndarray, quantizer: Quantizer) -> np.ndarray:
    """Mean of (x - rounded(x))^2 for x spread evenly over each bin, (Q, k).

    `left`, `right` (k,) are the bins' edges; the quantizer's arrays are (Q,). Rounding and
    clipping are integrated exactly: between two codes the error is the square of the distance to
    the nearer one, beyond the first and the last code that to them.
    """
    edges, place = np.unique(np.concatenate([left, right]), return_inverse=True)  # most are shared
    begins, ends = np.split(place, 2)
    firsts = range(0, len(quantizer.scale), _AT_ONCE)
    parts = [slice(first, first + _AT_ONCE) for first in firsts]
    groups = [Quantizer(quantizer.scale[i], quantizer.zero_point[i], quantizer.bits) for i in parts]
    return np.concatenate([_bin_errors(edges, begins, ends, group) for group in groups])


def _bin_errors(
    edges: np.ndarray, begins: np.ndarray, ends: np.ndarray, quantizer: Quantizer
) -> np.ndarray:
    """`bin_errors` (Q, k) of bins [edges[begins], edges[ends]]; `begins`, `ends` (k,) int64."""
    left, right = edges[begins], edges[ends]
    scale = quantizer.scale[:, None]
    lowest = -quantizer.zero_point[:, None]
    highest = lowest + 2**quantizer.bits - 1
    width = (right - left) / scale
    until = _integral(edges / scale, lowest, highest)
    errors = until[:, ends] - until[:, begins]
    narrow = np.nonzero(width <= NARROW)
    width[narrow] = 1
    errors /= width
    middle = ((left + right) / 2)[narrow[1]] / quantizer.scale[narrow[0]]
    codes = np.clip(np.rint(middle), lowest[narrow[0], 0], highest[narrow[0], 0])
    errors[narrow] = np.square(middle - codes)
    return errors * scale**2


def _integral(u: np.ndarray, lowest: np.ndarray, highest: np.ndarray) -> np.ndarray:
    """Integral of the squared error up to u, in levels of the quantizer (less a constant)."""
    code = np.rint(u)
    np.clip(code, lowest, highest, out=code)
    apart = u - code
    code /= 12
    return code + apart * apart * apart / 3
