"""Reductions on the device against float64, for every shape, dtype and magnitude that may come."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger import shows
from statistics_oracle import (
    assert_channels,
    assert_equal,
    assert_histogram,
    assert_moments,
    codes_of,
    octave_of,
)

from taqdit.activations import BatchSums, BinCounts, Histogram, Layout, Site, StepStatistics
from taqdit.backend import mx
from taqdit.tracer import counting
from taqdit.tracer.counting import OneFold, RowFolds, scattered
from taqdit.tracer.reduce import CHUNK, column_sums, reduced

TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
KINDS = ("normal", "offset", "two", "constant", "zero", "minus_zero", "signed_zeros", "spike")


def statistics_of(activation, *, masked=False):
    """(StepStatistics of one site, row extremes, codes) as the device reduces an activation."""
    found, codes = reduced([activation], masked=masked)
    layout = Layout((Site("a.fc1_in", activation.shape[-1]),), 1)
    on_host = found.map(np.array)
    row_low, row_high = on_host.row_low[0], on_host.row_high[0]
    sums = BatchSums(
        tokens=np.array([codes.peaks.size]),
        channels=on_host.channels,
        fold_low=row_low.min(keepdims=True)[None],
        fold_high=row_high.max(keepdims=True)[None],
        values=[BinCounts.of_codes({0: np.array(codes.values)}, folds=1)],
        peaks=[BinCounts.of_codes({0: np.array(codes.peaks)}, folds=1)],
    )
    rows = SimpleNamespace(low=row_low, high=row_high)
    return StepStatistics.of_batch(layout, sums), rows, codes


def channel(rng, kind, shape):
    normal, scale = rng.normal(size=shape), 10.0 ** rng.uniform(-6, 4)
    return {
        "normal": normal * scale,
        "offset": (1000 + normal) * scale / 100,
        "two": np.where(normal > 0.3, 1.1, 0.7) * scale,
        "constant": np.full(shape, scale),
        "zero": np.zeros(shape),
        "minus_zero": np.full(shape, -0.0),
        "signed_zeros": np.copysign(0.0, normal),
        "spike": np.where(rng.random(shape) < 0.1, 6e4, normal * scale),
    }[kind]


@st.composite
def activations(draw):
    """(R, T, C) or (R, T, 1, C) in one of the types, magnitudes 1e-6 to 6e4."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, tokens = draw(st.integers(1, 6)), draw(st.integers(1, 90))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=5))
    values = np.stack([channel(rng, kind, (rows, tokens)) for kind in kinds], axis=-1)
    values = np.clip(values, -6e4, 6e4)
    if draw(st.booleans()):
        values = values[:, :, None]
    return mx.array(values.astype(np.float32)).astype(TYPES[draw(st.sampled_from(list(TYPES)))])


def as_numpy(activation):
    """(R, T, C) float32, the very values."""
    return np.array(activation.astype(mx.float32)).reshape(
        activation.shape[0], -1, activation.shape[-1]
    )


# --- reductions -----------------------------------------------------------------------------


@shows("P10", "any activation on the device: moments as float64", trials=120)
@settings(max_examples=120, deadline=None)
@given(activation=activations(), masked=st.booleans())
def test_reductions_agree_with_float64(activation, masked):
    found, rows, codes = statistics_of(activation, masked=masked)
    values = as_numpy(activation)
    assert_channels(found, [values])
    assert found.missing.shape == (0,)
    assert_equal(rows.low, values.min(axis=(1, 2)))
    assert_equal(rows.high, values.max(axis=(1, 2)))
    assert_equal(np.array(codes.values).ravel(), codes_of(values).ravel())
    assert_equal(np.array(codes.peaks)[..., 0], codes_of(np.abs(values).max(axis=2)))


