"""Which steps stand best for all of them: subsets of a trajectory by an objective, in plain numpy.

Three objectives: the distance of every step to the step that stands for it (`medoids`), the error
of the quantizer that is calibrated on the subset and used everywhere (`least_regret`), and even
shares of a density (`density_quantiles`). Values nearer to each other than `TIE` are equal, and of
equally good steps the larger one, nearer to the image, is taken: so machines agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle

import numpy as np

TIE = 1e-9  # relative; nearer than this is a tie, on any machine
STARTS = 8  # most first steps that the greedy search begins with,
STEPS = 160  # and most steps to grow from them all: 5 starts of 30 steps, 1 of 100
SUBSETS = 5000  # where there are no more subsets than this, all are tried


def medoids(distances: np.ndarray, weights: np.ndarray, count: int) -> list[int]:
    """The `count` steps nearest to all, increasing: exact weighted k-medoids on segments.

    `distances` (n, n) >= 0 with a zero diagonal, `weights` (n,) >= 0, 1 <= count <= n. The steps
    are cut into contiguous segments, each with one of its own steps as medoid; a dynamic programme
    over the n^2 / 2 segments finds the best cut (Bellman, CACM 4(6), 1961). Memory n^2, time n^3
    for the segments and count n^2 for the cut. Exact up to ties: 1e-9 of the cost of one segment.
    """
    loads = distances * weights[:, None]
    tie = TIE * float(loads.sum(axis=0).min())
    costs, middles = _segments(loads, tie)
    best, starts = costs[0], [np.zeros(len(weights), np.int64)]
    for _ in range(count - 1):
        cuts = np.append(np.inf, best[:-1])[:, None] + costs  # (first, last) step of the segment
        starts.append(_last_smallest(cuts, tie))
        best = cuts.min(axis=0)
    chosen, end = [], len(weights) - 1
    for start in reversed(starts):
        chosen.append(int(middles[start[end], end]))
        end = int(start[end]) - 1
    return chosen[::-1]


def _segments(loads: np.ndarray, tie: float) -> tuple[np.ndarray, np.ndarray]:
    """Least cost (Inf where a > b) and medoid of every segment of steps a..b, (n, n) each.

    `loads` (n, n): weighted distance of step i to step m.
    """
    n = len(loads)
    costs, middles = np.full((n, n), np.inf), np.zeros((n, n), np.int64)
    for a in range(n):
        sums = np.cumsum(loads[a:, a:], axis=0).T  # (m, b), both from a
        sums[np.tri(n - a, k=-1, dtype=bool)] = np.inf  # m > b: not in the segment
        costs[a, a:] = sums.min(axis=0)
        middles[a, a:] = a + _last_smallest(sums, tie)
    return costs, middles


def _last_smallest(values: np.ndarray, tie: float) -> np.ndarray:
    """Row of the smallest value of each column; of those within `tie`, the last one."""
    equal = values <= values.min(axis=0) + tie
    return len(values) - 1 - equal[::-1].argmax(axis=0)


def least_regret(errors: np.ndarray, weights: np.ndarray, count: int) -> list[int]:
    """`count` steps, increasing, whose static quantizers have the least error over all steps.

    The mean over the sites s of sum_i w_i E_s(i, c_s) with c_s = argmin_c sum_{i chosen} E_s(i, c):
    the candidate range c that minimum-MSE calibration gives site s when it sees the chosen steps
    alone, all its points alike; of ranges that tie, the first. `errors` (S, n, C) >= 0, `weights`
    (n,) > 0.

    Up to `SUBSETS` subsets are all tried: exact. Beyond, a local search: from the middles of equal
    parts, and from greedy growth (first from the best step, then from a few spread ones), steps
    are exchanged one at a time until no exchange helps; the best end is taken. One more step can
    move a range the wrong way: the objective is neither monotone nor submodular, and greedy growth
    alone misses the optimum by tens of percent. Stops where every site has its best range.
    """
    sites = _Sites.of(errors, weights)
    least = float(sites.total.min(axis=1).mean()) * (1 + TIE)
    best, error = list(range(len(weights))), math.inf
    for start in _starts(sites, count):
        found, value = _exchanged(sites, start)
        if value < error * (1 - TIE):
            best, error = found, value
        if error <= least:
            break
    return sorted(best)


@dataclass(frozen=True, eq=False)
class _Sites:
    """`errors` (n, S, C): E_s(i, c), one step after the other; `total` (S, C): sum_i w_i E_s."""

    errors: np.ndarray
    total: np.ndarray

    @classmethod
    def of(cls, errors: np.ndarray, weights: np.ndarray) -> _Sites:
        each = np.ascontiguousarray(errors.transpose(1, 0, 2))
        return cls(each, np.tensordot(weights, each, axes=1))

    def error(self, chosen: Sequence[int]) -> float:
        """Of static quantizers that are calibrated on the `chosen` steps, see `least_regret`."""
        return self._attained(self._seen(chosen))

    def addition(self, chosen: Sequence[int], size: int) -> tuple[tuple[int, ...], float]:
        """The `size` other steps that leave the least error beside `chosen`, and that error."""
        seen = self._seen(chosen)
        others = [step for step in range(len(self.errors)) if step not in chosen]
        ways = list(combinations(others, size))
        errors = np.array([self._attained(sum((self.errors[i] for i in w), seen)) for w in ways])
        best = np.flatnonzero(errors <= errors.min() * (1 + TIE))[-1]
        return ways[best], float(errors[best])

    def _seen(self, chosen: Sequence[int]) -> np.ndarray:
        return self.errors[sorted(chosen)].sum(axis=0)

    def _attained(self, seen: np.ndarray) -> float:
        """Mean over the sites of `total` at the range that is least in `seen` (S, C)."""
        sites = np.arange(len(seen))
        least = seen[sites, seen.argmin(axis=1)]
        taken = (seen <= least[:, None] * (1 + TIE)).argmax(axis=1)
        return float(self.total[sites, taken].mean())


def _starts(sites: _Sites, count: int) -> Iterator[list[int]]:
    """Selections to begin a search with, one after the other."""
    num_steps = len(sites.errors)
    yield _middles(num_steps, count)
    if math.comb(num_steps, count) <= SUBSETS:
        yield list(sites.addition([], count)[0])
        return
    yield _grown(sites, [], count)
    for first in _middles(num_steps, min(STARTS, num_steps, 1 + STEPS // num_steps)):
        yield _grown(sites, [first], count)


def _middles(num_steps: int, parts: int) -> list[int]:
    """The middle of each of some equal parts."""
    return [(2 * j + 1) * num_steps // (2 * parts) for j in range(parts)]


def _grown(sites: _Sites, chosen: list[int], count: int) -> list[int]:
    """`chosen` and, one by one, the step that leaves the least error, until there are `count`."""
    while len(chosen) < count:
        chosen = [*chosen, *sites.addition(chosen, 1)[0]]
    return chosen


def _exchanged(sites: _Sites, chosen: list[int]) -> tuple[list[int], float]:
    """`chosen` after exchanging one step at a time for as long as it helps; and its error."""
    chosen, error = list(chosen), sites.error(chosen)
    idle = 0  # places in a row where nothing better was found
    for place in cycle(range(len(chosen))):
        if idle == len(chosen) or len(chosen) == len(sites.errors):
            break
        rest = chosen[:place] + chosen[place + 1 :]
        (step,), value = sites.addition(rest, 1)
        idle += 1
        if value < error * (1 - TIE):
            chosen[place], error, idle = step, value, 1
    return chosen, error


def density_quantiles(density: np.ndarray, count: int) -> list[int]:
    """Where the running share of `density` (n,) >= 0 passes (j + 1/2) / count; increasing.

    The inverse of the cumulative distribution; an even density gives the middles of equal parts.
    A step that holds several shares is named several times. A density of zero everywhere counts
    as even.
    """
    if not density.any():
        density = np.ones(len(density))
    passed = np.cumsum(density) / density.sum()
    targets = (np.arange(count) + 0.5) / count
    steps = np.searchsorted(passed, targets + TIE, side="right")
    return np.minimum(steps, len(density) - 1).tolist()


def drift_density(distances: np.ndarray, sigmas: np.ndarray, *, gamma: float) -> np.ndarray:
    """Share of attention that each step asks for, (n,): rate_i^gamma dt_i.

    The rate of change between neighbours is their distance over that of their sigmas; a step has
    the mean of the rates on its two sides (one at the ends). SharpEuler's density of step
    placement (arXiv:2605.11547) with distances (n, n) of statistics in place of velocities.
    `sigmas` (n + 1,) strictly decreasing; gamma = 0 spaces evenly in sigma.
    """
    widths = -np.diff(sigmas.astype(np.float64))
    if len(widths) == 1:
        return widths
    rates = np.diagonal(distances, 1) / widths[:-1]
    around = (np.append(rates[0], rates) + np.append(rates, rates[-1])) / 2
    return around**gamma * widths
