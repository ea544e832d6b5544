"""Where a site's range goes: to a channel, to a few tokens, to one side of zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from taqdit.activations import Layout, Site, StepStatistics
from taqdit.activations.overview import (
    Overview,
    Steps,
    histogram,
    per_site,
    ratio_to_median,
    top_channels,
)
from taqdit.analysis.products import product
from taqdit.quantizer import Quantizer

LARGE_RATIO = 8.0  # three bits: of 256 levels the median channel or token gets 32, of 16 two
MANY_TOKENS = 0.06  # of them; from here on Dettmers et al. (2022) call a feature systematic
_BITS = 8
NAMED = 5  # top channels in a row

COLUMNS = {  # title: what it is, over all steps
    "Outliers": f"channel: one is more than {LARGE_RATIO:g} times the median channel, by range or"
    f" absmax; token: the same of tokens, and less than {100 * MANY_TOKENS:g} % of them are large",
    "Ch.Range": "widest channel over the median channel by range",
    "Tok.Ratio": "top token over the median token by absmax, worst step",
    "%Large": "tokens on which the top channel is large, median over steps, percent",
    "Stability": "overlap of the top 2 % of the channels of every two steps (Jaccard); 1: the same",
    "%Neg": "share of values below zero, percent",
    "%Levels<0": f"negative levels of an {_BITS}-bit quantizer of the whole range, percent",
    "Kurtosis": "of all values; 3 for a Gaussian",
    "Top": f"widest channels, at most {NAMED}",
}


@dataclass(frozen=True, eq=False)
class Outliers:
    """A number per site over all steps, (S,) float64; NaN where a site has no finite value.

    `channel_ratio`: range of the widest channel over that of the median channel, channels of one
    value left out; 1 where all are. `top_channels`: the top 2 % by range, widest first; none that
    hold one value. `stability`: mean Jaccard index of the top 2 % of every two steps (NaN at a
    single step). `token_ratio`: top token over median token by absmax, worst step. `large_share`:
    share of tokens on which the top channel is large, median over steps. `kind`: 'channel',
    'token' or 'none', see `outliers`. `negative`: share of values below zero, exact.
    `negative_levels`: share of the 256 levels of an 8-bit quantizer of the whole range that stand
    for negative numbers. `kurtosis`: of all values, 3 for a Gaussian; NaN where all are equal.
    """

    sites: tuple[Site, ...]
    channel_ratio: np.ndarray
    top_channels: tuple[tuple[int, ...], ...]
    stability: np.ndarray
    token_ratio: np.ndarray
    large_share: np.ndarray
    kind: tuple[str, ...]
    negative: np.ndarray
    negative_levels: np.ndarray
    kurtosis: np.ndarray


def outliers(statistics: Steps, table: Overview) -> Outliers:
    """The outliers of every site, from statistics and their overview.

    A site has outliers of *token* type if at some step its top token is more than LARGE_RATIO
    times the median token, and at the worst such step its top channel is large on less than
    MANY_TOKENS of the tokens: a few tokens set the range. Else it has them of *channel* type if a
    channel is more than LARGE_RATIO times the median channel, by its range over all steps, or by
    absmax at any step (a channel far from zero that hardly varies). Tokens come first: a giant
    token makes its channel wide, but a channel that is large on many tokens makes most tokens
    large, and leaves their ratio small.
    """
    steps = [statistics.step(step) for step in range(statistics.num_steps)]
    layout = statistics.layout
    low = reduce(np.minimum, (step.low for step in steps))
    high = reduce(np.maximum, (step.high for step in steps))
    ranges = _ranges(low, high)
    channel_ratio = per_site(layout, ranges, ratio_to_median)
    count = sum(per_site(layout, step.count, np.sum) for step in steps)
    negative = sum(per_site(layout, step.negative.astype(np.int64), np.sum) for step in steps)
    known = np.where(count > 0, 1.0, np.nan)
    return Outliers(
        sites=layout.sites,
        channel_ratio=known * channel_ratio,
        top_channels=_tops(layout, ranges),
        stability=known * _stability(steps),
        token_ratio=known * table.token_ratio.max(axis=1),
        large_share=known * np.median(table.large_share, axis=1),
        kind=_kinds(table, np.fmax(channel_ratio, table.channel_ratio.max(axis=1))),
        negative=known * negative / np.maximum(count, 1),
        negative_levels=known * _negative_levels(steps),
        kurtosis=np.array([histogram(steps, i).kurtosis() for i in range(len(layout.sites))]),
    )


def outlier_rows(outliers: Outliers) -> tuple[dict[str, str], list[tuple[Any, ...]]]:
    """COLUMNS, and a row per site: its name, then a cell per column."""
    columns = [
        outliers.kind,
        outliers.channel_ratio.tolist(),
        outliers.token_ratio.tolist(),
        (100 * outliers.large_share).tolist(),
        outliers.stability.tolist(),
        (100 * outliers.negative).tolist(),
        (100 * outliers.negative_levels).tolist(),
        outliers.kurtosis.tolist(),
        [_named(top) for top in outliers.top_channels],
    ]
    names = [site.name for site in outliers.sites]
    return dict(COLUMNS), list(zip(names, *columns, strict=True))


def _named(top: Sequence[int]) -> str:
    return ", ".join(map(str, top[:NAMED])) + (", .." if len(top) > NAMED else "")


def _ranges(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """high - low of each channel, (C,) float64; 0 where it has no finite value."""
    return np.maximum(high.astype(np.float64) - low, 0)


def _tops(layout: Layout, ranges: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """The top 2 % of each site's channels by `ranges` (C,), widest first, without those of 0."""
    parts = [ranges[layout.span(site)] for site in range(len(layout.sites))]
    return tuple(tuple(c for c in top_channels(part).tolist() if part[c] > 0) for part in parts)


