"""Statistics in float64 from activations that are held whole, and what must agree with them.

Activations are lists with one array (rows, tokens, channels) per site of a layout.
"""

import numpy as np

from taqdit.activations import BatchSums, BinCounts, ChannelSums, StepStatistics

PERCENTS = (0, 0.01, 1, 5, 50, 95, 99, 99.9, 99.99, 100)
EXACT = ("tokens", "low", "high", "negative", "large", "fold_low", "fold_high", "missing")
UNDERFLOW = 1e-19  # smaller deviations have squares that float32 cannot hold


def codes_of(values):
    """Sign, exponent and four mantissa bits."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 19).astype(np.uint16)


def octave_of(values):
    """floor(log2 |x|) + 1; all below 2^-126 is one octave."""
    values = np.abs(np.asarray(values, np.float64))
    return np.where(values < 2.0**-126, -126, np.frexp(values)[1])


def binned(codes, *, folds=1):
    """Codes counted of each fold that was seen, {fold: array}, on all 8192 bins."""
    dense = [np.bincount(array.ravel(), minlength=8192) for array in codes.values()]
    return BinCounts.of(np.stack(dense), list(codes), folds=folds)


def counted(codes, *, folds=1, fold=0):
    return binned({fold: codes}, folds=folds)


def of_folds(table, folds):
    """The bin counts of some folds."""
    return BinCounts(table.rows, table.counts[folds])


def sums_of(layout, activations, folds):
    """BatchSums with float64 sums about a float32 mean; `folds` has the fold of every row."""
    columns = [_columns(each) for each in activations]
    low, high = (
        np.array(
            [[_row_extreme(x, folds, k, of) for x in activations] for k in range(layout.folds)]
        )
        for of in (np.min, np.max)
    )
    return BatchSums(
        tokens=np.array([x.shape[0] * x.shape[1] for x in activations]),
        channels=ChannelSums(
            **{name: np.concatenate([each[name] for each in columns]) for name in columns[0]}
        ),
        fold_low=low.astype(np.float32),
        fold_high=high.astype(np.float32),
        values=[_values(x, folds, layout.folds) for x in activations],
        peaks=[counted(codes_of(np.abs(x).max(axis=2))) for x in activations],
    )


def statistics_of(layout, activations, folds):
    return StepStatistics.of_batch(layout, sums_of(layout, activations, folds))


def _columns(activation):
    x = activation.reshape(-1, activation.shape[-1]).astype(np.float32)
    shift = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    apart = x.astype(np.float64) - shift
    octaves, top = octave_of(x), octave_of(np.abs(x).max(axis=0))
    return {
        "shift": shift,
        "sums": apart.sum(axis=0),
        "squares": np.square(apart).sum(axis=0),
        "low": x.min(axis=0),
        "high": x.max(axis=0),
        "negative": (x < 0).sum(axis=0),
        "top": (octaves == top).sum(axis=0),
        "near": (octaves >= top - 1).sum(axis=0),
    }


def _row_extreme(x, folds, fold, extreme):
    rows = [extreme(row) for row, of_row in zip(x, folds, strict=True) if of_row == fold]
    return extreme(rows) if rows else {np.min: np.inf, np.max: -np.inf}[extreme]


def _values(x, folds, number):
    codes, folds = codes_of(x), np.asarray(folds)
    seen = {int(fold): codes[folds == fold] for fold in np.unique(folds)}
    return binned(seen, folds=number)


# --- what must agree ------------------------------------------------------------------------


def assert_channels(found, activations):
    """Every per-channel number of StepStatistics; NaN and Inf are left out, and counted."""
    for number, values in enumerate(activations):
        span = found.layout.span(number)
        x = values.reshape(-1, values.shape[-1]).astype(np.float64)
        finite = np.isfinite(x)
        count = finite.sum(axis=0)
        low, high = (
            np.where(finite, x, np.inf).min(axis=0),
            np.where(finite, x, -np.inf).max(axis=0),
        )
        assert found.tokens[number] == len(x)
        assert_equal(found.count[span], count)
        assert_equal(found.low[span], low)
        assert_equal(found.high[span], high)
        assert_equal(found.negative[span], (finite & (x < 0)).sum(axis=0))
        assert_equal(found.large[:, span], _large(x, finite))
        if not finite.all():
            assert_equal(found.missing[span], len(x) - count)
        assert_moments(found.mean[span], found.std[span], x, finite)


def assert_moments(mean, std, x, finite=None):
    """Within 1e-6 of float64; exact in channels of one value."""
    finite = np.isfinite(x) if finite is None else finite
    count = np.maximum(finite.sum(axis=0), 1)
    true_mean = np.where(finite, x, 0).sum(axis=0) / count
    apart = np.where(finite, x - true_mean, 0)
    true_std = np.sqrt(np.square(apart).sum(axis=0) / count)
    assert (np.abs(mean - true_mean) <= 1e-6 * np.maximum(np.abs(true_mean), true_std)).all()
    assert (np.abs(std - true_std) <= np.maximum(1e-6 * true_std, UNDERFLOW)).all()
    low, high = np.where(finite, x, np.inf).min(axis=0), np.where(finite, x, -np.inf).max(axis=0)
    assert_equal(mean[low == high], low[low == high])
    assert (std[low == high] == 0).all()


def assert_histogram(histogram, values, percents=PERCENTS):
    """Total, ends, percentiles by nearest rank in bounds as narrow as promised."""
    values = np.asarray(values).reshape(-1)
    finite = values[np.isfinite(values)].astype(np.float64)
    assert (histogram.total, histogram.nan) == (finite.size, np.isnan(values).sum())
    assert histogram.inf == np.isinf(values).sum()
    assert histogram.percentile_bounds(0)[0] == histogram.percentile(0) == finite.min()
    assert histogram.percentile_bounds(100)[1] == histogram.percentile(100) == finite.max()
    truth = np.percentile(finite, percents, method="inverted_cdf")
    for percent, exact in zip(percents, truth, strict=True):
        low, high = histogram.percentile_bounds(percent)
        assert low <= exact <= high
        assert high - low <= max(min(abs(low), abs(high)) / 16, 2.0**-129)
        assert low <= histogram.percentile(percent) <= high


def assert_equal(found, expected):
    np.testing.assert_array_equal(np.asarray(found, np.float64), np.asarray(expected, np.float64))


def assert_same_bytes(one, other):
    """Two StepStatistics would be stored as the same bytes."""
    first, second = one.tensors(), other.tensors()
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert (array.dtype, array.shape) == (second[name].dtype, second[name].shape), name
        assert array.tobytes() == second[name].tobytes(), name


def _large(x, finite):
    kept = np.where(finite, x, 0)
    octaves, top = octave_of(kept), octave_of(np.abs(kept).max(axis=0))
    return np.stack([(finite & (octaves == top - down)).sum(axis=0) for down in (0, 1)])
