"""Which selection represents the trajectory: constructed cases, cells, intervals, budgets."""

import dataclasses
import functools
from types import SimpleNamespace

import numpy as np
import pytest
from made_statistics import TOKENS, gaussian, made
from scipy.stats import t as student

from taqdit.activations import BinCounts, Histogram
from taqdit.analysis.distribution import Distribution
from taqdit.analysis.estimates import DRAWS, half_width, resamples
from taqdit.analysis.profile import profile
from taqdit.analysis.scores import Candidate, Judge, Losses
from taqdit.analysis.selections import compare_rules, default_budget, default_budgets, step_weights
from taqdit.errors import ConfigError
from taqdit.quantizer import BITS
from taqdit.timestep_selection import rules
from taqdit.timestep_selection.catalogue import COMPARED
from taqdit.timestep_selection.steps import TrajectorySteps

N = 30
PAIR = ("paper_uniform", "dense_middle")


def steps_of(rule, num_steps=N, **options):
    sigmas = np.linspace(1, 0, num_steps + 1)
    chosen = getattr(rules, rule)(TrajectorySteps(sigmas), **options)
    return set(chosen.indices.tolist())


DENSE = steps_of("dense_middle")
UNIFORM = steps_of("paper_uniform", count=len(DENSE))


def bump(places, height=6.0):
    """Normal values, `height` times as wide at some steps."""
    return gaussian(lambda step: height if step in places else 1.0)


@pytest.mark.parametrize(
    ("places", "winner"), [(DENSE - UNIFORM, "dense_middle"), (UNIFORM - DENSE, "paper_uniform")]
)
@pytest.mark.parametrize("weighting", ["dt", "equal"])
def test_the_rule_that_sees_the_wide_steps_wins(places, winner, weighting):
    """Wide steps that only one of the two rules selects."""
    found = compare_rules(
        made(bump(places), num_steps=N), PAIR, budgets=[len(DENSE)], weighting=weighting
    )
    scores, loser = found.scores, next(name for name in PAIR if name != winner)
    best, worst = scores.rules.index(winner), scores.rules.index(loser)
    assert scores.rules[found.ranking[0]] == winner
    assert (scores.loss[worst] > scores.loss[best]).all()
    for bits in BITS:
        assert scores.losses.differ(best, worst, bits)
    assert scores.range_coverage[best, 0] > 0.99
    assert scores.range_coverage[worst, 0] < 0.6
    assert scores.clipped[worst, 0] > scores.clipped[best, 0]
    assert scores.step_coverage[worst, 0] < scores.step_coverage[best, 0]


def test_points_count_alike_where_steps_are_judged_by_their_length():
    """Values grow towards the image, where steps are long: points even in sigma show them as they
    are judged, points even in step show too much of the noise. Equal weights turn it round."""
    statistics = made(gaussian(lambda step: 1 + step / 5), num_steps=N)
    pair = ["sigma_uniform", "midpoint"]
    for weighting, winner in (("dt", 0), ("equal", 1)):
        scores = compare_rules(statistics, pair, budgets=[12], weighting=weighting).scores
        assert scores.w1[:, 0].argmin() == winner
        for width in (1, 2):  # 6 and 4 bits
            assert scores.loss[:, width].argmin() == winner


def test_a_silent_site_is_no_part_of_the_mean():
    def values(rng, site, step, _trajectory):
        return (1 + 5 * (step == 4)) * rng.normal(size=(TOKENS, 8)) * (site == 0)

    alone = compare_rules(
        made(values, num_steps=6, sites=1), ["paper_uniform"], count=2, budgets=[2]
    )
    both = compare_rules(
        made(values, num_steps=6, sites=2), ["paper_uniform"], count=2, budgets=[2]
    )
    assert alone.scores.loss[0, 0] > 0.1
    assert both.scores.loss == pytest.approx(alone.scores.loss)
    assert both.scores.dynamic_gain == pytest.approx(alone.scores.dynamic_gain)


def test_a_site_without_finite_values_is_left_out():
    statistics = made(gaussian(), num_steps=4, sites=2)
    broken = [emptied(statistics.step(step), 1) for step in range(4)]
    statistics.step = broken.__getitem__
    found = profile(statistics, np.full(4, 0.25))
    assert list(found.noise) == ["mm_00_img.fc1_in"]
    whole = compare_rules(made(gaussian(), num_steps=4), ["midpoint"], count=2, budgets=[2])
    scores = compare_rules(statistics, ["midpoint"], count=2, budgets=[2]).scores
    assert scores.loss == pytest.approx(whole.scores.loss)


