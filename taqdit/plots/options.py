"""Which figures a run draws: options of the config group `plots`.

The modules of this package hold one function per figure: it takes a table and returns a Figure.
Importing this package is light: matplotlib is imported by the functions that draw, pyplot never.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from taqdit.activations import Site

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
ANALYSIS = (
    "selection_scores",
    "score_versus_k",
    "drift_heatmap",
    "bits_per_layer",
    "error_versus_bits",
)
LAYER = ("histogram", "ridgeline", "channel_ranges", "channel_time")  # one of each per layer
FIGURES = ("latent_curves", "image_grid", "selection_strip", *ANALYSIS, *OVERVIEW, *LAYER)
MINIMAL = ("latent_curves", "image_grid", "range_vs_timestep_all", "selection_scores")


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

    def problems(self, sites: Iterable[Site]) -> list[str]:
        """One text per pattern of `layers` that fits none of the sites."""
        there = list(sites)
        labels = ", ".join(site.label for site in there[:8])
        return [
            f"layers: {pattern!r} matches none of the {len(there)} traced layers ({labels} ..)"
            for pattern in self.layers or ()
            if there and not any(fits(site, pattern) for site in there)
        ]


def fits(site: Site, pattern: str) -> bool:
    """Whether a pattern names the site, as it is called or as its figures are."""
    return fnmatchcase(site.label, pattern) or fnmatchcase(site.name, pattern)


def paper(*, layers: Sequence[str] | None = None) -> PlotOptions:
    """Every figure as PNG and SVG."""
    return PlotOptions(FIGURES, _layers(layers), ("png", "svg"))


def minimal(*, layers: Sequence[str] | None = None) -> PlotOptions:
    """The latent curves, the images, the range of every layer against the timestep, and what
    selections cost, as PNG."""
    return PlotOptions(MINIMAL, _layers(layers), ("png",))


def none(*, layers: Sequence[str] | None = None) -> PlotOptions:
    """No figure."""
    return PlotOptions((), _layers(layers), ())


def _layers(layers: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if layers is None else tuple(layers)
