"""The arguments that selection rules share, checked: step counts, budgets, whole numbers, seeds."""

from __future__ import annotations

import numpy as np

from taqdit.errors import ConfigError, require


def default_count(num_steps: int) -> int:
    """A quarter of the steps, rounded half up, at least 2 (one where there is but one step)."""
    return min(num_steps, max(2, (num_steps + 2) // 4))


def budget(count: int | None, num_steps: int) -> int:
    """The number of steps to select. Raises ConfigError unless 1 <= count <= num_steps."""
    step_count(num_steps)
    if count is None:
        return default_count(num_steps)
    note = f"schedule.num_steps is {num_steps}; null takes a quarter of the steps"
    return integer("count", count, low=1, high=num_steps, note=note)


def step_count(num_steps: int) -> int:
    """`num_steps`, if it is an integer >= 1; else ConfigError."""
    return integer("num_steps", num_steps, low=1, note="set schedule.num_steps")


def integer(
    name: str, value: int, *, low: int, high: int | None = None, note: str = "use an integer"
) -> int:
    """`value`, if it is an integer (and not a bool) in [low, high]; else ConfigError."""
    ok = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not ok or value < low or (high is not None and value > high):
        allowed = f"in [{low}, {high}]" if high is not None else f">= {low}"
        raise ConfigError(f"{name}={value!r} must be an integer {allowed}; {note}")
    return int(value)


def index(name: str, value: int) -> int:
    """`value`, if it is an integer >= 0; else ConfigError."""
    return integer(name, value, low=0)


def grid(sigmas: np.ndarray, num_steps: int, *, decreasing: bool = False) -> np.ndarray:
    """`sigmas` as float64, if they are (num_steps + 1,), finite and, where asked, decreasing; else
    ConfigError."""
    whole = sigmas.shape == (num_steps + 1,) and bool(np.isfinite(sigmas).all())
    falls = not decreasing or bool((np.diff(sigmas) < 0).all())
    require(
        (whole, f"sigmas of shape {sigmas.shape} must be ({num_steps + 1},) and finite"),
        (falls, "sigmas must strictly decrease"),
    )
    return sigmas.astype(np.float64)


def generator(seed: int, trajectory: int) -> np.random.Generator:
    """A stream of its own for every (seed, trajectory); no global state."""
    key = (index("trajectory", trajectory),)
    return np.random.default_rng(np.random.SeedSequence(index("seed", seed), spawn_key=key))
