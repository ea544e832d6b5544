"""Projections of what a range cuts off, and where squared gradients lie among the values.

Clipping is no noise: what it does to the values beyond an end adds up, so it is charged as the
square of <g, e> (what it does on average is 0.4 of the sum of g^2 e^2). For a range [low, high] the
error is low - x below it and high - x above it, and <g, e> is a low part plus a high part: with
both tabulated over the candidate ends, every pair of ends is known.
"""

from __future__ import annotations

import numpy as np

from taqdit.activations.bins import BINS, SHIFT
from taqdit.sensitivity.layout import ENDS

_UPPER = 16  # bits that tell on which side of an end a value lies: ends are bfloat16 numbers
_PLACES = ENDS + 1


def places(ends: np.ndarray) -> np.ndarray:
    """For each upper half of a float32, how many of the ends (ENDS,) lie at or below it.

    (65536,) int64. A value that equals an end is cut by nothing, so its side does not matter.
    """
    middles = (np.arange(2**16, dtype=np.uint32) << 16 | 0x8000).view(np.float32)
    return np.searchsorted(ends, middles, side="right")


def tails(values: np.ndarray, gradient: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """<g, clipping error> at each candidate end, (N, ENDS) float32.

    `values`, `gradient` (R, T, C) float32 of a guided batch, R = 2N: row r is of trajectory r mod
    N, and both halves of a trajectory add up. The first half of `ends` are low ones.
    """
    count = len(values) // 2
    at = places(ends)[_upper(values)]
    at += np.tile(np.arange(count) * _PLACES, 2)[:, None, None]
    by_place = [
        np.bincount(at.reshape(-1), weights=weights.reshape(-1), minlength=count * _PLACES)
        for weights in (gradient, gradient * values)
    ]
    mass, moment = (sums.reshape(count, _PLACES) for sums in by_place)
    until = [np.cumsum(sums, axis=1)[:, :-1] for sums in (mass, moment)]  # of values below an end
    beyond = [
        sums.sum(axis=1, keepdims=True) - low
        for sums, low in zip((mass, moment), until, strict=True)
    ]
    cut = [ends * m - x for m, x in (until, beyond)]
    low = np.arange(ENDS) < ENDS // 2
    return np.where(low, *cut).astype(np.float32)


def masses(
    values: np.ndarray, squares: np.ndarray, folds: np.ndarray, *, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squared gradients by the histogram bin of the value and the fold of the row.

    `values`, `squares` (R, T, C) float32, `folds` (R,) in 0 .. count - 1. Returns the codes (k,)
    uint16 of the bins that hold any (see `taqdit.activations.bins`), and sums (count, k) float64.
    """
    codes = (values.view(np.uint32) >> SHIFT).astype(np.int64)
    codes += (folds * BINS)[:, None, None]
    sums = np.bincount(
        codes.reshape(-1), weights=squares.reshape(-1), minlength=count * BINS
    ).reshape(count, BINS)
    held = np.flatnonzero(sums.any(axis=0))
    return held.astype(np.uint16), sums[:, held]


def interpolated(tails: np.ndarray, ends: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Tails (.., K) at ascending `ends` (K,), read between them at `at` (Q,): (.., Q).

    Beyond the outermost end nothing is cut off, beyond zero it stays what it is there.
    """
    ends, keep = np.unique(ends, return_index=True)
    place = np.clip(np.searchsorted(ends, at), 1, max(len(ends) - 1, 1))
    if len(ends) == 1:
        return np.repeat(tails[..., keep], len(at), axis=-1)
    share = np.clip((at - ends[place - 1]) / (ends[place] - ends[place - 1]), 0, 1)
    before, after = tails[..., keep[place - 1]], tails[..., keep[place]]
    return before + share * (after - before)


def _upper(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32) >> _UPPER
