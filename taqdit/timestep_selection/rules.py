"""Which steps of a trajectory become calibration points; options of the group `timestep_selection`.

Step 0 is pure noise (sigma = 1), step n - 1 the last model call before the image; the n + 1-th
sigma, 0, belongs to no call. A rule is a pure function of (num_steps, sigmas, trajectory, seed):
`sigmas` is the grid (num_steps + 1,), `trajectory` and `seed` move the random and rotating rules
only. Data-driven rules are also handed `evidence`, what traced statistics say, and need it. Rules
without a budget ignore `count`. Below, n = num_steps, k = count, j = 0 .. k - 1. Rules with a
budget give exactly k distinct steps (`paper_stride` is the exception, it says why).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from taqdit.errors import require
from taqdit.timestep_selection.arguments import budget, generator, grid, index, integer, step_count
from taqdit.timestep_selection.search import density_quantiles, drift_density, least_regret, medoids
from taqdit.timestep_selection.selection import (
    Evidence,
    Rule,
    Selection,
    known_of,
    last_smallest,
    refilled,
)

__all__ = [
    "Rule",
    "Selection",
    "all",
    "coverage_optimal",
    "dense_middle",
    "drift_weighted",
    "every_nth",
    "explicit",
    "interleaved",
    "midpoint",
    "normal",
    "paper_stride",
    "paper_uniform",
    "random_per_trajectory",
    "regret_optimal",
    "sigma_uniform",
    "stratified_random",
]

GOLDEN, GOLDEN_UNIT = 6_180_339_887, 10**10  # the golden ratio's fraction, in exact integers


def paper_uniform(
    *, num_steps: int, sigmas: np.ndarray, trajectory: int, seed: int, count: int | None = None
) -> Selection:
    """Evenly spaced with both ends: floor(j (n - 1) / (k - 1)); 25 of 100: 0 4 .. 28 33 .. 99.

    TaQ-DiT's "uniformly select 25 steps" (arXiv:2411.14172, section IV-A), as the integer
    linspace. k = 1 gives the middle, n // 2.
    """
    k = budget(count, num_steps)
    if k == 1:
        return Selection.of([num_steps // 2])
    return Selection.of(j * (num_steps - 1) // (k - 1) for j in range(k))


def paper_stride(
    *, num_steps: int, sigmas: np.ndarray, trajectory: int, seed: int, count: int | None = None
) -> Selection:
    """Every (n // k)-th step from 0: {0, 4, .., 96} for 25 of 100.

    What the released code of TaQ-DiT (arXiv:2411.14172), Q-Diffusion (arXiv:2302.04304) and
    PTQ4DiT (arXiv:2405.16005) does, its count included: ceil(n / (n // k)) steps, which is more
    than k unless k divides n (28 of 28 for k = 25), and the steps after the last stride are never
    seen. k = 1, which that code hard-codes, gives the middle, n // 2.
    """
    k = budget(count, num_steps)
    if k == 1:
        return Selection.of([num_steps // 2])
    return Selection.of(range(0, num_steps, num_steps // k))


def dense_middle(
    *, num_steps: int, sigmas: np.ndarray, trajectory: int, seed: int, count: int | None = None
) -> Selection:
    """Key timesteps, dense in the middle third: 10, 11, 17, 28 of 20, 28, 50, 100 steps.

    {0, n - 1, n // 4, n // 2, 3n // 4}, every 3rd step of [n // 3, 2n // 3) and every 5th of
    [0, n // 3) and [2n // 3, n), each stride starting anew at its range. The middle third of the
    steps is sigma 0.86 .. 0.60 on SD3's grid, not the middle of sigma.
    """
    n = step_count(num_steps)
    low, high = n // 3, 2 * n // 3
    landmarks = {0, n - 1, n // 4, n // 2, 3 * n // 4}
    return Selection.of(
        landmarks.union(range(low, high, 3), range(0, low, 5), range(high, n, 5)),
    )


def all(
    *, num_steps: int, sigmas: np.ndarray, trajectory: int, seed: int, count: int | None = None
) -> Selection:
    """Every step: what MixDQ, DMQ (arXiv:2507.12933) and per-step quantizers calibrate on."""
    return Selection.of(range(step_count(num_steps)))


def explicit(
    *,
    num_steps: int,
    sigmas: np.ndarray,
    trajectory: int,
    seed: int,
    steps: Sequence[int],
    count: int | None = None,
) -> Selection:
    """The listed steps, in any order; negative ones count from the end (-1 is step n - 1).

    Raises ConfigError for an empty list, a non-integer, a step outside [-n, n - 1], or two
    entries that name one step: a repeated step would be a multiplicity, which this is not.
    """
    n = step_count(num_steps)
    require((len(steps) > 0, "steps=[] must name at least one step"))
    for step in steps:
        integer("steps", step, low=-n, high=n - 1, note=f"schedule.num_steps is {n}")
    named = [step % n for step in steps]
    twice = sorted({step for step in named if named.count(step) > 1})
    require((not twice, f"steps={list(steps)} names step {twice} more than once; list it once"))
    return Selection.of(named)


def every_nth(
    *,
    num_steps: int,
    sigmas: np.ndarray,
    trajectory: int,
    seed: int,
    stride: int,
    offset: int = 0,
    count: int | None = None,
) -> Selection:
    """Steps offset, offset + stride, ..: the stride of `paper_stride` given openly.

    TFMQ-DM (arXiv:2311.16503) states its interval this way.
    """
    n = step_count(num_steps)
    integer("stride", stride, low=1, high=n, note=f"schedule.num_steps is {n}")
    integer("offset", offset, low=0, high=n - 1, note=f"schedule.num_steps is {n}")
    return Selection.of(range(offset, n, stride))


def midpoint(
    *, num_steps: int, sigmas: np.ndarray, trajectory: int, seed: int, count: int | None = None
) -> Selection:
    """The middle of each of k equal parts: floor((2j + 1) n / (2k)).

    The midpoint quadrature rule; its largest gap is smaller than a stride's.
    """
    k = budget(count, num_steps)
    return Selection.of((2 * j + 1) * num_steps // (2 * k) for j in range(k))


def interleaved(
    *, num_steps: int, sigmas: np.ndarray, trajectory: int, seed: int, count: int | None = None
) -> Selection:
    """A stride whose offset rotates: floor((j + frac(m phi)) n / k) for trajectory m.

    With phi = 0.6180339887 the offsets fill [0, 1) evenly (Weyl's sequence), so a few trajectories
    cover every step at the same number of points. Computed in integers.
    """
    k = budget(count, num_steps)
    offset = index("trajectory", trajectory) * GOLDEN % GOLDEN_UNIT
    return Selection.of(
        (j * GOLDEN_UNIT + offset) * num_steps // (k * GOLDEN_UNIT) for j in range(k)
    )


def stratified_random(
    *, num_steps: int, sigmas: np.ndarray, trajectory: int, seed: int, count: int | None = None
) -> Selection:
    """One random step of each bin [floor(jn / k), floor((j + 1)n / k)), drawn per trajectory.

    Stratified sampling: random like a pool (PTQD, Q-DiT), without its gaps.
    """
    k = budget(count, num_steps)
    draws = generator(seed, trajectory).random(k)
    edges = [j * num_steps // k for j in range(k + 1)]
    bins = zip(pairwise(edges), draws, strict=True)
    return Selection.of(low + int(draw * (high - low)) for (low, high), draw in bins)


def random_per_trajectory(
    *, num_steps: int, sigmas: np.ndarray, trajectory: int, seed: int, count: int | None = None
) -> Selection:
    """k distinct steps, each as likely as any other, drawn per trajectory.

    The random pool of Q-DiT (arXiv:2406.17343), PTQD (arXiv:2305.10657) and SVDQuant
    (arXiv:2411.05007) at a fixed number of points per trajectory.
    """
    k = budget(count, num_steps)
    order = np.argsort(generator(seed, trajectory).random(num_steps), kind="stable")
    return Selection.of(order[:k])


def sigma_uniform(
    *, num_steps: int, sigmas: np.ndarray, trajectory: int, seed: int, count: int | None = None
) -> Selection:
    """Evenly spaced in sigma: the step nearest to sigma_0 (1 - (2j + 1) / (2k)).

    Midpoints in sigma, the dt-weighted quantiles of the steps. Where targets share a nearest
    step (25 targets meet 19 of 28 steps), the largest gaps in sigma are filled.
    """
    k = budget(count, num_steps)
    levels = grid(sigmas, num_steps)[:num_steps]
    targets = levels[0] * (1 - (2 * np.arange(k) + 1) / (2 * k))
    nearest = [last_smallest(np.abs(levels - target), levels) for target in targets]
    return Selection.of(refilled(nearest, levels, k))


def normal(
    *,
    num_steps: int,
    sigmas: np.ndarray,
    trajectory: int,
    seed: int,
    count: int | None = None,
    mean: float = 0.6,
    sd: float = 0.4,
) -> Selection:
    """Quantiles of a normal distribution over the steps, cut to [0, 1): PTQ4DM as intended.

    floor(n F^-1(F(0) + (F(1) - F(0)) (j + 1/2) / k)) with F = Normal(mean, sd) over p = step / n,
    0 = noise. PTQ4DM (arXiv:2211.15736) centres on the image side of the middle; its released code
    clamps the draws (15.9 % on one step) and labels states with another step's time, which this
    does not. Where two quantiles share a step, the largest gaps in F are filled.
    """
    k = budget(count, num_steps)
    require(
        (0 <= mean <= 1, f"mean={mean} must lie in [0, 1]; 0 is noise, 1 the image"),
        (0.05 <= sd <= 10, f"sd={sd} must lie in [0.05, 10]; 0.4 is PTQ4DM's"),
    )
    bell = NormalDist(mean, sd)
    start, extent = bell.cdf(0), bell.cdf(1) - bell.cdf(0)
    places = (bell.inv_cdf(start + extent * (j + 0.5) / k) for j in range(k))
    steps = [min(num_steps - 1, max(0, int(place * num_steps))) for place in places]
    mass = np.array([bell.cdf((i + 0.5) / num_steps) for i in range(num_steps)])
    return Selection.of(refilled(steps, mass, k))


def coverage_optimal(
    *,
    num_steps: int,
    sigmas: np.ndarray,
    trajectory: int,
    seed: int,
    evidence: Evidence | None = None,
    count: int | None = None,
) -> Selection:
    """The k steps nearest to all steps: exact k-medoids on segments (`search.medoids`)."""
    k = budget(count, num_steps)
    known = known_of(evidence, "coverage_optimal", num_steps)
    key = ("coverage_optimal", k)
    return Selection.of(known.once(key, lambda: medoids(known.distances, known.weights, k)))


def regret_optimal(
    *,
    num_steps: int,
    sigmas: np.ndarray,
    trajectory: int,
    seed: int,
    evidence: Evidence | None = None,
    count: int | None = None,
    bits: int = 8,
) -> Selection:
    """The k steps whose best static ranges, at `bits` bits, cost least error over all steps.

    A local search (`search.least_regret`).
    """
    k = budget(count, num_steps)
    known = known_of(evidence, "regret_optimal", num_steps)
    errors, key = known.errors_at(bits), ("regret_optimal", k, bits)
    return Selection.of(known.once(key, lambda: least_regret(errors, known.weights, k)))


def drift_weighted(
    *,
    num_steps: int,
    sigmas: np.ndarray,
    trajectory: int,
    seed: int,
    evidence: Evidence | None = None,
    count: int | None = None,
    gamma: float = 0.5,
) -> Selection:
    """Quantiles, at (j + 1/2) / k, of drift^gamma over sigma: dense where statistics change fast.

    SharpEuler's form (arXiv:2605.11547, see `search.drift_density`); gamma 0 ignores drift.
    Where two quantiles share a step, the largest gaps in the density are filled.
    """
    k = budget(count, num_steps)
    require((0 <= gamma <= 2, f"gamma={gamma} must lie in [0, 2]; 0 ignores the drift"))
    known = known_of(evidence, "drift_weighted", num_steps)
    levels = grid(sigmas, num_steps, decreasing=True)
    density = drift_density(known.distances, levels, gamma=gamma)
    places = np.cumsum(density) - density / 2
    return Selection.of(refilled(density_quantiles(density, k), places, k))