@pytest.mark.parametrize("type_", TYPES)
@shows("P10", "a mean of 1,000 deviations in each type: variance within 1e-6", trials=1)
def test_the_variance_of_a_far_mean_is_kept_over_many_rows(type_):
    rng = np.random.default_rng(5)
    spread = 1 if type_ == "float32" else 8  # half precision has no more digits at 1000
    values = 1000 + spread * rng.normal(size=(3, 3000, 4))
    activation = mx.array(values.astype(np.float32)).astype(TYPES[type_])
    found, _, _ = statistics_of(activation)
    exact = as_numpy(activation).reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(found.variance, exact.var(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-6 / 1000)


def test_the_variance_is_kept_as_long_as_float32_holds_it():
    rng = np.random.default_rng(10)
    values = np.linspace(0.5, 3, 16) + 1e-5 * rng.normal(size=(2, 32_768, 16))
    found, _, _ = statistics_of(mx.array(values.astype(np.float32)))
    exact = values.astype(np.float32).reshape(-1, 16).astype(np.float64)
    np.testing.assert_allclose(found.variance, exact.var(axis=0), rtol=1e-6)


def test_two_levels_over_many_rows_do_not_drift():
    """Equal addends round the same way each time: the worst case of a running sum."""
    rng = np.random.default_rng(6)
    for share in (0.5, 0.1, 0.003):
        values = np.where(rng.random((2, 20_000, 8)) < share, 0.7, -0.1)
        values = (values * rng.uniform(0.5, 3, 8)).astype(np.float32)
        found, _, _ = statistics_of(mx.array(values))
        assert_moments(found.mean, found.std, values.reshape(-1, 8).astype(np.float64))


def test_half_precision_sums_do_not_overflow():
    values = np.full((2, 64, 3), 60_000.0)
    values[:, ::2] = -59_968
    found, _, _ = statistics_of(mx.array(values).astype(mx.float16))
    assert_channels(found, [np.float16(values)])


def test_tiny_and_subnormal_values_have_codes_and_extremes():
    values = np.array([1e-40, -3e-45, 2e-38, 0, -0.0, 1e-30], np.float32).reshape(1, 6, 1)
    found, rows, codes = statistics_of(mx.array(values))
    assert_equal(np.array(codes.values).ravel(), codes_of(values).ravel())
    assert (rows.high[0], found.high[0]) == (np.float32(1e-30),) * 2
    assert found.low[0] < 0
    assert_equal(found.negative, [1])


def test_an_array_that_is_not_contiguous_is_read_as_it_is():
    values = np.random.default_rng(7).normal(size=(4, 5, 6)).astype(np.float32)
    for axes in ((2, 1, 0), (1, 0, 2), (0, 2, 1)):
        found, _, codes = statistics_of(mx.array(values).transpose(axes))
        turned = values.transpose(axes)
        assert_channels(found, [turned])
        assert_equal(np.array(codes.values).ravel(), codes_of(turned).ravel())


def test_tokens_are_told_by_their_largest_magnitude():
    values = np.random.default_rng(8).normal(size=(3, 50, 7)).astype(np.float32)
    found, _, _ = statistics_of(mx.array(values))
    peaks = np.abs(values).max(axis=2)
    low, high = float(peaks.min()), float(peaks.max())
    assert_histogram(Histogram.of(found.peaks, low=low, high=high), peaks)


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 70 * CHUNK + 5])
def test_column_sums_miss_no_row(count):
    values = np.random.default_rng(9).integers(-9, 9, (count, 3)).astype(np.float32)
    assert_equal(column_sums(mx.array(values)), values.sum(axis=0))


