"""Steps of the statistics while they are being merged: what is merged, and what is stored of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from taqdit.activations import Layout, StepStatistics
from taqdit.activations import step_shards as activations
from taqdit.stages.context import stored
from taqdit.store import Stage

KEPT = 2  # checkpoints

Level = Callable[[int], tuple[float, float]]
"""step -> its sigma and timestep."""


@dataclass
class Merging:
    """A step that this process merges: its claim, the batches merged, what they add up to."""

    claim: ExitStack
    covered: int = 0
    statistics: StepStatistics | None = None

    def add(self, part: StepStatistics) -> None:
        """Merge what the next batch showed. Raises OverflowError."""
        known = self.statistics
        self.statistics = part if known is None else known.merged(part)
        self.covered += 1


@dataclass(frozen=True)
class StepFiles:
    """The files of a statistics stage over `extent` trajectories in batches of `batch_size`: the
    steps themselves, their checkpoints, and parts, which are what one batch adds to a step."""

    stage: Stage
    layout: Layout
    extent: int
    batch_size: int

    @property
    def parts(self) -> set[tuple[int, int]]:
        """(batch, step) of the parts."""
        listed = activations.listed(self.stage)
        return {(file.number, file.step) for file in listed if file.kind == activations.PART}

    def begin(self, step: int, claim: ExitStack) -> Merging:
        """Go on from the longest run of batches that is stored."""
        for extent in sorted(self.begun(step, activations.listed(self.stage)), reverse=True):
            for name in (
                activations.file_name(extent, step),
                activations.checkpoint_name(extent, step),
            ):
                if (statistics := self._read(name, extent, step)) is not None:
                    return Merging(claim, extent // self.batch_size, statistics)
        return Merging(claim)

    def begun(self, step: int, listed: list[activations.Listed]) -> set[int]:
        """Extents below this one at which something is stored of a step."""
        return {
            file.number
            for file in listed
            if file.step == step
            and file.kind != activations.PART
            and file.number < self.extent
            and file.number % self.batch_size == 0
        }

    def is_published(self, step: int) -> bool:
        """Whether the step is there and valid."""
        name = activations.file_name(self.extent, step)
        return self._read(name, self.extent, step) is not None

    def part(self, number: int, step: int) -> StepStatistics | None:
        """What a batch adds to a step, if it is there and valid."""
        read = partial(activations.read_part, batch=number, step=step, layout=self.layout)
        return stored(self.stage, activations.part_name(number, step), lambda: read(self.stage))

    def publish(self, merging: Merging, step: int, level: Level) -> None:
        """Write a step that covers every batch, in place of its parts and checkpoints."""
        self._write(activations.file_name(self.extent, step), merging, step, level)
        self.discard(step, merging.covered)

    def checkpoint(self, merging: Merging, step: int, level: Level) -> None:
        """Keep what is merged of a step, in place of its parts and all but the last checkpoints."""
        extent = merging.covered * self.batch_size
        name = activations.checkpoint_name(extent, step)
        if 0 < extent < self.extent and not self.stage.path(name).exists():
            self._write(name, merging, step, level)
            self.discard(step, merging.covered, keep=KEPT)

    def discard(self, step: int, covered: int, *, keep: int = 0) -> None:
        """Remove the parts of a step that are merged and kept, and all but the last checkpoints."""
        files = [file for file in activations.listed(self.stage) if file.step == step]
        merged = [f for f in files if f.kind == activations.PART and f.number < covered]
        checkpoints = [
            file
            for file in files
            if file.kind == activations.CHECKPOINT and file.number <= covered * self.batch_size
        ]
        former = checkpoints[: len(checkpoints) - keep]
        self.stage.discard(file.name for file in merged + former)

    def _write(self, name: str, merging: Merging, step: int, level: Level) -> None:
        sigma, timestep = level(step)
        assert merging.statistics is not None
        activations.write_step(
            self.stage,
            name,
            merging.statistics,
            extent=merging.covered * self.batch_size,
            step=step,
            sigma=sigma,
            timestep=timestep,
        )

    def _read(self, name: str, extent: int, step: int) -> StepStatistics | None:
        """A step as one of its files has it, if that is there and valid."""
        read = partial(activations.read_step, extent=extent, step=step, layout=self.layout)
        return stored(self.stage, name, lambda: read(self.stage, name))
