"""Both ways to reduce activations against float64: any shape, dtype and magnitude."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger import shows
from statistics_oracle import (
    EXACT,
    assert_channels,
    assert_equal,
    assert_histogram,
    assert_moments,
    binned,
    codes_of,
    octave_of,
)

from taqdit.activations import BatchSums, Histogram, Layout, Site, StepStatistics
from taqdit.backend import mx
from taqdit.tracer import on_host as on_host_module
from taqdit.tracer.on_device import DeviceReader, scattered
from taqdit.tracer.on_host import HostReader
from taqdit.tracer.reduce import CHUNK, column_sums
from taqdit.tracer.sums import RowFolds

TYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}
both = pytest.mark.parametrize("reader", [HostReader, DeviceReader])
KINDS = ("normal", "offset", "two", "constant", "zero", "minus_zero", "signed_zeros", "spike")


def by_reader(reader, activations, *, folds=None, masked=False):
    """SiteSums of each of activations (R, .., C), all rows in one fold unless `folds` says more."""
    rows = len(activations[0])
    none = np.zeros(rows, int)
    folds = folds or SimpleNamespace(folds=1, of_row=none, seen=[0], place=none)
    reading = reader(folds, masked=masked)
    for number, activation in enumerate(activations):
        reading.read(str(number), activation)
    reading.built()
    mx.eval(*reading.pending)
    found = reading.taken()()
    return [found[str(number)] for number in range(len(activations))]


def statistics_of(reader, activation, *, masked=False):
    """(StepStatistics of one site, its SiteSums) as a reader reduces an activation."""
    sums = by_reader(reader, [activation], masked=masked)[0]
    layout = Layout((Site("a.fc1_in", activation.shape[-1]),), 1)
    batch = BatchSums(
        tokens=np.array([sums.tokens]),
        channels=sums.channels,
        fold_low=sums.row_low.min(keepdims=True)[None],
        fold_high=sums.row_high.max(keepdims=True)[None],
        values=[sums.values],
        peaks=[sums.peaks],
    )
    return StepStatistics.of_batch(layout, batch), sums


def assert_counts(found, codes):
    """Bin counts of one fold are those of these codes."""
    expected = binned({0: codes})
    assert_equal(found.rows, expected.rows)
    assert_equal(found.counts, expected.counts)


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
@both
@settings(max_examples=120, deadline=None)
@given(activation=activations(), masked=st.booleans())
def test_reductions_agree_with_float64(reader, activation, masked):
    found, sums = statistics_of(reader, activation, masked=masked)
    values = as_numpy(activation)
    assert_channels(found, [values])
    assert found.missing.shape == (0,)
    assert_equal(sums.row_low, values.min(axis=(1, 2)))
    assert_equal(sums.row_high, values.max(axis=(1, 2)))
    assert_counts(sums.values, codes_of(values))
    assert_counts(sums.peaks, codes_of(np.abs(values).max(axis=2)))


@pytest.mark.parametrize("type_", TYPES)
@shows("P10", "a mean of 1,000 deviations in each type: variance within 1e-6", trials=1)
@both
def test_the_variance_of_a_far_mean_is_kept_over_many_rows(reader, type_):
    rng = np.random.default_rng(5)
    spread = 1 if type_ == "float32" else 8  # half precision has no more digits at 1000
    values = 1000 + spread * rng.normal(size=(3, 3000, 4))
    activation = mx.array(values.astype(np.float32)).astype(TYPES[type_])
    found, _ = statistics_of(reader, activation)
    exact = as_numpy(activation).reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(found.variance, exact.var(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-6 / 1000)


@both
def test_the_variance_is_kept_as_long_as_float32_holds_it(reader):
    rng = np.random.default_rng(10)
    values = np.linspace(0.5, 3, 16) + 1e-5 * rng.normal(size=(2, 32_768, 16))
    found, _ = statistics_of(reader, mx.array(values.astype(np.float32)))
    exact = values.astype(np.float32).reshape(-1, 16).astype(np.float64)
    np.testing.assert_allclose(found.variance, exact.var(axis=0), rtol=1e-6)


@both
def test_two_levels_over_many_rows_do_not_drift(reader):
    """Equal addends round the same way each time: the worst case of a running sum."""
    rng = np.random.default_rng(6)
    for share in (0.5, 0.1, 0.003):
        values = np.where(rng.random((2, 20_000, 8)) < share, 0.7, -0.1)
        values = (values * rng.uniform(0.5, 3, 8)).astype(np.float32)
        found, _ = statistics_of(reader, mx.array(values))
        assert_moments(found.mean, found.std, values.reshape(-1, 8).astype(np.float64))


@both
def test_half_precision_sums_do_not_overflow(reader):
    values = np.full((2, 64, 3), 60_000.0)
    values[:, ::2] = -59_968
    found, _ = statistics_of(reader, mx.array(values).astype(mx.float16))
    assert_channels(found, [np.float16(values)])


@both
def test_tiny_and_subnormal_values_have_codes_and_extremes(reader):
    values = np.array([1e-40, -3e-45, 2e-38, 0, -0.0, 1e-30], np.float32).reshape(1, 6, 1)
    found, sums = statistics_of(reader, mx.array(values))
    assert_counts(sums.values, codes_of(values))
    assert (sums.row_high[0], found.high[0]) == (np.float32(1e-30),) * 2
    assert found.low[0] < 0
    assert_equal(found.negative, [1])


@both
def test_an_array_that_is_not_contiguous_is_read_as_it_is(reader):
    values = np.random.default_rng(7).normal(size=(4, 5, 6)).astype(np.float32)
    for axes in ((2, 1, 0), (1, 0, 2), (0, 2, 1)):
        found, sums = statistics_of(reader, mx.array(values).transpose(axes))
        turned = values.transpose(axes)
        assert_channels(found, [turned])
        assert_counts(sums.values, codes_of(turned))


@both
def test_tokens_are_told_by_their_largest_magnitude(reader):
    values = np.random.default_rng(8).normal(size=(3, 50, 7)).astype(np.float32)
    found, _ = statistics_of(reader, mx.array(values))
    peaks = np.abs(values).max(axis=2)
    low, high = float(peaks.min()), float(peaks.max())
    assert_histogram(Histogram.of(found.peaks, low=low, high=high), peaks)


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 70 * CHUNK + 5])
def test_column_sums_miss_no_row(count):
    values = np.random.default_rng(9).integers(-9, 9, (count, 3)).astype(np.float32)
    assert_equal(column_sums(mx.array(values)), values.sum(axis=0))


# --- NaN and Inf ----------------------------------------------------------------------------


@both
@settings(max_examples=80, deadline=None)
@given(activation=activations(), data=st.data())
def test_masked_reductions_leave_out_what_is_no_number(reader, activation, data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    values = as_numpy(activation).copy()
    spots = rng.random(values.shape) < data.draw(st.sampled_from([0.01, 0.3, 1]))
    if data.draw(st.booleans()):
        spots[..., 1:] = False  # a channel of nothing but NaN beside sound ones
    values[spots] = rng.choice([np.nan, np.inf, -np.inf], spots.sum())
    found, sums = statistics_of(reader, mx.array(values), masked=True)
    assert_channels(found, [values])
    kept = np.where(np.isfinite(values), values, np.inf)
    assert_equal(sums.row_low, kept.min(axis=(1, 2)))
    assert_equal(sums.row_high, np.where(np.isfinite(values), values, -np.inf).max(axis=(1, 2)))
    assert_counts(sums.values, codes_of(values))
    if np.isfinite(values).any():
        low, high = float(sums.row_low.min()), float(sums.row_high.max())
        assert_histogram(Histogram.of(found.values, low=low, high=high), values)


@both
def test_unmasked_codes_show_what_is_no_number(reader):
    values = np.ones((2, 3, 4), np.float32)
    values[0, 1, 2], values[1, 2, 0] = np.nan, -np.inf
    found, _ = statistics_of(reader, mx.array(values))
    shown = Histogram.of(found.values, low=1, high=1)
    assert (shown.total, shown.nan, shown.inf) == (22, 1, 1)


# --- counting -------------------------------------------------------------------------------


@both
@settings(max_examples=40, deadline=None)
@given(
    indices=st.integers(0, 40).flatmap(
        lambda first: st.integers(1, 12).map(lambda size: range(first, first + size))
    ),
    folds=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_values_are_counted_in_the_fold_of_their_row(reader, indices, folds, seed):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(2 * len(indices), 3, 11)) * 10.0 ** rng.uniform(-40, 38)).astype(
        "f4"
    )
    other = -np.abs(values[::-1])
    found = by_reader(
        reader, [mx.array(values), mx.array(other)], folds=RowFolds(indices, folds=folds)
    )
    for sums, read in zip(found, (values, other), strict=True):
        codes = codes_of(read)
        by_fold = {  # row r is trajectory r mod N; its fold is its index mod folds
            fold: [r for r in range(len(codes)) if indices[r % len(indices)] % folds == fold]
            for fold in range(folds)
        }
        expected = binned({k: codes[rows] for k, rows in by_fold.items() if rows}, folds=folds)
        assert_equal(sums.values.rows, expected.rows)
        assert_equal(sums.values.counts, expected.counts)
        assert_counts(sums.peaks, codes_of(np.abs(read).max(axis=2)))


@both
@pytest.mark.parametrize("masked", [False, True])
def test_sites_read_together_are_reduced_as_each_alone(reader, masked):
    """The very same bits: live tracing and replay may group in other ways."""
    rng = np.random.default_rng(2)
    arrays = [mx.array(rng.normal(k, 10.0**k, (4, 70, 1, 24)).astype("f4")) for k in range(3)]
    for sums, array in zip(by_reader(reader, arrays, masked=masked), arrays, strict=True):
        alone = by_reader(reader, [array], masked=masked)[0]
        for part, value in zip(sums.channels, alone.channels, strict=True):
            assert (part is None) == (value is None)
            if value is not None:
                assert_equal(part, value)
        assert_equal(sums.row_low, alone.row_low)
        assert_equal(sums.row_high, alone.row_high)
        assert_equal(sums.values.counts, alone.values.counts)
        assert_equal(sums.peaks.counts, alone.peaks.counts)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(3, 20, 7), (2, 333, 1, 40), (5, 64, 300)])
def test_small_blocks_give_what_one_block_gives(monkeypatch, shape, masked):
    """Counts and extremes exactly, moments to their rounding; a block may end within a row."""
    values = np.random.default_rng(3).normal(3, 2, shape).astype(np.float32)
    if masked:
        values[values > 8] = np.inf
    whole, _ = statistics_of(HostReader, mx.array(values), masked=masked)
    monkeypatch.setattr(on_host_module, "BLOCK", 2000)
    parts, _ = statistics_of(HostReader, mx.array(values), masked=masked)
    for name in EXACT:
        assert_equal(getattr(parts, name), getattr(whole, name))
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-7)
    np.testing.assert_allclose(parts.m2, whole.m2, rtol=1e-6)
    assert_equal(parts.values[0].counts, whole.values[0].counts)
    assert_equal(parts.peaks[0].counts, whole.peaks[0].counts)


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
