"""What is asked of the statistics: options of the config group `analysis`.

Tables from statistics, without a model: how well selections represent all steps (`compare`), how
values drift (`drift`), where outliers are (`outliers`), how many bits each linear needs (`bits`).
Importing this package is light.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from taqdit.errors import require
from taqdit.timestep_selection import rules as timestep_selection

__all__ = ["AnalysisOptions", "full", "none"]

RULES = (
    "paper_uniform",
    "paper_stride",
    "midpoint",
    "dense_middle",
    "interleaved",
    "stratified_random",
    "sigma_uniform",
    "normal",
    "drift_weighted",
    "coverage_optimal",
    "regret_optimal",
)
_ARGUMENTS = {"explicit", "every_nth"}  # rules that need an argument of their own
_KNOWN = set(timestep_selection.__all__) - {"Rule", "Selection"} - _ARGUMENTS


@dataclass(frozen=True)
class AnalysisOptions:
    """What a run's analysis covers.

    `rule`: how bit widths are chosen, and `target` (dB) the SQNR they have to reach; `group_size`:
    input weights that share a scale (None: all of an output channel). `weighting` of the steps;
    `compare`: names of selection rules, compared at `budget` points per trajectory (None: that of
    `dense_middle`) and over several `budgets` (None: a ladder up to the number of steps). `phases`:
    from the data, or the fixed ones. `enabled`: False for no analysis.
    """

    rule: str = "sqnr"
    target: float = 20.0
    group_size: int | None = None
    weighting: str = "dt"
    compare: tuple[str, ...] = RULES
    budget: int | None = None
    budgets: tuple[int, ...] | None = None
    phases: str = "data"
    enabled: bool = True

    def __post_init__(self) -> None:
        unknown = sorted(set(self.compare) - _KNOWN)
        require(
            (self.rule in ("sqnr", "seed"), f"rule={self.rule} must be one of sqnr, seed"),
            (0 < self.target <= 100, f"target={self.target} must lie in (0, 100] dB"),
            (
                self.group_size in (None, 32, 64, 128),
                f"group_size={self.group_size} must be null, 32, 64 or 128",
            ),
            (self.weighting in ("dt", "equal"), f"weighting={self.weighting} must be dt or equal"),
            (self.phases in ("data", "seed"), f"phases={self.phases} must be data or seed"),
            (
                len(self.compare) > 0 and not unknown,
                f"compare: {', '.join(unknown) or '[]'}; name rules out of"
                f" {', '.join(sorted(_KNOWN))}",
            ),
            (self.budgets != (), "budgets=[] must hold a budget; null takes a ladder of them"),
        )

    def problems(self, num_steps: int) -> list[str]:
        """One text per budget that is not in [1, num_steps]."""
        asked = [("budget", self.budget), *(("budgets", each) for each in self.budgets or ())]
        return [
            f"{name}={value} must lie in [1, {num_steps}]; schedule.num_steps is {num_steps}"
            for name, value in asked
            if value is not None and not 1 <= value <= num_steps
        ]


def full(
    *,
    rule: str = "sqnr",
    target: float = 20.0,
    group_size: int | None = None,
    weighting: str = "dt",
    compare: Sequence[str] = RULES,
    budget: int | None = None,
    budgets: Sequence[int] | None = None,
    phases: str = "data",
) -> AnalysisOptions:
    """Everything: selections, drift, outliers, bit widths."""
    ladder = None if budgets is None else tuple(budgets)
    return AnalysisOptions(
        rule, float(target), group_size, weighting, tuple(compare), budget, ladder, phases
    )


def none(
    *,
    rule: str = "sqnr",
    target: float = 20.0,
    group_size: int | None = None,
    weighting: str = "dt",
    compare: Sequence[str] = RULES,
    budget: int | None = None,
    budgets: Sequence[int] | None = None,
    phases: str = "data",
) -> AnalysisOptions:
    """No analysis; the keys of `full` are taken, so that one command line works with both."""
    kept = full(
        rule=rule,
        target=target,
        group_size=group_size,
        weighting=weighting,
        compare=compare,
        budget=budget,
        budgets=budgets,
        phases=phases,
    )
    return replace(kept, enabled=False)
