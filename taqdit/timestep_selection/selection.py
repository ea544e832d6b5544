"""What a timestep-selection rule gives, and how a selection with too few steps is filled up."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from taqdit.errors import ConfigError, require
from taqdit.timestep_selection.steps import TrajectorySteps

TIE = 1e-9  # relative to the coordinate's extent: nearer than this is a tie, on any machine


@dataclass(frozen=True, eq=False)
class Selection:
    """The selected steps of one trajectory, with their multiplicities and loss weights.

    indices (k,) int64 strictly increasing; counts (k,) int64, how many calibration points a step
    gives; loss_weight (k,) float64 >= 0, how much a point counts in a reconstruction loss. Three
    different things. All three read-only. Raises ConfigError if one is malformed.
    """

    indices: np.ndarray
    counts: np.ndarray
    loss_weight: np.ndarray

    def __post_init__(self) -> None:
        steps, counts, weights = self.indices, self.counts, self.loss_weight
        require(
            (steps.ndim == 1 and steps.size > 0, f"indices of shape {steps.shape} must be (k,)"),
            (steps.dtype == np.int64, f"indices of dtype {steps.dtype} must be int64"),
            (bool((np.diff(steps) > 0).all()), "indices must be strictly increasing"),
            (counts.shape == steps.shape and bool((counts >= 1).all()), "counts must be >= 1 (k,)"),
            (counts.dtype == np.int64, f"counts of dtype {counts.dtype} must be int64"),
            (
                weights.shape == steps.shape
                and bool((np.isfinite(weights) & (weights >= 0)).all()),
                "loss_weight must be (k,), finite and >= 0",
            ),
        )
        for array in (steps, counts, weights):
            array.flags.writeable = False

    @classmethod
    def of(cls, indices: Iterable[int]) -> Selection:
        """The given steps, sorted, each once, with counts and loss weights of one."""
        steps = np.unique(np.fromiter(indices, dtype=np.int64))
        return cls(steps, np.ones(steps.shape, np.int64), np.ones(steps.shape))


Rule = Callable[[TrajectorySteps], Selection]
"""What an option of this group is once its own arguments are bound."""


def refuse_other_forms(rule: Callable[..., Any]) -> None:
    """Raise ConfigError unless `rule` can be called with a TrajectorySteps alone."""
    try:
        inspect.signature(rule).bind(None)
    except TypeError as error:
        name = getattr(getattr(rule, "func", rule), "__name__", rule)
        raise ConfigError(
            f"_target_: the rule {name} cannot be called with the steps of a trajectory ({error});"
            f" write def {name}(trajectory, *, count=None), where trajectory is a TrajectorySteps"
        ) from error


def cells(selections: Sequence[Selection], *, folds: int, num_steps: int) -> np.ndarray:
    """How often a trajectory of each fold gives each step, (folds, num_steps) float64.

    The mean of `counts` over the fold's trajectories, 0 where none selects the step. `selections`
    holds one per trajectory; trajectory i is in fold i mod folds. A fold without a trajectory is
    zero throughout.
    """
    times = np.zeros((folds, num_steps))
    for trajectory, selection in enumerate(selections):
        times[trajectory % folds, selection.indices] += selection.counts
    members = np.bincount(np.arange(len(selections)) % folds, minlength=folds)
    return times / np.maximum(members, 1)[:, None]


def refilled(steps: Sequence[int], coordinate: np.ndarray, count: int) -> list[int]:
    """`steps`, each once, plus the steps farthest from any chosen one until there are `count`.

    Distance is measured in `coordinate` (n,); of equally far steps the last one, nearest to the
    image, is taken: a stride sees those least.
    """
    chosen = sorted(set(steps))
    gaps = np.abs(coordinate[:, None] - coordinate[chosen]).min(axis=1)
    while len(chosen) < count:
        gaps[chosen] = -np.inf
        new = last_smallest(-gaps, coordinate)
        chosen.append(new)
        gaps = np.minimum(gaps, np.abs(coordinate - coordinate[new]))
    return chosen


def last_smallest(distances: np.ndarray, coordinate: np.ndarray) -> int:
    """Index of the smallest distance; of those within a tie, the last one."""
    tie = TIE * float(np.ptp(coordinate))
    return int(np.flatnonzero(distances <= distances.min() + tie)[-1])