# --- NaN and Inf ----------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(activation=activations(), data=st.data())
def test_masked_reductions_leave_out_what_is_no_number(activation, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = as_numpy(activation).copy()
    spots = rng.random(values.shape) < data.draw(st.sampled_from([0.01, 0.3, 1]))
    if data.draw(st.booleans()):
        spots[..., 1:] = False  # a channel of nothing but NaN beside sound ones
    values[spots] = rng.choice([np.nan, np.inf, -np.inf], spots.sum())
    found, rows, codes = statistics_of(mx.array(values), masked=True)
    assert_channels(found, [values])
    kept = np.where(np.isfinite(values), values, np.inf)
    assert_equal(rows.low, kept.min(axis=(1, 2)))
    assert_equal(rows.high, np.where(np.isfinite(values), values, -np.inf).max(axis=(1, 2)))
    assert_equal(np.array(codes.values).ravel(), codes_of(values).ravel())
    if np.isfinite(values).any():
        low, high = float(rows.low.min()), float(rows.high.max())
        assert_histogram(Histogram.of(found.values, low=low, high=high), values)


def test_unmasked_codes_show_what_is_no_number():
    values = np.ones((2, 3, 4), np.float32)
    values[0, 1, 2], values[1, 2, 0] = np.nan, -np.inf
    found, _, _ = statistics_of(mx.array(values))
    shown = Histogram.of(found.values, low=1, high=1)
    assert (shown.total, shown.nan, shown.inf) == (22, 1, 1)


# --- counting -------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    indices=st.integers(0, 40).flatmap(
        lambda first: st.integers(1, 5).map(lambda size: range(first, first + size))
    ),
    folds=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_host_and_device_count_the_same_by_fold(indices, folds, seed):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(2 * len(indices), 11)) * 10.0 ** rng.uniform(-40, 38)).astype("f4")
    codes = codes_of(values)
    by_fold = {  # row r is trajectory r mod N; its fold is its index mod folds
        fold: [r for r in range(len(codes)) if indices[r % len(indices)] % folds == fold]
        for fold in range(folds)
    }
    rows = RowFolds(indices, folds=folds)
    for cpu in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(counting, "on_cpu", lambda cpu=cpu: cpu)
            one, pair = OneFold(len(codes)), np.stack([codes, codes[::-1]], axis=1)
            read = mx.array(pair[:, None])  # (rows, tokens, sites, channels)
            found = rows.counted([np.array(each) for each in rows.lazy(read)], 0)
            together = one.counted([np.array(each) for each in one.lazy(read)], 0)
            other = rows.counted([np.array(each) for each in rows.lazy(read)], 1)
        assert other.total == found.total == codes.size
        assert found.counts.shape[0] == folds
        for fold, members in by_fold.items():
            dense = np.zeros((512, 16), int)
            dense[found.rows] = found.counts[fold]
            assert_equal(dense.ravel(), np.bincount(codes[members].ravel(), minlength=8192))
        assert together.counts.shape[0] == 1
        assert_equal(together.counts[0], found.counts.sum(axis=0))
        assert_equal(together.rows, found.rows)


@pytest.mark.parametrize("masked", [False, True])
def test_sites_side_by_side_are_reduced_as_each_alone(masked):
    """The very same bits: live tracing and replay may group in other ways."""
    rng = np.random.default_rng(2)
    arrays = [mx.array(rng.normal(k, 10.0**k, (4, 70, 1, 24)).astype("f4")) for k in range(3)]
    found, codes = reduced(arrays, masked=masked)
    for site, array in enumerate(arrays):
        alone, own = reduced([array], masked=masked)
        for part, value in zip(found.channels, alone.channels, strict=True):
            assert (part is None) == (value is None)
            if value is not None:
                assert_equal(np.array(part)[24 * site : 24 * site + 24], np.array(value))
        for part, value in ((found.row_low, alone.row_low), (found.row_high, alone.row_high)):
            assert_equal(np.array(part)[site], np.array(value)[0])
        assert_equal(np.array(codes.values)[:, :, site], np.array(own.values)[:, :, 0])
        assert_equal(np.array(codes.peaks)[:, :, site], np.array(own.peaks)[:, :, 0])


def test_scattered_counts_are_those_of_bincount():
    codes = np.random.default_rng(1).integers(0, 8192, (6, 3000)).astype(np.uint16)
    codes[0] = 8191
    found = scattered(mx.array(codes), mx.array([2, 0, 1, 1, 0, 2]), 3)
    assert (found.shape, found.dtype) == ((3, 8192), mx.uint32)
    for group, members in enumerate(([1, 4], [2, 3], [0, 5])):
        assert_equal(found[group], np.bincount(codes[members].ravel(), minlength=8192))


def test_extremes_are_those_of_a_folds_rows():
    rows = RowFolds(range(6, 9), folds=4)  # trajectories 6, 7, 8: folds 2, 3, 0
    low = np.array([[3, 1, 5, 2, 6, 4], [0, 0, 0, 0, 0, -1]], np.float32)
    found_low, found_high = rows.extremes(low, low + 10)
    assert_equal(found_low, [[4, -1], [np.inf, np.inf], [2, 0], [1, 0]])
    assert_equal(found_high, [[15, 10], [-np.inf, -np.inf], [13, 10], [16, 10]])


def test_the_octave_of_the_reference_is_that_of_the_codes():
    values = np.array([0, 1e-45, 2.0**-126, 0.9, 1, 65504, 3e38], np.float32)
    assert_equal(codes_of(values) // 16, octave_of(values) + 126)
