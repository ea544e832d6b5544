"""Shards of statistics: one per step and extent, and what is stored while a stage is under way.

A shard names its extent, the number of trajectories that it covers: asking for more later goes on
from there. Checkpoints are the same shards under another name; a part holds what one batch of
trajectories adds to a step.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from taqdit.activations import Layout, StepStatistics
from taqdit.errors import CorruptError
from taqdit.store import Shard, Stage

KIND = "statistics"
WHOLE, CHECKPOINT, PART = "trajectories", "checkpoint", "part"
_NAME = re.compile(rf"({WHOLE}|{CHECKPOINT}|{PART})_(\d{{7}})_step_(\d{{4}})\.safetensors")


class Listed(NamedTuple):
    """A file of the stage: of `kind` WHOLE, CHECKPOINT or PART. `number` is its extent, or the
    number of a part's batch."""

    kind: str
    number: int
    step: int
    name: str


def listed(stage: Stage) -> list[Listed]:
    """The files that hold statistics of a step, sorted by name."""
    matches = [match for match in map(_NAME.fullmatch, stage.names()) if match]
    return [Listed(match[1], int(match[2]), int(match[3]), match[0]) for match in matches]


def file_name(extent: int, step: int) -> str:
    """The shard of a step that covers the first `extent` trajectories."""
    return _name(WHOLE, extent, step)


def checkpoint_name(extent: int, step: int) -> str:
    """What is merged so far of a step, its first `extent` trajectories."""
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
    _write(stage, name, statistics, kind=KIND, index=index_of(extent, step), metadata=metadata)


def write_part(stage: Stage, statistics: StepStatistics, *, batch: int, step: int) -> None:
    """Publish what a batch adds to a step."""
    name, index = part_name(batch, step), index_of(batch, step)
    _write(stage, name, statistics, kind=PART, index=index, metadata={})


def read_step(
    stage: Stage, name: str, *, extent: int, step: int, layout: Layout | None = None
) -> StepStatistics:
    """The statistics of a stored step. CorruptError if damaged, or not of these sites."""
    shard = stage.read(name, kind=KIND, index=index_of(extent, step))
    return unpacked(shard, stage.path(name), layout)


def read_part(stage: Stage, *, batch: int, step: int, layout: Layout) -> StepStatistics:
    """What a batch adds to a step. CorruptError if damaged, or not of these sites."""
    name = part_name(batch, step)
    shard = stage.read(name, kind=PART, index=index_of(batch, step))
    return unpacked(shard, stage.path(name), layout)


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


def unpacked(shard: Shard, path: Path, layout: Layout | None = None) -> StepStatistics:
    """What a shard, read from `path`, holds. CorruptError if damaged, or of another layout."""
    try:
        stored = Layout.of(shard.metadata["sites"], folds=int(shard.metadata["folds"]))
        if layout not in (None, stored):
            raise ValueError("it holds other sites or folds")
        return StepStatistics.of_tensors(stored, shard.tensors)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} is damaged: {error}") from error


def index_of(number: int, step: int) -> str:
    """The unit of a shard: extent (or batch) and step."""
    return f"{number}/{step}"