def emptied(step, site):
    """A step of which a site holds NaN alone."""
    span = step.layout.span(site)
    low, high = step.low.copy(), step.high.copy()
    low[span], high[span] = np.inf, -np.inf
    fold_low, fold_high = step.fold_low.copy(), step.fold_high.copy()
    fold_low[:, site], fold_high[:, site] = np.inf, -np.inf
    missing = np.zeros(step.layout.channels, np.uint32)
    missing[span] = step.tokens[site]
    values = list(step.values)
    values[site] = BinCounts.empty(step.layout.folds)
    return dataclasses.replace(
        step, low=low, high=high, fold_low=fold_low, fold_high=fold_high, missing=missing,
        values=values,
    )  # fmt: skip


def test_what_trajectories_of_a_fold_share_is_marked():
    """As many folds as trajectories: each is scored on what it selects itself."""
    for folds, exact in ((8, True), (4, False)):
        found = compare_rules(
            made(gaussian(), num_steps=N, folds=folds), ["interleaved", "midpoint"], budgets=[12]
        )
        assert found.scores.exact.tolist() == [exact, True]
        assert found.scores.label(0) == "interleaved" + "~" * (not exact)


def test_rules_do_not_differ_where_every_step_is_alike():
    found = compare_rules(made(gaussian(), num_steps=N), PAIR, budgets=[12])
    apart, half = found.scores.losses.difference(0, 1, 8)
    assert abs(apart) < half
    assert not found.scores.losses.differ(0, 1, 8)


def test_all_steps_lose_nothing_and_nothing_is_won():
    statistics = made(gaussian(lambda step: 1 + step % 3), num_steps=6, sites=2)
    rules = ["all", "midpoint"]
    found = compare_rules(statistics, rules, count=2, budgets=[1, 6], weighting="equal")
    scores = found.scores
    assert (scores.loss[0] == 0).all()
    assert (scores.losses.replicates[:, 0] == 0).all()
    for name in ("w1", "js", "clipped"):
        assert getattr(scores, name)[0] == pytest.approx(0, abs=1e-7)
    assert (scores.range_coverage[0] == 1).all()
    assert (scores.loss >= 0).all()
    assert (scores.dynamic >= scores.oracle).all()


def test_interleaved_is_scored_on_the_cells_that_it_selects():
    """Its trajectories reach every step between them, but the loud one not at its loud step."""
    own = {m: interleaved(m) for m in range(8)}
    loud = next(step for step in range(N) if step not in own[0] | own[4])  # fold 0 of 4

    def values(rng, _site, step, trajectory):
        x = rng.normal(size=(TOKENS, 8))
        x[0, 0] = 50 if (trajectory == 0 and step == loud) else x[0, 0]
        return x

    statistics = made(values, num_steps=N)
    scores = compare_rules(statistics, ["interleaved", "all"], budgets=[12]).scores
    assert set(scores.steps[0]) == set(range(N)) == set(scores.steps[1])
    assert scores.range_coverage[0, 0] < 0.3
    assert scores.range_coverage[1, 0] == 1
    assert scores.clipped[0, 0] > 0
    assert scores.counts.tolist() == [12, N]


def interleaved(trajectory):
    sigmas = np.linspace(1, 0, N + 1)
    made = rules.interleaved(TrajectorySteps(sigmas, trajectory), count=12)
    return set(made.indices.tolist())


def test_cells_weigh_by_how_many_of_a_fold_select_them():
    """Of two trajectories per fold, one selects step 0 and one step 1: half of each counts."""
    statistics = made(gaussian(lambda step: 1.0 + step), num_steps=2, folds=1, trajectories=2)
    weights = np.array([0.5, 0.5])
    static = profile(statistics, weights).static
    half = Candidate("half", np.array([[0.5, 0.5]]), 1.0)
    both = Candidate("both", np.array([[1.0, 1.0]]), 2.0)
    scores, _ = Judge(statistics, weights, static).scores([half, both])
    assert (scores.sqnr[0] == scores.sqnr[1]).all()
    assert scores.js[0, 0] == 0
    uneven = Candidate("uneven", np.array([[1.0, 0.5]]), 1.5)
    scores, _ = Judge(statistics, weights, static).scores([uneven, both])
    assert scores.w1[0, 0] > 0.01


def test_data_driven_rules_are_shown_the_statistics():
    statistics = made(bump({3, 17}), num_steps=N)
    found = compare_rules(
        statistics, ["regret_optimal", "coverage_optimal", "midpoint"], count=3, budgets=[3]
    )
    scores = found.scores
    assert scores.loss[0, 0] <= scores.loss[1:, 0].min() + 1e-9
    assert {3, 17} & set(scores.steps[0])