def _kinds(table: Overview, channel_ratio: np.ndarray) -> tuple[str, ...]:
    sites, worst = np.arange(len(table.sites)), table.token_ratio.argmax(axis=1)
    few = table.large_share[sites, worst] < MANY_TOKENS
    token = (table.token_ratio[sites, worst] > LARGE_RATIO) & few
    channel = channel_ratio > LARGE_RATIO
    return tuple(np.where(token, "token", np.where(channel, "channel", "none")).tolist())


def _stability(steps: Sequence[StepStatistics]) -> np.ndarray:
    """Mean Jaccard index of the sets of top channels of every two steps, (S,); NaN for one."""
    layout = steps[0].layout
    tops = [_tops(layout, _ranges(step.low, step.high)) for step in steps]
    widths = [site.width for site in layout.sites]
    pairs = zip(widths, zip(*tops, strict=True), strict=True)
    return np.array([_mean_jaccard(width, sets) for width, sets in pairs])


def _mean_jaccard(width: int, sets: Sequence[Sequence[int]]) -> float:
    """Over all pairs of sets of numbers below `width`; two empty sets agree."""
    if len(sets) < 2:
        return float("nan")
    member = np.zeros((len(sets), width), np.float32)
    for row, members in zip(member, sets, strict=True):
        row[list(members)] = 1
    common = product(member, member.T).astype(np.float64)  # whole numbers, exact
    size = np.diag(common)
    union = size + size[:, None] - common
    index = np.where(union > 0, common / np.maximum(union, 1), 1.0)
    return float(index[np.triu_indices(len(sets), 1)].mean())


def _negative_levels(steps: Sequence[StepStatistics]) -> np.ndarray:
    """Share of the levels below the zero point, (S,); 0 where there is no finite value."""
    low, high = _ends(steps)
    known = low <= high
    quantizer = Quantizer.of_range(np.where(known, low, 0), np.where(known, high, 0), bits=_BITS)
    return np.asarray(quantizer.zero_point / 2**_BITS)


def _ends(steps: Sequence[StepStatistics]) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each site at any step, (S,) float64 each."""
    low = np.min([step.fold_low.min(axis=0) for step in steps], axis=0)
    high = np.max([step.fold_high.max(axis=0) for step in steps], axis=0)
    return low.astype(np.float64), high.astype(np.float64)
