"""Which figures a run draws: options of the config group `plots`.

The modules of this package hold one function per figure: it takes a table and returns a Figure.
Importing this package is light: matplotlib is imported by the functions that draw, pyplot never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PlotOptions", "minimal", "none", "paper"]

OVERVIEW = (
    "range_vs_timestep_all",
    "range_vs_timestep_image",
    "range_vs_timestep_text",
    "range_vs_sigma",
    "absmax_heatmap",
    "heatmap_mean",
    "heatmap_std",
    "negative_fraction_heatmap",
    "kurtosis_heatmap",
    "outliers",
)
LAYER = ("histogram", "ridgeline", "channel_ranges", "channel_time")  # one of each per layer
FIGURES = ("latent_curves", "image_grid", "selection_strip", *OVERVIEW, *LAYER)
MINIMAL = ("latent_curves", "image_grid", "range_vs_timestep_all")


@dataclass(frozen=True)
class PlotOptions:
    """Which figures a run draws, in which file formats, and of which layers.

    `layers` are patterns for the figures of single layers: a layer is named as its figures are
    (`mm_00_img`, `mm_00_img_qkv_in`) or as its site is (`mm_00_img.qkv_in`). None: the post-GELU
    layer whose largest channel stands out most.
    """

    figures: tuple[str, ...]
    layers: tuple[str, ...] | None
    formats: tuple[str, ...]


def paper(*, layers: Sequence[str] | None = None) -> PlotOptions:
    """Every figure as PNG and SVG."""
    return PlotOptions(FIGURES, _layers(layers), ("png", "svg"))


def minimal(*, layers: Sequence[str] | None = None) -> PlotOptions:
    """The latent curves, the images, and the range of every layer against the timestep, as PNG."""
    return PlotOptions(MINIMAL, _layers(layers), ("png",))


def none(*, layers: Sequence[str] | None = None) -> PlotOptions:
    """No figure."""
    return PlotOptions((), _layers(layers), ())


def _layers(layers: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if layers is None else tuple(layers)
