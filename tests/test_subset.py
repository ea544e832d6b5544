"""Subsets of a trajectory against exhaustive search, hand-computed cases and published figures."""

from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from objectives import medoid_cost, static_error

from taqdit.timestep_selection import search as subset
from taqdit.timestep_selection.search import (
    density_quantiles,
    drift_density,
    least_regret,
    medoids,
)


def sd3_grid(num_steps):
    """SD3's sigmas at shift 3 in closed form, 0 appended."""
    u = np.linspace(1, 0.0029940, num_steps)
    return np.append(3 * u / (1 + 2 * u), 0)


def spaced(places):
    return np.abs(np.subtract.outer(places, places))


@st.composite
def spread_steps(draw, most=8):
    """Distances (n, n) of any kind (ties, zeros, no triangle inequality) and weights (n,)."""
    n = draw(st.integers(1, most))
    entries = st.one_of(st.integers(0, 3).map(float), st.floats(0, 10))
    upper = draw(st.lists(entries, min_size=n * n, max_size=n * n))
    distances = np.triu(np.reshape(upper, (n, n)), 1)
    weights = np.array(draw(st.lists(st.floats(0.01, 1), min_size=n, max_size=n)))
    return distances + distances.T, weights / weights.sum()


def cost_by_cuts(distances, weights, chosen):
    """Every cut into contiguous segments that hold one chosen step each."""
    n, chosen = len(weights), sorted(chosen)
    costs = []
    for cut in combinations(range(1, n), len(chosen) - 1):
        edges = [0, *cut, n]
        segments = [range(a, b) for a, b in pairwise(edges)]
        if all(m in segment for m, segment in zip(chosen, segments, strict=True)):
            pairs = zip(chosen, segments, strict=True)
            costs.append(sum(weights[i] * distances[i, m] for m, s in pairs for i in s))
    return min(costs)


@settings(max_examples=60, deadline=None)
@given(spread_steps(), st.data())
def test_medoid_cost_is_the_least_over_every_cut(steps, data):
    distances, weights = steps
    n = len(weights)
    chosen = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
    expected = cost_by_cuts(distances, weights, chosen)
    assert medoid_cost(distances, weights, chosen) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@settings(max_examples=100, deadline=None)
