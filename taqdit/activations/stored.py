"""Stored statistics of activations: every site at every step, from the shards of a stage."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.activations import Site, StepStatistics
from taqdit.activations.overview import LayerTable, Overview, layer_table, overview, site_histograms
from taqdit.activations.step_shards import KIND, WHOLE, file_name, index_of, listed, unpacked
from taqdit.errors import CorruptError, InputError
from taqdit.store import Shard, Stage, disk

OPEN_STEPS = 200  # mapped at once: each holds a file descriptor


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
        self._opened = lru_cache(maxsize=OPEN_STEPS)(partial(Statistics._step, me))
        levels = [self._levels(step) for step in range(self.num_steps)]
        self.sigmas, self.timesteps = np.array(levels, np.float64).reshape(-1, 2).T
        self.layout = self.step(0).layout

    @classmethod
    def open(cls, path: str | Path) -> Statistics:
        """The statistics in a stage's folder. InputError if there are none."""
        return cls(Stage.at(Path(path)))

    @property
    def fingerprint(self) -> str:
        """The stage's: SHA-256 of everything that went into the numbers."""
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
        return self._opened(step)

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

    def _step(self, step: int) -> StepStatistics:
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} of {self.num_steps}")
        path = self._stage.path(file_name(self.extent, step))
        return unpacked(self._shard(step), path, self.layout if step else None)

    def _levels(self, step: int) -> tuple[float, float]:
        """Noise level and timestep. Raises CorruptError."""
        metadata = self._shard(step).metadata
        try:
            return metadata["sigma"] * 1.0, metadata["timestep"] * 1.0
        except (KeyError, TypeError, OverflowError) as error:
            path = self._stage.path(file_name(self.extent, step))
            raise CorruptError(f"{path} is damaged: it names no noise level") from error

    def _read(self, step: int) -> Shard:
        index = index_of(self.extent, step)
        return self._stage.read(file_name(self.extent, step), kind=KIND, index=index)


def _largest_extent(stage: Stage, num_steps: int) -> int:
    extents = {file.number for file in listed(stage) if file.kind == WHOLE}
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
