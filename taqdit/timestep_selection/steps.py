"""What a selection rule is shown: the steps of one trajectory; and its whole numbers, checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from taqdit.errors import ConfigError, require
from taqdit.timestep_selection.evidence import Evidence


@dataclass(frozen=True, eq=False)
class TrajectorySteps:
    """The n steps of one trajectory, all that a rule may choose by.

    `sigmas` (n + 1,), finite; the last, 0, belongs to no model call. The trajectory's `index` and
    the `seed` move random and rotating rules only. `evidence` is what traced statistics say of the
    steps; data-driven rules need it. Raises ConfigError if one is malformed.
    """

    sigmas: np.ndarray
    index: int = 0
    seed: int = 0
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        n, known = self.num_steps, self.evidence
        whole = self.sigmas.ndim == 1 and bool(np.isfinite(self.sigmas).all())
        integer("trajectory", self.index, low=0)
        integer("seed", self.seed, low=0)
        require(
            (n >= 1, f"num_steps={n} must be an integer >= 1; set schedule.num_steps"),
            (whole, f"sigmas of shape {self.sigmas.shape} must be (num_steps + 1,) and finite"),
            (
                known is None or known.num_steps == n,
                f"evidence of {known and known.num_steps} steps must be of num_steps={n}",
            ),
        )

    @property
    def num_steps(self) -> int:
        """n: model calls."""
        return self.sigmas.size - 1

    def budget(self, count: int | None) -> int:
        """The number of steps to select. Raises ConfigError unless 1 <= count <= n."""
        n = self.num_steps
        note = f"schedule.num_steps is {n}; null takes a quarter of the steps"
        return default_count(n) if count is None else integer("count", count, 1, n, note)

    def generator(self) -> np.random.Generator:
        """A stream of its own for every (seed, trajectory); no global state."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(self.index,)))

    def known(self, rule: str) -> Evidence:
        """The evidence that a rule of this name needs. ConfigError if nothing was traced."""
        if self.evidence is None:
            raise ConfigError(
                f"_target_: {rule} needs traced statistics; set tracer=block_inputs, or select by"
                " a rule that needs none, such as interleaved"
            )
        return self.evidence


def default_count(num_steps: int) -> int:
    """A quarter of the steps, rounded half up, at least 2 (one where there is but one step)."""
    return min(num_steps, max(2, (num_steps + 2) // 4))


def integer(
    name: str, value: int, low: int, high: int | None = None, note: str = "use an integer"
) -> int:
    """`value`, if it is an integer (and not a bool) in [low, high]; else ConfigError."""
    ok = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not ok or value < low or (high is not None and value > high):
        allowed = f"in [{low}, {high}]" if high is not None else f">= {low}"
        raise ConfigError(f"{name}={value!r} must be an integer {allowed}; {note}")
    return int(value)
