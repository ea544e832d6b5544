"""What is asked of the statistics: options of the config group `analysis`.

Tables from statistics, without a model: how well selections represent all steps (`compare`), how
values drift (`drift`), where outliers are (`outliers`), how many bits each linear needs (`bits`).
Importing this package is light.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from taqdit.errors import require
from taqdit.timestep_selection.catalogue import COMPARABLE, COMPARED

__all__ = ["AnalysisOptions", "full", "none"]


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """What a run's analysis covers.

    `rule`: how bit widths are chosen, and `target` (dB) the SQNR they have to reach; `group_size`:
    input weights that share a scale (None: all of an output channel). `weighting` of the steps;
    `compare`: names of selection rules (None: every rule that needs no argument of its own, but
    `all` and `random_per_trajectory`), compared at `budget` points per trajectory (None: that of
    `dense_middle`) and over several `budgets` (None: a ladder up to the number of steps). `phases`:
    from the data, or the fixed ones. Raises ConfigError for values out of range.
    """

    rule: str = "sqnr"
    target: float = 20.0
    group_size: int | None = None
    weighting: str = "dt"
    compare: Sequence[str] | None = None
    budget: int | None = None
    budgets: Sequence[int] | None = None
    phases: str = "data"

    enabled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", float(self.target))
        unknown = sorted(set(self.rules) - set(COMPARABLE))
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
                len(self.rules) > 0 and not unknown,
                f"compare: {', '.join(unknown) or '[]'}; name rules out of"
                f" {', '.join(sorted(COMPARABLE))}",
            ),
            (
                self.budgets is None or len(self.budgets) > 0,
                "budgets=[] must hold a budget; null takes a ladder of them",
            ),
        )

    @property
    def rules(self) -> tuple[str, ...]:
        """The names of the rules that are compared."""
        return COMPARED if self.compare is None else tuple(self.compare)

    def problems(self, num_steps: int) -> list[str]:
        """One text per budget that is not in [1, num_steps]."""
        asked = [("budget", self.budget), *(("budgets", each) for each in self.budgets or ())]
        return [
            f"{name}={value} must lie in [1, {num_steps}]; schedule.num_steps is {num_steps}"
            for name, value in asked
            if value is not None and not 1 <= value <= num_steps
        ]


class full(AnalysisOptions):
    """Everything: selections, drift, outliers, bit widths."""


class none(AnalysisOptions):
    """No analysis; the keys of `full` are taken, so that one command line works with both."""

    enabled = False
