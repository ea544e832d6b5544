"""Which activations are read while a trajectory is sampled; options of the group `tracer`."""

from __future__ import annotations

from dataclasses import dataclass

from taqdit.errors import require

__all__ = ["TracerOptions", "block_inputs", "none", "post_gelu"]


@dataclass(frozen=True)
class TracerOptions:
    """The sites to read (() = none), how many trajectories (None = all), and their folds."""

    sites: tuple[str, ...]
    num_trajectories: int | None
    folds: int


def _options(
    sites: tuple[str, ...], *, num_trajectories: int | str | None, folds: int
) -> TracerOptions:
    number = None if num_trajectories in ("all", None) else num_trajectories
    require(
        (
            number is None or (isinstance(number, int) and number >= 1),
            f"num_trajectories={num_trajectories} must be 'all' or at least 1",
        ),
        (1 <= folds <= 1024, f"folds={folds} must lie in [1, 1024]"),
    )
    return TracerOptions(sites, number if isinstance(number, int) else None, folds)


def block_inputs(*, num_trajectories: int | str | None = "all", folds: int = 8) -> TracerOptions:
    """The inputs of every linear inside the blocks, of the context embedder and final linear."""
    sites = ("qkv_in", "o_in", "fc1_in", "post_gelu", "context_in", "linear_in")
    return _options(sites, num_trajectories=num_trajectories, folds=folds)


def post_gelu(*, num_trajectories: int | str | None = "all", folds: int = 8) -> TracerOptions:
    """The activations after GELU, which are the inputs of fc2 (arXiv:2411.14172, section III)."""
    return _options(("post_gelu",), num_trajectories=num_trajectories, folds=folds)


def none() -> TracerOptions:
    """Reads nothing."""
    return TracerOptions((), None, 1)
