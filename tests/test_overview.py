"""Tables of statistics against numpy on the activations they were made of."""

from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from statistics_oracle import assert_equal, codes_of, counted, statistics_of

from taqdit.activations import Histogram, Layout, Site
from taqdit.activations import step_shards as activations
from taqdit.activations.overview import BINS, common_edges, layer_table, overview, top_channels
from taqdit.activations.stored import Statistics
from taqdit.store import Stage

STEPS, ROWS, TOKENS = 3, 4, 60
WIDTHS = {
    "embed.context_in": 7,
    "mm_00_img.post_gelu": 60,
    "mm_00_txt.qkv_in": 5,
    "uni_00.post_gelu": 3,
    "final.linear_in": 2,
}
LAYOUT = Layout(tuple(Site(name, width) for name, width in WIDTHS.items()), 2)
SIGMAS = np.array([1, 0.7, 0.2])


def activations_of(step):
    """Per site (ROWS, TOKENS, C): ordinary values, GELU's, giants on few tokens, zeros."""
    rng = np.random.default_rng(step)
    embed, gelu, giants, flat, final = (rng.normal(size=(ROWS, TOKENS, w)) for w in WIDTHS.values())
    embed[:, ::2] = 0  # tokens of zeros
    embed[..., 3] = 0  # and a channel
    gelu = gelu * scipy.stats.norm.cdf(gelu) * np.linspace(0.1, 3, 60)
    giants[:, :3, 1] *= 400 * (1 + step)
    found = [embed, gelu, giants, 0 * flat, np.full_like(final, 0.3)]
    return [each.astype(np.float32) for each in found]


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    stage = Stage.open(
        folder, "statistics", fingerprint="a" * 64, inputs={"num_steps": STEPS}, backend={}
    )
    for step, sigma in enumerate(SIGMAS):
        found = statistics_of(LAYOUT, activations_of(step), [0, 1, 0, 1])
        name, numbers = activations.file_name(2, step), {"sigma": sigma, "timestep": 1000 * sigma}
        activations.write_step(stage, name, found, extent=2, step=step, **numbers)
    return Statistics(stage)


@pytest.fixture(scope="module")
def table(statistics):
    return overview(statistics)


# --- overview -------------------------------------------------------------------------------


def by_site(function):
    """(S, STEPS) of a function of the values (tokens, C) in float64."""
    columns = [
        [function(x.reshape(-1, x.shape[-1]).astype(np.float64)) for x in activations_of(step)]
        for step in range(STEPS)
    ]
    return np.array(columns).T


def ratio(magnitudes):
    """Largest over median, zeros left out."""
    used = magnitudes[magnitudes > 0]
    return used.max() / np.median(used) if used.size else 1.0


def large(x):
    """Share of tokens on which the top channel is in the octave of its absmax or the one below."""
    top = np.abs(x[:, np.abs(x).max(axis=0).argmax()])
    floor = 2.0 ** (np.floor(np.log2(top.max())) - 1) if top.max() else 0
    return (top >= floor).mean()


