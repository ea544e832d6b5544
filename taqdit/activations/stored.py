"""Stored statistics of activations: one shard per step, and the views that a selection gives.

A shard names its extent, the number of trajectories that it covers: asking for more later goes on
from there. Checkpoints are the same shards under another name. While a stage is under way, parts
hold what one batch of trajectories adds to a step.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache, partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from taqdit.activations import Histogram, Layout, Site, StepStatistics
from taqdit.activations.overview import LayerTable, Overview, layer_table, overview, site_histograms
from taqdit.errors import CorruptError, InputError
from taqdit.store import Shard, Stage, disk
from taqdit.timestep_selection.selection import Selection

KIND = "statistics"
CHECKPOINT, PART = "checkpoint", "part"
OPEN_STEPS = 200  # mapped at once: each holds a file descriptor
_WHOLE = "trajectories"
_NAME = re.compile(rf"({_WHOLE}|{CHECKPOINT}|{PART})_(\d{{7}})_step_(\d{{4}})\.safetensors")


class Listed(NamedTuple):
    """A file of the stage; `number` is the extent, or of a part the number of its batch."""

    kind: str
    number: int
    step: int
    name: str


def listed(stage: Stage) -> list[Listed]:
    """The files that hold statistics of a step, sorted by name."""
    found = [match for match in map(_NAME.fullmatch, stage.names()) if match]
    return [Listed(match[1], int(match[2]), int(match[3]), match[0]) for match in found]


def file_name(extent: int, step: int) -> str:
    """The shard of a step that covers the first `extent` trajectories."""
    return _name(_WHOLE, extent, step)


def checkpoint_name(extent: int, step: int) -> str:
    """The same while the stage is under way."""
    return _name(CHECKPOINT, extent, step)


def part_name(batch: int, step: int) -> str:
    """What a batch of trajectories adds to a step."""
    return _name(PART, batch, step)


def _name(kind: str, number: int, step: int) -> str:
    return f"{kind}_{number:07d}_step_{step:04d}.safetensors"


def write_step(
    stage: Stage,
    name: str,
    statistics: StepStatistics,
    *,
    extent: int,
    step: int,
    sigma: float,
    timestep: float,
) -> None:
    """Publish the statistics of one step under `name`."""
    metadata = {"extent": extent, "step": step, "sigma": sigma, "timestep": timestep}
    _write(stage, name, statistics, kind=KIND, index=_index(extent, step), metadata=metadata)


def write_part(stage: Stage, statistics: StepStatistics, *, batch: int, step: int) -> None:
    """Publish what a batch adds to a step."""
    name, index = part_name(batch, step), _index(batch, step)
    _write(stage, name, statistics, kind=PART, index=index, metadata={})


def read_step(
    stage: Stage, name: str, *, extent: int, step: int, layout: Layout | None = None
) -> StepStatistics:
    """The statistics of a stored step. CorruptError if damaged, or not of these sites."""
    shard = stage.read(name, kind=KIND, index=_index(extent, step))
    return _unpacked(shard, stage.path(name), layout)


def read_part(stage: Stage, *, batch: int, step: int, layout: Layout) -> StepStatistics:
    """What a batch adds to a step. CorruptError if damaged, or not of these sites."""
    name = part_name(batch, step)
    shard = stage.read(name, kind=PART, index=_index(batch, step))
    return _unpacked(shard, stage.path(name), layout)


def _write(
    stage: Stage,
    name: str,
    statistics: StepStatistics,
    *,
    kind: str,
    index: str,
    metadata: dict[str, Any],
) -> None:
    layout = statistics.layout
    sites = [[site.name, site.width] for site in layout.sites]
    about = {**metadata, "folds": layout.folds, "sites": sites}
    stage.write(name, statistics.tensors(), kind=kind, index=index, metadata=about)


def _unpacked(shard: Shard, path: Path, layout: Layout | None = None) -> StepStatistics:
    try:
        found = Layout.of(shard.metadata["sites"], folds=int(shard.metadata["folds"]))
        if layout not in (None, found):
            raise ValueError("it holds other sites or folds")
        return StepStatistics.of_tensors(found, shard.tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} is damaged: {error}") from error


def _index(number: int, step: int) -> str:
    return f"{number}/{step}"


class Statistics:
    """Statistics of every site at every step over the first `extent` trajectories of a stage.

    Arrays are mapped from the files, which are verified when the statistics are opened. `sigmas`
    and `timesteps` are (num_steps,): where the model was evaluated.
    """

    def __init__(self, stage: Stage, *, extent: int | None = None) -> None:
        disk.allow_open_files()
        self._stage = stage
        self.num_steps = int(stage.inputs.get("num_steps", 0))
        self.extent = _largest_extent(stage, self.num_steps) if extent is None else extent
        _require_complete(stage, self.extent, self.num_steps)
        me = weakref.proxy(self)  # in a cycle, what is mapped would stay open for a while
        self._shard = lru_cache(maxsize=OPEN_STEPS)(partial(Statistics._read, me))
        self._kept_step = lru_cache(maxsize=OPEN_STEPS)(partial(Statistics._step, me))
        levels = [self._levels(step) for step in range(self.num_steps)]
        self.sigmas, self.timesteps = np.array(levels, np.float64).reshape(-1, 2).T
        self.layout = self.step(0).layout

    @classmethod
    def open(cls, path: str | Path) -> Statistics:
        """The statistics in a stage's folder. InputError if there are none."""
        return cls(Stage.at(Path(path)))

    @property
    def fingerprint(self) -> str:
        """Of the stage: names everything that went into the numbers."""
        return self._stage.fingerprint

    @property
    def backends(self) -> list[dict[str, Any]]:
        """On which backends the stage was made."""
        return self._stage.backends

    @property
    def folder(self) -> Path:
        """Where the stage is."""
        return self._stage.folder

    @property
    def sites(self) -> tuple[Site, ...]:
        """In the order of the data flow."""
        return self.layout.sites

    @property
    def folds(self) -> int:
        """Groups of trajectories; trajectory i is in group i mod folds."""
        return self.layout.folds

    @property
    def digests(self) -> list[str]:
        """SHA-256 of the shard of each step: they name the numbers themselves."""
        return [str(self._shard(step).metadata["sha256"]) for step in range(self.num_steps)]

    def step(self, step: int) -> StepStatistics:
        """All sites at one step. IndexError if there is no such step."""
        return self._kept_step(step)

    def overview(self) -> Overview:
        """A number per site and step: extremes, percentiles, ratios."""
        return self._overview

    def recall(self, table: Overview) -> None:
        """Take over an overview that was made of these very statistics."""
        self._overview = table

    @cached_property
    def _overview(self) -> Overview:
        return overview(self)

    def layer_table(self, site: int, *, steps: Sequence[int] | None = None) -> LayerTable:
        """One site, given by its number, at the given steps (None: all)."""
        return layer_table(self, site, steps=steps)

    def histograms(self, site: int, *, steps: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Common edges (k + 1,), and a site's counts (n, k) at the given steps."""
        return site_histograms(self, site, steps=steps)

    def view(self, selections: Sequence[Selection] | None = None) -> View:
        """What a selection sees; None: every step. No model is run."""
        return View(self, None if selections is None else cells_of(selections, self))

    def _step(self, step: int) -> StepStatistics:
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} of {self.num_steps}")
        path = self._stage.path(file_name(self.extent, step))
        return _unpacked(self._shard(step), path, self.layout if step else None)

    def _levels(self, step: int) -> tuple[float, float]:
        """Noise level and timestep. Raises CorruptError."""
        metadata = self._shard(step).metadata
        try:
            return metadata["sigma"] * 1.0, metadata["timestep"] * 1.0
        except (KeyError, TypeError, OverflowError) as error:
            path = self._stage.path(file_name(self.extent, step))
            raise CorruptError(f"{path} is damaged: it names no noise level") from error

    def _read(self, step: int) -> Shard:
        index = _index(self.extent, step)
        return self._stage.read(file_name(self.extent, step), kind=KIND, index=index)