def test_every_rule_with_a_budget_gets_the_same():
    statistics = made(gaussian(), num_steps=N, sites=1, trajectories=2, folds=2)
    found = compare_rules(statistics, budgets=[5])
    scores = dict(zip(found.scores.rules, found.scores.counts.tolist(), strict=True))
    assert found.count == default_budget(N) == 12
    others = {name: count for name, count in scores.items() if count != 12}
    assert others == {"paper_stride": 15}  # as published: more than it is asked for
    assert "paper_stride" not in [found.scores.rules[place] for place in found.ranking]
    assert len(found.ranking) == len(COMPARED) - 1
    assert default_budget(50) == 17
    asked = compare_rules(statistics, ["midpoint", "dense_middle"], count=4, budgets=[4])
    assert asked.scores.counts.tolist() == [4, 12]
    assert asked.ranking == [0]


def test_curves_go_over_the_budgets_and_end_at_all_steps():
    statistics = made(gaussian(lambda step: 1 + step / 10), num_steps=12)
    found = compare_rules(statistics, ["midpoint", "dense_middle"], count=4, weighting="equal")
    midpoint, dense = found.curves
    assert default_budgets(12, 4) == (2, 3, 4, 6, 8, 12)
    assert midpoint.counts.tolist() == [2, 3, 4, 6, 8, 12]
    assert len(dense.counts) == 1
    assert (midpoint.loss[-1] == 0).all()
    place = midpoint.counts.tolist().index(4)
    assert midpoint.loss[place] == pytest.approx(found.scores.loss[0])
    assert (midpoint.loss_low <= midpoint.loss).all()
    assert (midpoint.loss <= midpoint.loss_high).all()


def test_enough_is_the_budget_from_which_on_little_is_lost():
    statistics = made(gaussian(), num_steps=12)
    (curve,) = compare_rules(statistics, ["midpoint"], count=4).curves
    loss = np.array([[0.5], [0.05], [0.2], [0.1], [0.0], [0.0]]) * np.ones(3)
    made_up = type(curve)("made", curve.counts, loss, loss, loss)
    assert made_up.enough(0.1) == 6
    assert made_up.enough(1.0) == 2
    assert made_up.enough(0.0) == 8
    assert type(curve)("made", curve.counts, loss + 1, loss, loss).enough(0.1) is None


def test_the_runs_own_selection_joins_unless_it_is_there():
    statistics = made(gaussian(), num_steps=N)
    own = ("midpoint", functools.partial(rules.midpoint, count=5))
    found = compare_rules(statistics, ["midpoint"], count=4, budgets=[4], own=own)
    assert found.scores.rules == ("midpoint", "midpoint")
    assert (found.scores.own, found.compared, found.ranking) == (1, 1, [0])
    own = ("midpoint", functools.partial(rules.midpoint, count=4))
    found = compare_rules(statistics, ["midpoint"], count=4, budgets=[4], own=own)
    assert (found.scores.own, len(found.scores.rules)) == (0, 1)
    own = ("mine", functools.partial(rules.midpoint, count=4))
    found = compare_rules(statistics, ["midpoint"], count=4, budgets=[4], own=own)
    assert (found.scores.own, found.scores.rules) == (1, ("midpoint", "mine"))
    assert (found.scores.loss[0] == found.scores.loss[1]).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [({"count": 0}, "count=0"), ({"count": 31}, "count=31"), ({"budgets": [99]}, "budgets=")],
)
def test_budgets_outside_the_steps_are_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        compare_rules(made(gaussian(), num_steps=N), ["midpoint"], **options)


def test_step_weights():
    sigmas = np.array([1.0, 0.6, 0.1])
    assert step_weights(sigmas) == pytest.approx([0.4, 0.5, 0.1])
    assert step_weights(sigmas, "equal") == pytest.approx([1 / 3] * 3)
    with pytest.raises(ConfigError, match="weighting='even'"):
        step_weights(sigmas, "even")


# --- degenerate sites, intervals --------------------------------------------------------------


def test_constant_zero_and_single_step_sites():
    def values(_rng, site, _step, _trajectory):
        return np.full((TOKENS, 8), 3.0 * site)

    scores = compare_rules(made(values, num_steps=1, sites=2), ["midpoint"], count=1).scores
    assert (scores.loss == 0).all()  # of the constant site: the other one has no signal
    assert np.isnan(scores.oracle[0]).all()
    assert (scores.range_coverage == 1).all()
    assert (scores.clipped == 0).all()


def test_one_fold_gives_no_interval():
    statistics = made(gaussian(), num_steps=4, folds=1)
    scores = compare_rules(statistics, ["midpoint"], count=2, budgets=[2]).scores
    assert np.isfinite(scores.loss).all()
    assert np.isnan(scores.loss_high).all()
    assert not scores.losses.differ(0, 0, 8)


