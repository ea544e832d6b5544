"""Figures of the analysis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from taqdit.analysis.analyse import Analysis
from taqdit.analysis.weights import GRANULARITIES
from taqdit.plots import bits, drift, scores
from taqdit.plots.drawing import Drawing
from taqdit.plots.options import PlotOptions
from taqdit.quantizer import BITS

HEADING = "Analysis"


def analysis_figures(analysis: Analysis, options: PlotOptions) -> Iterator[Drawing]:
    """Those that the options ask for."""
    comparison = analysis.comparison
    if "selection_scores" in options.figures:
        title = (
            f"What calibrating on {comparison.count} of {comparison.num_steps} steps costs, by rule"
        )
        yield Drawing(
            "selection_scores",
            HEADING,
            title,
            lambda: (
                scores.selection_scores(comparison.scores),
                scores.selection_scores_table(comparison.scores),
            ),
        )
    if "score_versus_k" in options.figures:
        yield Drawing(
            "score_versus_k",
            HEADING,
            "How many calibration steps are enough?",
            lambda: (
                scores.score_versus_k(comparison.curves, comparison.count),
                scores.score_versus_k_table(comparison.curves, comparison.count),
            ),
            shared=True,
        )
    if "drift_heatmap" in options.figures and analysis.drift.distance.size:
        yield Drawing(
            "drift_heatmap",
            HEADING,
            "How far the values of each site move from step to step, and where phases begin",
            lambda: (
                drift.drift_heatmap(analysis.drift),
                drift.drift_heatmap_table(analysis.drift),
            ),
            shared=True,
        )
    yield from _bit_figures(analysis, options)


def _bit_figures(analysis: Analysis, options: PlotOptions) -> Iterator[Drawing]:
    widths = analysis.bits
    if "bits_per_layer" in options.figures and widths.layers:
        yield Drawing(
            "bits_per_layer",
            HEADING,
            "Suggested bits of every linear's weight and input",
            lambda: (bits.bits_per_layer(widths), bits.bits_per_layer_table(widths)),
            shared=True,
        )
    if "error_versus_bits" in options.figures:
        activations, weights = analysis.comparison.scores.oracle, _weight_sqnr(analysis)
        chosen = _suggested(analysis)
        yield Drawing(
            "error_versus_bits",
            HEADING,
            "What bits buy: given where they gain most, to all alike, and as suggested",
            lambda: (
                bits.error_versus_bits(activations, weights, chosen=chosen),
                bits.error_versus_bits_table(activations, weights, chosen=chosen),
            ),
            shared=True,
        )


def _weight_sqnr(analysis: Analysis) -> np.ndarray | None:
    """SQNR of the weights (L, 3) dB at the granularity that the widths were chosen for."""
    if analysis.weights is None:
        return None
    granularity = analysis.bits.granularity or GRANULARITIES[0]
    return analysis.weights.sqnr[:, GRANULARITIES.index(granularity)]


def _suggested(analysis: Analysis) -> list[tuple[float, float]]:
    """Mean bits and SQNR of what is suggested: of the sites, then of the weights."""
    oracle, names = analysis.comparison.scores.oracle, analysis.outliers.sites
    layers = analysis.bits.layers
    widths = {each.site: each.activation_bits for each in layers if each.activation_bits}
    read = [(number, widths[site.name]) for number, site in enumerate(names) if site.name in widths]
    points = [_point(oracle, read)]
    if (weights := _weight_sqnr(analysis)) is not None:
        rows = {layer: row for row, layer in enumerate(analysis.weights.layers)}  # type: ignore[union-attr]
        found = [
            (rows[each.layer], each.weight_bits)
            for each in layers
            if each.weight_bits and each.layer in rows
        ]
        points.append(_point(weights, found))
    return points


def _point(sqnr: np.ndarray, widths: list[tuple[int, int]]) -> tuple[float, float]:
    if not widths:
        return float("nan"), float("nan")
    chosen = np.array([sqnr[row, BITS.index(width)] for row, width in widths])
    return float(np.mean([width for _, width in widths])), bits.mean_decibel(chosen)
