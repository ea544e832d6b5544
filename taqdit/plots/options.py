"""Which figures a run draws: options of the config group `plots`. Importing this is light."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import ClassVar

from taqdit.activations import Site
from taqdit.errors import require
from taqdit.plots.drawing import FigureKind, Of, figure_kinds

__all__ = ["PlotOptions", "minimal", "none", "paper"]


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """Which figures a run draws, in which file formats, and of which layers.

    `figures` are names, None: every one that the option has. `layers` are patterns for the figures
    of single layers: a layer is named as its figures are (`mm_00_img`, `mm_00_img_qkv_in`) or as
    its site is (`mm_00_img.qkv_in`); None: the post-GELU layer whose largest channel stands out
    most. Raises ConfigError for a figure that there is not.
    """

    figures: Sequence[str] | None = None
    layers: Sequence[str] | None = None

    formats: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        known = figure_kinds() if self.figures else {}
        require(*((name in known, _unknown(name, known)) for name in self.figures or ()))

    @property
    def drawn(self) -> tuple[str, ...]:
        """The names of the figures that are drawn."""
        if not self.formats:
            return ()
        return self._offered() if self.figures is None else tuple(self.figures)

    def _offered(self) -> tuple[str, ...]:
        return tuple(figure_kinds())

    def kinds(self, of: Of) -> list[FigureKind]:
        """Those of the figures that are drawn of this, in the order of the report."""
        names = self.drawn
        return [k for k in figure_kinds().values() if k.of is of and k.name in names]

    def problems(self, sites: Iterable[Site]) -> list[str]:
        """One text per pattern of `layers` that fits none of the sites."""
        traced = list(sites)
        labels = ", ".join(site.label for site in traced[:8])
        return [
            f"layers: {pattern!r} matches none of the {len(traced)} traced layers ({labels} ..)"
            for pattern in self.layers or ()
            if traced and not any(fits(site, pattern) for site in traced)
        ]


class paper(PlotOptions):
    """The figures that are named, every one by default, as PNG and SVG."""

    formats = ("png", "svg")


class minimal(PlotOptions):
    """The figures that are named, by default the latent curves, the images, the range of every
    layer against the timestep, and what selections cost, as PNG."""

    formats = ("png",)

    def _offered(self) -> tuple[str, ...]:
        return tuple(name for name, kind in figure_kinds().items() if kind.minimal)


class none(PlotOptions):
    """No figure."""


def fits(site: Site, pattern: str) -> bool:
    """Whether a pattern names the site, as it is called or as its figures are."""
    return fnmatchcase(site.label, pattern) or fnmatchcase(site.name, pattern)


def _unknown(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    return f"figures: {name!r} is no figure; {meant}"
