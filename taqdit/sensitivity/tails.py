"""Projections of errors that are no noise, and where squared gradients lie among the values.

What a range cuts off goes one way, and so does what is rounded to zero: such errors add up over the
values and are charged as <g, e>^2 (what clipping does is 0.4 of the sum of g^2 e^2 on average).
Both are known functions of the value. For a range [low, high] the error is low - x below it and
high - x above it; within half a step of zero it is -x. With the projections tabulated over the
candidate ends and half steps, those of every quantizer are known.
"""

from __future__ import annotations

import numpy as np

from taqdit.activations.bins import BINS, SHIFT

_HALF = 16  # bits that tell on which side of an end a value lies: ends are bfloat16 numbers


def tails(
    values: np.ndarray, gradient: np.ndarray, *, ends: np.ndarray, half_steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """<g, e> of each of N trajectories: of what each of `ends` (K,) cuts off, (N, K) float32, and
    of what lies between zero and each of `half_steps` (Z,) and is rounded to zero, (N, Z).

    `values`, `gradient` (R, T, C) float32 of a guided batch, R = 2N: row r is of trajectory r mod
    N, and both halves of a trajectory add up. The first half of `ends` are low ones.
    """
    edges = np.unique(np.concatenate([ends, half_steps, np.zeros(1, ends.dtype)]))
    mass, moment = (_below(edges, values, weights) for weights in (gradient, gradient * values))
    at, total = np.searchsorted(edges, ends), len(edges)
    below = ends * mass[:, at] - moment[:, at]
    beyond = ends * (mass[:, [total]] - mass[:, at]) - (moment[:, [total]] - moment[:, at])
    cut = np.where(np.arange(len(ends)) < len(ends) // 2, below, beyond)
    until, zero = moment[:, np.searchsorted(edges, half_steps)], np.searchsorted(edges, 0)
    zeroed = np.sign(half_steps) * (moment[:, [zero]] - until)
    return cut.astype(np.float32), zeroed.astype(np.float32)


def _below(edges: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums (N, E + 1) float64 of `weights` over the values below each edge (E,), and over all."""
    count, places = len(values) // 2, len(edges) + 1
    at = _places(edges)[values.view(np.uint32) >> _HALF]
    at += np.tile(np.arange(count) * places, 2)[:, None, None]
    sums = np.bincount(at.reshape(-1), weights=weights.reshape(-1), minlength=count * places)
    return np.cumsum(sums.reshape(count, places), axis=1)


def _places(edges: np.ndarray) -> np.ndarray:
    """For each upper half of a float32, how many edges lie at or below it, (65536,) int64.

    What equals an edge is moved by nothing there, so its side does not matter.
    """
    middles = (np.arange(2**16, dtype=np.uint32) << _HALF | 0x8000).view(np.float32)
    return np.searchsorted(edges, middles, side="right")


def masses(
    values: np.ndarray, squares: np.ndarray, folds: np.ndarray, *, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squared gradients by the histogram bin of the value and the fold of the row.

    `values`, `squares` (R, T, C) float32, `folds` (R,) in 0 .. count - 1. Returns the codes (k,)
    uint16 of the bins that hold any (see `taqdit.activations.bins`), and sums (count, k) float64.
    """
    codes = (values.view(np.uint32) >> SHIFT).astype(np.int64)
    codes += (folds * BINS)[:, None, None]
    flat = np.bincount(codes.reshape(-1), weights=squares.reshape(-1), minlength=count * BINS)
    sums = flat.reshape(count, BINS)
    held = np.flatnonzero(sums.any(axis=0))
    return held.astype(np.uint16), sums[:, held]


def interpolated(tails: np.ndarray, ends: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Tails (.., K) at ascending `ends` (K,), read between them at `at` (Q,): (.., Q).

    Beyond the outermost ends they stay what they are there.
    """
    ends, kept = np.unique(ends, return_index=True)
    if len(ends) == 1:
        return np.repeat(tails[..., kept], len(at), axis=-1)
    place = np.clip(np.searchsorted(ends, at), 1, len(ends) - 1)
    share = np.clip((at - ends[place - 1]) / (ends[place] - ends[place - 1]), 0, 1)
    before, after = tails[..., kept[place - 1]], tails[..., kept[place]]
    return before + share * (after - before)
