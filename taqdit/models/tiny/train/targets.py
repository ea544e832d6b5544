"""What each site of the embedded model is to look like, block by block, and which of its channels
are made loud for it.

Medians and largest values over the blocks are SD3-medium's (`sd3`), a little lower where other
captions than those of the surgery go beyond. Between them the blocks are free, and two of six lie
far out, as SD3's channels do (10 to 160 times their neighbours): there a static scale loses the
body of the channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taqdit.models.tiny.train.exact import Array
from taqdit.models.tiny.train.sd3 import loud_count


@dataclass(frozen=True)
class Target:
    """The absmax of a site, that by the median channel's, and how many of its loudest channels are
    loud at early and late steps alike.

    `constant`: that much is added to one channel of the body. `massive`: absmax of some of the
    steady channels, instead of `peak`. `quiet` channels shrink by 3.2: it gives the weights that
    read them their tails. `least`: the quietest loud channel, as a share of `peak`; `alone`: all
    loud ones but the steady are that quiet.
    """

    peak: float
    ratio: float
    steady: int = 0
    constant: float = 0.0
    massive: tuple[float, ...] = ()
    quiet: int = 4
    least: float = 0.5
    alone: bool = False


def _far(peak: float, ratio: float) -> Target:
    """A site of one channel far out, loud at all steps; its weights have no other tails."""
    return Target(peak, ratio, 1, quiet=0, least=0.2, alone=True)


IMAGE_QKV = (
    Target(9, 5, 2),
    Target(12, 7, 3),
    Target(13, 8, 1),
    _far(20, 110),
    _far(26, 160),
    Target(14, 8.5, 1),
)
IMAGE_FC1 = (
    Target(6, 5, constant=6),
    Target(7.5, 6, 1, constant=7),
    Target(7, 6, constant=7),
    Target(7.5, 6.5, constant=7.5),
    _far(12, 40),
    _far(10, 35),
)
TEXT_QKV = (
    Target(7, 4.3, 1),
    Target(8.5, 5, 1),
    Target(9, 5, 1),
    Target(11, 6, 2),
    Target(15.5, 9, 2),
    Target(8, 4.8, 1),
)
TEXT_FC1 = (
    Target(9, 3.6, 1),
    Target(12, 4.4, 2),
    Target(15, 5, 1),
    Target(18, 7, 1, massive=(179,)),
    Target(18, 7, 2, massive=(340, 150)),
)
VALUES = (
    Target(6.5, 2.2),
    Target(8.5, 2.4),
    Target(9, 2.5),
    Target(9.5, 2.8),
    _far(13, 12),
    _far(16, 15),
)
FINAL = Target(18.5, 56, least=0.3)
# Hidden units after GELU: the highest of a block.
IMAGE_HIDDEN = (5.0, 5.2, 5.4, 5.8, 7.0, 13.5)
TEXT_HIDDEN = (17.0, 19.0, 21.0, 248.0, 405.0)
TEXT_STEADY = 3  # of the ten loudest text units
CONTEXT_MEDIAN = 1.03  # SD3's 854 / 832
CONTEXT_PEAKS = {"clip_l": 240.0, "clip_g": 854.0}
JITTER, QUIET = 0.1, 3.2


def factors(peaks: Array, target: Target, rng: np.random.Generator) -> Array:
    """Factors (C,) that bring a site to its target, from its absmax by step and row (steps, R, C).

    The body is evened out by half of its spread (in SD3 it is even), with a jitter of 10 %.
    """
    top = peaks.max(axis=(0, 1))
    s = np.exp(JITTER * rng.standard_normal(len(top))) * np.sqrt(np.median(top) / top)
    s *= target.peak / target.ratio / np.median(top * s)
    usable = top > 0.6 * np.median(top)
    steady, early, late = leaning(peaks, target.steady, usable)
    rest = np.setdiff1d(np.arange(len(top)), [*steady, *early, *late])
    s[rng.choice(rest, target.quiet, replace=False)] /= QUIET
    steady_loud = steady[len(target.massive) :]
    for group in (steady_loud, early, late):
        share = shares(len(group), target.least)
        if target.alone and group is not steady_loud:
            share[:] = target.least
        s[group] = share * target.peak / top[group]
    for j, massive in zip(steady, target.massive, strict=False):
        s[j] = massive / top[j]
    return s


def shares(count: int, least: float) -> Array:
    """Sizes of `count` loud channels, from 1 down to `least`."""
    return np.linspace(1, least, max(2, count))[:count]


def leaning(peaks: Array, steady: int, usable: Array) -> tuple[list[int], list[int], list[int]]:
    """Among the `usable` channels (C, bool): `steady` ones that are alike at all steps, and those
    that lean most to the first and to the last third of the steps, as many as make up the loudest.

    `peaks` (steps, R, C). Channels that are large on few rows come last: on other captions they
    would be larger or smaller.
    """
    third, count = len(peaks) // 3, loud_count(peaks.shape[2]) - steady
    first, last = (part.max(axis=(0, 1)) + 1e-6 for part in (peaks[:third], peaks[-third:]))
    by_row = peaks.max(axis=0)
    rare = np.log(by_row.max(axis=0) / np.median(by_row, axis=0)) / 2
    lean = np.log(first / last)

    def best(cost: Array, number: int, *taken: list[int]) -> list[int]:
        order = [int(j) for j in np.argsort(cost) if usable[j] and not any(j in t for t in taken)]
        return order[:number]

    early = best(rare - lean, count)
    late = best(rare + lean, count, early)
    return best(rare + np.abs(lean), steady, early, late), early, late
