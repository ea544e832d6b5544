"""Selections compared at equal numbers of calibration points, and each rule at several of them."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from taqdit.activations.stored import Statistics
from taqdit.analysis.profile import Profile, profile
from taqdit.analysis.scores import Candidate, Judge, Losses, Scores
from taqdit.errors import require
from taqdit.quantizer import BITS
from taqdit.timestep_selection.catalogue import COMPARED, RULES
from taqdit.timestep_selection.evidence import needs_evidence
from taqdit.timestep_selection.rules import dense_middle
from taqdit.timestep_selection.selection import Rule, Selection, cells
from taqdit.timestep_selection.steps import TrajectorySteps

LADDER = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
DT, EQUAL = "dt", "equal"
DECIDING = 8  # bits: activations of W4A8


@dataclass(frozen=True, eq=False)
class Curve:
    """One rule at K budgets: `counts` (K,) points per trajectory, ascending; `loss` and the ends
    of its 95 % interval (K, 3) dB, see `Losses`. `fitted`: see `Candidate`."""

    rule: str
    counts: np.ndarray
    loss: np.ndarray
    loss_low: np.ndarray
    loss_high: np.ndarray
    fitted: bool = False

    def enough(self, limit: float, bits: int = DECIDING) -> float | None:
        """The least budget from which on the loss stays at or below `limit` dB; None: none."""
        good = self.loss[:, BITS.index(bits)] <= limit
        if not good[-1]:
            return None
        return float(self.counts[len(good) - int(np.argmin(good[::-1])) if not good.all() else 0])


@dataclass(frozen=True, eq=False)
class SelectionComparison:
    """`scores` of rules at the budget `count`, the first `compared` of them; the run's own may
    stand behind them with another number of points. `curves`: each rule over several budgets.
    """

    count: int
    num_steps: int
    weighting: str
    compared: int
    scores: Scores
    curves: tuple[Curve, ...]

    @property
    def ranking(self) -> list[int]:
        """The compared selections with `count` points by their loss at DECIDING bits, best first;
        all of them where none has so many."""
        loss, counts = self.scores.loss[:, BITS.index(DECIDING)], self.scores.counts
        equal = [place for place in range(self.compared) if counts[place] == self.count]
        return sorted(equal or range(self.compared), key=lambda place: (float(loss[place]), place))


def step_weights(sigmas: np.ndarray, weighting: str = DT) -> np.ndarray:
    """Weights (n,) of the steps, sum 1: as long as a step is in sigma (`dt`), or `equal`.

    `sigmas` (n,) descending; the last step ends at 0. An error of a step moves the latent by dt
    times it (Euler), so that long steps count more.
    """
    require((weighting in (DT, EQUAL), f"weighting={weighting!r} must be {DT} or {EQUAL}"))
    lengths = -np.diff(np.append(sigmas, 0.0)) if weighting == DT else np.ones(len(sigmas))
    return np.asarray(lengths / lengths.sum())


def default_budget(num_steps: int) -> int:
    """The number of steps that `dense_middle` selects: 17 of 50."""
    return len(dense_middle(TrajectorySteps(np.linspace(1, 0, num_steps + 1))).indices)


def default_budgets(num_steps: int, count: int) -> tuple[int, ...]:
    """A ladder of budgets up to the number of steps, `count` among them."""
    return tuple(sorted({*(k for k in LADDER if k < num_steps), count, num_steps}))


def compare_rules(
    statistics: Statistics,
    rules: Sequence[str] | Mapping[str, Rule] = COMPARED,
    *,
    count: int | None = None,
    budgets: Sequence[int] | None = None,
    weighting: str = DT,
    seed: int = 0,
    own: tuple[str, Rule] | None = None,
    known: Profile | None = None,
) -> SelectionComparison:
    """Score rules at one number of points per trajectory, and each of them over several.

    `rules`: names of options of the group `timestep_selection`, or rules by name. `count` (None:
    that of `dense_middle`) and `budgets` (None: a ladder up to the number of steps) lie in
    [1, num_steps]; rules without a budget give what they give. `own` is one more selection, with
    its own number of points. `known`: the profile with these weights, if it is there. No model is
    run.
    """
    n = statistics.num_steps
    budget = default_budget(n) if count is None else count
    ladder = default_budgets(n, budget) if budgets is None else tuple(sorted(set(budgets)))
    require(
        (1 <= budget <= n, f"count={budget} must lie in [1, {n}], the number of steps"),
        (
            bool(ladder) and all(1 <= k <= n for k in ladder),
            f"budgets={list(ladder)} must lie in [1, {n}], the number of steps",
        ),
    )
    weights = step_weights(statistics.sigmas, weighting)
    named = dict(rules) if isinstance(rules, Mapping) else {name: RULES[name] for name in rules}
    found = known or profile(statistics, weights)
    sigmas = np.append(statistics.sigmas, 0.0)
    traced = [
        TrajectorySteps(sigmas, index, seed, found.evidence) for index in range(statistics.extent)
    ]
    folds = statistics.layout.folds
    candidates = [_candidate(traced, folds, *rule, budget) for rule in named.items()]
    place = _place(candidates, _candidate(traced, folds, *own)) if own else None
    others = [each for rule in named.items() for each in _ladder(traced, folds, *rule, ladder)]
    scores, losses = Judge(statistics, weights, found.static).scores(candidates, others, own=place)
    curves = tuple(_curves(others, losses))
    return SelectionComparison(budget, n, weighting, len(named), scores, curves)


def _candidate(
    traced: Sequence[TrajectorySteps], folds: int, name: str, rule: Any, count: int | None = None
) -> Candidate:
    """What a rule selects of every traced trajectory, at a budget (None: the rule's own)."""
    if count is not None:
        rule = functools.partial(rule, count=count)
    chosen = [rule(trajectory) for trajectory in traced]
    points = float(np.mean([selection.counts.sum() for selection in chosen]))
    return Candidate(
        name,
        cells(chosen, folds=folds, num_steps=traced[0].num_steps),
        points,
        fitted=needs_evidence(rule),
        exact=_is_exact(chosen, folds),
    )


def _is_exact(chosen: Sequence[Selection], folds: int) -> bool:
    """Whether the trajectories of each fold select the same."""
    return all(
        np.array_equal(one.indices, chosen[trajectory % folds].indices)
        and np.array_equal(one.counts, chosen[trajectory % folds].counts)
        for trajectory, one in enumerate(chosen)
    )


def _place(candidates: list[Candidate], own: Candidate) -> int:
    """Where the run's own selection stands among them; it joins them unless it is there, under
    its name: another rule may select the same steps."""
    for place, candidate in enumerate(candidates):
        if candidate.rule == own.rule and np.array_equal(candidate.cells, own.cells):
            return place
    candidates.append(own)
    return len(candidates) - 1


def _ladder(
    traced: Sequence[TrajectorySteps], folds: int, name: str, rule: Rule, budgets: Sequence[int]
) -> list[Candidate]:
    """A rule's selections at several budgets, each number of points once."""
    candidates = [_candidate(traced, folds, name, rule, count) for count in budgets]
    return list({candidate.points: candidate for candidate in candidates}.values())


def _curves(candidates: Sequence[Candidate], losses: Losses) -> Iterable[Curve]:
    start = 0
    for rule, group in groupby(candidates, key=lambda candidate: candidate.rule):
        members = list(group)
        counts = np.array([candidate.points for candidate in members])
        part = losses.of(slice(start, start + len(counts)))
        yield Curve(rule, counts, part.loss, part.low, part.high, members[0].fitted)
        start += len(counts)
