"""Which activations are read while a trajectory is sampled; options of the group `tracer`.

Importing this package is light: nothing of MLX is imported before something is traced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from taqdit.errors import require

if TYPE_CHECKING:
    from taqdit.activations import Site

__all__ = ["TracerOptions", "block_inputs", "none", "post_gelu"]

PLACES = ("qkv_in", "o_in", "fc1_in", "post_gelu", "context_in", "linear_in")
STOP, COUNT = NONFINITE = ("stop", "count")
_FILTERS = {"blocks": "block", "streams": "stream", "sites": "name"}  # option: what of a site
_SHOWN = 6  # names that a message lists


@dataclass(frozen=True, kw_only=True)
class TracerOptions:
    """What is read: the sites at `places` whose block, stream and name fit the patterns.

    `blocks` (mm_07, uni_03, embed, final), `streams` (img, txt, joint) and `sites` (whole names)
    are lists of shell patterns; a site must match one of each list, None matches all.
    `num_trajectories` (None, "all") are traced, in `folds` groups. `nonfinite` says what NaN and
    Inf do: "stop" the run, or be "count"ed. Raises ConfigError for values out of range.
    """

    num_trajectories: int | str | None = "all"
    folds: int = 8
    blocks: Sequence[str] | None = None
    streams: Sequence[str] | None = None
    sites: Sequence[str] | None = None
    nonfinite: str = STOP

    places: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        number, rule = self.num_trajectories, self.nonfinite
        require(
            (
                number in ("all", None) or (isinstance(number, int) and number >= 1),
                f"num_trajectories={number} must be 'all' or at least 1",
            ),
            (1 <= self.folds <= 64, f"folds={self.folds} must lie in [1, 64]"),
            *(_patterns_check(key, getattr(self, key)) for key in _FILTERS),
            (rule in NONFINITE, f"nonfinite={rule} must be one of {', '.join(NONFINITE)}"),
        )
        for key in filter(self._asks, _FILTERS):
            object.__setattr__(self, key, self._patterns(key))

    def traced(self, num_trajectories: int) -> int:
        """How many of some trajectories are traced."""
        asked = self.num_trajectories
        return min(asked, num_trajectories) if isinstance(asked, int) else num_trajectories

    def chosen(self, sites: Iterable[Site]) -> tuple[Site, ...]:
        """Those of `sites` that are read, in their order; `problems` says why there are none."""
        return tuple(site for site in sites if all(self._passes(key, site) for key in _FILTERS))

    def problems(self, sites: Iterable[Site]) -> tuple[str, ...]:
        """What is wrong with the patterns for a model with these sites, as ConfigError takes it.

        One text per pattern that matches nothing, else one if the patterns exclude each other.
        Nothing is wrong where there is nothing to choose from.
        """
        traced = [site for site in sites if site.place in self.places]
        texts = [text for key in _FILTERS for text in self._unmatched(key, traced)]
        if traced and not texts and not self.chosen(traced):
            asked = [f"{key}={list(self._patterns(key))}" for key in _FILTERS if self._asks(key)]
            texts.append(f"{' and '.join(asked)} have no site in common; widen one, null = all")
        return tuple(texts)

    def _passes(self, key: str, site: Site) -> bool:
        name = getattr(site, _FILTERS[key])
        return site.place in self.places and (
            not self._asks(key)
            or any(fnmatchcase(name, pattern) for pattern in self._patterns(key))
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
        return tuple(getattr(self, key) or ())


class block_inputs(TracerOptions):
    """The inputs of every linear inside the blocks, of the context embedder and final linear."""

    places = PLACES


@dataclass(frozen=True, kw_only=True)
class post_gelu(TracerOptions):
    """The activations after GELU, which are the inputs of fc2 (arXiv:2411.14172, section III)."""

    sites: None = field(default=None, init=False)  # one per block and stream

    places = ("post_gelu",)


class none(TracerOptions):
    """Reads nothing."""

    def __init__(self) -> None:
        super().__init__(folds=1)


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _SHOWN:
        return f"there are {', '.join(names)}"
    return f"there are {', '.join(names[: _SHOWN - 1])} ... {names[-1]} ({len(names)} in all)"


def _patterns_check(name: str, patterns: Sequence[str] | None) -> tuple[bool, str]:
    holds = patterns is None or (
        not isinstance(patterns, str) and len(patterns) > 0 and all(patterns)
    )
    return holds, f"{name}={patterns} must be null (all) or hold at least one name or pattern"
