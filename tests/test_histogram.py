"""Bins of float32 bits: percentiles in bounds, totals kept, moments near the truth."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from statistics_oracle import assert_equal, assert_histogram, binned, codes_of, counted, of_folds

from taqdit.activations import BinCounts, Histogram, bins, counts
from taqdit.activations.bins import edges_of

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
moderate = st.floats(-6e4, 6e4, width=32)  # of a float16's range
sizes = st.integers(1, 60)
values_of = hnp.arrays(np.float32, sizes, elements=finite | moderate | st.just(-0.0))


def histogram(*parts):
    """Of the values of all parts, each counted alone."""
    parts = [np.asarray(part, np.float32) for part in parts]
    kept = np.concatenate([part[np.isfinite(part)] for part in parts])
    low, high = (float(kept.min()), float(kept.max())) if kept.size else (np.inf, -np.inf)
    return Histogram.of([counted(codes_of(part)) for part in parts], low=low, high=high)


def percentiles(histogram, percents):
    return [histogram.percentile(percent) for percent in percents]


# --- bins -----------------------------------------------------------------------------------


def test_every_finite_code_has_a_bin_that_holds_its_values():
    codes = np.arange(bins.BINS)
    magnitudes = codes & 0xFFF
    for tail in (0, 1, (1 << bins.SHIFT) - 1):  # the first value of each bin, and the last
        values = ((codes << bins.SHIFT) + tail).astype(np.uint32).view(np.float32)
        assert_equal(codes_of(values), codes)
        signed = np.where(codes < bins.SIGN, magnitudes, -magnitudes)[magnitudes < bins.INFINITE]
        low, high = bins.bounds_of(signed)
        exact = values[magnitudes < bins.INFINITE].astype(np.float64)
        assert (low <= exact).all()
        assert (exact <= high).all()
        inner = np.minimum(np.abs(low), np.abs(high))
        narrow = np.maximum(inner / 16, np.where(signed == 0, 2.0**-129, 2.0**-130))
        outermost = np.abs(signed) == bins.INFINITE - 1  # reaches to Inf
        assert ((high - low <= narrow) | outermost).all()


def test_edges_are_those_of_the_magnitudes_in_order():
    edges = edges_of(np.arange(bins.INFINITE + 1))
    assert (np.diff(edges) > 0).all()
    assert (edges[0], edges[1], edges[-1]) == (0, 2.0**-130, np.inf)
    assert_equal(edges_of(codes_of(np.float32([1, 1.0625, 1.99, 2]))), [1, 1.0625, 1.9375, 2])


# --- percentiles ----------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(values=values_of, percents=st.lists(st.floats(0, 100), max_size=4))
def test_percentiles_lie_in_their_bounds(values, percents):
    assert_histogram(histogram(values), values)
    assert_histogram(histogram(values), values, percents)


@settings(max_examples=80, deadline=None)
@given(values=values_of, percents=st.lists(st.floats(0, 100), min_size=2))
def test_percentiles_rise(values, percents):
    found = percentiles(histogram(values), sorted(percents))
    assert (np.diff(found) >= 0).all()
    assert values.min() <= found[0] <= found[-1] <= values.max()


@pytest.mark.parametrize("draw", ["normal", "laplace", "lognormal"])
def test_percentiles_are_near_those_of_a_sample(draw):
    values = getattr(np.random.default_rng(2), draw)(size=20_000).astype(np.float32)
    found = histogram(values)
    assert_histogram(found, values)
    percents = np.array([0.1, 1, 25, 75, 99, 99.9])
    np.testing.assert_allclose(
        percentiles(found, percents), np.percentile(values, percents), rtol=0.02, atol=0.01
    )


def test_the_ends_are_exact_and_outer_percents_are_refused():
    found = histogram([-3.3, 0.7, 9.9])
    assert (found.percentile(0), found.percentile(100)) == (np.float32(-3.3), np.float32(9.9))
    for percent in (-1e-9, 100.0001, float("nan")):
        with pytest.raises(ValueError, match=r"must lie in \[0, 100\]"):
            found.percentile(percent)


@settings(max_examples=80, deadline=None)
@given(parts=st.lists(values_of, min_size=2, max_size=4))
def test_merged_counts_give_the_pooled_histogram(parts):
    pooled = np.concatenate(parts)
    tables = [counted(codes_of(part)) for part in parts]
    table = tables[0]
    for other in tables[1:]:
        table = table.merged(other)
    low, high = float(pooled.min()), float(pooled.max())
    for found in (Histogram.of([table], low=low, high=high), histogram(*parts)):
        assert_histogram(found, pooled)
        assert_equal(found.counts, histogram(pooled).counts)
        assert_equal(found.left, histogram(pooled).left)
        assert_equal(found.right, histogram(pooled).right)


def test_values_that_are_no_number_are_counted_apart():
    values = np.array([1, np.nan, 2, np.inf, -np.inf, -np.nan, 2, 3], np.float32)
    assert_histogram(histogram(values), values)
    assert counted(codes_of(values)).total == 8


def test_without_a_finite_value_there_is_no_percentile():
    found = histogram(np.array([np.nan, np.inf], np.float32))
    assert (found.total, found.nan, found.inf) == (0, 1, 1)
    assert np.isnan(found.kurtosis())
    with pytest.raises(ValueError, match="empty histogram"):
        found.percentile(50)
    within, below, above = found.rebinned(np.array([-1.0, 0, 1]))
    assert (within.tolist(), below, above) == ([0, 0], 0, 0)


# --- kurtosis and other edges ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "arguments"),
    [("normal", ()), ("uniform", (-1, 3)), ("laplace", (0.5, 2)), ("standard_t", (9,))],
)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 6e3])
def test_the_kurtosis_is_that_of_the_values(draw, arguments, scale):
    drawn = getattr(np.random.default_rng(1), draw)(*arguments, size=20_000)
    values = (drawn * scale).astype(np.float32)
    truth = scipy.stats.kurtosis(values.astype(np.float64), fisher=False)
    assert histogram(values).kurtosis() == pytest.approx(truth, rel=0.01)


def test_values_are_taken_as_spread_evenly_in_their_bin():
    assert histogram(np.linspace(1, 1.0624, 500)).kurtosis() == pytest.approx(1.8, rel=1e-6)


def test_the_kurtosis_of_two_values_is_one_and_of_one_value_none():
    assert histogram([-0.5] * 9 + [1.5] * 9).kurtosis() == pytest.approx(1)
    assert np.isnan(histogram([0.3, 0.3]).kurtosis())


edges_in_order = st.lists(finite | moderate, min_size=2, max_size=9, unique=True).map(sorted)


@settings(max_examples=150, deadline=None)
@given(values=values_of, edges=edges_in_order)
def test_rebinning_keeps_the_total(values, edges):
    within, below, above = histogram(values).rebinned(np.array(edges))
    assert within.shape == (len(edges) - 1,)
    assert (within >= 0).all()
    assert min(below, above) >= 0
    assert within.sum() + below + above == pytest.approx(values.size, rel=1e-12)
    assert below <= (values < edges[0]).sum() + _at(values, edges[0])
    assert above <= (values > edges[-1]).sum() + _at(values, edges[-1])


def _at(values, edge):
    """How many values share the bin of an edge: these are spread about it."""
    found = histogram(np.append(values, np.float32(edge)))
    inside = (found.left <= edge) & (edge <= found.right)
    return found.counts[inside].sum()


def test_rebinning_on_edges_of_bins_is_exact():
    values = np.random.default_rng(3).normal(size=5000).astype(np.float32)
    edges = np.array([-4, -2, -1, -0.5, -0.125, 0, 0.25, 0.53125, 1, 3, 5])
    within, below, above = histogram(values).rebinned(edges)
    truth, _ = np.histogram(values, edges)
    np.testing.assert_allclose(within, truth, atol=1e-9)
    assert below == pytest.approx((values < -4).sum())
    assert above == pytest.approx((values > 5).sum())


def test_rebinning_on_any_edges_is_near():
    values = np.random.default_rng(4).normal(size=50_000).astype(np.float32)
    edges = np.linspace(-2, 2, 41)
    within, _, _ = histogram(values).rebinned(edges)
    truth, _ = np.histogram(values, edges)
    assert np.abs(within - truth).max() < 0.03 * truth.max()


def test_a_single_value_lies_in_its_bin_and_on_the_last_edge():
    found = histogram([2.0] * 5)
    assert found.rebinned(np.array([1.0, 1.5, 2.5]))[0].tolist() == [0, 5]
    assert found.rebinned(np.array([0.0, 1.0, 2.0]))[0].tolist() == [0, 5]
    assert found.rebinned(np.array([2.0, 3.0]))[0].tolist() == [5]
    assert found.rebinned(np.array([2.5, 3.0]))[1:] == (5, 0)
    assert found.rebinned(np.array([0.0, 1.5]))[1:] == (0, 5)


def test_what_lies_around_zero_is_taken_as_zero():
    found = histogram([-1, *[0.0] * 5, -0.0, 1e-41, 1])
    assert [found.percentile(percent) for percent in (20, 50, 70)] == [0, 0, 0]
    assert found.rebinned(np.array([-1.0, 0, 1]))[0].tolist() == [1, 8]
    assert found.rebinned(np.array([-1e-45, 1e-45]))[0].tolist() == [7]
    assert percentiles(histogram([-1e-41, 1e-41]), [0, 100]) == [
        np.float32(-1e-41),
        np.float32(1e-41),
    ]


# --- tables of counts -----------------------------------------------------------------------


def test_only_signs_and_exponents_that_were_seen_are_kept():
    values = np.array([1.0, 1.9, -1.1, 70000.0, 0.0], np.float32)
    table = counted(codes_of(values), folds=3, fold=1)
    assert table.rows.tolist() == [0, 127, 143, 256 + 127]
    assert (table.counts.shape, table.counts.dtype) == ((3, 4, 16), np.uint32)
    assert table.counts[1].sum(axis=1).tolist() == [1, 2, 1, 1]
    assert (table.total, table.counts[[0, 2]].sum()) == (5, 0)
    assert table.counts[1, 1].nonzero()[0].tolist() == [0, 14]  # 1.9 is 14.4 sixteenths up


def test_folds_are_counted_and_chosen_apart():
    codes = {k: codes_of(np.full(k + 1, 2.0**k)) for k in (0, 2)}
    table = binned(codes, folds=4)
    totals = [of_folds(table, [fold]).total for fold in range(4)]
    assert totals == [1, 0, 3, 0]
    assert of_folds(table, [0, 2]).total == 4
    other = binned({1: codes_of(np.full(5, -8.0))}, folds=4)
    both = table.merged(other)
    assert [of_folds(both, [fold]).total for fold in range(4)] == [1, 5, 3, 0]
    assert both.rows.tolist() == [127, 129, 256 + 130]


def test_a_bin_holds_what_32_bits_hold_and_no_more():
    table = BinCounts(np.array([7], np.uint16), np.full((1, 1, 16), 2**32 - 2, np.uint32))
    one = BinCounts(table.rows, np.ones_like(table.counts))
    full = table.merged(one)
    assert full.counts.dtype == np.uint32
    assert (full.counts == 2**32 - 1).all()
    assert full.total == 16 * (2**32 - 1)
    wide = BinCounts(full.rows, np.repeat(full.counts, 3, axis=0))  # three folds
    assert Histogram.of([wide, full], low=-1, high=1).total == 64 * (2**32 - 1)
    apart = BinCounts(np.array([7, 9], np.uint16), np.ones((1, 2, 16), np.uint32))
    for other in (one, apart):
        with pytest.raises(OverflowError, match=r"more than 2\^32 - 1 times"):
            full.merged(other)


def test_nothing_merges_with_anything():
    empty, some = BinCounts.empty(2), counted(codes_of(np.ones(3)), folds=2)
    assert empty.total == 0
    for both in (empty.merged(some), some.merged(empty)):
        assert_equal(both.rows, some.rows)
        assert_equal(both.counts, some.counts)
    assert empty.merged(empty).counts.shape == (2, 0, 16)


def test_zeros_can_be_left_out():
    values = np.array([0.0, -0.0, 1e-40, -1e-40, 2.0**-126, -1.0], np.float32)
    found = counted(codes_of(values)).without_zero()
    assert (found.total, found.rows.tolist()) == (2, [1, 256 + 127])


@settings(deadline=None)
@given(parts=st.lists(values_of | st.just(np.empty(0, np.float32)), min_size=1, max_size=5))
def test_tables_lie_side_by_side(parts):
    tables = [counted(codes_of(part), folds=2, fold=k % 2) for k, part in enumerate(parts)]
    again = counts.split(counts.joined(tables))
    assert len(again) == len(tables)
    for one, other in zip(again, tables, strict=True):
        assert_equal(one.rows, other.rows)
        assert_equal(one.counts, other.counts)
