"""Statistics as tables: a number per site and step, and one site in detail. What figures draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from taqdit.activations import Histogram, Layout, Site, StepStatistics

BINS = 512  # of a layer's histogram, common to all steps
TOP_SHARE = 0.02  # of the channels


class Steps(Protocol):
    """Statistics step by step."""

    @property
    def layout(self) -> Layout: ...

    @property
    def num_steps(self) -> int: ...

    @property
    def sigmas(self) -> np.ndarray: ...

    @property
    def timesteps(self) -> np.ndarray: ...

    def step(self, step: int, /) -> StepStatistics: ...


@dataclass(frozen=True, eq=False)
class Overview:
    """A number per site and step. `sigmas`, `timesteps` (n,); all others (S, n) float64.

    `mean`, `std`, `median_range`: medians over the channels of their mean, standard deviation and
    range; `max_range`: the widest channel's. `low`, `high`: the exact extremes. `negative`: share
    of values below zero, exact. `kurtosis` (3 for a Gaussian) and the percentiles `p01`, `p99`,
    `p9999` (1, 99, 99.99) come from the histogram. `channel_ratio`: absmax of the top channel over
    that of the median channel, channels of zeros left out; `token_ratio`: the same of tokens;
    `large_share`: share of tokens on which the top channel lies within the top two octaves of its
    magnitude. `top_channels`: per site, the channels that are among the top 2 % by range at any
    step. NaN: not known.
    """

    sites: tuple[Site, ...]
    sigmas: np.ndarray
    timesteps: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    median_range: np.ndarray
    max_range: np.ndarray
    negative: np.ndarray
    kurtosis: np.ndarray
    p01: np.ndarray
    p99: np.ndarray
    p9999: np.ndarray
    channel_ratio: np.ndarray
    token_ratio: np.ndarray
    large_share: np.ndarray
    top_channels: tuple[tuple[int, ...], ...]

    @property
    def absmax(self) -> np.ndarray:
        """Largest magnitude."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def where(
        self, *, place: str | None = None, stream: str | None = None, block: str | None = None
    ) -> np.ndarray:
        """Numbers of the sites of a place, stream or block."""
        wanted = {"place": place, "stream": stream, "block": block}
        return np.array(
            [
                number
                for number, site in enumerate(self.sites)
                if all(value in (None, getattr(site, key)) for key, value in wanted.items())
            ],
            dtype=int,
        )


@dataclass(frozen=True, eq=False)
class LayerTable:
    """One site in detail. `low`, `high`, `mean`, `std`, `negative`, `large_share` (n, C) per step
    and channel; `counts` (n, k) float64 on `edges` (k + 1,), the same for all steps."""

    site: Site
    sigmas: np.ndarray
    timesteps: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    negative: np.ndarray
    large_share: np.ndarray
    edges: np.ndarray
    counts: np.ndarray


def overview(statistics: Steps) -> Overview:
    """The table of all sites."""
    steps = [statistics.step(step) for step in range(statistics.num_steps)]
    columns = [_column(step) for step in steps]
    return Overview(
        sites=statistics.layout.sites,
        sigmas=statistics.sigmas,
        timesteps=statistics.timesteps,
        top_channels=_union_of_tops(steps),
        **{name: np.stack([column[name] for column in columns], axis=1) for name in columns[0]},
    )


def _union_of_tops(steps: Sequence[StepStatistics]) -> tuple[tuple[int, ...], ...]:
    layout = steps[0].layout
    tops: list[set[int]] = [set() for _ in layout.sites]
    for step in steps:
        ranges = step.high.astype(np.float64) - step.low
        for site, top in enumerate(tops):
            top.update(top_channels(ranges[layout.span(site)]).tolist())
    return tuple(tuple(sorted(top)) for top in tops)


def top_channels(ranges: np.ndarray) -> np.ndarray:
    """The top 2 % of the channels (at least one) by range, largest first."""
    count = max(1, int(TOP_SHARE * len(ranges)))
    least = np.partition(ranges, len(ranges) - count)[len(ranges) - count]
    wide = np.flatnonzero(ranges >= least)  # few: sorting all channels takes far longer
    return wide[np.argsort(-ranges[wide], kind="stable")[:count]]


def _column(step: StepStatistics) -> dict[str, np.ndarray]:
    """The overview's numbers of one step, (S,) each."""
    layout, absmax, count = step.layout, step.absmax, np.maximum(step.count, 1)
    ranges = np.maximum(step.high.astype(np.float64) - step.low, 0)
    histograms = [histogram([step], site) for site in range(len(layout.sites))]
    top = [int(absmax[layout.span(site)].argmax()) for site in range(len(layout.sites))]
    near = step.large.sum(axis=0) / count
    peaks = absmax.astype(np.float64)
    return {
        "low": per_site(layout, step.low, np.min),
        "high": per_site(layout, step.high, np.max),
        "mean": per_site(layout, step.mean, np.median),
        "std": per_site(layout, step.std, np.median),
        "median_range": per_site(layout, ranges, np.median),
        "max_range": per_site(layout, ranges, np.max),
        "negative": _share_negative(step),
        "kurtosis": np.array([one.kurtosis() for one in histograms]),
        "p01": _percentiles(histograms, 1),
        "p99": _percentiles(histograms, 99),
        "p9999": _percentiles(histograms, 99.99),
        "channel_ratio": per_site(layout, peaks, ratio_to_median),
        "token_ratio": _token_ratios(step, per_site(layout, peaks, np.max)),
        "large_share": np.array(
            [near[layout.span(site)][channel] for site, channel in enumerate(top)]
        ),
    }