def test_folds_are_drawn_only_among_those_that_hold_something():
    drawn = resamples(np.array([True, False, True, True]))
    assert drawn.shape == (1 + DRAWS, 4)
    assert (drawn[:, 1] == 0).all()
    assert (drawn.sum(axis=1) == 3).all()
    assert (drawn[0] == [1, 0, 1, 1]).all()
    assert (resamples(np.array([True, True])) == resamples(np.array([True, True]))).all()


def test_the_interval_of_a_mean_is_students():
    """On a mean the bootstrap with its correction gives the classical interval."""
    values = np.random.default_rng(5).normal(size=8)
    drawn = resamples(np.ones(8, bool))[1:]
    half = half_width(drawn @ values / 8, 8)
    classical = student.ppf(0.975, 7) * values.std(ddof=1) / np.sqrt(8)
    assert half == pytest.approx(classical, rel=0.15)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Of the mean of 8 folds; 95 % promised, a small sample of normals."""
    rng, drawn = np.random.default_rng(0), resamples(np.ones(8, bool))[1:]
    hits = 0
    for _ in range(400):
        values = rng.normal(size=8)
        hits += abs(values.mean()) <= half_width(drawn @ values / 8, 8)
    assert 0.92 <= hits / 400 <= 0.98


def test_differences_are_paired():
    shared = np.random.default_rng(1).normal(size=(DRAWS, 1, 3))
    replicates = np.concatenate([shared, shared + 0.1], axis=1)
    losses = Losses(np.array([[1.0] * 3, [1.1] * 3]), replicates, 8)
    assert losses.difference(1, 0, 8) == pytest.approx((0.1, 0.0))
    assert losses.differ(1, 0, 8)
    assert losses.half_width.min() > 1


# --- one site as a table ------------------------------------------------------------------------


def test_a_distribution_holds_what_the_steps_hold():
    statistics = made(gaussian(lambda step: 10.0**step), num_steps=3, folds=2)
    steps = [statistics.step(step) for step in range(3)]
    found = Distribution.of(steps, 0)
    assert found.total.sum() == 3 * 8 * TOKENS * 8
    assert (found.left[1:] >= found.right[:-1]).all()
    for step in range(3):
        truth = Histogram.of(
            [steps[step].values[0]], low=found.low[:, step].min(), high=found.high[:, step].max()
        )
        assert found.counts[:, step].sum() == truth.total
        levels = np.array([0.1, 0.5, 0.9])
        quantiles = found.quantiles(levels)[step]
        assert quantiles == pytest.approx([truth.percentile(100 * level) for level in levels])
    weights = np.array([[1.0, 0, 0], [0, 0, 0]])
    assert found.pooled(weights).sum() == found.total[0, 0]
    assert found.extremes(weights) == (found.low[0, 0], found.high[0, 0])


def test_quantiles_of_an_empty_step_are_not_known():
    found = Distribution(
        np.array([0.0]),
        np.array([1.0]),
        np.array([[[4.0], [0.0]]]),
        np.zeros((1, 2)),
        np.ones((1, 2)),
    )
    assert np.isnan(found.quantiles(np.array([0.5]))[1]).all()


def test_calibration_points_are_not_weighted_as_the_steps_are():
    """A wide step that hardly counts is half of what is calibrated on."""
    statistics = made(gaussian(lambda step: 20.0 if step == 0 else 1.0), num_steps=2)
    weights = np.array([1e-9, 1 - 1e-9])
    static = profile(statistics, weights).static
    both = Candidate("both", np.ones((4, 2)), 2.0)
    late = Candidate("late", np.array([[0.0, 1.0]] * 4), 1.0)
    scores, _ = Judge(statistics, weights, static).scores([both, late])
    assert (scores.loss[0] > 3).all()
    assert (scores.loss[1] < 0.5).all()


def test_a_range_per_step_serves_steps_of_different_width():
    statistics = made(gaussian(lambda step: 8.0 if step == 0 else 1.0), num_steps=2)
    scores = compare_rules(statistics, ["all"], count=1, budgets=[1]).scores
    weights = step_weights(statistics.sigmas)
    alone = []
    for step in range(2):
        one = SimpleNamespace(**vars(statistics))
        one.num_steps, one.step = 1, lambda _, step=step: statistics.step(step)
        one.sigmas = np.ones(1)
        each = compare_rules(one, ["all"], count=1, budgets=[1]).scores
        distribution = Distribution.of([statistics.step(step)], 0)
        signal = weights[step] * distribution.signal.sum()
        alone.append((signal, signal / 10 ** (each.oracle[0] / 10)))
    (first, one), (second, other) = alone
    truth = 10 * np.log10((first + second) / (one + other))
    assert scores.dynamic[0] == pytest.approx(truth, abs=0.3)  # its candidates are those of both
    assert (scores.dynamic_gain > 0.01).all()
