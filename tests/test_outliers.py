"""Outliers against numpy on the activations, and the kinds on cases that are made up."""

from dataclasses import fields, replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
from statistics_oracle import assert_equal, codes_of, counted, statistics_of

from taqdit.activations import Layout, Site
from taqdit.activations.overview import overview
from taqdit.analysis.outliers import COLUMNS, LARGE_RATIO, MANY_TOKENS, outlier_rows, outliers
from taqdit.quantizer import Quantizer

ROWS, TOKENS = 4, 100


def found_in(*steps):
    """Outliers of steps, each a list with an array (ROWS, TOKENS, C) per site."""
    return outliers(*made_of(*steps))


def made_of(*steps):
    """Statistics and their overview."""
    sites = tuple(Site(f"mm_{i:02d}_img.fc1_in", x.shape[2]) for i, x in enumerate(steps[0]))
    layout = Layout(sites, 2)
    parts = [statistics_of(layout, [x.astype(np.float32) for x in s], [0, 1, 0, 1]) for s in steps]
    return with_table(layout, parts)


def with_table(layout, parts):
    """Steps as a source of statistics, and their overview."""
    times = np.linspace(1, 0.1, len(parts))
    statistics = SimpleNamespace(
        layout=layout, num_steps=len(parts), sigmas=times, timesteps=1000 * times,
        step=parts.__getitem__,
    )  # fmt: skip
    return statistics, overview(statistics)


def gauss(seed, channels, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(ROWS, TOKENS, channels))


def gelu(x):
    return x * scipy.stats.norm.cdf(x)


# --- numbers --------------------------------------------------------------------------------

STEPS = [
    [gauss(10 * i, 7), gelu(gauss(10 * i + 1, 120, 1 + i)), gauss(10 * i + 2, 2) - 3]
    for i in range(4)
]
ALL = [np.stack([step[site] for step in STEPS]).astype(np.float32) for site in range(3)]


@pytest.fixture(scope="module")
def ordinary():
    return found_in(*STEPS)


def of_sites(function):
    """Of the values (n, ROWS, TOKENS, C) of each site, in float64."""
    return [function(values.astype(np.float64)) for values in ALL]


def ranges_of(values):
    return np.ptp(values.reshape(-1, values.shape[-1]), axis=0)


def top_of(ranges):
    return np.argsort(-ranges, kind="stable")[: max(1, int(0.02 * len(ranges)))].tolist()


def mean_jaccard(values):
    sets = [set(top_of(ranges_of(step))) for step in values]
    return np.mean([len(a & b) / len(a | b) for a, b in combinations(sets, 2)])


def negative_levels(values):
    """Counted: codes that are read back as something negative."""
    quantizer = Quantizer.of_range(values.min(), values.max(), bits=8)
    levels = quantizer.scale * (np.arange(256) - quantizer.zero_point)
    assert levels[0] == quantizer.low
    return (levels < 0).mean()


def test_numbers_are_those_of_numpy(ordinary):
    def ratio(values):
        return ranges_of(values).max() / np.median(ranges_of(values))

    assert_equal(ordinary.channel_ratio, of_sites(ratio))
    assert_equal(ordinary.negative, of_sites(lambda values: (values < 0).mean()))
    assert_equal(ordinary.negative_levels, of_sites(negative_levels))
    np.testing.assert_allclose(ordinary.stability, of_sites(mean_jaccard), rtol=1e-12)
    kurtosis = of_sites(lambda values: scipy.stats.kurtosis(values, axis=None) + 3)
    np.testing.assert_allclose(ordinary.kurtosis, kurtosis, rtol=0.02)
    assert [list(top) for top in ordinary.top_channels] == of_sites(lambda x: top_of(ranges_of(x)))


def test_other_numbers_are_the_overview_over_all_steps(ordinary):
    _, table = made_of(*STEPS)
    assert_equal(ordinary.token_ratio, table.token_ratio.max(axis=1))
    assert_equal(ordinary.large_share, np.median(table.large_share, axis=1))
    assert ordinary.sites == table.sites


def test_gelu_spends_few_levels_on_many_negative_values(ordinary):
    assert ordinary.negative[1] == pytest.approx(0.5, abs=0.01)
    assert 0 < ordinary.negative_levels[1] < 0.05
    assert ordinary.negative_levels[0] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("sign", "levels"), [(1, 0), (-1, 255 / 256)])
def test_levels_of_values_on_one_side_of_zero(sign, levels):
    found = found_in([sign * (2 + np.abs(gauss(0, 5)))])
    assert found.negative_levels.tolist() == [levels]
    assert found.negative.tolist() == [float(sign < 0)]


def test_stability_is_one_for_the_same_channels_and_zero_for_others():
    base = gauss(0, 150)
    one, two = base.copy(), base.copy()
    one[..., :3] *= 30
    two[..., 3:6] *= 30
    assert found_in([one], [3 * one]).stability.tolist() == [1]
    assert found_in([one], [two]).stability.tolist() == [0]
    assert found_in([one], [one], [two]).stability == pytest.approx([1 / 3])
    assert np.isnan(found_in([one]).stability).all()


# --- kinds ----------------------------------------------------------------------------------


def test_gaussian_sites_have_no_outliers():
    found = found_in(*[[gauss(5 * i, 64, 1 + i), gelu(gauss(5 * i + 1, 128))] for i in range(3)])
    assert found.kind == ("none", "none")
    assert found.channel_ratio.max() < 2


@pytest.mark.parametrize("make", [lambda x: 50 * x, lambda x: x + 100, lambda x: x - 100])
def test_a_channel_that_is_large_on_every_token_is_an_outlier_channel(make):
    steps = [[gauss(i, 64)] for i in range(3)]
    for (values,) in steps:
        values[..., 5] = make(values[..., 5])
    assert found_in(*steps).kind == ("channel",)


