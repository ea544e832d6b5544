"""The analysis as plain tables: for a CSV, a page, a tracker, and as JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from taqdit.analysis.analyse import Analysis
from taqdit.analysis.drift import Drift, phase_names
from taqdit.analysis.estimates import known_mean
from taqdit.analysis.outliers import Outliers
from taqdit.analysis.scores import Scores
from taqdit.analysis.selections import Curve, SelectionComparison
from taqdit.analysis.weights import GRANULARITIES, WeightTable
from taqdit.quantizer import BITS
from taqdit.words import plain

_ALIKE = ""  # a column whose meaning the one before it states


def _by_width(name: str, meaning: str) -> dict[str, str]:
    """Columns `<name> 8` .. of one meaning."""
    first = f"{meaning}; so at {', '.join(map(str, BITS[1:]))} bits"
    return {f"{name} {bits}": _ALIKE if place else first for place, bits in enumerate(BITS)}


SCORES = {  # title: what it is, over the sites
    "Points": "calibration points per trajectory",
    **_by_width("Loss", "SQNR below the best static quantizer, dB"),
    **_by_width("+-", "half of the 95 % interval of the loss, dB"),
    **_by_width("SQNR", "of the static quantizer per tensor, dB"),
    **_by_width(
        "Ch.SQNR",
        "per channel by the model of uniform noise without clipping, dB (narrower ranges look"
        " better: not for comparing selections)",
    ),
    "%Range": "of the range that the selection's range holds, percent",
    "%Steps": "steps whose extremes it holds, weighted, percent",
    "Clipped": "share of the values outside its range",
    "W1": "Wasserstein-1 distance to all steps pooled, in standard deviations",
    "JS": "Jensen-Shannon distance to all steps pooled",
    "Chosen": "from these statistics (its losses are flattered) or by rule alone",
    "Cells": "shared: trajectories of a fold select different steps, and each is taken to see what"
    " all of its fold show there, which flatters it (raise tracer.folds); else exact",
    "Steps": "that any trajectory selects",
}
SITES = {  # title: what it is
    **_by_width("SQNR", "best static quantizer over all steps, dB"),
    **_by_width("Dynamic", "a range of its own at each step, dB"),
    "Drift": "way of the distribution from the first to the last step, in standard deviations",
    "Borders": "first steps of its phases",
}
WEIGHTS = {
    "Out": "rows of the weight",
    "In": "columns of the weight",
    **{
        f"{granularity} {bits}": "SQNR of rounding to 8 bits, a scale per output channel, dB; then"
        " at fewer bits, and with a scale per group of input weights"
        if (granularity, bits) == (GRANULARITIES[0], BITS[0])
        else _ALIKE
        for granularity in GRANULARITIES
        for bits in BITS
    },
    "Entropy 4": "of the codes at 4 bits per channel, bits",
    "%Saturated 4": "weights at the first or last code at 4 bits per channel, percent",
}


def score_rows(scores: Scores) -> list[tuple[Any, ...]]:
    """A row per selection: its rule, then the cells of SCORES."""
    numbers = np.column_stack(
        [
            scores.counts,
            scores.loss,
            scores.losses.half_width,
            known_mean(scores.sqnr),
            known_mean(scores.channel_sqnr),
            100 * known_mean(scores.range_coverage),
            100 * known_mean(scores.step_coverage),
            known_mean(scores.clipped),
            known_mean(scores.w1),
            known_mean(scores.js),
        ]
    )
    chosen = ["from these statistics" if fitted else "by rule" for fitted in scores.fitted]
    cells = ["exact" if exact else "shared" for exact in scores.exact]
    rows = zip(scores.rules, numbers.tolist(), chosen, cells, scores.steps, strict=True)
    return [(rule, *row, how, seen, _listed(steps)) for rule, row, how, seen, steps in rows]


def site_rows(analysis: Analysis) -> list[tuple[Any, ...]]:
    """A row per site: its name, then the cells of SITES."""
    scores, drift = analysis.comparison.scores, analysis.drift
    way = np.nansum(drift.distance, axis=1)
    numbers = np.column_stack([scores.oracle, scores.dynamic, way]).tolist()
    rows = zip(scores.sites, numbers, drift.borders, strict=True)
    return [(site.name, *row, _listed(borders)) for site, row, borders in rows]


def weight_rows(table: WeightTable) -> list[tuple[Any, ...]]:
    """A row per linear: its name, then the cells of WEIGHTS."""
    narrow = BITS.index(4)
    numbers = zip(
        table.layers,
        table.shapes.tolist(),
        table.sqnr.reshape(len(table.layers), -1).tolist(),
        table.entropy[:, 0, narrow].tolist(),
        (100 * table.saturation[:, 0, narrow]).tolist(),
        strict=True,
    )
    return [(layer, *shape, *sqnr, *rest) for layer, shape, sqnr, *rest in numbers]


def as_json(analysis: Analysis) -> dict[str, Any]:
    """All tables but the bit widths as plain JSON; NaN and Inf are null."""
    return plain(
        {
            "schema": 1,
            "widths": list(BITS),
            "comparison": _comparison(analysis.comparison),
            "drift": _drift(analysis.drift),
            "outliers": _outliers(analysis.outliers),
            "weights": _weights(analysis.weights) if analysis.weights else None,
        },
        named={},
    )


def _comparison(comparison: SelectionComparison) -> dict[str, Any]:
    scores = comparison.scores
    per_site = ("range_coverage", "step_coverage", "clipped", "w1", "js", "sqnr", "channel_sqnr")
    return {
        "count": comparison.count,
        "num_steps": comparison.num_steps,
        "weighting": comparison.weighting,
        "ranking": [scores.rules[place] for place in comparison.ranking],
        "own": scores.own,
        "sites": [site.name for site in scores.sites],
        "oracle_db": scores.oracle,
        "dynamic_db": scores.dynamic,
        "selections": [
            {
                "rule": rule,
                "points": scores.counts[place],
                "steps": list(scores.steps[place]),
                "fitted": bool(scores.fitted[place]),
                "exact": bool(scores.exact[place]),
                "loss_db": scores.loss[place],
                "half_width_db": scores.losses.half_width[place],
                **{name: getattr(scores, name)[place] for name in per_site},
            }
            for place, rule in enumerate(scores.rules)
        ],
        "curves": [_curve(curve) for curve in comparison.curves],
    }


def _curve(curve: Curve) -> dict[str, Any]:
    names = ("rule", "fitted", "counts", "loss", "loss_low", "loss_high")
    return {name: getattr(curve, name) for name in names}


def _drift(drift: Drift) -> dict[str, Any]:
    return {
        "sigmas": drift.sigmas,
        "range_change": drift.range_change,
        "mean_change": drift.mean_change,
        "std_change": drift.std_change,
        "distance": drift.distance,
        "sites": [site.name for site in drift.sites],
        "phases": list(drift.phases),
        "names": list(phase_names(drift.phases)),
        "borders": {
            site.name: list(borders)
            for site, borders in zip(drift.sites, drift.borders, strict=True)
        },
    }


def _outliers(outliers: Outliers) -> dict[str, Any]:
    first = ("kind", "channel_ratio", "token_ratio", "large_share", "stability", "top_channels")
    names = (*first, "negative", "negative_levels", "kurtosis")
    return {
        site.name: {name: getattr(outliers, name)[number] for name in names}
        for number, site in enumerate(outliers.sites)
    }


def _weights(table: WeightTable) -> dict[str, Any]:
    names = ("sqnr", "entropy", "saturation")
    return {
        "granularities": list(GRANULARITIES),
        "layers": {
            layer: {name: getattr(table, name)[number] for name in names}
            for number, layer in enumerate(table.layers)
        },
    }


def _listed(steps: tuple[int, ...]) -> str:
    return " ".join(map(str, steps))
