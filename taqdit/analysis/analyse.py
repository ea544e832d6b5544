"""The whole analysis of one set of statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from taqdit.activations.overview import Overview
from taqdit.activations.stored import Statistics
from taqdit.analysis.bits import BitWidths, seed_bits, sqnr_bits
from taqdit.analysis.drift import Drift, drift
from taqdit.analysis.options import AnalysisOptions
from taqdit.analysis.outliers import Outliers, outliers
from taqdit.analysis.profile import Profile, profile
from taqdit.analysis.selections import SelectionComparison, compare_rules, step_weights
from taqdit.analysis.weights import GRANULARITIES, WeightTable
from taqdit.timestep_selection.selection import Rule


@dataclass(frozen=True, eq=False)
class Analysis:
    """All tables of one set of statistics: selections, drift, outliers, bit widths.

    `weights` is None where the weights were not analysed.
    """

    comparison: SelectionComparison
    drift: Drift
    outliers: Outliers
    bits: BitWidths
    profile: Profile
    weights: WeightTable | None


def analyse(
    statistics: Statistics,
    table: Overview,
    options: AnalysisOptions,
    *,
    own: tuple[str, Rule] | None,
    seed: int,
    readers: Mapping[str, str | None],
    entries: Mapping[str, Mapping[str, Any]],
    weights: WeightTable | None,
    known: Profile | None = None,
) -> Analysis:
    """Analyse statistics as the options say; no model is run.

    `table` is the statistics' overview; `own` the run's selection rule with its name, `seed` that
    of the sampler; `readers`: linear -> the site it reads, or None; `entries`: those of
    layer_statistics.json, which the rule `seed` reads; `known`: the profile, if it was read.
    """
    steps = step_weights(statistics.sigmas, options.weighting)
    known = known or profile(statistics, steps)
    comparison = compare_rules(
        statistics,
        options.rules,
        count=options.budget,
        budgets=options.budgets,
        weighting=options.weighting,
        seed=seed,
        own=own,
        known=known,
    )
    if options.rule == "seed":
        bits = seed_bits(entries, readers=readers)
    else:
        group = options.group_size
        granularity = GRANULARITIES[0] if group is None else f"group_{group}"
        bits = sqnr_bits(
            known.noise, readers, weights, target=options.target, granularity=granularity
        )
    return Analysis(
        comparison=comparison,
        drift=drift(table, known.quantiles, np.ones(len(steps)), phases=options.phases),
        outliers=outliers(statistics, table),
        bits=bits,
        profile=known,
        weights=weights,
    )
