"""Figures of the activation statistics, and which layers get figures of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from taqdit.activations import Site
from taqdit.activations.overview import LayerTable, Overview
from taqdit.errors import ConfigError
from taqdit.plots import heatmaps, layers, outliers, overview
from taqdit.plots.distribution import distribution_table
from taqdit.plots.drawing import Drawing
from taqdit.plots.options import PlotOptions, fits
from taqdit.words import spaced

HEADING, LAYERS_HEADING = "Activations", "Single layers"
PANELS, RIDGES = 12, 16  # steps that one figure shows at most
_STREAMS = {"all": None, "image": "img", "text": "txt"}


def activation_figures(
    table: Overview,
    layer: Callable[[int], LayerTable],
    options: PlotOptions,
    *,
    selected: Sequence[int],
) -> Iterator[Drawing]:
    """Those that the options ask for and that the statistics can fill.

    `layer(site number)` gives the detailed table of one site; `selected` are the steps that any
    trajectory contributes to the calibration set.
    """
    for name in options.figures:
        if name in _OVERVIEW and not _empty(table, name):
            yield _OVERVIEW[name](table, selected)
    wanted = [name for name in options.figures if name in _LAYER]
    if wanted and (texts := options.problems(table.sites)):
        raise ConfigError(*(f"plots.{text}" for text in texts))
    for site in chosen_layers(table, options.layers) if wanted else []:
        detail = cache(partial(layer, site))
        for name in wanted:
            yield _of_layer(name, table.sites[site], detail, selected)


def chosen_layers(table: Overview, patterns: Sequence[str] | None) -> list[int]:
    """Numbers of the sites that get figures of their own."""
    if patterns is None:
        return [worst_layer(table)]
    return [
        number
        for number, site in enumerate(table.sites)
        if any(fits(site, pattern) for pattern in patterns)
    ]


def worst_layer(table: Overview) -> int:
    """The post-GELU layer (if any was read, else any) whose top channel stands out most."""
    ratio = np.nan_to_num(table.channel_ratio, nan=0.0, posinf=0.0).max(axis=1)
    post_gelu = table.where(place="post_gelu")
    among = post_gelu if len(post_gelu) else np.arange(len(table.sites))
    return int(among[ratio[among].argmax()])


def _empty(table: Overview, name: str) -> bool:
    """Whether there is nothing to draw: no such site, or numbers that the source does not have."""
    if name in _RANGES:
        stream = _STREAMS[_RANGES[name]]
        return stream is not None and not len(table.where(stream=stream))
    field = _FIELDS.get(name)
    return field is not None and bool(np.isnan(getattr(table, field)).all())


def _range(part: str) -> Callable[[Overview, Sequence[int]], Drawing]:
    stream, whose = _STREAMS[part], {"all": "every layer"}.get(part, f"the {part} stream")

    def draw(table: Overview, _selected: Sequence[int]) -> Drawing:
        return Drawing(
            f"range_vs_timestep_{part}",
            HEADING,
            f"Median channel range of {whose} against the timestep",
            lambda: (
                overview.range_vs_timestep(table, stream),
                overview.site_table(table, "median_range", stream),
            ),
            shared=True,
        )

    return draw


def _share(table: Overview, selected: Sequence[int]) -> Drawing:
    return Drawing(
        "range_vs_sigma",
        HEADING,
        "How much of its range over all steps each layer has at one; ticks: calibration steps",
        lambda: (
            overview.range_vs_sigma(table, selected),
            overview.range_share_table(table, selected),
        ),
    )


def _heatmap(
    name: str, draw: Callable[[Overview], Any], title: str
) -> Callable[[Overview, Sequence[int]], Drawing]:
    def drawing(table: Overview, _selected: Sequence[int]) -> Drawing:
        numbers = _FIELDS[name]
        return Drawing(
            name,
            HEADING,
            title,
            lambda: (draw(table), overview.site_table(table, numbers)),
            shared=True,
        )

    return drawing


def _outliers(table: Overview, _selected: Sequence[int]) -> Drawing:
    title = "Is an outlier a channel or a few tokens? Each layer at its worst step"
    return Drawing(
        "outliers",
        HEADING,
        title,
        lambda: (outliers.outliers(table), outliers.outlier_table(table)),
        shared=True,
    )


_RANGES = {f"range_vs_timestep_{part}": part for part in _STREAMS}
_FIELDS = {
    "absmax_heatmap": "absmax",
    "heatmap_mean": "mean",
    "heatmap_std": "std",
    "negative_fraction_heatmap": "negative",
    "kurtosis_heatmap": "kurtosis",
    "outliers": "token_ratio",
}
_OVERVIEW: dict[str, Callable[[Overview, Sequence[int]], Drawing]] = {
    **{name: _range(part) for name, part in _RANGES.items()},
    "range_vs_sigma": _share,
    "absmax_heatmap": _heatmap(
        "absmax_heatmap", heatmaps.absmax_heatmap, "Largest magnitude by layer and step"
    ),
    "heatmap_mean": _heatmap(
        "heatmap_mean", heatmaps.heatmap_mean, "Mean, median over channels, by layer and step"
    ),
    "heatmap_std": _heatmap(
        "heatmap_std",
        heatmaps.heatmap_std,
        "Standard deviation, median over channels, by layer and step",
    ),
    "negative_fraction_heatmap": _heatmap(
        "negative_fraction_heatmap",
        heatmaps.negative_fraction_heatmap,
        "Share of values below zero by layer and step",
    ),
    "kurtosis_heatmap": _heatmap(
        "kurtosis_heatmap",
        heatmaps.kurtosis_heatmap,
        "Kurtosis by layer and step: how heavy the tails are (3 for a Gaussian)",
    ),
    "outliers": _outliers,
}


def _steps_of(kind: str, table: LayerTable, selected: Sequence[int]) -> list[int]:
    """The steps that a figure of one layer shows."""
    every = range(len(table.sigmas))
    return spaced(selected or every, PANELS) if kind == "histogram" else spaced(every, RIDGES)


def _of_layer(
    kind: str, site: Site, detail: Callable[[], LayerTable], selected: Sequence[int]
) -> Drawing:
    title, figure, numbers = _LAYER[kind]

    def draw() -> tuple[Any, Any]:
        table = detail()
        steps = _steps_of(kind, table, selected)
        return figure(table, steps), numbers(table, steps)

    name = f"{kind}_{site.label}"
    return Drawing(name, LAYERS_HEADING, f"{title} {site.name}", draw, shared=kind != "histogram")


LayerFunction = Callable[[LayerTable, Sequence[int]], Any]
_LAYER: dict[str, tuple[str, LayerFunction, LayerFunction]] = {
    "histogram": (
        "Distribution at the calibration steps of",
        layers.histogram_panels,
        distribution_table,
    ),
    "ridgeline": ("Distribution over time of", layers.ridgeline, distribution_table),
    "channel_ranges": (
        "Range of every channel, the top 2 % in red, of",
        lambda table, _steps: layers.channel_ranges(table),
        lambda table, _steps: layers.channel_range_table(table),
    ),
    "channel_time": (
        "Largest magnitude of the largest channels over time of",
        lambda table, _steps: layers.channel_time(table),
        lambda table, _steps: layers.channel_time_table(table),
    ),
}
