"""Which activations are read while a trajectory is sampled; options of the group `tracer`.

Importing this package is light: nothing of MLX is imported before something is traced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from taqdit.errors import require

if TYPE_CHECKING:
    from taqdit.activations import Site

__all__ = ["TracerOptions", "block_inputs", "none", "post_gelu"]

PLACES = ("qkv_in", "o_in", "fc1_in", "post_gelu", "context_in", "linear_in")
STOP, COUNT = NONFINITE = ("stop", "count")
_FILTERS = {"blocks": "block", "streams": "stream", "sites": "name"}  # option: what of a site
_SHOWN = 6  # names that a message lists


@dataclass(frozen=True)
class TracerOptions:
    """What to read: places (() = nothing), and patterns for block, stream and name (None = all).

    `num_trajectories` (None = all) are traced, in `folds` groups. `nonfinite` says what NaN and
    Inf do: "stop" the run, or be "count"ed.
    """

    places: tuple[str, ...]
    num_trajectories: int | None = None
    folds: int = 1
    blocks: tuple[str, ...] | None = None
    streams: tuple[str, ...] | None = None
    sites: tuple[str, ...] | None = None
    nonfinite: str = "stop"

    def chosen(self, sites: Iterable[Site]) -> tuple[Site, ...]:
        """Those of `sites` that are read, in their order; `problems` says why there are none."""
        return tuple(site for site in sites if all(self._passes(key, site) for key in _FILTERS))

    def problems(self, sites: Iterable[Site]) -> tuple[str, ...]:
        """What is wrong with the patterns for a model with these sites, as ConfigError takes it.

        One text per pattern that matches nothing, else one if the patterns exclude each other.
        Nothing is wrong where there is nothing to choose from.
        """
        there = [site for site in sites if site.place in self.places]
        texts = [text for key in _FILTERS for text in self._unmatched(key, there)]
        if there and not texts and not self.chosen(there):
            asked = [f"{key}={list(self._patterns(key))}" for key in _FILTERS if self._asks(key)]
            texts.append(f"{' and '.join(asked)} have no site in common; widen one, null = all")
        return tuple(texts)

    def _passes(self, key: str, site: Site) -> bool:
        name = getattr(site, _FILTERS[key])
        return site.place in self.places and (
            not self._asks(key) or any(fnmatchcase(name, each) for each in self._patterns(key))
        )

    def _unmatched(self, key: str, sites: Sequence[Site]) -> list[str]:
        names = list(dict.fromkeys(getattr(site, _FILTERS[key]) for site in sites))
        return [
            f"{key}={list(self._patterns(key))}: {pattern!r} matches nothing; {_listed(names)}"
            for pattern in self._patterns(key)
            if names and not any(fnmatchcase(name, pattern) for name in names)
        ]

    def _asks(self, key: str) -> bool:
        return getattr(self, key) is not None

    def _patterns(self, key: str) -> tuple[str, ...]:
        return getattr(self, key) or ()


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _SHOWN:
        return f"there are {', '.join(names)}"
    return f"there are {', '.join(names[: _SHOWN - 1])} ... {names[-1]} ({len(names)} in all)"


def block_inputs(
    *,
    num_trajectories: int | str | None = "all",
    folds: int = 8,
    blocks: Sequence[str] | None = None,
    streams: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    nonfinite: str = "stop",
) -> TracerOptions:
    """The inputs of every linear inside the blocks, of the context embedder and final linear.

    `blocks` (mm_07, uni_03, embed, final), `streams` (img, txt, joint) and `sites` (whole names)
    are lists of shell patterns; a site must match one of each list, None matches all.
    """
    return _options(
        PLACES,
        num_trajectories=num_trajectories,
        folds=folds,
        blocks=blocks,
        streams=streams,
        sites=sites,
        nonfinite=nonfinite,
    )


def post_gelu(
    *,
    num_trajectories: int | str | None = "all",
    folds: int = 8,
    blocks: Sequence[str] | None = None,
    streams: Sequence[str] | None = None,
    nonfinite: str = "stop",
) -> TracerOptions:
    """The activations after GELU, which are the inputs of fc2 (arXiv:2411.14172, section III).

    `blocks` (mm_07, uni_03) and `streams` (img, txt, joint) are lists of shell patterns; None
    matches all.
    """
    return _options(
        ("post_gelu",),
        num_trajectories=num_trajectories,
        folds=folds,
        blocks=blocks,
        streams=streams,
        sites=None,
        nonfinite=nonfinite,
    )


def none() -> TracerOptions:
    """Reads nothing."""
    return TracerOptions(())


def _options(
    places: tuple[str, ...],
    *,
    num_trajectories: int | str | None,
    folds: int,
    blocks: Sequence[str] | None,
    streams: Sequence[str] | None,
    sites: Sequence[str] | None,
    nonfinite: str,
) -> TracerOptions:
    number = None if num_trajectories in ("all", None) else num_trajectories
    require(
        (
            number is None or (isinstance(number, int) and number >= 1),
            f"num_trajectories={num_trajectories} must be 'all' or at least 1",
        ),
        (1 <= folds <= 64, f"folds={folds} must lie in [1, 64]"),
        _patterns_check("blocks", blocks),
        _patterns_check("streams", streams),
        _patterns_check("sites", sites),
        (
            nonfinite in NONFINITE,
            f"nonfinite={nonfinite} must be one of {', '.join(NONFINITE)}",
        ),
    )
    return TracerOptions(
        places,
        number if isinstance(number, int) else None,
        folds,
        blocks=None if blocks is None else tuple(blocks),
        streams=None if streams is None else tuple(streams),
        sites=None if sites is None else tuple(sites),
        nonfinite=nonfinite,
    )


def _patterns_check(name: str, patterns: Sequence[str] | None) -> tuple[bool, str]:
    holds = patterns is None or (
        not isinstance(patterns, str) and len(patterns) > 0 and all(patterns)
    )
    return holds, f"{name}={patterns} must be null (all) or hold at least one name or pattern"
