"""Which figures a run draws: options of the config group `plots`.

The modules of this package hold one function per figure: it takes a table and returns a Figure.
Importing this package is light: matplotlib is imported by the functions that draw, pyplot never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PlotOptions", "minimal", "none", "paper"]

FIGURES = ("latent_curves", "image_grid", "selection_strip")


@dataclass(frozen=True)
class PlotOptions:
    """Which figures a run draws, of which layers (None: all), in which file formats."""

    figures: tuple[str, ...]
    layers: tuple[str, ...] | None
    formats: tuple[str, ...]


def paper(*, layers: Sequence[str] | None = None) -> PlotOptions:
    """Every figure as PNG and SVG."""
    return PlotOptions(FIGURES, _layers(layers), ("png", "svg"))


def minimal(*, layers: Sequence[str] | None = None) -> PlotOptions:
    """The latent curves and the images, as PNG."""
    return PlotOptions(("latent_curves", "image_grid"), _layers(layers), ("png",))


def none(*, layers: Sequence[str] | None = None) -> PlotOptions:
    """No figure."""
    return PlotOptions((), _layers(layers), ())


def _layers(layers: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if layers is None else tuple(layers)
