"""Diagnostics that someone else's file holds: checked member by member, then offered as tables."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.activations import Site
from taqdit.activations.diagnostics import (
    BIN_EDGES,
    BINS,
    COUNT,
    EDGES,
    FORMAT,
    HIGH,
    HISTOGRAM,
    LOW,
    MEAN,
    OUTSIDE,
    STD,
    TIMESTEPS,
    key,
)
from taqdit.activations.diagnostics_cell import Cell
from taqdit.activations.overview import LayerTable, Overview, top_channels
from taqdit.errors import InputError
from taqdit.store import npz

MAX_MEMBERS, MAX_CHANNELS, MAX_STEPS = 2**18, 65_536, 10_000
_FLOATS, _INTEGERS = "<f2 <f4 <f8", "<i4 <u4 <i8 <u8"
_ONCE = {
    TIMESTEPS: npz.Field(_FLOATS, ("steps",)),
    BIN_EDGES: npz.Field(_FLOATS, (BINS + 1,)),
    FORMAT: npz.Field("<U", ()),
}
_LABEL = re.compile(
    r"(?P<outer>embed_context_in|final_linear_in)"
    r"|(?P<block>mm_[0-9]{2}_(?:img|txt)|uni_[0-9]{2})(?:_(?P<place>qkv_in|o_in|fc1_in))?"
    r"|pre::(?P<before>mm_[0-9]{2}_(?:img|txt)|uni_[0-9]{2})"  # inputs of fc1, in later files
)
_KEY = re.compile(
    r"(?P<label>(?:pre::)?[a-z0-9_]{1,40})::t=(?P<time>(?:0|[1-9][0-9]{0,3})\.[0-9]{6})"
    rf"::(?P<name>{COUNT}|{MEAN}|{STD}|{LOW}|{HIGH}|{HISTOGRAM}|{OUTSIDE})"
)
_NEEDED = (COUNT, MEAN, STD, LOW, HIGH, HISTOGRAM)
_FLOW = ("embed", "mm", "uni", "final")
_PLACES = ("context_in", "qkv_in", "o_in", "fc1_in", "post_gelu", "linear_in")
_SAME = 1e-3  # a timestep in a key and in the list of them, in float32 and six decimals

Arrays = Mapping[str, np.ndarray]


class ImportedStatistics:
    """The statistics in an `.npz` of diagnostics, as tables; steps run from noise to image.

    `sites` in the order of the data flow; `timesteps` (num_steps,) float64 descending, `sigmas`
    timestep / 1000. What the format does not hold is NaN: `token_ratio`, `large_share`, the share
    of negative values of single channels; percentiles where it leaves open in which of its bins
    (1/32 wide) they lie, kurtosis where a value lies outside [-8, 8] or the bins are too wide.
    In a file of ours the histogram is interpolated: its percentiles err by up to 1/16 more.
    """

    def __init__(self, labels: Mapping[Site, str], timesteps: Arrays, arrays: Arrays) -> None:
        """`labels` of the sites and `timesteps` (as the keys name them) in their order."""
        self._labels, self._times, self._arrays = labels, list(timesteps), arrays
        self.sites = tuple(labels)
        self.timesteps = np.array(list(timesteps.values()), np.float64)
        self.sigmas = self.timesteps / 1000
        self.num_steps = len(timesteps)

    @classmethod
    def open(cls, path: str | Path) -> ImportedStatistics:
        """Read a file as `export_npz` writes it, or without `outside` and `format`.

        Uncompressed arrays stay on the disk; no pickle is loaded. Raises InputError, before
        reading much, for anything else: other members, a gap, wrong types or shapes, NaN, numbers
        that contradict each other, a damaged or hostile archive.
        """
        path = Path(path)
        limits = defaultdict(lambda: MAX_CHANNELS, steps=MAX_STEPS)
        arrays = npz.read_open(path, _field, limits, most=MAX_MEMBERS)
        try:
            _require_edges(arrays)
            parts = [match for match in map(_KEY.fullmatch, arrays) if match]
            labels = _sites({match["label"] for match in parts}, arrays)
            statistics = cls(labels, _timesteps({match["time"] for match in parts}, arrays), arrays)
            for step in range(statistics.num_steps):
                for site in range(len(statistics.sites)):
                    statistics._cell(site, step)
        except ValueError as error:
            raise InputError(f"{path} holds no usable diagnostics: {error}") from error
        return statistics

    def overview(self) -> Overview:
        """The table of all sites."""
        columns: dict[str, list[float]] = defaultdict(list)
        tops: list[set[int]] = [set() for _ in self.sites]
        for site, top in enumerate(tops):
            for step in range(self.num_steps):
                cell = self._cell(site, step)
                top.update(top_channels(cell.ranges).tolist())
                for name, value in _numbers(cell).items():
                    columns[name].append(value)
        shape = len(self.sites), self.num_steps
        tables: dict[str, Any] = {name: np.reshape(col, shape) for name, col in columns.items()}
        return Overview(
            sites=self.sites,
            sigmas=self.sigmas,
            timesteps=self.timesteps,
            top_channels=tuple(tuple(sorted(top)) for top in tops),
            **tables,
        )

    def histograms(self, site: int, *, steps: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Common edges (k + 1,), and a site's counts (n, k) at the given steps."""
        table = self.layer_table(site, steps=steps)
        return table.edges, table.counts

    def layer_table(self, site: int, steps: Sequence[int] | None = None) -> LayerTable:
        """One site at the given steps (None: all).

        `counts` are those of the file where any value lies; what lies outside them is added as a
        bin on each side, reaching to the extremes, where the file tells the sides.
        """
        chosen = list(range(self.num_steps) if steps is None else steps)
        cells = [self._cell(site, step) for step in chosen]
        edges, counts = _counts(cells)
        unknown = np.full((len(cells), self.sites[site].width), np.nan)
        return LayerTable(
            site=self.sites[site],
            sigmas=self.sigmas[chosen],
            timesteps=self.timesteps[chosen],
            low=np.stack([cell.low for cell in cells]),
            high=np.stack([cell.high for cell in cells]),
            mean=np.stack([cell.mean for cell in cells]),
            std=np.stack([cell.std for cell in cells]),
            negative=unknown,
            large_share=unknown,
            edges=edges,
            counts=counts,
        )

    def _cell(self, site: int, step: int) -> Cell:
        """ValueError if something is missing, or wrong."""
        label, time = self._labels[self.sites[site]], self._times[step]
        names = [*_NEEDED, OUTSIDE]
        arrays = {name: self._arrays.get(key(label, time, name)) for name in names}
        for name in _NEEDED:
            if arrays[name] is None:
                raise ValueError(f"{key(label, time, name)} is missing")
        try:
            return Cell.of({name: array for name, array in arrays.items() if array is not None})
        except ValueError as error:
            raise ValueError(f"{key(label, time, '*')}: {error}") from error