def cells_of(selections: Sequence[Selection], statistics: Statistics) -> np.ndarray:
    """(folds, num_steps) bool: in which (fold, step) a trajectory is selected.

    `selections` holds one per trajectory, of which the first `extent` are traced.
    """
    cells = np.zeros((statistics.folds, statistics.num_steps), bool)
    for trajectory, selection in enumerate(selections[: statistics.extent]):
        cells[trajectory % statistics.folds, selection.indices] = True
    return cells


class View:
    """Some (fold, step) cells of statistics, merged.

    Histograms and extremes of a site come from the cells alone. Moments and extremes of channels
    are kept over all trajectories: they come from every step in which any cell is chosen.
    A cell is chosen if any of its fold's trajectories selects the step: where a rule differs per
    trajectory, many trajectories per fold make a view come near every step; more folds help.
    """

    def __init__(self, statistics: Statistics, cells: np.ndarray | None = None) -> None:
        self.statistics = statistics
        everything = np.ones((statistics.folds, statistics.num_steps), bool)
        self.cells = everything if cells is None else cells
        if not self.cells.any():
            raise InputError("the selection has no step among the traced trajectories")

    @property
    def steps(self) -> list[int]:
        """Steps in which any trajectory is chosen."""
        return np.flatnonzero(self.cells.any(axis=0)).tolist()

    def channels(self) -> StepStatistics:
        """All sites over the view's steps, all trajectories together, bin counts left out."""
        each = (self.statistics.step(step).without_counts() for step in self.steps)
        return reduce(StepStatistics.merged, each)

    def low(self, site: int) -> float:
        """Smallest value of a site."""
        return min(float(each.min()) for each in self._of_cells("fold_low", site))

    def high(self, site: int) -> float:
        """Largest value of a site."""
        return max(float(each.max()) for each in self._of_cells("fold_high", site))

    def histogram(self, site: int) -> Histogram:
        """The distribution of a site's values."""
        tables = [
            self.statistics.step(step).values[site].of_folds(self.cells[:, step])
            for step in self.steps
        ]
        return Histogram.of(tables, low=self.low(site), high=self.high(site))

    def _of_cells(self, name: str, site: int) -> Iterator[np.ndarray]:
        for step in self.steps:
            yield getattr(self.statistics.step(step), name)[self.cells[:, step], site]


def _largest_extent(stage: Stage, num_steps: int) -> int:
    extents = {each.number for each in listed(stage) if each.kind == _WHOLE}
    whole = [extent for extent in extents if not _missing(stage, extent, num_steps)]
    if not whole:
        raise InputError(f"{stage.folder} holds no complete statistics; run again")
    return max(whole)


def _missing(stage: Stage, extent: int, num_steps: int) -> list[int]:
    names = set(stage.names())
    return [step for step in range(max(num_steps, 1)) if file_name(extent, step) not in names]


def _require_complete(stage: Stage, extent: int, num_steps: int) -> None:
    if missing := _missing(stage, extent, num_steps):
        raise InputError(
            f"{stage.folder} lacks {len(missing)} of {num_steps} steps of the statistics over"
            f" {extent} trajectories; run again"
        )
