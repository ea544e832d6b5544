"""Drift and phases against numpy, scipy and exhaustive search."""

from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from taqdit.analysis.drift import (
    drift,
    fixed_phases,
    phase_names,
    segment_costs,
    segments,
    spreads,
    step_distances,
)
from taqdit.errors import ConfigError

Q = 65
LEVELS = (np.arange(Q) + 0.5) / Q
GAUSS = scipy.stats.norm.ppf(LEVELS)
COLUMNS = ("mean", "std", "median_range")


def table_of(quantiles, **columns):
    """What `drift` reads of an overview; columns (S, n), else numbers of the quantiles."""
    sites, steps, _ = quantiles.shape
    widths = np.ptp(quantiles, axis=2)
    found = {"mean": quantiles.mean(2), "std": quantiles.std(2), "median_range": widths}
    return SimpleNamespace(
        sites=tuple(range(sites)),
        sigmas=np.linspace(1, 0.1, steps),
        timesteps=np.linspace(1000, 100, steps),
        **(found | columns),
    )


def drift_of(quantiles, weights=None, **options):
    weights = np.ones(quantiles.shape[1]) if weights is None else weights
    return drift(table_of(quantiles), quantiles, weights, **options)


def samples(rng, sites, steps, count):
    """(S, n, count): scale and place change from step to step."""
    scale, place = rng.uniform(0.5, 3, (2, sites, steps, 1))
    return place + scale * rng.standard_t(5, (sites, steps, count))


# --- distances ------------------------------------------------------------------------------


def wasserstein(values):
    """(n, n): mean over the sites of scipy's distance in the site's std, from (S, n, count)."""
    sites, steps, _ = values.shape
    pairs = np.zeros((sites, steps, steps))
    for s, i, j in np.ndindex(pairs.shape):
        pairs[s, i, j] = scipy.stats.wasserstein_distance(values[s, i], values[s, j])
    return (pairs / values.std(axis=(1, 2))[:, None, None]).mean(axis=0)


def test_distances_are_those_of_scipy_where_quantiles_are_the_sample():
    values = samples(np.random.default_rng(0), 3, 6, Q)
    found = step_distances(np.sort(values, axis=2))
    np.testing.assert_allclose(found, wasserstein(values), rtol=1e-12, atol=1e-15)


def test_distances_are_near_those_of_scipy_on_large_samples():
    """Within 2 percent of the largest before scaling; the spread, too, leaves out the far tails."""
    values = samples(np.random.default_rng(1), 1, 4, 20_000)
    quantiles = np.moveaxis(np.quantile(values, LEVELS, axis=2), 0, 2)
    found, truth = step_distances(quantiles), wasserstein(values)
    for one, other, share in ((spreads(quantiles), values.std(), 0.02), (1, 1, 0.04)):
        apart = np.abs(found * one - truth * other)
        assert apart.max() <= share * (truth * other).max()


def test_distances_are_symmetric_and_those_of_neighbours_are_the_drift():
    quantiles = np.sort(samples(np.random.default_rng(2), 5, 9, Q), axis=2)
    found = step_distances(quantiles)
    assert (found == found.T).all()
    assert (np.diag(found) == 0).all()
    assert (found[~np.eye(9, dtype=bool)] > 0).all()
    neighbours = drift_of(quantiles).distance
    assert neighbours.shape == (5, 8)
    np.testing.assert_allclose(neighbours.mean(axis=0), np.diag(found, 1), rtol=1e-12)


def test_a_site_without_spread_or_values_adds_nothing():
    quantiles = np.sort(samples(np.random.default_rng(3), 1, 4, Q), axis=2)
    constant, hollow = np.full((2, 1, 4, Q), 0.3)
    hollow[0, 2] = np.nan
    found = step_distances(np.concatenate([quantiles, constant, hollow]))
    np.testing.assert_allclose(found, step_distances(quantiles) / 3, rtol=1e-12)


def test_the_spread_is_the_standard_deviation_of_all_values():
    values = np.random.default_rng(4).normal(5, 2, (1, 3, 20_000)) + np.array([0, 3, 9])[:, None]
    quantiles = np.moveaxis(np.quantile(values, LEVELS, axis=2), 0, 2)
    assert spreads(quantiles) == pytest.approx([values.std()], rel=0.01)
    assert spreads(np.full((1, 7, Q), 0.3)).tolist() == [0]  # its mean is not quite 0.3
    assert np.isnan(spreads(np.full((1, 3, Q), np.nan))).all()


# --- changes --------------------------------------------------------------------------------


