"""Weights rounded to nearest: per output channel or per group of input weights, affine."""

from __future__ import annotations

import numpy as np

from taqdit.errors import require
from taqdit.quantizer import Quantizer


def round_to_nearest(weight: np.ndarray, *, bits: int, group_size: int | None = None) -> np.ndarray:
    """A weight (O, I) through its codes, float32.

    The range of each row (`group_size` None), or of each `group_size` weights of a row, is that of
    its weights widened to hold zero; the last group of a row may be shorter. Raises ConfigError
    for values out of range.
    """
    width = weight.shape[1]
    size = group_size or width
    require(
        (2 <= bits <= 16, f"bits={bits} must lie in [2, 16]"),
        (1 <= size <= width, f"group_size={group_size} must lie in [1, {width}], the row's length"),
    )
    whole = width - width % size
    parts = [weight[:, :whole].reshape(-1, size), weight[:, whole:]]
    rounded = [_rows(part, bits=bits).reshape(len(weight), -1) for part in parts if part.size]
    return np.concatenate(rounded, axis=1).astype(np.float32)


def _rows(groups: np.ndarray, *, bits: int) -> np.ndarray:
    low, high = (of(axis=1, keepdims=True) for of in (groups.min, groups.max))
    return Quantizer.of_range(low, high, bits=bits).rounded(groups)
