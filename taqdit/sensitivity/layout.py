"""What is asked about: the sites of a model, the linears behind them, and candidate ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from taqdit.activations import Layout, Site
from taqdit.activations.layer_json import layers_of
from taqdit.analysis.static import SHARES
from taqdit.errors import ModelError, require
from taqdit.models.linears import linear_paths
from taqdit.models.sites import site_paths
from taqdit.tracer.taps import Taps

if TYPE_CHECKING:
    from taqdit.models.spec import Model

ENDS = 2 * (len(SHARES) + 1)  # candidate ends of a range: the low ones, the high ones
HALF_STEPS = 0.5 * 2.0 ** (-np.arange(45, -1, -1) / 4)  # of quantizers, in shares of the absmax
ZEROED = 2 * len(HALF_STEPS)
_DROPPED = np.uint32(0xFFFF)  # mantissa bits that an end has not


class Linear(NamedTuple):
    """A linear, the site that it reads, and its weight (outputs, inputs)."""

    name: str
    site: str
    path: str
    outputs: int
    inputs: int


@dataclass(frozen=True, eq=False)
class SensitivityLayout:
    """S sites in F folds, the tokens that a row has at each, L linears, and what is tabulated.

    `ends` (S, ENDS) float32, ascending: the low ends of candidate ranges from the site's minimum
    to 0, then the high ends from 0 to its maximum. `half_steps` (S, ZEROED) float32, ascending:
    half the scale of quantizers, below zero and above. All are bfloat16 numbers: the upper 16 bits
    of a value tell on which side it lies. Between two of them one interpolates.
    """

    layout: Layout
    tokens: tuple[int, ...]
    linears: tuple[Linear, ...]
    ends: np.ndarray
    half_steps: np.ndarray

    @classmethod
    def of(
        cls,
        model: Model,
        extremes: Mapping[str, tuple[float, float]],
        *,
        folds: int,
        sites: Sequence[str] | None = None,
    ) -> SensitivityLayout:
        """The layout of a model; `extremes` are the smallest and largest value seen at each site.

        `sites` names those that are asked about, None all: several passes over a few sites each
        take less memory than one over all. Raises ConfigError for names that the model has not,
        ModelError if the model's structure is unknown.
        """
        known = {each.site.name: each for each in site_paths(model.spec)}
        if not known:
            raise ModelError(f"model {model.spec.name}: its structure is unknown, so are its sites")
        names = list(known) if sites is None else list(sites)
        unknown = [name for name in names if name not in known]
        unseen = [name for name in names if name not in extremes]
        require(
            (not unknown, f"sites={unknown}: the model has none of these"),
            (not unseen, f"sites={unseen}: no smallest and largest value is known of these"),
            (1 <= folds <= 64, f"folds={folds} must lie in [1, 64]"),
        )
        chosen = [known[name] for name in names]
        return cls(
            Layout(tuple(each.site for each in chosen), folds),
            tuple(each.tokens for each in chosen),
            tuple(_linears(model, [each.site for each in chosen])),
            np.stack([range_ends(*extremes[name]) for name in names]),
            np.stack([half_steps(*extremes[name]) for name in names]),
        )

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites."""
        return self.layout.sites

    @property
    def folds(self) -> int:
        """Groups of trajectories: trajectory i is in fold i mod folds."""
        return self.layout.folds

    @cached_property
    def outputs(self) -> dict[str, slice]:
        """Where the output channels of each linear lie, those of all side by side."""
        return _spans({each.name: each.outputs for each in self.linears})

    @cached_property
    def inputs(self) -> dict[str, slice]:
        """Where its input channels do."""
        return _spans({each.name: each.inputs for each in self.linears})

    def taps(self, model: Model) -> Taps:
        """Taps around the linears."""
        widths = {each.name: each.inputs for each in self.linears}
        return Taps(model.mmdit, {each.name: each.path for each in self.linears}, widths=widths)


def range_ends(low: float, high: float) -> np.ndarray:
    """Candidate ends (ENDS,) float32 of ranges within [low, high], as bfloat16 numbers."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    below = np.append(-np.sort(-SHARES), 0) * low
    return _outward(np.concatenate([below, np.append(0, np.sort(SHARES)) * high]))


def half_steps(low: float, high: float) -> np.ndarray:
    """Half scales (ZEROED,) float32 of quantizers of values in [low, high], as bfloat16 numbers."""
    steps = HALF_STEPS * max(-float(low), float(high), 0.0)
    return _outward(np.concatenate([-steps[::-1], steps]))


def _outward(ends: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 numbers that are no nearer to zero, float32: extremes lie inside."""
    return ((ends.astype(np.float32).view(np.uint32) + _DROPPED) & ~_DROPPED).view(np.float32)


def _spans(widths: Mapping[str, int]) -> dict[str, slice]:
    ends = np.cumsum([0, *widths.values()]).tolist()
    return dict(zip(widths, map(slice, ends[:-1], ends[1:]), strict=True))


def _linears(model: Model, sites: Sequence[Site]) -> list[Linear]:
    paths, modules = linear_paths(model.spec), dict(model.mmdit.named_modules())
    return [
        Linear(layer, site.name, paths[layer], int(modules[paths[layer]].weight.shape[0]), width)
        for site in sites
        for layer, width in ((layer, site.width) for layer in layers_of(site))
    ]
