"""What a timestep-selection rule gives and may know; how a selection with too few is filled up."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from taqdit.errors import ConfigError, require

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


class Rule(Protocol):
    """What an option of this group is once its own arguments are bound."""

    def __call__(
        self, *, num_steps: int, sigmas: np.ndarray, trajectory: int, seed: int
    ) -> Selection: ...


@dataclass(frozen=True, eq=False)
class Evidence:
    """What statistics say about the n steps of a trajectory; data-driven rules choose from it.

    distances (n, n): symmetric, >= 0, zero diagonal: the mean over the sites of the Wasserstein-1
    distance of two steps' values, in the site's standard deviations. weights (n,): of the steps,
    > 0, sum 1 (dt, or equal). errors: bits -> (S, n, C) >= 0: mean squared error of a value of a
    site at a step when it is quantized with candidate range c, divided by the site's least
    weighted error, min_c sum_i w_i E(i, c): 1 is the best static quantizer. Read-only float64.
    Raises ConfigError if one is malformed.
    """

    distances: np.ndarray
    weights: np.ndarray
    errors: Mapping[int, np.ndarray]
    _found: dict[Hashable, tuple[int, ...]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        n = self.weights.size
        require(
            (
                self.weights.ndim == 1 and n > 0,
                f"weights of shape {self.weights.shape} must be (n,)",
            ),
            (
                self.distances.shape == (n, n),
                f"distances of shape {self.distances.shape} must be ({n}, {n})",
            ),
            *(
                (
                    each.ndim == 3 and each.size > 0 and each.shape[1] == n,
                    f"errors[{bits}] of shape {each.shape} must be (sites, {n}, ranges)",
                )
                for bits, each in self.errors.items()
            ),
        )
        require(*self._value_checks())
        for array in (self.distances, self.weights, *self.errors.values()):
            array.flags.writeable = False

    def _value_checks(self) -> Iterable[tuple[bool, str]]:
        arrays = {"distances": self.distances, "weights": self.weights}
        arrays |= {f"errors[{bits}]": each for bits, each in self.errors.items()}
        for name, each in arrays.items():
            good = each.dtype == np.float64 and bool(np.isfinite(each).all() and (each >= 0).all())
            yield good, f"{name} must be float64, finite and >= 0"
        total = float(self.weights.sum())
        yield bool((self.weights > 0).all()), "weights must be > 0"
        yield abs(total - 1) <= 1e-6, f"weights sum to {total:.6g} and must sum to 1"
        yield not self.distances.diagonal().any(), "distances must be 0 on the diagonal"
        even = np.allclose(self.distances, self.distances.T, rtol=1e-9, atol=1e-12)
        yield even, "distances must be symmetric"

    @property
    def num_steps(self) -> int:
        """n."""
        return self.weights.size

    @classmethod
    def blank(cls, num_steps: int, widths: Iterable[int]) -> Evidence:
        """A stand-in, at some bit widths, that tells no step from another: to try a rule's
        arguments with before anything is traced."""
        flat = np.zeros((1, num_steps, 1))
        weights = np.full(num_steps, 1 / num_steps)
        return cls(np.zeros((num_steps, num_steps)), weights, dict.fromkeys(widths, flat))

    def errors_at(self, bits: int) -> np.ndarray:
        """errors[bits] (S, n, C). ConfigError for a width that was not measured."""
        widths = ", ".join(map(str, self.errors))
        require((bits in self.errors, f"bits={bits} must be one of {widths}"))
        return self.errors[bits]

    def once(self, key: Hashable, choose: Callable[[], Iterable[int]]) -> tuple[int, ...]:
        """The steps that `choose` gives, kept under `key`: trajectories share what is chosen.

        The key names the rule and every argument that the choice depends on.
        """
        if key not in self._found:
            self._found[key] = tuple(choose())
        return self._found[key]

    @property
    def choices(self) -> dict[Hashable, tuple[int, ...]]:
        """What `once` has been asked for so far: steps by key."""
        return dict(self._found)

    def recall(self, choices: Mapping[Hashable, tuple[int, ...]]) -> None:
        """Take over choices that were made from this very evidence."""
        self._found.update(choices)


def needs_evidence(rule: Callable[..., Any]) -> bool:
    """Whether a rule, bound or not, takes a keyword argument `evidence`."""
    found = inspect.signature(rule).parameters.get("evidence")
    return found is not None and found.kind in (found.KEYWORD_ONLY, found.POSITIONAL_OR_KEYWORD)


def bound(rule: Any, evidence: Evidence) -> Rule:
    """The rule with the evidence, if it takes that."""
    return partial(rule, evidence=evidence) if needs_evidence(rule) else rule


def known_of(evidence: Evidence | None, rule: str, num_steps: int) -> Evidence:
    """`evidence`, if it is there and about `num_steps` steps; else ConfigError."""
    if evidence is None:
        raise ConfigError(
            f"_target_: {rule} needs traced statistics; set tracer=block_inputs, or select by a"
            " rule that needs none, such as interleaved"
        )
    found = evidence.num_steps
    require((found == num_steps, f"evidence of {found} steps must be of num_steps={num_steps}"))
    return evidence


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
