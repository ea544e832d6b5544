"""The `.npz` of diagnostics: per site and timestep, numbers of each channel and one histogram.

Keys are `{site}::t={timestep:%.6f}::{name}` with the site's label (`mm_07_img` for post_gelu,
`mm_07_img_qkv_in` otherwise). The names, with C channels:

- `count` (C,) int64: finite values of each channel, i.e. tokens;
- `mean`, `std`, `min`, `max` (C,) float64; zeros for a channel without a finite value;
- `histogram` (512,) float64: values of all channels together, in even bins over [-8, 8];
- `outside` (2,) float64: values below and above those bins. An addition of ours.

Beside them `timesteps_unique` (n,) float32, ascending; `histogram_bin_edges` (513,) float32; and
`format`, JSON that says where the numbers come from. The timestep in a key is the float32 number
of `timesteps_unique`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from taqdit.activations import StepStatistics
from taqdit.activations.overview import histogram
from taqdit.activations.stored import Statistics
from taqdit.errors import InputError
from taqdit.store import canonical_json, npz

BINS = 512
EDGES = np.linspace(-8, 8, BINS + 1)  # multiples of 1/32, zero among them
BELOW_ZERO = slice(0, BINS // 2)
TIMESTEPS, BIN_EDGES, FORMAT = "timesteps_unique", "histogram_bin_edges", "format"
COUNT, MEAN, STD, LOW, HIGH = "count", "mean", "std", "min", "max"
HISTOGRAM, OUTSIDE = "histogram", "outside"
_NOTE = (
    "histogram: interpolated, values taken as spread evenly in bins at most 1/16 of their edge"
    " wide; its total and its share below zero are exact. outside: values below and above it"
)

Table = dict[str, np.ndarray]


def export_npz(
    statistics: Statistics, path: str | Path, steps: Sequence[int] | None = None
) -> None:
    """Write the diagnostics of the given steps (None: all), streamed: memory holds one step.

    Uncompressed, without pickles; the same statistics give the same bytes. Raises IndexError for
    a step that does not exist, InputError for none, or for two whose keys would be the same.
    """
    chosen = range(statistics.num_steps) if steps is None else sorted(set(steps))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < statistics.num_steps:
        kind = IndexError if chosen else InputError
        raise kind(f"steps={list(chosen)} must be some of 0 .. {statistics.num_steps - 1}")
    times = {step: np.float32(statistics.timesteps[step]) for step in chosen}
    if len({_time(time) for time in times.values()}) < len(times):
        raise InputError("two steps have the same timestep, by which this format names them")
    npz.write(Path(path), [*_head(statistics, times), *_members(statistics, times)])


def key(label: str, timestep: str, name: str) -> str:
    """A member's name."""
    return f"{label}::t={timestep}::{name}"


def _time(timestep: np.float32) -> str:
    return f"{timestep:.6f}"


def _head(statistics: Statistics, times: dict[int, np.float32]) -> Iterator[npz.Member]:
    """The members that stand once in the file."""
    origin = {
        "format": "taqdit diagnostics 1",
        "note": _NOTE,
        "fingerprint": statistics.fingerprint,
        "trajectories": statistics.extent,
        "num_steps": statistics.num_steps,
        "steps": list(times),
    }
    for name, value in {
        FORMAT: np.array(canonical_json(origin)),
        BIN_EDGES: EDGES.astype(np.float32),
        TIMESTEPS: np.sort(np.array(list(times.values()))),
    }.items():
        yield npz.Member(name, value.dtype, value.shape, [value])


def _members(statistics: Statistics, times: dict[int, np.float32]) -> Iterator[npz.Member]:
    """The members of every step and site; computed when they are written."""
    tables = lru_cache(maxsize=1)(lambda step: _tables(statistics.step(step)))
    for step, timestep in times.items():
        for number, site in enumerate(statistics.sites):
            for name, (dtype, shape) in _shapes(site.width).items():
                chunks = _later(tables, step, number, name)
                yield npz.Member(key(site.label, _time(timestep), name), dtype, shape, chunks)


def _later(
    tables: Callable[[int], list[Table]], step: int, site: int, name: str
) -> Iterator[np.ndarray]:
    yield tables(step)[site][name]


def _shapes(channels: int) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    per_channel = {
        name: (np.dtype(np.int64 if name == COUNT else np.float64), (channels,))
        for name in (COUNT, MEAN, STD, LOW, HIGH)
    }
    double = np.dtype(np.float64)
    return {**per_channel, HISTOGRAM: (double, (BINS,)), OUTSIDE: (double, (2,))}


def _tables(step: StepStatistics) -> list[Table]:
    """The arrays of every site at one step."""
    count = step.count
    whole = {COUNT: count, MEAN: step.mean, STD: step.std, LOW: step.low, HIGH: step.high}
    seen = {name: np.where(count > 0, array, 0) for name, array in whole.items()}
    tables = []
    for number in range(len(step.layout.sites)):
        table = {name: array[step.layout.span(number)] for name, array in seen.items()}
        table[HISTOGRAM], table[OUTSIDE] = _histogram(step, number)
        tables.append(table)
    return tables


def _histogram(step: StepStatistics, site: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts (512,) and those below and above, of one site.

    Our bin around zero reaches both ways, and zero belongs to the bin above it: as the number of
    negative values is known, their share is made exact.
    """
    counts, *outside = histogram([step], site).rebinned(EDGES)
    negative = step.negative[step.layout.span(site)].sum(dtype=np.int64)
    last = BELOW_ZERO.stop - 1
    astray = negative - outside[0] - counts[BELOW_ZERO].sum()
    astray = np.clip(astray, -counts[last], counts[last + 1])
    counts[last] += astray
    counts[last + 1] -= astray
    return counts, np.array(outside)
