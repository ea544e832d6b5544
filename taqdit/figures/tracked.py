"""What a tracker is told of the activation statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from taqdit.figures.activations import spaced
from taqdit.layer_summary import COLUMNS, layer_summary
from taqdit.overview import LayerTable, Overview
from taqdit.tracking import Tracker

MOST_STEPS = 25  # rows of histograms


def log_activations(
    table: Overview, layer: Callable[[int], LayerTable] | None, tracker: Tracker
) -> None:
    """Ranges over the timesteps as charts, a row of histograms for each of at most MOST_STEPS
    timesteps, and the layers as a table. `layer` gives the histograms of a site; None: none."""
    charts = {"absmax": table.absmax, "median_range": table.median_range}
    names = [site.name for site in table.sites]
    for name, values in charts.items():
        tracker.curves(
            f"activations/{name}",
            x=table.timesteps,
            ys=dict(zip(names, values, strict=True)),
            x_name="timestep",
        )
    _log_rows(table, layer, tracker)
    tracker.table("activations/layers", ["layer", *COLUMNS], layer_summary(table))


def _log_rows(table: Overview, layer: Callable[[int], LayerTable] | None, tracker: Tracker) -> None:
    steps = range(len(table.timesteps))
    shown = set(spaced(steps, MOST_STEPS))
    details = [] if layer is None else [layer(site) for site in range(len(table.sites))]
    for step in steps:
        histograms = {
            f"histogram/{detail.site.name}": (detail.counts[step], detail.edges)
            for detail in details
            if step in shown
        }
        tracker.histograms(
            histograms,
            scalars=_scalars(table, step),
            axis={
                "step": step,
                "sigma": float(table.sigmas[step]),
                "timestep": float(table.timesteps[step]),
            },
        )


def _scalars(table: Overview, step: int) -> dict[str, float]:
    return {
        f"absmax/{site.name}": float(value)
        for site, value in zip(table.sites, table.absmax[:, step], strict=True)
    }


def layer_columns(rows: Sequence[tuple[object, ...]]) -> dict[str, list[object]]:
    """The layer summary by column, as a CSV takes it."""
    columns = list(zip(*rows, strict=True))
    return {name: list(column) for name, column in zip(["layer", *COLUMNS], columns, strict=True)}