def histogram(steps: Sequence[StepStatistics], site: int) -> Histogram:
    """The distribution of a site's values at some steps together, of all folds."""
    low = min(float(step.fold_low[:, site].min()) for step in steps)
    high = max(float(step.fold_high[:, site].max()) for step in steps)
    return Histogram.of([step.values[site] for step in steps], low=low, high=high)


def layer_table(statistics: Steps, site: int, *, steps: Sequence[int] | None = None) -> LayerTable:
    """One site at the given steps (None: all)."""
    chosen = range(statistics.num_steps) if steps is None else steps
    opened = [statistics.step(step) for step in chosen]
    edges, counts = site_histograms(statistics, site, steps=chosen)
    span = statistics.layout.span(site)

    def column(value: Callable[[StepStatistics], np.ndarray]) -> np.ndarray:
        return np.stack([value(step)[span] for step in opened]).astype(np.float64)

    return LayerTable(
        site=statistics.layout.sites[site],
        sigmas=statistics.sigmas[list(chosen)],
        timesteps=statistics.timesteps[list(chosen)],
        low=column(lambda step: step.low),
        high=column(lambda step: step.high),
        mean=column(lambda step: step.mean),
        std=column(lambda step: step.std),
        negative=column(lambda step: step.negative / np.maximum(step.count, 1)),
        large_share=column(lambda step: step.large.sum(axis=0) / np.maximum(step.count, 1)),
        edges=edges,
        counts=counts,
    )


def site_histograms(
    statistics: Steps, site: int, *, steps: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The values of one site at some steps: common edges (k + 1,) and counts (n, k) float64."""
    histograms = [histogram([statistics.step(step)], site) for step in steps]
    edges = common_edges(histograms)
    return edges, np.stack([one.rebinned(edges)[0] for one in histograms])


def common_edges(histograms: Sequence[Histogram], *, bins: int = BINS) -> np.ndarray:
    """Edges (k + 1,) that hold every value: evenly spaced in the middle 99.8 percent, wider and
    wider beyond it where a few values lie far out."""
    used = [h for h in histograms if h.total]
    if not used:
        return np.array([-0.5, 0.5])
    low = min(float(h.left[0]) for h in used)
    high = max(float(h.right[-1]) for h in used)
    if low == high:
        return np.array([low - 0.5, high + 0.5])
    begin = min(h.percentile(0.1) for h in used)
    end = max(h.percentile(99.9) for h in used)
    if begin == end:
        begin, end = low, high
    core = np.linspace(begin, end, bins // 2 + 1)
    outer = (bins - bins // 2) // 2
    left, right = _stretch(begin, low, outer), _stretch(end, high, outer)
    return np.unique(np.concatenate([left, core, right]))


def _stretch(begin: float, end: float, bins: int) -> np.ndarray:
    """From `begin` to `end`, evenly where they are near, else the more widely the farther out."""
    share = np.linspace(0, 1, bins + 1)
    far = abs(end - begin) / max(abs(begin), float(np.finfo(np.float32).tiny))
    return np.asarray(begin + (end - begin) * (share if far < 4 else share**3))


def range_share(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """high - low of each step over the range of all steps, (S, n) in 0 .. 1; 1 if that is 0."""
    return _ratio(high - low, _widest(low, high)[:, None])


def covered_share(low: np.ndarray, high: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Range of the given steps (k,) together over that of all steps, (S,) in 0 .. 1; 1 if that is
    0, NaN if nothing is known or no step is given."""
    if not len(steps):
        return np.full(len(low), np.nan)
    return _ratio(_widest(low[:, steps], high[:, steps]), _widest(low, high))


def _widest(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """From the lowest to the highest of all steps, (S,), without those that are NaN."""
    return np.asarray(np.fmax.reduce(high, axis=1) - np.fmin.reduce(low, axis=1))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; 1 where both are zero."""
    return np.where(whole == 0, 1.0, part / np.where(whole == 0, 1.0, whole))


def per_site(
    layout: Layout, per_channel: np.ndarray, reduce: Callable[[np.ndarray], float]
) -> np.ndarray:
    """A reduction over the channels of each site, (S,) float64."""
    parts = [per_channel[layout.span(site)] for site in range(len(layout.sites))]
    return np.array([reduce(part) for part in parts], np.float64)


def _share_negative(step: StepStatistics) -> np.ndarray:
    negative = per_site(step.layout, step.negative.astype(np.int64), np.sum)
    return negative / np.maximum(per_site(step.layout, step.count, np.sum), 1)


def _percentiles(histograms: Sequence[Histogram], percent: float) -> np.ndarray:
    return np.array([h.percentile(percent) if h.total else np.nan for h in histograms])


def _token_ratios(step: StepStatistics, largest: np.ndarray) -> np.ndarray:
    """`largest` (S,) over the median absmax of the tokens that are not zero; 1 where all are."""
    tables = [table.without_zero() for table in step.peaks]
    peaks = [Histogram.of([table], low=0.0, high=np.inf) for table in tables]
    pairs = zip(largest, peaks, strict=True)
    return np.array([top / h.percentile(50) if h.total else 1.0 for top, h in pairs])


def ratio_to_median(peaks: np.ndarray) -> float:
    """The largest over the median of those that are not zero; 1 where all are."""
    used = peaks[peaks > 0]
    return float(used.max() / np.median(used)) if len(used) else 1.0
