"""Distances between two distributions that are given as masses on the same bins."""

from __future__ import annotations

import numpy as np


def wasserstein(
    left: np.ndarray, right: np.ndarray, one: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """Wasserstein-1 distance (..) in the unit of the values: the area between both cumulative
    distributions, each bin's mass spread evenly over it.

    `left`, `right` (k,) ascending edges; `one`, `other` (.., k) masses, scaled to 1 here. 0 where
    there is no bin.
    """
    if not len(left):
        return np.zeros(np.shape(one)[:-1])
    apart = _scaled(one) - _scaled(other)
    after = np.cumsum(apart, axis=-1)
    before = after - apart
    gaps = np.append(left[1:], right[-1]) - right
    inside = (right - left) * _mean_magnitude(before, after)
    return np.asarray((inside + gaps * np.abs(after)).sum(axis=-1))


def jensen_shannon(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Jensen-Shannon distance (..) in [0, 1]: the root of the divergence to base 2 (Lin, 1991;
    Endres & Schindelin, 2003), of the masses (.., k) on shared bins."""
    from scipy.special import rel_entr  # slow to import: only where it is needed

    p, q = _scaled(one), _scaled(other)
    middle = (p + q) / 2
    divergence = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=-1) / 2
    return np.sqrt(np.maximum(divergence, 0) / np.log(2))


def _scaled(masses: np.ndarray) -> np.ndarray:
    total = np.sum(masses, axis=-1, keepdims=True)
    return masses / np.where(total > 0, total, 1)


def _mean_magnitude(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean of |y| while y goes straight from a to b."""
    x, y = np.abs(a), np.abs(b)
    total = np.where(x + y > 0, x + y, 1)
    return np.where(a * b >= 0, (x + y) / 2, (x**2 + y**2) / (2 * total))
