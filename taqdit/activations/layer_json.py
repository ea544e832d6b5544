"""`layer_statistics.json`: the input of each linear over all steps; and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from taqdit.activations import Histogram, Site, StepStatistics
from taqdit.activations.overview import histogram
from taqdit.activations.stored import Statistics
from taqdit.errors import NumericError
from taqdit.store import publish_json

STATISTICS, METADATA = "layer_statistics.json", "collection_metadata.json"
PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99)
_LINEARS = {  # what reads the activation of a place
    "qkv_in": ("q_proj", "k_proj", "v_proj"),
    "o_in": ("o_proj",),
    "fc1_in": ("fc1",),
    "post_gelu": ("fc2",),
    "context_in": ("context",),
    "linear_in": ("linear",),
}
_FIELDS = {
    "min, max": "exact extremes of the values of the layer's site, of all traced trajectories at"
    " every step",
    "mean, std": "of the values of all channels together, standard deviation of the population;"
    " over all traced trajectories at every step",
    "percentiles": "of the same values, by nearest rank, interpolated in a bin",
    "num_samples": "finite values (tokens times channels): none is left out by sampling",
}
_CELLS = "step -> folds whose trajectories count there; trajectory i is in fold i mod folds"
_BOUND = "one bin: at most 1/16 of its inner edge, or 2^-129 around zero"
_ZERO = 2.0**-130  # ends of the bin that holds zero
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def layers_of(site: Site) -> list[str]:
    """Names of the linears that read a site: `mm_07_img.q_proj` .. for `mm_07_img.qkv_in`."""
    prefix = site.name.rpartition(".")[0]
    return [f"{prefix}.{linear}" for linear in _LINEARS[site.place]]


def layer_statistics(statistics: Statistics) -> dict[str, dict[str, Any]]:
    """Layer -> min, max, mean, std, percentiles (p01 .. p99) and num_samples of its input.

    Every linear of which the input is traced, over all steps. `num_samples` counts values. Raises
    NumericError for a site without a finite value.
    """
    steps = [statistics.step(step) for step in range(statistics.num_steps)]
    mean, std = _moments(steps)
    layers: dict[str, dict[str, Any]] = {}
    for number, site in enumerate(statistics.sites):
        values = histogram(steps, number)
        if not values.total:
            raise NumericError(f"{site.name} has no finite value at any step")
        entry = _entry(values, mean=float(mean[number]), std=float(std[number]))
        layers |= {layer: entry for layer in layers_of(site)}
    return layers


def export_layer_statistics(
    statistics: Statistics,
    folder: str | Path,
    *,
    config: Mapping[str, Any] = _NOTHING,
    versions: Mapping[str, Any] = _NOTHING,
    settings: Mapping[str, Any] = _NOTHING,
) -> None:
    """Publish layer_statistics.json and collection_metadata.json in `folder`, which exists.

    `config` (the resolved config), `versions` and what else is given go into the metadata as they
    are.
    """
    layers = layer_statistics(statistics)
    given = {"config": dict(config), "versions": dict(versions), **settings}
    publish_json(Path(folder) / METADATA, {**_provenance(statistics), **given})
    publish_json(Path(folder) / STATISTICS, layers)


def _entry(values: Histogram, *, mean: float, std: float) -> dict[str, Any]:
    percentiles = {f"p{percent:02d}": values.percentile(percent) for percent in PERCENTS}
    return {
        "min": values.percentile(0),
        "max": values.percentile(100),
        "mean": mean,
        "std": std,
        "percentiles": {name: 0.0 if abs(v) < _ZERO else v for name, v in percentiles.items()},
        "num_samples": values.total,
    }


def _moments(steps: Sequence[StepStatistics]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each site over all steps, (S,) float64."""
    count, mean, m2 = (np.stack(part) for part in zip(*map(_pooled, steps), strict=True))
    total = np.maximum(count.sum(axis=0), 1)
    whole = (count * mean).sum(axis=0) / total
    return whole, np.sqrt((m2 + count * (mean - whole) ** 2).sum(axis=0) / total)


def _pooled(step: StepStatistics) -> Iterator[np.ndarray]:
    """Count, mean and sum of squared deviations of each site's values, (S,) each."""
    starts = step.layout.offsets[:-1]
    count = np.add.reduceat(step.count, starts)
    mean = np.add.reduceat(step.count * step.mean, starts) / np.maximum(count, 1)
    apart = step.mean - step.layout.spread(mean)
    yield from (count, mean, np.add.reduceat(step.m2 + step.count * apart**2, starts))


def _provenance(statistics: Statistics) -> dict[str, Any]:
    steps, folds = list(range(statistics.num_steps)), list(range(statistics.folds))
    return {
        "statistics": {
            "fingerprint": statistics.fingerprint,
            "trajectories": statistics.extent,
            "folds": statistics.folds,
            "num_steps": statistics.num_steps,
            "sites": [[site.name, site.width] for site in statistics.sites],
        },
        "view": {
            "steps": steps,
            "timesteps": statistics.timesteps.tolist(),
            "cells": {str(step): folds for step in steps},
            "cells_meaning": _CELLS,
            "complete": True,
        },
        "layers": {layer: site.name for site in statistics.sites for layer in layers_of(site)},
        "fields": _FIELDS,
        "percentile_error": {"bound": _BOUND, "relative": 1 / 16},
    }
