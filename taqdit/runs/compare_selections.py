"""Selections compared from Python, on statistics that are there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from taqdit.activations.opened import ImportedStatistics
from taqdit.analysis.compare import DT, Comparison, Traced, compare
from taqdit.analysis.options import RULES
from taqdit.errors import InputError
from taqdit.plots.scores import score_versus_k, score_versus_k_table
from taqdit.plots.style import save
from taqdit.store import make_folder
from taqdit.timestep_selection.selection import Rule


def compare_selections(
    statistics: Traced | ImportedStatistics,
    rules: Sequence[str] | Mapping[str, Rule] = RULES,
    *,
    count: int | None = None,
    budgets: Sequence[int] | None = None,
    weighting: str = DT,
    seed: int = 0,
    figure: str | Path | None = None,
) -> Comparison:
    """Score rules at one number of calibration points per trajectory, and over several budgets.

    `statistics` as `taqdit.Statistics.open(..)` or `run.statistics()` give them; `rules` and the
    other arguments as `taqdit.analysis.compare.compare` takes them. `figure` names a
    PNG (with an SVG and a CSV beside it) of the score against the budget. No model is run.
    Raises InputError for statistics of an `.npz`.
    """
    if isinstance(statistics, ImportedStatistics):
        raise InputError("imported statistics have no histograms that steps can be pooled from")
    found = compare(statistics, rules, count=count, budgets=budgets, weighting=weighting, seed=seed)
    if figure is not None:
        path = Path(figure)
        make_folder(path.parent)
        table = score_versus_k_table(found.curves, found.count)
        save(score_versus_k(found.curves, found.count), path.parent, path.stem, table)
    return found
