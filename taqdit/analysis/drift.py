"""How the values of a site change along a trajectory: drift, distances of steps, phases.

A step of a site is the vector of its q quantiles at the levels (j + 1/2) / q, so that each stands
for an equal share of the values: sums over them are integrals over the distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from taqdit.activations import Site
from taqdit.activations.overview import Overview
from taqdit.errors import require

PHASES = ("data", "seed")  # found in the data; fixed, as the older scripts have them
NAMES = ("early", "mid", "late")
SHARE = 0.1  # of the drift: what a border has to explain
CERTAINTY = 6.0  # times log n: how far above noise it has to be
LEAST = 1e-4  # of a site's variance: smaller changes matter to no quantizer
_TO_STD = 1 / 0.6745  # the median magnitude of a Gaussian as its standard deviation


@dataclass(frozen=True, eq=False)
class Drift:
    """S sites, n steps; `sigmas`, `timesteps` (n,), the changes and distances (S, n - 1) float64.

    `range_change`, `std_change`: of the median channel's range and standard deviation from step i
    to i + 1, relative to step i; 0 where both are zero, Inf where only the first is.
    `mean_change`: of the median channel's mean, and `distance`: Wasserstein-1 between the values
    of both steps, in the site's standard deviations over all steps; 0 in a site without spread.
    NaN in a site that has no finite value at some step.

    `borders`: per site, the first step of every phase but the first; `phases`: the same for all
    sites together.
    """

    sites: tuple[Site, ...]
    sigmas: np.ndarray
    timesteps: np.ndarray
    range_change: np.ndarray
    mean_change: np.ndarray
    std_change: np.ndarray
    distance: np.ndarray
    borders: tuple[tuple[int, ...], ...]
    phases: tuple[int, ...]


def drift(
    table: Overview, quantiles: np.ndarray, weights: np.ndarray, *, phases: str = "data"
) -> Drift:
    """Drift and phases from the overview and the quantiles (S, n, q) of each step.

    `weights` (n,), at least 0, say how much a step counts where phases are found in the data;
    their sum does not matter. With `phases="seed"` the borders are those of `fixed_phases`.
    Raises ConfigError for any other word, ValueError for arrays that do not fit.
    """
    require((phases in PHASES, f"phases={phases!r} must be one of {', '.join(PHASES)}"))
    _check(table, quantiles, weights)
    spread, scaled = _in_spreads(quantiles)
    known = np.where(np.isfinite(quantiles).all(axis=(1, 2)), 1.0, np.nan)[:, None]
    moved = np.diff(table.mean, axis=1)
    if phases == "seed":
        together = fixed_phases(quantiles.shape[1])
        borders = (together,) * len(table.sites)
    else:
        borders, together = _phases(scaled, weights / weights.sum())
    return Drift(
        sites=table.sites,
        sigmas=table.sigmas,
        timesteps=table.timesteps,
        range_change=known * _relative(table.median_range),
        mean_change=known * _divided(moved, spread[:, None]),
        std_change=known * _relative(table.std),
        distance=known * np.abs(np.diff(scaled, axis=1)).mean(axis=2),
        borders=borders,
        phases=together,
    )


def step_distances(quantiles: np.ndarray) -> np.ndarray:
    """How far apart every two steps are, (n, n) float64: symmetric, zero on the diagonal.

    The mean over the sites of the Wasserstein-1 distance of their values, which is the mean
    |difference| of the quantiles (S, n, q), in the site's standard deviations over all steps
    (see `spreads`). A site without spread, or without a finite value at some step, adds 0.
    """
    sites, steps, levels = quantiles.shape
    vectors = np.moveaxis(_in_spreads(quantiles)[1], 1, 0).reshape(steps, sites * levels)
    distances = np.zeros((steps, steps))
    for step in range(steps):  # all pairs at once would hold n times the quantiles
        distances[step, step:] = np.abs(vectors[step:] - vectors[step]).mean(axis=1)
    return np.maximum(distances, distances.T)


def spreads(quantiles: np.ndarray) -> np.ndarray:
    """Standard deviation of each site over all steps, (S,) float64, from quantiles (S, n, q).

    The quantiles of all steps together, each with the same weight, stand for the values: the
    variance is the mean square of their deviations from their mean. What lies beyond the outermost
    levels (0.8 % of the values at each end for q = 65) counts as those levels, so that a few giants
    do not make everything else look close. NaN for a site without a finite value at some step.
    """
    values = quantiles.reshape(len(quantiles), -1)
    constant = values.max(axis=1) == values.min(axis=1)  # there the mean may miss by rounding
    return np.where(constant, 0.0, values.std(axis=1))


def fixed_phases(num_steps: int) -> tuple[int, ...]:
    """Borders of the fixed phases: early, mid, late begin at 0, 0.3 and 0.7 of the steps.

    At 50 steps these are the steps 0 .. 14, 15 .. 34 and 35 .. 49; halves are rounded up. Where
    there are too few steps for three phases, empty ones are left out.
    """
    borders = {(3 * num_steps + 5) // 10, (7 * num_steps + 5) // 10}
    return tuple(sorted(border for border in borders if 0 < border < num_steps))


def phase_names(borders: Sequence[int]) -> tuple[str, ...]:
    """Names of the phases between borders: early, mid, late if there are three, else numbered."""
    count = len(borders) + 1
    return NAMES if count == len(NAMES) else tuple(f"phase {i + 1}" for i in range(count))


def segment_costs(products: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Cost of every segment of steps, (n + 1, n + 1): [i, j] is that of the steps i .. j - 1.

    The weighted sum of squared distances of the steps' vectors to their weighted mean, from the
    inner products (n, n) of the vectors: sum w |x|^2 - |sum w x|^2 / sum w. Inf for j <= i.
    """
    total, squares, joint = np.zeros(len(weights) + 1), np.zeros(len(weights) + 1), products
    np.cumsum(weights, out=total[1:])
    np.cumsum(weights * np.diag(products), out=squares[1:])
    joint = np.pad(weights[:, None] * joint * weights, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    corner = np.diag(joint)
    means = corner - joint - joint.T + corner[:, None]  # |sum w x|^2 of i .. j - 1
    weight = total - total[:, None]
    costs = squares - squares[:, None] - _divided(means, weight)
    used = np.arange(len(total)) > np.arange(len(total))[:, None]
    return np.where(used, np.maximum(costs, 0), np.inf)


def segments(costs: np.ndarray, penalty: float) -> tuple[int, ...]:
    """First steps of all segments but the first, of the segmentation with the least sum of costs
    and `penalty` per segment.

    Exact, by dynamic programming over the last segment's first step (optimal partitioning; Jackson
    et al., 2005), O(n^2). `costs` as `segment_costs` gives them.
    """
    least, begins = np.zeros(len(costs)), np.zeros(len(costs), int)
    for end in range(1, len(costs)):
        candidates = least[:end] + costs[:end, end] + penalty
        begins[end] = candidates.argmin()
        least[end] = candidates[begins[end]]
    borders, end = [], int(begins[-1])
    while end:
        borders.append(end)
        end = int(begins[end])
    return tuple(reversed(borders))


def _phases(
    scaled: np.ndarray, weights: np.ndarray
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Borders of each site, and of all together (their mean cost), from scaled (S, n, q).

    A border has to lower the cost by the largest of three numbers (sum of the weights 1, so that
    costs are shares of the site's variance):

    - SHARE of the cost without any border, the whole drift. An even drift over the n steps, cut
      into m equal phases, keeps 1 / m^2 of its cost: the second border explains 14 % of it, the
      third 5 %. So it becomes three phases, and only a drift that runs in stages more.
    - CERTAINTY log n times what noise gains by a border. If the steps scatter independently with
      variance v, a border between two given segments is expected to gain at most v times the
      largest weight; log n, as in the Bayesian information criterion, pays for the choice among
      all places. v comes from neighbouring steps, see `_noise`.
    - LEAST, so that no phases are made of changes that do not matter, or of rounding.
    """
    levels = scaled.shape[2]
    centred = scaled - np.einsum("i,sij->sj", weights, scaled)[:, None]
    products = centred @ np.moveaxis(centred, 1, 2) / levels
    noise = _noise(scaled)
    borders = [_borders(*of_site, weights) for of_site in zip(products, noise, strict=True)]
    return tuple(borders), _borders(products.mean(axis=0), float(noise.mean()), weights)


def _borders(products: np.ndarray, noise: float, weights: np.ndarray) -> tuple[int, ...]:
    """Borders of one sequence of steps, from the inner products (n, n) of its vectors."""
    costs = segment_costs(products, weights)
    chance = CERTAINTY * np.log(len(weights)) * noise * weights.max()
    return segments(costs, max(SHARE * costs[0, -1], chance, LEAST))


def _noise(scaled: np.ndarray) -> np.ndarray:
    """Variance v of a step about its neighbours, all levels together, (S,).

    Neighbours differ by two independent errors. The median of their differences does not see jumps
    in fewer than half of them, so that a lone jump is found from four steps on.
    """
    if scaled.shape[1] < 2:
        return np.zeros(len(scaled))
    apart = np.median(np.abs(np.diff(scaled, axis=1)), axis=1) * _TO_STD
    return np.asarray(np.square(apart).mean(axis=1) / 2)


def _in_spreads(quantiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`spreads`, and the quantiles about the site's mean in units of them; zeros where the spread
    is zero or not known."""
    spread = spreads(quantiles)
    known = spread > 0
    centred = quantiles - quantiles.mean(axis=(1, 2), keepdims=True)
    unit = np.where(known, spread, 1.0)[:, None, None]
    return spread, np.where(known[:, None, None], centred / unit, 0.0)


def _relative(numbers: np.ndarray) -> np.ndarray:
    """Changes (S, n - 1) from each step to the next, relative to the first of both."""
    before, change = numbers[:, :-1], np.diff(numbers, axis=1)
    return np.where((before == 0) & (change > 0), np.inf, _divided(change, before))


def _divided(numbers: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The quotient; 0 where the divisor is."""
    by = np.broadcast_to(by, numbers.shape)
    return np.divide(numbers, by, out=np.zeros(numbers.shape), where=by != 0)


def _check(table: Overview, quantiles: np.ndarray, weights: np.ndarray) -> None:
    expected = len(table.sites), len(table.sigmas)
    if quantiles.ndim != 3 or quantiles.shape[:2] != expected or weights.shape != expected[1:]:
        raise ValueError(
            f"quantiles {quantiles.shape} and weights {weights.shape} do not fit a table of"
            f" {expected[0]} sites and {expected[1]} steps"
        )
    if not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError("weights must be at least 0, and not all of them 0")