def test_the_wide_channel_comes_first():
    values = gauss(0, 150)
    values[..., [7, 99]] *= 60, 30
    found = found_in([values], [values])
    assert found.top_channels[0][:2] == (7, 99)
    assert found.channel_ratio[0] > 40


@pytest.mark.parametrize("steps", [(0, 1, 2), (1,)])
def test_a_few_tokens_large_in_one_channel_are_outlier_tokens(steps):
    """At every step, or at one alone: then the median step has nothing to show."""
    values = [gauss(i, 64) for i in range(3)]
    for step in steps:
        values[step][:, 0, 9] = 200
    found = found_in(*[[each] for each in values])
    assert found.kind == ("token",)
    assert found.token_ratio[0] > 40
    assert found.channel_ratio[0] > 20
    assert found.top_channels == ((9,),)


def test_a_few_tokens_large_in_all_channels_are_outlier_tokens():
    values = gauss(0, 64)
    values[:, :2] *= 100
    found = found_in([values], [values])
    assert found.kind == ("token",)
    assert found.channel_ratio[0] < LARGE_RATIO


def test_tokens_that_are_many_are_no_outlier_tokens():
    """Half of the tokens are padding, of nearly nothing."""
    values = gauss(0, 64)
    values[:, TOKENS // 3 :] *= 1e-3
    found = found_in([values], [values])
    assert found.token_ratio[0] > LARGE_RATIO
    assert found.large_share[0] > MANY_TOKENS
    assert found.kind == ("none",)


def test_figures_of_a_large_model_are_classified():
    """Ratios of an ordinary and of a giant text block of SD3: 6 against up to 160."""
    for factor, kind in ((4, "none"), (30, "channel"), (160, "channel")):
        values = gauss(0, 64)
        values[..., 3] *= factor
        assert found_in([values], [values]).kind == (kind,)


# --- odd sites ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_sites_of_zeros_or_of_one_channel():
    zeros, constant = np.zeros((ROWS, TOKENS, 6)), np.full((ROWS, TOKENS, 6), -0.3)
    steps = [[zeros, constant, gauss(i, 1)] for i in range(3)]
    found = found_in(*steps)
    assert found.kind == ("none", "none", "none")
    assert found.channel_ratio.tolist() == [1, 1, 1]
    assert found.top_channels == ((), (), (0,))
    assert found.stability.tolist() == [1, 1, 1]
    assert found.negative[:2].tolist() == [0, 1]
    assert found.negative_levels[:2].tolist() == [0, 255 / 256]
    assert np.isnan(found.kurtosis).tolist() == [True, True, False]


def hollow(step, site):
    """The same step, but nothing in a site is finite."""
    span, layout = step.layout.span(site), step.layout
    missing = np.zeros(layout.channels, np.uint32)
    missing[span] = ROWS * TOKENS
    low, high, negative = step.low.copy(), step.high.copy(), step.negative.copy()
    low[span], high[span], negative[span] = np.inf, -np.inf, 0
    fold_low, fold_high = step.fold_low.copy(), step.fold_high.copy()
    fold_low[:, site], fold_high[:, site] = np.inf, -np.inf
    values, peaks = list(step.values), list(step.peaks)
    void = codes_of(np.full(9, np.nan))
    values[site], peaks[site] = counted(void, folds=2), counted(void)
    return replace(
        step, missing=missing, low=low, high=high, negative=negative, fold_low=fold_low,
        fold_high=fold_high, values=values, peaks=peaks, large=np.where(missing, 0, step.large),
    )  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_a_site_without_finite_values_is_not_known_and_spoils_no_other():
    statistics, table = made_of(*STEPS)
    parts = [hollow(statistics.step(i), 1) for i in range(4)]
    found, whole = outliers(*with_table(statistics.layout, parts)), outliers(statistics, table)
    assert (found.kind[1], found.top_channels[1]) == ("none", ())
    for name in (field.name for field in fields(found) if field.type == "np.ndarray"):
        assert np.isnan(getattr(found, name)[1]), name
        assert_equal(getattr(found, name)[[0, 2]], getattr(whole, name)[[0, 2]])
    once = [*parts[:1], *map(statistics.step, (1, 2, 3))]
    found = outliers(*with_table(statistics.layout, once))
    assert np.isfinite(found.channel_ratio).all()
    assert np.isfinite(found.negative).all()
    assert np.isfinite(found.kurtosis).all()


# --- rows -----------------------------------------------------------------------------------


def test_rows_have_a_cell_per_column(ordinary):
    columns, rows = outlier_rows(ordinary)
    assert columns == COLUMNS
    assert [row[0] for row in rows] == [site.name for site in ordinary.sites]
    table = {name: cells for name, *cells in zip(["", *columns], *rows, strict=True)}
    assert table["Outliers"] == list(ordinary.kind)
    assert table["Ch.Range"] == ordinary.channel_ratio.tolist()
    assert table["Tok.Ratio"] == ordinary.token_ratio.tolist()
    assert table["%Large"] == (100 * ordinary.large_share).tolist()
    assert table["Stability"] == ordinary.stability.tolist()
    assert table["%Neg"] == (100 * ordinary.negative).tolist()
    assert table["%Levels<0"] == (100 * ordinary.negative_levels).tolist()
    assert table["Kurtosis"] == ordinary.kurtosis.tolist()
    assert all(type(cell) in (str, float) for row in rows for cell in row)


def test_top_channels_are_named_as_far_as_there_is_room(ordinary):
    tops = ((), (3,), tuple(range(20, 27)))
    _, rows = outlier_rows(replace(ordinary, top_channels=tops))
    assert [row[-1] for row in rows] == ["", "3", "20, 21, 22, 23, 24, .."]
