"""The figures of one run: those that the options ask for and that there is something to draw of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from taqdit.errors import ConfigError
from taqdit.plots.drawing import Drawing, Of, Sampled, Traced, TracedLayer
from taqdit.plots.options import PlotOptions, fits

if TYPE_CHECKING:
    from taqdit.activations.overview import LayerTable, Overview
    from taqdit.analysis.analyse import Analysis
    from taqdit.trajectories.latents import LatentStatistics
    from taqdit.trajectories.trajectory_set import TrajectorySet


def latent_figures(
    options: PlotOptions,
    trajectories: TrajectorySet,
    latents: LatentStatistics | None,
    chosen: Sequence[Sequence[int]],
    *,
    images: bool,
) -> Iterator[Drawing]:
    """Of the latents (None: not all are stored), the pictures if there are `images`, and the
    `chosen` steps of each trajectory."""
    return _drawings(options, Of.TRAJECTORIES, Sampled(trajectories, chosen, latents, images))


def analysis_figures(analysis: Analysis, options: PlotOptions) -> Iterator[Drawing]:
    """Of the analysis."""
    return _drawings(options, Of.ANALYSIS, analysis)


def activation_figures(
    table: Overview,
    layer: Callable[[int], LayerTable],
    options: PlotOptions,
    *,
    selected: Sequence[int],
) -> Iterator[Drawing]:
    """Of all sites, then of single ones; `layer(number)` reads the details of a site.

    `selected` are the steps that any trajectory contributes to the calibration set. Raises
    ConfigError if figures of layers are asked for that were not traced.
    """
    yield from _drawings(options, Of.ACTIVATIONS, Traced(table, selected))
    if not options.kinds(Of.LAYER):
        return
    if texts := options.problems(table.sites):
        raise ConfigError(*(f"plots.{text}" for text in texts))
    for site in chosen_layers(table, options.layers):
        traced = TracedLayer(table.sites[site], partial(layer, site), selected)
        yield from _drawings(options, Of.LAYER, traced)


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


def _drawings(options: PlotOptions, of: Of, subject: Any) -> Iterator[Drawing]:
    for kind in options.kinds(of):
        if kind.possible(subject):
            yield kind.drawing(subject)
