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
    from taqdit.models.spec import Model, ModelSpec

CELL = 32  # weights of one output channel whose sums are kept together; groups are multiples of it
ENDS = 2 * (len(SHARES) + 1)  # candidate ends of a range: the low ones, the high ones
_DROPPED = np.uint32(0xFFFF)  # mantissa bits that an end has not


class Linear(NamedTuple):
    """A linear, the site that it reads, and its weight (outputs, inputs)."""

    name: str
    site: str
    path: str
    outputs: int
    inputs: int

    @property
    def cells(self) -> tuple[int, int]:
        """Shape of the weight in cells, (outputs, cells a row); the last of a row may be short."""
        return self.outputs, -(-self.inputs // CELL)


@dataclass(frozen=True, eq=False)
class SensitivityLayout:
    """S sites in F folds, the tokens that a row has at each, L linears, and ENDS per site.

    `ends` (S, ENDS) float32, ascending: the low ends of candidate ranges from the site's minimum
    to 0, then the high ends from 0 to its maximum. They are bfloat16 numbers: one compares the
    upper 16 bits alone. Between two of them one interpolates.
    """

    layout: Layout
    tokens: tuple[int, ...]
    linears: tuple[Linear, ...]
    ends: np.ndarray

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
    def offsets(self) -> np.ndarray:
        """Where the cells of each linear begin, (L + 1,) int64."""
        return np.cumsum([0, *(rows * row for rows, row in (each.cells for each in self.linears))])

    def cells(self, linear: int) -> slice:
        """Where the cells of a linear lie side by side with those of all others."""
        return slice(int(self.offsets[linear]), int(self.offsets[linear + 1]))

    def taps(self, model: Model) -> Taps:
        """Taps around the linears."""
        widths = {each.name: each.inputs for each in self.linears}
        return Taps(model.mmdit, {each.name: each.path for each in self.linears}, widths=widths)


def range_ends(low: float, high: float) -> np.ndarray:
    """Candidate ends (ENDS,) float32 of ranges within [low, high], shortened to bfloat16."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    below = np.append(-np.sort(-SHARES), 0) * low
    ends = np.concatenate([below, np.append(0, np.sort(SHARES)) * high]).astype(np.float32)
    outward = ends.view(np.uint32) + _DROPPED  # away from zero: the extremes lie inside
    return (outward & ~_DROPPED).view(np.float32)


def input_sites(spec: ModelSpec) -> dict[str, str]:
    """Linear -> the site it reads, for every linear that reads one."""
    return {layer: each.site.name for each in site_paths(spec) for layer in layers_of(each.site)}


def _linears(model: Model, sites: Sequence[Site]) -> list[Linear]:
    paths, modules = linear_paths(model.spec), dict(model.mmdit.named_modules())
    return [
        Linear(layer, site.name, paths[layer], int(modules[paths[layer]].weight.shape[0]), width)
        for site in sites
        for layer, width in ((layer, site.width) for layer in layers_of(site))
    ]
