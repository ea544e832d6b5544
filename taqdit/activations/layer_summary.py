"""One row per traced layer over all steps: for the console, the report, W&B and a CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from taqdit.activations.overview import Overview

COLUMNS = {  # title: what it is, over all steps
    "Med.Mean": "median over steps of the median channel mean",
    "Med.Std": "median over steps of the median channel standard deviation",
    "Med.Range": "median over steps of the median channel range",
    "Max.Range": "widest range of a channel at any step",
    "%Neg": "share of values below zero, mean over steps, percent",
    "AbsMax": "largest magnitude at any step",
    "p99.99": "largest 99.99th percentile at any step",
    "Kurtosis": "median over steps; 3 for a Gaussian",
    "Ch.Ratio": "top channel over the median channel by absmax, worst step",
    "Tok.Ratio": "top token over the median token by absmax, worst step",
    "%Large": "tokens on which the top channel is large, median over steps, percent",
    "Drift": "range of the median channel: widest step over narrowest",
    "Top2%": "channels that are among the top 2 % by range at any step",
}


def layer_summary(table: Overview) -> list[tuple[Any, ...]]:
    """A row per site: its name, then the numbers of COLUMNS, the last one a whole number."""
    numbers = np.stack(
        [
            np.median(table.mean, axis=1),
            np.median(table.std, axis=1),
            np.median(table.median_range, axis=1),
            table.max_range.max(axis=1),
            100 * table.negative.mean(axis=1),
            table.absmax.max(axis=1),
            table.p9999.max(axis=1),
            np.median(table.kurtosis, axis=1),
            table.channel_ratio.max(axis=1),
            table.token_ratio.max(axis=1),
            100 * np.median(table.large_share, axis=1),
            _widest_over_narrowest(table.median_range),
        ],
        axis=1,
    )
    return [
        (site.name, *(float(value) for value in row), len(top))
        for site, row, top in zip(table.sites, numbers, table.top_channels, strict=True)
    ]


def _widest_over_narrowest(ranges: np.ndarray) -> np.ndarray:
    """1 where a range is zero at every step; Inf where it is at some."""
    widest, narrowest = ranges.max(axis=1), ranges.min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(widest > 0, widest / narrowest, 1.0)


SHOWN = ("Med.Mean", "Med.Std", "Med.Range", "Max.Range", "%Neg", "Top2%")
MOST_LINES = 60


def as_text(rows: Sequence[tuple[Any, ...]]) -> str:
    """The columns SHOWN as lines for a terminal: the post-GELU layers, or all if there are few."""
    chosen = [row for row in rows if row[0].endswith(".post_gelu")] or list(rows)
    chosen = chosen[:MOST_LINES]
    places = [1 + list(COLUMNS).index(name) for name in SHOWN]
    width = max(len(row[0]) for row in chosen)
    lines = [f"{'layer':<{width}}" + "".join(f"{name:>11}" for name in SHOWN)]
    for row in chosen:
        cells = "".join(f"{_cell(row[place]):>11}" for place in places)
        lines.append(f"{row[0]:<{width}}{cells}")
    if len(chosen) < len(rows):
        lines.append(f"{len(chosen)} of {len(rows)} layers; all in report.html and layers.csv")
    return "\n".join(lines)


def _cell(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
