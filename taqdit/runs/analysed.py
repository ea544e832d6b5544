"""The analysis of one run: written into its folder, told to a tracker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.analysis.analyse import Analysis
from taqdit.analysis.bit_summary import bit_rows
from taqdit.analysis.estimates import known_mean
from taqdit.analysis.outliers import outlier_rows
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
from taqdit.plots.style import publish_csv
from taqdit.quantizer import BITS
from taqdit.report.html import SortableTable
from taqdit.report.run_folder import ANALYSIS
from taqdit.store import publish_json
from taqdit.tracking.options import Tracker


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
        settings = quantization_settings(self.analysis.bits)
        publish_json(folder / ANALYSIS, {**as_json(self.analysis), **settings})
        export_quantization_config(self.analysis.bits, folder)
        for table in self.tables:
            publish_csv(folder / table.files[0], table.by_column)
        files = [ANALYSIS, "quantization_config.json", *(table.files[0] for table in self.tables)]
        return {"verdict": self.verdict, "scores": self.numbers(), "files": files}

    def log(self, tracker: Tracker) -> None:
        """Scores as summary values, so that a sweep sorts by them, and the tables."""
        tracker.summary(self.numbers())
        for table in self.tables:
            tracker.table(f"analysis/{table.title.lower()}", list(table.columns), table.rows)

    def numbers(self) -> dict[str, float]:
        """Flat numbers of the run's own selection, of all compared ones, and of the bit widths."""
        comparison, layers = self.analysis.comparison, self.analysis.bits.layers
        scores, numbers = comparison.scores, dict[str, float]()
        if scores.own is not None:
            numbers |= _numbers("selection", scores, scores.own)
        for place, rule in enumerate(scores.rules[: comparison.compared]):
            numbers |= {f"scores/{rule}/{key}": loss for key, loss in _losses(scores, place)}
        for what in ("weight", "activation"):
            widths = [width for layer in layers if (width := getattr(layer, f"{what}_bits"))]
            if widths:
                numbers[f"bits/{what}_mean"] = float(np.mean(widths))
        if (table := self.analysis.weights) is not None:
            sizes = dict(zip(table.layers, table.shapes.prod(axis=1).tolist(), strict=True))
            pairs = [(layer.weight_bits, sizes.get(layer.layer, 0)) for layer in layers]
            known = [(width, size) for width, size in pairs if width and size]
            if total := sum(size for _, size in known):
                bits = sum(width * size for width, size in known)
                numbers["bits/weight_mean_by_size"] = bits / total
        numbers["bits/below_target"] = float(sum(not layer.met for layer in layers))
        return {key: value for key, value in numbers.items() if np.isfinite(value)}


def _table(
    title: str, file: str, first: str, columns: dict[str, str], rows: Sequence[tuple[Any, ...]]
) -> SortableTable:
    note = ". ".join(f"{name}: {meaning}" for name, meaning in columns.items() if meaning)
    return SortableTable(title, (first, *columns), rows, note=f"{note}.", files=(f"{file}.csv",))


def _losses(scores: Scores, place: int) -> list[tuple[str, float]]:
    return [
        (f"loss_{bits}bit_db", float(scores.loss[place, width])) for width, bits in enumerate(BITS)
    ]


def _numbers(prefix: str, scores: Scores, place: int) -> dict[str, float]:
    numbers = dict(_losses(scores, place))
    for width, bits in enumerate(BITS):
        numbers[f"sqnr_{bits}bit_db"] = float(known_mean(scores.sqnr)[place, width])
    for name in ("range_coverage", "step_coverage", "clipped", "w1", "js"):
        numbers[name] = float(known_mean(getattr(scores, name))[place])
    numbers["points"] = float(scores.counts[place])
    return {f"{prefix}/{key}": value for key, value in numbers.items()}