EXACT = {
    "low": np.min,
    "high": np.max,
    "median_range": lambda x: np.median(np.ptp(x, axis=0)),
    "max_range": lambda x: np.ptp(x, axis=0).max(),
    "negative": lambda x: (x < 0).mean(),
    "channel_ratio": lambda x: ratio(np.abs(x).max(axis=0)),
    "large_share": large,
}
CLOSE = {
    "mean": (lambda x: np.median(x.mean(axis=0)), 1e-9),
    "std": (lambda x: np.median(x.std(axis=0)), 1e-9),
    "p01": (lambda x: np.percentile(x, 1), 1 / 16),
    "p99": (lambda x: np.percentile(x, 99), 1 / 16),
    "p9999": (lambda x: np.percentile(x, 99.99, method="inverted_cdf"), 1 / 16),
    "token_ratio": (lambda x: ratio(np.abs(x).max(axis=1)), 1 / 16),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_numbers_are_those_of_numpy(table, name):
    assert_equal(getattr(table, name), by_site(EXACT[name]))


@pytest.mark.parametrize("name", CLOSE)
def test_other_numbers_are_near_those_of_numpy(table, name):
    reference, tolerance = CLOSE[name]
    np.testing.assert_allclose(
        getattr(table, name), by_site(reference), rtol=tolerance, atol=tolerance / 1e4
    )


def test_the_kurtosis_is_that_of_all_values(table):
    for site, step in np.ndindex(3, STEPS):
        truth = scipy.stats.kurtosis(activations_of(step)[site].astype(float), axis=None) + 3
        assert table.kurtosis[site, step] == pytest.approx(truth, rel=0.02)
    assert np.isnan(table.kurtosis[3:]).all()  # all values equal


def test_every_number_is_tested_and_of_its_shape(table):
    other = {"sites", "sigmas", "timesteps", "top_channels", "kurtosis"}
    assert {field.name for field in fields(table)} == {*EXACT, *CLOSE, *other}
    for name in {*EXACT, *CLOSE, "kurtosis"}:
        assert getattr(table, name).shape == (len(WIDTHS), STEPS)
        assert getattr(table, name).dtype == np.float64
    assert table.sites == LAYOUT.sites
    assert_equal(table.sigmas, SIGMAS)
    assert_equal(table.timesteps, 1000 * SIGMAS)
    assert_equal(table.absmax, by_site(lambda x: np.abs(x).max()))


def test_the_top_channels_of_any_step_are_named(table):
    for site, found in enumerate(table.top_channels):
        tops = set()
        for step in range(STEPS):
            ranges = np.ptp(activations_of(step)[site].reshape(ROWS * TOKENS, -1), axis=0)
            tops |= set(np.argsort(-ranges, kind="stable")[: max(1, len(ranges) // 50)].tolist())
        assert found == tuple(sorted(tops))
    assert table.top_channels[2] == (1,)


def test_the_top_channels_are_two_percent_and_at_least_one():
    ranges = np.array([1.0, 9, 3, 9])
    assert top_channels(ranges).tolist() == [1]
    assert [len(top_channels(np.arange(n))) for n in (1, 99, 100, 150, 6144)] == [1, 1, 2, 3, 122]
    assert top_channels(np.arange(150)).tolist() == [149, 148, 147]


def test_sites_are_found_by_place_stream_and_block(table):
    assert table.where().tolist() == [0, 1, 2, 3, 4]
    assert table.where(place="post_gelu").tolist() == [1, 3]
    assert table.where(stream="txt").tolist() == [0, 2]
    assert table.where(block="mm_00").tolist() == [1, 2]
    assert table.where(block="mm_00", stream="img").tolist() == [1]
    assert table.where(place="o_in").shape == (0,)
    assert table.where(place="o_in").dtype == int


def hollow(step, site):
    """Statistics of a step in which a site holds no finite value."""
    span, missing = LAYOUT.span(site), np.zeros(LAYOUT.channels, np.uint32)
    missing[span] = ROWS * TOKENS
    void = {"low": np.inf, "high": -np.inf, "mean": 0, "m2": 0, "negative": 0}
    arrays = {name: getattr(step, name).copy() for name in void}
    for name, value in void.items():
        arrays[name][span] = value
    fold_low, fold_high = step.fold_low.copy(), step.fold_high.copy()
    fold_low[:, site], fold_high[:, site] = np.inf, -np.inf
    codes = codes_of(np.full(9, np.nan))
    values, peaks = list(step.values), list(step.peaks)
    values[site], peaks[site] = counted(codes, folds=2), counted(codes)
    arrays |= {"fold_low": fold_low, "fold_high": fold_high, "values": values, "peaks": peaks}
    return replace(step, missing=missing, large=np.where(missing, 0, step.large), **arrays)


class Hollow:
    """Statistics whose site 1 holds nothing but NaN at every step."""

    layout, num_steps, sigmas, timesteps = LAYOUT, STEPS, SIGMAS, 1000 * SIGMAS

    def __init__(self, statistics):
        self.step = lambda step: hollow(statistics.step(step), 1)


def test_a_site_of_nothing_but_nan_spoils_no_other(statistics, table):
    found = overview(Hollow(statistics))
    others = [0, 2, 3, 4]
    for name in {*EXACT, *CLOSE, "kurtosis"}:
        assert_equal(getattr(found, name)[others], getattr(table, name)[others])
    for name in ("kurtosis", "p01", "p99", "p9999"):
        assert np.isnan(getattr(found, name)[1]).all()
    assert (found.negative[1] == 0).all()
    assert (found.max_range[1] == 0).all()
    counts = layer_table(Hollow(statistics), 1).counts
    assert counts.shape[0] == STEPS
    assert not counts.any()


# --- one site -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, [2, 0]])
@pytest.mark.parametrize("site", range(len(WIDTHS)))
def test_a_layer_is_what_numpy_says_of_its_channels(statistics, site, steps):
    found = layer_table(statistics, site, steps=steps)
    chosen = [0, 1, 2] if steps is None else steps
    values = [
        activations_of(step)[site].reshape(ROWS * TOKENS, -1).astype(float) for step in chosen
    ]
    assert found.site == LAYOUT.sites[site]
    assert_equal(found.sigmas, SIGMAS[chosen])
    assert_equal(found.timesteps, 1000 * SIGMAS[chosen])
    assert_equal(found.low, [x.min(axis=0) for x in values])
    assert_equal(found.high, [x.max(axis=0) for x in values])
    assert_equal(found.negative, [(x < 0).mean(axis=0) for x in values])
    single = [[large(column[:, None]) for column in x.T] for x in values]
    assert_equal(found.large_share, single)
    for name, reference in (("mean", np.mean), ("std", np.std)):
        truth = [reference(x, axis=0) for x in values]
        np.testing.assert_allclose(getattr(found, name), truth, rtol=1e-9, atol=1e-9)
    for counts, x in zip(found.counts, values, strict=True):
        assert counts.sum() == pytest.approx(x.size)
        cumulative = np.cumsum(counts)[:-1]
        below = (x.ravel()[:, None] < found.edges[1:-1]).sum(axis=0)
        assert (np.abs(cumulative - below) <= 1e-9 + in_bins_of(x, found.edges[1:-1])).all()


def in_bins_of(values, edges):
    """How many values share a bin with each edge: so far a count below it may be off."""
    edges = edges.astype(np.float32)
    return (codes_of(values).ravel()[:, None] == codes_of(edges)).sum(axis=0)


def histogram(values):
    values = np.asarray(values, np.float32)
    low, high = float(values.min()), float(values.max())
    return Histogram.of([counted(codes_of(values))], low=low, high=high)


moderate = st.floats(-6e4, 6e4, width=32) | st.integers(-9, 9).map(lambda k: k / 4)
samples = st.lists(hnp.arrays(np.float32, st.integers(1, 40), elements=moderate), min_size=1)


@settings(max_examples=80, deadline=None)
@given(parts=samples)
@pytest.mark.slow
def test_common_edges_hold_every_value(parts):
    found = [histogram(part) for part in parts]
    edges = common_edges(found)
    assert (np.diff(edges) > 0).all()
    assert 2 <= len(edges) <= BINS + 1
    assert edges[0] <= min(map(np.min, parts))
    assert edges[-1] >= max(map(np.max, parts))
    for each, part in zip(found, parts, strict=True):
        within, below, above = each.rebinned(edges)
        assert (below, above) == (0, 0)
        assert within.sum() == pytest.approx(part.size)


def test_common_edges_are_fine_in_the_middle_whatever_lies_far_out():
    values = np.random.default_rng(0).normal(size=20_000)
    values[:3] = 400
    edges = common_edges([histogram(values)])
    middle = edges[(edges > -2) & (edges < 2)]
    assert len(middle) > BINS // 4
    np.testing.assert_allclose(np.diff(middle), np.diff(middle)[0])
    assert (np.diff(edges[edges > 4], n=2) > 0).all()


def test_common_edges_of_one_value_or_none():
    assert common_edges([histogram([3.0, 3.0])]).tolist() == [2.5, 3.5]
    empty = Histogram.of([counted(codes_of(np.full(2, np.nan)))], low=np.inf, high=-np.inf)
    assert common_edges([empty]).tolist() == [-0.5, 0.5]
    assert common_edges([empty, histogram([1.0, 2.0])])[[0, -1]].tolist() == [1, 2]
