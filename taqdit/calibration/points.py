"""Calibration points: what one is, and which ones trajectories and a selection rule give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from taqdit.errors import ConfigError
from taqdit.prompts.options import Prompts
from taqdit.timestep_selection.selection import Rule, Selection
from taqdit.timestep_selection.steps import TrajectorySteps


class Trajectories(Protocol):
    """Read access to sampled trajectories."""

    @property
    def num_steps(self) -> int: ...

    @property
    def prompts(self) -> Prompts: ...

    @property
    def sigmas(self) -> np.ndarray:
        """(num_steps + 1,) float32."""
        ...

    @property
    def timesteps(self) -> np.ndarray:
        """(num_steps + 1,) float32, as the model sees them."""
        ...

    def __len__(self) -> int: ...

    def latents_at(self, index: int, steps: np.ndarray, /) -> np.ndarray:
        """(len(steps), h, w, 16); the latent of a step is what the model sees at it."""
        ...


@dataclass(frozen=True, eq=False)
class CalibrationPoint:
    """One input of the denoiser. `latent` is (h, w, 16) float32; `trajectory` -1 = unknown."""

    trajectory: int
    step: int
    sigma: float
    timestep: float
    latent: np.ndarray
    prompt: str
    prompt_index: int
    loss_weight: float


class Batch(NamedTuple):
    """Points of one step: latents (b, h, w, 16), prompt indices (b,), trajectories (b,)."""

    latents: np.ndarray
    prompt_indices: np.ndarray
    trajectories: np.ndarray


class Table(NamedTuple):
    """One row per point, each array (N,)."""

    trajectory: np.ndarray
    step: np.ndarray
    prompt_index: np.ndarray
    loss_weight: np.ndarray


def selections(rule: Rule, first: TrajectorySteps, num_trajectories: int) -> list[Selection]:
    """What `rule` selects of each of the trajectories from `first` on. Raises as `selected`."""
    indices = range(first.index, first.index + num_trajectories)
    return [selected(rule, replace(first, index=index)) for index in indices]


def selected(rule: Rule, trajectory: TrajectorySteps) -> Selection:
    """What `rule` selects of one trajectory. Raises ConfigError for a step that is not there."""
    selection, num_steps = rule(trajectory), trajectory.num_steps
    if selection.indices[0] < 0 or selection.indices[-1] >= num_steps:
        raise ConfigError(
            f"timestep_selection gives steps {selection.indices.tolist()} for trajectory"
            f" {trajectory.index}; they must lie in [0, {num_steps - 1}]"
        )
    return selection


def step_major(chosen: Sequence[Selection], num_prompts: int) -> Table:
    """Points by place in the selection, then trajectory; a count repeats its point."""
    steps = [np.repeat(each.indices, each.counts) for each in chosen]
    weights = [np.repeat(each.loss_weight, each.counts) for each in chosen]
    place = np.concatenate([np.arange(len(each)) for each in steps])
    trajectory = np.repeat(np.arange(len(chosen)), [len(each) for each in steps])
    order = np.lexsort((trajectory, place))
    trajectory = trajectory[order]
    return Table(
        trajectory=trajectory,
        step=np.concatenate(steps)[order],
        prompt_index=trajectory % num_prompts,
        loss_weight=np.concatenate(weights)[order],
    )