@given(spread_steps(), st.data())
def test_medoids_are_the_exhaustive_optimum(steps, data):
    distances, weights = steps
    n = len(weights)
    count = data.draw(st.integers(1, n))
    chosen = medoids(distances, weights, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == count
    every = combinations(range(n), count)
    best = min(medoid_cost(distances, weights, each) for each in every)
    slack = 1e-8 * float((weights @ distances).min())
    assert medoid_cost(distances, weights, chosen) <= best + slack


@pytest.mark.parametrize(("num_steps", "count", "cost"), [(50, 10, 0.0230), (20, 5, 0.0412)])
def test_medoids_in_sigma_reach_the_published_cost(num_steps, count, cost):
    """On a line contiguous segments are no constraint: sum dt_i min_j |sigma_i - sigma_j|."""
    sigmas = sd3_grid(num_steps)
    levels, widths = sigmas[:-1], -np.diff(sigmas)
    chosen = medoids(spaced(levels), widths, count)
    nearest = np.abs(levels[:, None] - levels[chosen]).min(axis=1)
    assert float(widths @ nearest) == pytest.approx(cost, abs=6e-5)
    assert medoid_cost(spaced(levels), widths, chosen) == pytest.approx(float(widths @ nearest))


def test_medoids_stand_in_the_clusters_and_follow_the_weights():
    places = np.array([0, 0.1, 0.2, 5, 5.1, 5.2, 5.3, 9])
    even = np.full(8, 1 / 8)
    assert medoids(spaced(places), even, 3) == [1, 5, 7]  # 4 and 5 tie: the larger
    heavy = np.array([8, 1, 1, 1, 1, 1, 1, 1]) / 15
    assert medoids(spaced(places), heavy, 3) == [0, 5, 7]
    assert medoids(spaced(places), even, 8) == list(range(8))
    assert medoids(np.zeros((1, 1)), np.ones(1), 1) == [0]


def test_ties_go_to_the_larger_step_on_any_machine():
    places = np.arange(13.0)  # which of four segments is the long one is a tie
    weights = np.full(13, 1 / 13)
    assert medoids(spaced(places[:2]), np.full(2, 0.5), 1) == [1]
    assert medoids(np.zeros((4, 4)), np.full(4, 0.25), 2) == [2, 3]
    exact = medoids(spaced(places), weights, 4)
    for seed in range(10):
        noise = np.random.default_rng(seed).normal(0, 1e-13, (13, 13))
        assert medoids(spaced(places) + np.abs(noise + noise.T), weights, 4) == exact


def tables(kind, rng, *, sites, steps, ranges):
    """Errors (S, n, C) of one kind, 1 at every site's best range, and weights (n,)."""
    weights = rng.dirichlet(np.full(steps, 2.0))
    errors = MAKERS[kind](rng, (sites, steps, ranges))
    best = np.einsum("sic,i->sc", errors, weights).min(axis=1)
    return errors / best[:, None, None], weights


def rounding_and_clipping(spread, ranges):
    """c^2 / 1000 of rounding and what lies beyond c of clipping, (S, n, C)."""
    clip = np.geomspace(0.05, 20, ranges)
    return clip**2 / 1000 + np.maximum(0, spread[..., None] - clip) ** 2


def drifting(rng, shape):
    walk = np.cumsum(rng.normal(0, 0.4, shape[:2]), axis=1)
    return rounding_and_clipping(np.exp(walk), shape[2])


def spiky(rng, shape):
    spread = np.ones(shape[:2])
    for row in spread:
        row[rng.integers(shape[1], size=2)] = rng.uniform(2, 20, 2)
    return rounding_and_clipping(spread, shape[2])


def lures(rng, shape):
    """Every step alone prefers a range of its own; the one that serves all is no step's first."""
    errors = 1 + 0.2 * rng.random(shape)
    lure = rng.integers(shape[2], size=shape[:2])[..., None]
    np.put_along_axis(errors, lure, 0.2, axis=2)
    common = np.broadcast_to(rng.integers(shape[2], size=(shape[0], 1, 1)), (*shape[:2], 1))
    np.put_along_axis(errors, common, 0.45 + 0.1 * rng.random((*shape[:2], 1)), axis=2)
    return errors


def opposed(rng, shape):
    """Odd and even steps pull the range apart."""
    sign = np.where(np.arange(shape[1]) % 2, 1, -1)[None, :, None]
    sites = (shape[0], 1, shape[2])
    pulls = rng.normal(size=sites) + 2 * sign * rng.normal(size=sites)
    return (pulls + 0.3 * rng.normal(size=shape)) ** 2


MAKERS = {
    "even": lambda rng, shape: rng.random(shape),
    "wild": lambda rng, shape: np.exp(2 * rng.normal(size=shape)),
    "drifting": drifting,
    "spiky": spiky,
    "lures": lures,
    "opposed": opposed,
}


def error_by_loops(errors, weights, chosen):
    """The definition, site by site and range by range."""
    found = []
    for site in errors:
        seen = [sum(site[i, c] for i in chosen) for c in range(site.shape[1])]
        taken = seen.index(min(seen))
        found.append(sum(weights[i] * site[i, taken] for i in range(len(weights))))
    return sum(found) / len(found)


@pytest.mark.parametrize("kind", MAKERS)
def test_static_error_is_its_definition(kind):
    rng = np.random.default_rng(5)
    errors, weights = tables(kind, rng, sites=4, steps=7, ranges=9)
    for chosen in ([0], [6, 2], [1, 3, 5], range(7)):
        expected = error_by_loops(errors, weights, chosen)
        assert static_error(errors, weights, chosen) == pytest.approx(expected, rel=1e-12)
    assert (
        static_error(errors, np.full(7, 1 / 7), range(7))
        <= static_error(errors, np.full(7, 1 / 7), [1]) + 1e-12
    )


def test_one_more_step_can_move_the_range_the_wrong_way():
    errors = np.array([[[1.0, 3.0], [3.0, 1.0], [1.0, 1.2], [1.0, 1.2]]])
    weights = np.full(4, 0.25)
    assert static_error(errors, weights, [2]) == pytest.approx(1.5)  # the range all steps want
    assert static_error(errors, weights, [1, 2]) == pytest.approx(1.6)
    chosen = least_regret(errors, weights, 2)
    assert static_error(errors, weights, chosen) == pytest.approx(1.5)


# How far above the exhaustive optimum the local search may end; `wild` steps share nothing.
LOCAL = dict.fromkeys(MAKERS, 0.05) | {"wild": 0.25}


@pytest.mark.parametrize("search", ["every subset", "local search"])
@pytest.mark.parametrize("kind", MAKERS)
def test_least_regret_is_near_the_exhaustive_optimum(kind, search, monkeypatch):
    if search == "local search":
        monkeypatch.setattr(subset, "SUBSETS", 0)
    rng = np.random.default_rng(17)
    worst = above = 0.0
    for _ in range(40):
        shape = {"sites": rng.integers(1, 6), "steps": rng.integers(4, 11)}
        errors, weights = tables(kind, rng, ranges=rng.integers(2, 16), **shape)
        n = len(weights)
        count = int(rng.integers(1, min(4, n - 1) + 1))
        chosen = least_regret(errors, weights, count)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == count
        every = combinations(range(n), count)
        best = min(static_error(errors, weights, each) for each in every)
        found = static_error(errors, weights, chosen)
        worst, above = max(worst, found / best - 1), max(above, best - 1)
    print(f"{kind}, {search}: {worst:.2%} above the optimum, itself up to {above:.3f} above 1")
    assert worst <= (LOCAL[kind] if search == "local search" else 1e-8)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", MAKERS)
def test_no_exchange_of_one_step_betters_least_regret(kind, seed):
    errors, weights = tables(kind, np.random.default_rng(seed), sites=20, steps=18, ranges=12)
    chosen = least_regret(errors, weights, 6)  # of 18564 subsets
    found = static_error(errors, weights, chosen)
    for out in chosen:
        for step in set(range(18)) - set(chosen):
            other = sorted({*chosen, step} - {out})
            assert static_error(errors, weights, other) >= found * (1 - 1e-8)


def test_the_best_of_several_starts_is_taken(monkeypatch):
    errors, weights = tables("wild", np.random.default_rng(8), sites=12, steps=18, ranges=10)
    starts, ends = [[0, 1, 2, 3, 4, 5], [2, 5, 8, 11, 14, 17], [12, 13, 14, 15, 16, 17]], []
    for start in starts:
        monkeypatch.setattr(subset, "_starts", lambda *_, start=start: [start])
        ends.append(static_error(errors, weights, least_regret(errors, weights, 6)))
    assert len(set(ends)) == 3
    for order in permutations(starts):
        monkeypatch.setattr(subset, "_starts", lambda *_, order=order: order)
        found = static_error(errors, weights, least_regret(errors, weights, 6))
        assert found == pytest.approx(min(ends), rel=1e-9)


@pytest.mark.parametrize("subsets", [0, 5000])
def test_of_equally_good_steps_the_larger_is_taken(subsets, monkeypatch):
    monkeypatch.setattr(subset, "SUBSETS", subsets)
    # Steps 0..3 ask for range 1, the worst of all; 4 asks for range 0, 5 for range 2: equally good.
    asks = [[1.1, 1.0, 1.1]] * 4 + [[1.0, 3.0, 1.3], [1.3, 3.0, 1.0 + 1e-12]]
    assert least_regret(np.array([asks]), np.full(6, 1 / 6), 1) == [5]


def test_least_regret_is_never_worse_than_the_middles_of_equal_parts():
    rng = np.random.default_rng(2)
    for kind in MAKERS:
        errors, weights = tables(kind, rng, sites=6, steps=20, ranges=12)
        for count in (1, 3, 7):
            middles = [(2 * j + 1) * 20 // (2 * count) for j in range(count)]
            found = static_error(errors, weights, least_regret(errors, weights, count))
            assert found <= static_error(errors, weights, middles) * (1 + 1e-8)


def test_least_regret_at_the_ends_of_its_range():
    rng = np.random.default_rng(3)
    errors, weights = tables("even", rng, sites=3, steps=6, ranges=5)
    assert least_regret(errors, weights, 6) == list(range(6))
    alone = [static_error(errors, weights, [i]) for i in range(6)]
    assert least_regret(errors, weights, 1) == [int(np.argmin(alone))]
    assert least_regret(errors[:, :1], np.ones(1), 1) == [0]
    assert least_regret(np.zeros((1, 6, 1)), weights, 2) == [1, 4]  # all alike: equal parts


def test_least_regret_does_not_hang_on_the_last_bits():
    rng = np.random.default_rng(4)
    errors, weights = tables("drifting", rng, sites=5, steps=14, ranges=9)
    errors = np.repeat(errors, 2, axis=1)  # every step twice: ties everywhere
    weights = np.repeat(weights, 2) / 2
    exact = least_regret(errors, weights, 4)
    for _ in range(5):
        shaken = errors * (1 + rng.uniform(-1e-13, 1e-13, errors.shape))
        assert least_regret(shaken, weights, 4) == exact


@given(st.integers(1, 300), st.data())
def test_quantiles_of_an_even_density_are_the_middles_of_equal_parts(num_steps, data):
    count = data.draw(st.integers(1, num_steps))
    middles = [(2 * j + 1) * num_steps // (2 * count) for j in range(count)]
    assert density_quantiles(np.full(num_steps, 0.37), count) == middles
    assert density_quantiles(np.zeros(num_steps), count) == middles


def test_density_quantiles_by_hand():
    assert density_quantiles(np.array([1.0, 1, 6, 0]), 1) == [2]
    assert density_quantiles(np.array([1.0, 1, 6, 0]), 4) == [
        1,
        2,
        2,
        2,
    ]  # 1/8: the larger of a tie
    assert density_quantiles(np.array([0.0, 0, 5]), 3) == [2, 2, 2]
    assert density_quantiles(np.array([2.0]), 1) == [0]


@given(st.lists(st.floats(0, 5), min_size=1, max_size=30), st.integers(1, 30))
def test_density_quantiles_take_their_share(density, count):
    density = np.array(density)
    if density.sum() < 1e-3:
        return
    shares = density / density.sum()
    for j, step in enumerate(density_quantiles(density, count)):
        target = (j + 0.5) / count
        assert shares[:step].sum() <= target + 1e-8
        assert shares[: step + 1].sum() >= target - 1e-8


def test_drift_density_by_hand():
    distances = spaced(np.array([0.0, 0.4, 0.5, 0.5]))
    sigmas = np.array([1.0, 0.8, 0.6, 0.5, 0.0])
    # rates 2, 0.5, 0 between the steps; 2, 1.25, 0.25, 0 at them
    expected = np.array([2, 1.25, 0.25, 0]) * [0.2, 0.2, 0.1, 0.5]
    assert drift_density(distances, sigmas, gamma=1.0) == pytest.approx(expected)
    rooted = np.sqrt([2, 1.25, 0.25, 0]) * [0.2, 0.2, 0.1, 0.5]
    assert drift_density(distances, sigmas, gamma=0.5) == pytest.approx(rooted)
    assert drift_density(distances, sigmas, gamma=0.0) == pytest.approx([0.2, 0.2, 0.1, 0.5])
    assert drift_density(np.zeros((1, 1)), np.array([1.0, 0.0]), gamma=0.5) == pytest.approx([1.0])


def test_steady_drift_over_sigma_is_even_in_sigma():
    sigmas = sd3_grid(40)
    distances = 3 * spaced(sigmas[:-1])
    assert drift_density(distances, sigmas, gamma=0.5) == pytest.approx(-(3**0.5) * np.diff(sigmas))