def test_changes_are_relative_to_the_step_before_and_to_the_spread():
    quantiles = np.stack([[-2 * GAUSS[::-1], GAUSS, GAUSS + 3]])
    columns = {
        "mean": np.array([[0.0, -0.5, 2.5]]),
        "std": np.array([[2.0, 1.0, 1.5]]),
        "median_range": np.array([[4.0, 5.0, 0.0]]),
    }
    found = drift(table_of(quantiles, **columns), quantiles, np.ones(3))
    assert found.range_change.tolist() == [[0.25, -1.0]]
    assert found.std_change.tolist() == [[-0.5, 0.5]]
    np.testing.assert_allclose(found.mean_change, [[-0.5, 3.0]] / quantiles.std())
    truth = [np.abs(GAUSS).mean(), 3.0] / quantiles.std()
    np.testing.assert_allclose(found.distance, [truth])


def test_from_zero_a_change_is_infinite_and_from_zero_to_zero_none():
    quantiles = np.zeros((1, 3, Q))
    columns = {name: np.array([[0.0, 0.0, 2.0]]) for name in COLUMNS}
    found = drift(table_of(quantiles, **columns), quantiles, np.ones(3))
    assert found.range_change.tolist() == found.std_change.tolist() == [[0, np.inf]]
    assert found.mean_change.tolist() == found.distance.tolist() == [[0, 0]]
    assert found.borders == ((),)


def test_a_site_without_values_is_not_known_and_spoils_no_other():
    good = np.where(np.arange(8)[:, None] < 3, GAUSS, 2 * GAUSS)[None]
    hollow = good.copy()
    hollow[0, 5] = np.nan
    both = np.concatenate([good, hollow])
    columns = {name: np.ones((2, 8)) for name in COLUMNS}
    found = drift(table_of(both, **columns), both, np.ones(8))
    alone = drift_of(good)
    for name in ("range_change", "mean_change", "std_change", "distance"):
        assert np.isnan(getattr(found, name)[1]).all()
        assert np.isfinite(getattr(found, name)[0]).all()
    assert found.distance[0].tolist() == alone.distance[0].tolist()
    assert found.borders == ((3,), ())
    assert found.phases == (3,)


# --- segmentation ---------------------------------------------------------------------------


def cost_of(vectors, weights):
    """Weighted sum of squared distances to the weighted mean."""
    total = weights.sum()
    mean = weights @ vectors / total if total else 0 * vectors[0]
    return float(weights @ np.square(vectors - mean).sum(axis=1))


def total_cost(vectors, weights, borders, penalty):
    ends = [0, *borders, len(vectors)]
    return sum(cost_of(vectors[a:b], weights[a:b]) + penalty for a, b in pairwise(ends))


def exhaustive(vectors, weights, penalty):
    """The least total cost over all segmentations."""
    inner = range(1, len(vectors))
    every = (borders for k in range(len(vectors)) for borders in combinations(inner, k))
    return min(total_cost(vectors, weights, borders, penalty) for borders in every)


sequences = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.tuples(*[st.integers(-3, 3)] * 2), min_size=n, max_size=n),
        st.lists(st.integers(0, 4), min_size=n, max_size=n),
    )
)


@settings(max_examples=80, deadline=None)
@given(drawn=sequences, penalty=st.sampled_from([0.01, 0.3, 2.0, 9.0]))
def test_the_segmentation_is_the_best_of_all(drawn, penalty):
    vectors, weights = (np.array(each, float) for each in drawn)
    costs = segment_costs(vectors @ vectors.T, weights)
    n = len(vectors)
    for i, j in np.ndindex(n + 1, n + 1):
        truth = cost_of(vectors[i:j], weights[i:j]) if i < j else np.inf
        assert costs[i, j] == pytest.approx(truth, abs=1e-9)
    borders = segments(costs, penalty)
    assert all(a < b for a, b in pairwise([0, *borders, n]))
    best = exhaustive(vectors, weights, penalty)
    assert total_cost(vectors, weights, borders, penalty) == pytest.approx(best, abs=1e-9)


# --- phases ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    shape=st.integers(4, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
    size=st.floats(0.2, 50),
    level=st.floats(-1e3, 1e3),
    kind=st.sampled_from(["shift", "scale"]),
)
def test_one_jump_is_exactly_one_border(shape, size, level, kind):
    steps, at = shape
    after = (np.arange(steps) >= at)[:, None]
    change = size * after if kind == "shift" else size * GAUSS * after
    found = drift_of((level + GAUSS + change)[None])
    assert found.borders == ((at,),)
    assert found.phases == (at,)


@pytest.mark.parametrize("steps", [1, 2, 3, 30])
@pytest.mark.parametrize("values", [0 * GAUSS, 0 * GAUSS + 0.1, GAUSS, 1e-30 * GAUSS])
def test_a_constant_site_has_one_phase(steps, values):
    found = drift_of(np.tile(values, (2, steps, 1)))
    assert found.borders == ((), ())
    assert found.phases == ()
    assert found.distance.shape == (2, steps - 1)
    assert (found.distance == 0).all()
    assert (found.mean_change == 0).all()


def test_rounding_makes_no_phases():
    ramp = 1 + 1e-7 * np.arange(30)[:, None]
    assert drift_of((GAUSS * ramp)[None]).phases == ()


