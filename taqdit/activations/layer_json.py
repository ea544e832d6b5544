"""`layer_statistics.json`: the input of each linear, over a view; and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from taqdit.activations import Site, StepStatistics
from taqdit.activations.stored import Statistics, View
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
    "min, max": "exact extremes of the values of the layer's site in the cells of the view",
    "mean, std": "of the values of all channels together, standard deviation of the population;"
    " over all traced trajectories at every step in which the view has a cell",
    "percentiles": "of the values in the cells of the view, by nearest rank, interpolated in a bin",
    "num_samples": "finite values (tokens times channels) in the cells of the view: none is left"
    " out by sampling",
}
_CELLS = "step -> folds whose trajectories count there; trajectory i is in fold i mod folds"
_BOUND = "one bin: at most 1/16 of its inner edge, or 2^-129 around zero"
_ZERO = 2.0**-130  # ends of the bin that holds zero
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def layers_of(site: Site) -> list[str]:
    """Names of the linears that read a site: `mm_07_img.q_proj` .. for `mm_07_img.qkv_in`."""
    prefix = site.name.rpartition(".")[0]
    return [f"{prefix}.{linear}" for linear in _LINEARS[site.place]]


def layer_statistics(statistics: Statistics, view: View | None = None) -> dict[str, dict[str, Any]]:
    """Layer -> min, max, mean, std, percentiles (p01 .. p99) and num_samples of its input.

    Every linear of which the input is traced, over a view of the statistics (None: every step).
    `num_samples` counts values. Moments take in all trajectories at the view's steps, all else
    the view's cells alone. Raises NumericError for a site without a finite value.
    """
    chosen = statistics.view() if view is None else view
    mean, std = _moments(chosen)
    found: dict[str, dict[str, Any]] = {}
    for number, site in enumerate(statistics.sites):
        entry = _entry(chosen, number, mean=float(mean[number]), std=float(std[number]))
        found |= {layer: entry for layer in layers_of(site)}
    return found


def export_layer_statistics(
    statistics: Statistics,
    folder: str | Path,
    view: View | None = None,
    *,
    config: Mapping[str, Any] = _NOTHING,
    versions: Mapping[str, Any] = _NOTHING,
    settings: Mapping[str, Any] = _NOTHING,
) -> None:
    """Publish layer_statistics.json and collection_metadata.json in `folder`, which exists.

    `config` (the resolved config), `versions` and what else is given go into the metadata as they
    are.
    """
    chosen = statistics.view() if view is None else view
    layers = layer_statistics(statistics, chosen)
    known = {"config": dict(config), "versions": dict(versions), **settings}
    metadata = {**_provenance(chosen), **known}
    publish_json(Path(folder) / METADATA, metadata)
    publish_json(Path(folder) / STATISTICS, layers)


def _entry(view: View, site: int, *, mean: float, std: float) -> dict[str, Any]:
    histogram = view.histogram(site)
    if not histogram.total:
        name = view.statistics.sites[site].name
        raise NumericError(f"{name} has no finite value in the steps of the view")
    values = [0.0 if abs(v) < _ZERO else v for v in histogram.percentiles(PERCENTS)]
    named = zip(PERCENTS, values, strict=True)
    return {
        "min": view.low(site),
        "max": view.high(site),
        "mean": mean,
        "std": std,
        "percentiles": {f"p{percent:02d}": value for percent, value in named},
        "num_samples": histogram.total,
    }


def _moments(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each site over the view's steps, (S,) float64."""
    parts = list(_pooled(view.statistics.step(step)) for step in view.steps)
    count, mean, m2 = (np.stack(column) for column in zip(*parts, strict=True))
    return _joined(count, mean, m2)


def _pooled(step: StepStatistics) -> Iterator[np.ndarray]:
    """Count, mean and sum of squared deviations of each site's values, (S,) each."""
    starts = step.layout.offsets[:-1]
    count = np.add.reduceat(step.count, starts)
    mean = np.add.reduceat(step.count * step.mean, starts) / np.maximum(count, 1)
    apart = step.mean - step.layout.spread(mean)
    yield from (count, mean, np.add.reduceat(step.m2 + step.count * apart**2, starts))


def _joined(count: np.ndarray, mean: np.ndarray, m2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of several parts (n, S) together, (S,) each."""
    total = np.maximum(count.sum(axis=0), 1)
    whole = (count * mean).sum(axis=0) / total
    return whole, np.sqrt((m2 + count * (mean - whole) ** 2).sum(axis=0) / total)


def _provenance(view: View) -> dict[str, Any]:
    statistics, steps = view.statistics, view.steps
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
            "timesteps": statistics.timesteps[steps].tolist(),
            "cells": {str(step): np.flatnonzero(view.cells[:, step]).tolist() for step in steps},
            "cells_meaning": _CELLS,
            "complete": bool(view.cells[:, steps].all()),
        },
        "layers": {layer: site.name for site in statistics.sites for layer in layers_of(site)},
        "fields": _FIELDS,
        "percentile_error": {"bound": _BOUND, "relative": 1 / 16},
    }