def _field(name: str) -> npz.Field | None:
    """What a member of this name must be; None where the format has no such name."""
    match = _KEY.fullmatch(name)
    if match is None or not _LABEL.fullmatch(match["label"]):
        return _ONCE.get(name)
    if match["name"] == HISTOGRAM:
        return npz.Field(f"{_INTEGERS} {_FLOATS}", (BINS,))
    if match["name"] == OUTSIDE:
        return npz.Field(_FLOATS, (2,))
    channels = (match["label"],)  # as many in every member of the site
    if match["name"] == COUNT:
        return npz.Field(_INTEGERS, channels, or_scalar=True)
    return npz.Field(_FLOATS, channels)


def _require_edges(arrays: Arrays) -> None:
    for name in (TIMESTEPS, BIN_EDGES):
        if name not in arrays:
            raise ValueError(f"{name} is missing")
    if not np.allclose(arrays[BIN_EDGES], EDGES, rtol=0, atol=1e-6):
        raise ValueError(f"{BIN_EDGES} must be {BINS + 1} even edges over [-8, 8]")


def _sites(labels: set[str], arrays: Arrays) -> dict[Site, str]:
    """The sites in the order of the data flow, and what the file calls them."""
    widths = {
        match["label"]: len(array)
        for name, array in arrays.items()
        if (match := _KEY.fullmatch(name)) and match["name"] == MEAN
    }
    if not labels or (without := sorted(labels - set(widths))):
        raise ValueError(f"{without[0]} has no mean" if labels else "it holds no site")
    sites = {Site(_site_name(label), widths[label]): label for label in sorted(labels)}
    if len({site.name for site in sites}) < len(labels):
        raise ValueError("one site stands there under two names")
    return dict(sorted(sites.items(), key=lambda item: _place_in_flow(item[0])))


