"""The analysis of one run: made from its statistics, written into its folder, told to a tracker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.activations.opened import layer_statistics, layers_of
from taqdit.activations.stored import Statistics
from taqdit.analysis.analyse import Analysis, analyse
from taqdit.analysis.bit_summary import bit_rows
from taqdit.analysis.estimates import known_mean
from taqdit.analysis.outliers import outlier_rows
from taqdit.analysis.profile import Profile
from taqdit.analysis.quantization_config import export_quantization_config, quantization_settings
from taqdit.analysis.scores import Scores
from taqdit.analysis.tables import (
    SCORES,
    SITES,
    WEIGHTS,
    as_json,
    score_rows,
    site_rows,
    weight_rows,
)
from taqdit.analysis.verdict import verdict
from taqdit.analysis.weights import WeightTable
from taqdit.models.linears import linear_paths
from taqdit.plots.style import publish_csv
from taqdit.quantizer import BITS
from taqdit.report.html import SortableTable
from taqdit.stages.fingerprints import target
from taqdit.stages.plan import Plan
from taqdit.store import publish_json
from taqdit.tracking.options import Tracker

ANALYSIS = "analysis.json"


def analyse_run(
    plan: Plan,
    statistics: Statistics,
    *,
    weights: WeightTable | None,
    known: Profile | None = None,
    elsewhere: bool = False,
) -> Analysis:
    """Analyse statistics as the plan says. Made `elsewhere`, they are not those of the plan's own
    selection and model."""
    read = {layer: site.name for site in statistics.sites for layer in layers_of(site)}
    linears = {} if elsewhere else dict.fromkeys(linear_paths(plan.model))
    name = target(plan, "timestep_selection").rpartition(".")[2]
    return analyse(
        statistics,
        statistics.overview(),
        plan.analysis,
        own=None if elsewhere else (name, plan.select),
        seed=plan.sampler.seed,
        readers={**linears, **read},
        entries=layer_statistics(statistics) if plan.analysis.rule == "seed" else {},
        weights=weights,
        known=known,
    )


class Findings:
    """The tables of an analysis with their files, and what summaries say of it."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        outlier_columns, outliers = outlier_rows(analysis.outliers)
        bit_columns, bits = bit_rows(analysis.bits)
        scores = score_rows(analysis.comparison.scores)
        self.tables = [
            _table("Selections", "selection_scores", "rule", SCORES, scores),
            _table("Bit widths", "bit_widths", "layer", bit_columns, bits),
            _table("Outliers", "outliers", "site", outlier_columns, outliers),
            _table("Sites", "sites", "site", SITES, site_rows(analysis)),
        ]
        if analysis.weights is not None:
            rows = weight_rows(analysis.weights)
            self.tables.append(_table("Weights", "weights", "layer", WEIGHTS, rows))

    @property
    def verdict(self) -> dict[str, list[str]]:
        """Topic -> its lines, ten in all."""
        return verdict(self.analysis)

    def publish(self, folder: Path) -> dict[str, Any]:
        """Write analysis.json, quantization_config.json and a CSV per table; for summary.json."""
        found = {**as_json(self.analysis), **quantization_settings(self.analysis.bits)}
        publish_json(folder / ANALYSIS, found)
        export_quantization_config(self.analysis.bits, folder)
        for table in self.tables:
            columns = zip(*table.rows, strict=True)
            named = zip(
                table.columns, ([_cell(v) for v in column] for column in columns), strict=True
            )
            publish_csv(folder / table.files[0], dict(named))
        files = [ANALYSIS, "quantization_config.json", *(table.files[0] for table in self.tables)]
        return {"verdict": self.verdict, "scores": self.numbers(), "files": files}

    def log(self, tracker: Tracker) -> None:
        """Scores as summary values, so that a sweep sorts by them, and the tables."""
        tracker.summary(self.numbers())
        for table in self.tables:
            tracker.table(f"analysis/{table.title.lower()}", list(table.columns), table.rows)

    def numbers(self) -> dict[str, float]:
        """Flat numbers of the run's own selection, of all compared ones, and of the bit widths."""
        comparison = self.analysis.comparison
        found: dict[str, float] = {}
        if comparison.scores.own is not None:
            found |= _numbers("selection", comparison.scores, comparison.scores.own)
        for place in range(comparison.compared):
            rule = comparison.scores.rules[place]
            found |= {
                f"scores/{rule}/{key}": value for key, value in _losses(comparison.scores, place)
            }
        layers = self.analysis.bits.layers
        for what in ("weight", "activation"):
            widths = [width for each in layers if (width := getattr(each, f"{what}_bits"))]
            if widths:
                found[f"bits/{what}_mean"] = float(np.mean(widths))
        if (table := self.analysis.weights) is not None:
            sizes = dict(zip(table.layers, table.shapes.prod(axis=1).tolist(), strict=True))
            pairs = [(each.weight_bits, sizes.get(each.layer, 0)) for each in layers]
            known = [(width, size) for width, size in pairs if width and size]
            total = sum(size for _, size in known)
            if total:
                mean = sum(width * size for width, size in known) / total
                found["bits/weight_mean_by_size"] = mean
        found["bits/below_target"] = float(sum(not each.met for each in layers))
        return {key: value for key, value in found.items() if np.isfinite(value)}


def _table(
    title: str, file: str, first: str, columns: dict[str, str], rows: Sequence[tuple[Any, ...]]
) -> SortableTable:
    note = ". ".join(f"{name}: {meaning}" for name, meaning in columns.items() if meaning)
    return SortableTable(title, (first, *columns), rows, note=f"{note}.", files=(f"{file}.csv",))


def _cell(value: Any) -> Any:
    return "" if value is None else value


def _losses(scores: Scores, place: int) -> list[tuple[str, float]]:
    return [
        (f"loss_{bits}bit_db", float(scores.loss[place, width])) for width, bits in enumerate(BITS)
    ]


def _numbers(prefix: str, scores: Scores, place: int) -> dict[str, float]:
    found = dict(_losses(scores, place))
    for width, bits in enumerate(BITS):
        found[f"sqnr_{bits}bit_db"] = float(known_mean(scores.sqnr)[place, width])
    for name in ("range_coverage", "step_coverage", "clipped", "w1", "js"):
        found[name] = float(known_mean(getattr(scores, name))[place])
    found["points"] = float(scores.counts[place])
    return {f"{prefix}/{key}": value for key, value in found.items()}
