"""Which steps of a trajectory become calibration points; options of the group `timestep_selection`.

Step 0 is pure noise (sigma = 1), step n - 1 the last model call before the image; the n + 1-th
sigma, 0, belongs to no call. A rule is a pure function of a `TrajectorySteps`. Those that ask what
traced statistics say are in data_driven.py. Rules without a budget ignore `count`. Below,
n = num_steps, k = count, j = 0 .. k - 1. Rules with a budget give exactly k distinct steps
(`paper_stride` is the exception, it says why).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from taqdit.errors import require
from taqdit.timestep_selection.selection import Selection, last_smallest, refilled
from taqdit.timestep_selection.steps import TrajectorySteps, integer

__all__ = [
    "all",
    "dense_middle",
    "every_nth",
    "explicit",
    "interleaved",
    "midpoint",
    "normal",
    "paper_stride",
    "paper_uniform",
    "random_per_trajectory",
    "sigma_uniform",
    "stratified_random",
]

GOLDEN, GOLDEN_UNIT = 6_180_339_887, 10**10  # the golden ratio's fraction, in exact integers


def paper_uniform(trajectory: TrajectorySteps, *, count: int | None = None) -> Selection:
    """Evenly spaced with both ends: floor(j (n - 1) / (k - 1)); 25 of 100: 0 4 .. 28 33 .. 99.

    TaQ-DiT's "uniformly select 25 steps" (arXiv:2411.14172, section IV-A), as the integer
    linspace. k = 1 gives the middle, n // 2.
    """
    n, k = trajectory.num_steps, trajectory.budget(count)
    if k == 1:
        return Selection.of([n // 2])
    return Selection.of(j * (n - 1) // (k - 1) for j in range(k))


def paper_stride(trajectory: TrajectorySteps, *, count: int | None = None) -> Selection:
    """Every (n // k)-th step from 0: {0, 4, .., 96} for 25 of 100.

    What the released code of TaQ-DiT (arXiv:2411.14172), Q-Diffusion (arXiv:2302.04304) and
    PTQ4DiT (arXiv:2405.16005) does, its count included: ceil(n / (n // k)) steps, which is more
    than k unless k divides n (28 of 28 for k = 25), and the steps after the last stride are never
    seen. k = 1, which that code hard-codes, gives the middle, n // 2.
    """
    n, k = trajectory.num_steps, trajectory.budget(count)
    if k == 1:
        return Selection.of([n // 2])
    return Selection.of(range(0, n, n // k))


def midpoint(trajectory: TrajectorySteps, *, count: int | None = None) -> Selection:
    """The middle of each of k equal parts: floor((2j + 1) n / (2k)).

    The midpoint quadrature rule; its largest gap is smaller than a stride's.
    """
    n, k = trajectory.num_steps, trajectory.budget(count)
    return Selection.of((2 * j + 1) * n // (2 * k) for j in range(k))


def dense_middle(trajectory: TrajectorySteps, *, count: int | None = None) -> Selection:
    """Key timesteps, dense in the middle third: 10, 11, 17, 28 of 20, 28, 50, 100 steps.

    {0, n - 1, n // 4, n // 2, 3n // 4}, every 3rd step of [n // 3, 2n // 3) and every 5th of
    [0, n // 3) and [2n // 3, n), each stride starting anew at its range. The middle third of the
    steps is sigma 0.86 .. 0.60 on SD3's grid, not the middle of sigma.
    """
    n = trajectory.num_steps
    low, high = n // 3, 2 * n // 3
    landmarks = {0, n - 1, n // 4, n // 2, 3 * n // 4}
    return Selection.of(
        landmarks.union(range(low, high, 3), range(0, low, 5), range(high, n, 5)),
    )


def interleaved(trajectory: TrajectorySteps, *, count: int | None = None) -> Selection:
    """A stride whose offset rotates: floor((j + frac(m phi)) n / k) for trajectory m.

    With phi = 0.6180339887 the offsets fill [0, 1) evenly (Weyl's sequence), so a few trajectories
    cover every step at the same number of points. Computed in integers.
    """
    n, k = trajectory.num_steps, trajectory.budget(count)
    offset = int(trajectory.index) * GOLDEN % GOLDEN_UNIT
    return Selection.of((j * GOLDEN_UNIT + offset) * n // (k * GOLDEN_UNIT) for j in range(k))


def stratified_random(trajectory: TrajectorySteps, *, count: int | None = None) -> Selection:
    """One random step of each bin [floor(jn / k), floor((j + 1)n / k)), drawn per trajectory.

    Stratified sampling: random like a pool (PTQD, Q-DiT), without its gaps.
    """
    n, k = trajectory.num_steps, trajectory.budget(count)
    draws = trajectory.generator().random(k)
    edges = [j * n // k for j in range(k + 1)]
    bins = zip(pairwise(edges), draws, strict=True)
    return Selection.of(low + int(draw * (high - low)) for (low, high), draw in bins)


def random_per_trajectory(trajectory: TrajectorySteps, *, count: int | None = None) -> Selection:
    """k distinct steps, each as likely as any other, drawn per trajectory.

    The random pool of Q-DiT (arXiv:2406.17343), PTQD (arXiv:2305.10657) and SVDQuant
    (arXiv:2411.05007) at a fixed number of points per trajectory.
    """
    n, k = trajectory.num_steps, trajectory.budget(count)
    order = np.argsort(trajectory.generator().random(n), kind="stable")
    return Selection.of(order[:k])


def sigma_uniform(trajectory: TrajectorySteps, *, count: int | None = None) -> Selection:
    """Evenly spaced in sigma: the step nearest to sigma_0 (1 - (2j + 1) / (2k)).

    Midpoints in sigma, the dt-weighted quantiles of the steps. Where targets share a nearest
    step (25 targets meet 19 of 28 steps), the largest gaps in sigma are filled.
    """
    n, k = trajectory.num_steps, trajectory.budget(count)
    levels = trajectory.sigmas[:n].astype(np.float64)
    targets = levels[0] * (1 - (2 * np.arange(k) + 1) / (2 * k))
    nearest = [last_smallest(np.abs(levels - target), levels) for target in targets]
    return Selection.of(refilled(nearest, levels, k))


def normal(
    trajectory: TrajectorySteps,
    *,
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
    n, k = trajectory.num_steps, trajectory.budget(count)
    require(
        (0 <= mean <= 1, f"mean={mean} must lie in [0, 1]; 0 is noise, 1 the image"),
        (0.05 <= sd <= 10, f"sd={sd} must lie in [0.05, 10]; 0.4 is PTQ4DM's"),
    )
    bell = NormalDist(mean, sd)
    start, extent = bell.cdf(0), bell.cdf(1) - bell.cdf(0)
    places = (bell.inv_cdf(start + extent * (j + 0.5) / k) for j in range(k))
    steps = [min(n - 1, max(0, int(place * n))) for place in places]
    mass = np.array([bell.cdf((i + 0.5) / n) for i in range(n)])
    return Selection.of(refilled(steps, mass, k))


def all(trajectory: TrajectorySteps, *, count: int | None = None) -> Selection:
    """Every step: what MixDQ, DMQ (arXiv:2507.12933) and per-step quantizers calibrate on."""
    return Selection.of(range(trajectory.num_steps))


def explicit(
    trajectory: TrajectorySteps,
    *,
    steps: Sequence[int],
    count: int | None = None,
) -> Selection:
    """The listed steps, in any order; negative ones count from the end (-1 is step n - 1).

    Raises ConfigError for an empty list, a non-integer, a step outside [-n, n - 1], or two
    entries that name one step: a repeated step would be a multiplicity, which this is not.
    """
    n = trajectory.num_steps
    require((len(steps) > 0, "steps=[] must name at least one step"))
    for step in steps:
        integer("steps", step, -n, n - 1, f"schedule.num_steps is {n}")
    named = [step % n for step in steps]
    twice = sorted({step for step in named if named.count(step) > 1})
    require((not twice, f"steps={list(steps)} names step {twice} more than once; list it once"))
    return Selection.of(named)


def every_nth(
    trajectory: TrajectorySteps,
    *,
    stride: int,
    offset: int = 0,
    count: int | None = None,
) -> Selection:
    """Steps offset, offset + stride, ..: the stride of `paper_stride` given openly.

    TFMQ-DM (arXiv:2311.16503) states its interval this way.
    """
    n = trajectory.num_steps
    integer("stride", stride, 1, n, f"schedule.num_steps is {n}")
    integer("offset", offset, 0, n - 1, f"schedule.num_steps is {n}")
    return Selection.of(range(offset, n, stride))