def _site_name(label: str) -> str:
    match = _LABEL.fullmatch(label)
    assert match  # _field admits no other
    if match["outer"]:
        return label.replace("_", ".", 1)
    if match["before"]:
        return f"{match['before']}.fc1_in"
    return f"{match['block']}.{match['place'] or 'post_gelu'}"


def _place_in_flow(site: Site) -> tuple[int, str, str, int]:
    group, _, number = site.block.partition("_")
    return _FLOW.index(group), number, site.stream, _PLACES.index(site.place)


def _timesteps(times: set[str], arrays: Arrays) -> Arrays:
    """Timestep as the keys name it -> its number, from noise to image."""
    ordered = sorted(times, key=float, reverse=True)
    listed = np.sort(arrays[TIMESTEPS].astype(np.float64))[::-1]
    named = np.array([float(time) for time in ordered])
    if listed.shape != named.shape or np.abs(listed - named).max() > _SAME:
        raise ValueError(f"{TIMESTEPS} lists others than the {len(ordered)} timesteps of the keys")
    if listed.min() < 0 or listed.max() > 1000:
        raise ValueError(f"{TIMESTEPS} must lie in [0, 1000]")
    return dict(zip(ordered, listed, strict=True))


def _numbers(cell: Cell) -> dict[str, float]:
    """The overview's numbers of one site at one step."""
    return {
        "low": cell.lowest,
        "high": cell.highest,
        "mean": float(np.median(cell.mean)),
        "std": float(np.median(cell.std)),
        "median_range": float(np.median(cell.ranges)),
        "max_range": float(cell.ranges.max()),
        "negative": sum(cell.negative) / 2,
        "kurtosis": cell.kurtosis(),
        "p01": cell.percentile(1),
        "p99": cell.percentile(99),
        "p9999": cell.percentile(99.99),
        "channel_ratio": cell.channel_ratio,
        "token_ratio": float("nan"),
        "large_share": float("nan"),
    }


def _counts(cells: Sequence[Cell]) -> tuple[np.ndarray, np.ndarray]:
    """Edges (k + 1,) and counts (m, k) of the bins from the first to the last that is used."""
    counts, edges = np.stack([cell.histogram for cell in cells]), EDGES
    if all(cell.below[0] == cell.below[1] for cell in cells):
        below = np.array([cell.below[0] for cell in cells])
        above = np.array([max(cell.total - cell.inside, 0) for cell in cells]) - below
        low = min(cell.lowest for cell in cells)
        high = max(cell.highest for cell in cells)
        # an outer bin exists only where the values reach beyond the inner ones
        if low < edges[0]:
            edges, counts = np.r_[low, edges], np.c_[below, counts]
        if high > edges[-1]:
            edges, counts = np.r_[edges, high], np.c_[counts, np.maximum(above, 0)]
    used = np.flatnonzero(counts.sum(axis=0) > 0)
    first, last = (used[0], used[-1] + 1) if len(used) else (0, len(edges) - 1)
    return edges[first : last + 1], counts[:, first:last]