def noisy(seed, sites=40, steps=30, count=500):
    """Quantiles of independent samples of one distribution: what folds differ by."""
    values = np.random.default_rng(seed).normal(size=(sites, steps, count))
    return np.moveaxis(np.quantile(values, LEVELS, axis=2), 0, 2)


@pytest.mark.parametrize("uneven", [False, True])
def test_noise_makes_no_phases(uneven):
    weights = np.linspace(0.2, 3, 30) if uneven else np.ones(30)
    found = drift_of(noisy(0), weights)
    assert sum(map(bool, found.borders)) <= 1  # of 40
    assert found.phases == ()


def test_noise_of_one_number_seldom_makes_phases():
    """The hardest case: all levels move together, so that nothing averages out."""
    moves = np.random.default_rng(1).normal(0, 0.2, (200, 30, 1))
    assert sum(map(bool, drift_of(GAUSS + moves).borders)) <= 6


def test_a_jump_is_found_in_noise():
    quantiles = noisy(2)
    quantiles[:, 18:] += 0.5
    found = drift_of(quantiles)
    assert found.phases == (18,)
    assert sum(borders == (18,) for borders in found.borders) >= 38


@pytest.mark.parametrize("steps", [20, 30, 50, 100])
def test_an_even_drift_has_three_even_phases(steps):
    quantiles = (GAUSS * np.linspace(1, 2, steps)[:, None])[None]
    first, second = drift_of(quantiles).phases
    assert first == pytest.approx(steps / 3, abs=1)
    assert second == pytest.approx(2 * steps / 3, abs=1)


def test_stages_are_found_as_many_as_there_are():
    scales = np.repeat([1.0, 2.0, 1.0, 3.0, 2.0], 6)
    assert drift_of((GAUSS * scales[:, None])[None]).phases == (6, 12, 18, 24)


def test_steps_without_weight_make_no_border():
    quantiles = np.tile(GAUSS, (1, 12, 1))
    quantiles[0, 10:] *= 2
    weights = np.r_[np.ones(10), 0, 0]
    assert drift_of(quantiles, weights).phases == ()
    assert drift_of(quantiles, weights + 1).phases == (10,)


def test_weights_count_up_to_a_factor():
    quantiles = noisy(5, sites=4, steps=20)
    quantiles[:, 12:] *= 2
    weights = np.linspace(1, 9, 20)
    one, other = drift_of(quantiles, weights), drift_of(quantiles, weights / 1e6)
    assert (one.borders, one.phases) == (other.borders, other.phases)
    assert one.borders == ((12,),) * 4


def test_the_phases_of_all_sites_are_those_of_their_mean_cost():
    """Two sites jump at 5, one at 9 by as much: 5 explains two thirds, 9 the rest."""
    at = np.array([5, 5, 9])[:, None]
    after = (np.arange(16) >= at)[..., None]
    assert drift_of(GAUSS + 2 * after).phases == (5, 9)
    crowd = np.concatenate([after[:1]] * 20 + [after[2:]])
    assert drift_of(GAUSS + 2 * crowd).phases == (5,)


def test_fixed_phases_are_those_of_the_older_scripts():
    assert fixed_phases(50) == (15, 35)
    found = {n: fixed_phases(n) for n in (1, 2, 3, 5, 15, 20, 28, 30, 100)}
    assert found == {
        1: (), 2: (1,), 3: (1, 2), 5: (2, 4), 15: (5, 11), 20: (6, 14), 28: (8, 20), 30: (9, 21),
        100: (30, 70),
    }  # fmt: skip
    quantiles = np.sort(samples(np.random.default_rng(6), 3, 50, Q), axis=2)
    found = drift_of(quantiles, phases="seed")
    assert found.borders == ((15, 35),) * 3
    assert found.phases == (15, 35)
    assert found.distance.tolist() == drift_of(quantiles).distance.tolist()


def test_three_phases_have_names():
    assert phase_names((15, 35)) == ("early", "mid", "late")
    assert phase_names(()) == ("phase 1",)
    assert phase_names((4,)) == ("phase 1", "phase 2")
    assert phase_names((1, 2, 3))[-1] == "phase 4"


def test_what_does_not_fit_is_refused():
    quantiles = np.tile(GAUSS, (2, 5, 1))
    table = table_of(quantiles)
    with pytest.raises(ConfigError, match=r"phases='thirds' must be one of data, seed"):
        drift(table, quantiles, np.ones(5), phases="thirds")
    for wrong in (quantiles[:1], quantiles[:, :4], quantiles[..., 0]):
        with pytest.raises(ValueError, match="do not fit a table of 2 sites and 5 steps"):
            drift(table, wrong, np.ones(5))
    with pytest.raises(ValueError, match="do not fit"):
        drift(table, quantiles, np.ones(4))
    for weights in (np.zeros(5), np.array([1, 1, -1, 1, 1.0]), np.full(5, np.nan)):
        with pytest.raises(ValueError, match="at least 0"):
            drift(table, quantiles, weights)
