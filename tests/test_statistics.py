"""Statistics of a step on the host: any split of a stream gives what float64 gives at once."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ledger import shows
from statistics_oracle import (
    EXACT,
    assert_channels,
    assert_equal,
    assert_histogram,
    assert_same_bytes,
    octave_of,
    statistics_of,
    sums_of,
)

from taqdit.activations import Histogram, Layout, Site, StepStatistics, bins

LAYOUT = Layout((Site("mm_00_img.post_gelu", 6), Site("embed.context_in", 2)), 3)
KINDS = ("normal", "offset", "constant", "zero", "minus_zero", "signed_zeros", "subnormal", "spike")


def channel(rng, kind, shape):
    """Values of one channel, of a magnitude between 1e-6 and 6e4."""
    normal, scale = rng.normal(size=shape), 10.0 ** rng.uniform(-6, 4)
    made = {
        "normal": normal * scale,
        "offset": (1000 + normal) * scale / 100,
        "constant": np.full(shape, scale),
        "zero": np.zeros(shape),
        "minus_zero": np.full(shape, -0.0),
        "signed_zeros": np.copysign(0.0, normal),
        "subnormal": normal * 1e-40,
        "spike": np.where(rng.random(shape) < 0.2, 6e4, normal * scale),
    }
    return made[kind].astype(np.float32)


@st.composite
def streams(draw, min_rows=1):
    """(layout, activations, the fold of every row)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, folds = draw(st.integers(min_rows, 7)), draw(st.integers(1, 4))
    sites, activations = [], []
    for number in range(draw(st.integers(1, 3))):
        tokens = draw(st.integers(1, 5))
        kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4))
        columns = [channel(rng, kind, (rows, tokens)) for kind in kinds]
        activations.append(np.stack(columns, axis=-1))
        sites.append(Site(f"mm_{number:02d}_img.fc1_in", len(kinds)))
    return Layout(tuple(sites), folds), activations, rng.integers(0, folds, rows).tolist()


def part(stream, rows):
    layout, activations, folds = stream
    return statistics_of(layout, [x[rows] for x in activations], [folds[row] for row in rows])


def merged(parts):
    first, *others = parts
    for other in others:
        first = first.merged(other)
    return first


# --- moments, extremes, counts --------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(stream=streams())
def test_a_batch_is_what_float64_says(stream):
    layout, activations, folds = stream
    found = statistics_of(layout, activations, folds)
    assert_channels(found, activations)
    for site, values in enumerate(activations):
        low, high = found.fold_low[:, site].min(), found.fold_high[:, site].max()
        assert_histogram(Histogram.of([found.values[site]], low=low, high=high), values)


@shows("P10", "any stream in any split and order", trials=150)
@settings(max_examples=150, deadline=None)
@given(stream=streams(min_rows=2), data=st.data())
def test_any_split_gives_the_same(stream, data):
    layout, activations, folds = stream
    order = data.draw(st.permutations(range(len(folds))))
    cuts = data.draw(st.sets(st.integers(1, len(folds) - 1), min_size=1))
    groups = np.split(np.array(order), sorted(cuts))
    found = merged([part(stream, group) for group in groups])
    whole = statistics_of(layout, activations, folds)
    assert_channels(found, activations)
    for name in EXACT:
        assert_equal(getattr(found, name), getattr(whole, name))
    for name in ("values", "peaks"):
        for one, other in zip(getattr(found, name), getattr(whole, name), strict=True):
            assert_equal(one.rows, other.rows)
            assert_equal(one.counts, other.counts)
    scale = np.maximum(np.abs(whole.mean), whole.std)
    assert (np.abs(found.mean - whole.mean) <= 1e-12 * scale).all()
    drift = 1e-12 * (1 + np.abs(whole.mean) / np.maximum(whole.std, 1e-300))
    assert (np.abs(found.m2 - whole.m2) <= np.minimum(drift, 1e-8) * whole.m2).all()


def test_merging_keeps_the_variance_of_a_far_mean():
    rng = np.random.default_rng(0)
    values = (1e3 + rng.normal(size=(400, 30, 1))).astype(np.float32)
    layout = Layout((Site("final.linear_in", 1),), 1)
    found = merged([statistics_of(layout, [values[k : k + 1]], [0]) for k in range(400)])
    exact = values.astype(np.float64).var()
    assert abs(found.variance[0] - exact) <= 1e-12 * exact
    assert abs(found.mean[0] - values.mean(dtype=np.float64)) <= 1e-12 * 1e3


def test_a_constant_channel_has_its_value_as_mean_and_no_variance():
    value = np.float32(0.1)
    one = statistics_of(
        Layout((Site("a.fc1_in", 1),), 1), [np.full((3, 7, 1), value, np.float32)], [0] * 3
    )
    found = one.merged(one).merged(one)
    assert (found.mean[0], found.m2[0], found.std[0]) == (value, 0, 0)


def with_channels(batch, **arrays):
    return replace(batch, channels=batch.channels._replace(**arrays))


def test_rounded_sums_give_no_negative_variance_and_constants_none():
    sums = sums_of(LAYOUT, [np.ones((1, 2, 6)), np.ones((1, 2, 2))], [0])
    noisy = with_channels(sums, sums=np.ones(8), squares=np.arange(8) / 4)
    constant = StepStatistics.of_batch(LAYOUT, noisy)
    assert_equal(constant.mean, np.ones(8))
    assert_equal(constant.m2, np.zeros(8))
    high = with_channels(noisy, high=noisy.channels.low + 1)
    varied = StepStatistics.of_batch(LAYOUT, high)
    assert_equal(varied.mean, np.full(8, 1.5))
    assert_equal(varied.m2, [0, 0, 0, 0.25, 0.5, 0.75, 1, 1.25])


def test_large_tokens_are_counted_in_two_octaves_of_the_common_absmax():
    layout = Layout((Site("a.fc1_in", 1),), 1)
    batches = ([8, -9, 4, 1, 0], [2, 3, -2.5, 0.1, 7], [-30, 15.9, 16, 7.9, 2], [1, 0, 0, 0, 0])
    parts = [statistics_of(layout, [np.reshape(b, (1, 5, 1))], [0]) for b in batches]
    assert_equal(parts[0].large[:, 0], [2, 1])  # 8, 9; 4
    assert_equal(parts[0].merged(parts[1]).large[:, 0], [2, 2])  # 8, 9; 4, 7
    assert_equal(merged(parts[:3]).large[:, 0], [2, 3])  # 30, 16; 8, 9, 15.9
    assert_equal(merged(parts[::-1]).large[:, 0], [2, 3])


def with_missing(values, missing):
    layout = Layout((Site("a.fc1_in", 2),), 1)
    clean = np.where(np.isfinite(values), values, 0)
    sums = sums_of(layout, [clean.reshape(1, -1, 2)], [0])
    return StepStatistics.of_batch(layout, with_channels(sums, missing=np.array(missing)))


def test_values_that_are_missing_are_counted_once_there_are_any():
    values = np.ones((4, 2))
    none, some = with_missing(values, [0, 0]), with_missing(values, [1, 4])
    assert none.missing.shape == (0,)
    assert_equal(some.count, [3, 0])
    assert_equal(none.merged(none).missing, [])
    for pair in (none.merged(some), some.merged(none)):
        assert_equal(pair.missing, [1, 4])
        assert_equal(pair.count, [7, 4])
    assert_equal(some.merged(some).missing, [2, 8])


def test_a_channel_without_a_finite_value_adds_nothing():
    values = np.array([[1.0, 5.0], [3.0, 7.0]])
    full = with_missing(values, [0, 0])
    hollow = with_missing(values, [0, 2])
    hollow = replace(hollow, mean=np.array([2.0, 0.0]), m2=np.array([2.0, 0.0]))
    for found in (full.merged(hollow), hollow.merged(full)):
        assert_equal(found.mean, [2, 6])
        assert_equal(found.m2, [4, 2])
    nothing = hollow.merged(hollow)
    assert (nothing.mean[1], nothing.m2[1], nothing.std[1]) == (0, 0, 0)


def test_what_32_bits_cannot_count_is_refused():
    one = statistics_of(LAYOUT, [np.ones((1, 2, 6)), np.ones((1, 2, 2))], [0])
    many = replace(one, tokens=np.array([2, 2**32 - 3]))
    assert many.merged(replace(one, tokens=np.array([2, 2]))).tokens[1] == 2**32 - 1
    with pytest.raises(OverflowError, match=r"more than 4,294,967,295 tokens"):
        many.merged(replace(one, tokens=np.array([2, 3])))


def test_statistics_of_other_sites_or_folds_are_not_merged():
    activations = [np.ones((1, 2, 6)), np.ones((1, 2, 2))]
    one = statistics_of(LAYOUT, activations, [0])
    for layout in (replace(LAYOUT, folds=4), replace(LAYOUT, sites=LAYOUT.sites[::-1])):
        with pytest.raises(ValueError, match="different sites or folds"):
            one.merged(replace(one, layout=layout))


@settings(deadline=None)
@given(values=hnp.arrays(np.float32, 20, elements=st.floats(width=32, allow_nan=False)))
def test_octaves_are_those_of_log2(values):
    values = np.abs(values[np.isfinite(values)])
    assert_equal(bins.octave_of(values), octave_of(values) + 126)


# --- stored and read back -------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(stream=streams(), missing=st.booleans())
def test_what_is_stored_is_read_back(stream, missing):
    layout, activations, folds = stream
    sums = sums_of(layout, activations, folds)
    if missing:
        sums = with_channels(sums, missing=np.arange(layout.channels) % 2)
    found = StepStatistics.of_batch(layout, sums)
    again = StepStatistics.of_tensors(layout, found.tensors())
    assert_same_bytes(again, found)
    assert_same_bytes(again.merged(again), found.merged(found))


def test_what_is_stored_names_every_number_in_a_narrow_type():
    found = statistics_of(LAYOUT, [np.ones((3, 2, 6)), np.ones((3, 2, 2))], [0, 1, 2])
    types = {name: array.dtype.name for name, array in found.tensors().items()}
    counts = {f"{table}_counts": "uint32" for table in ("values", "peaks")}
    rows = {f"{table}_rows": "uint16" for table in ("values", "peaks")}
    ends = {f"{table}_ends": "int64" for table in ("values", "peaks")}
    assert types == {
        **{"tokens": "int64", "missing": "uint32", "mean": "float64", "m2": "float64"},
        **{"low": "float32", "high": "float32", "negative": "uint32", "large": "uint32"},
        **{"fold_low": "float32", "fold_high": "float32", **counts, **rows, **ends},
    }
    assert {each.name for each in fields(found)} - {"layout", "values", "peaks"} < set(types)


def damaged():
    """(what is changed, how) of every array."""
    stored = statistics_of(LAYOUT, [np.ones((3, 2, 6)), np.ones((3, 2, 2))], [0, 1, 2]).tensors()
    for name, array in stored.items():
        yield name, None
        yield name, array.astype(np.float16)
        yield name, array[None]
        if name != "missing":
            yield name, np.concatenate([array, array])
            yield name, array[:-1]
            yield name, array[:0]
    yield "values_ends", np.array([2, 1])
    yield "values_ends", np.array([0, 1])
    yield "values_ends", np.array([1, 3])
    yield "values_ends", np.array([-1, 2])
    yield "values_counts", np.zeros((3, 2, 15), np.uint32)
    yield "values_counts", np.zeros((2, 2, 16), np.uint32)
    yield "values_rows", np.array([512, 127], np.uint16)


@pytest.mark.parametrize(("name", "array"), list(damaged()))
def test_arrays_that_do_not_fit_are_refused(name, array):
    stored = statistics_of(LAYOUT, [np.ones((3, 2, 6)), np.ones((3, 2, 2))], [0, 1, 2]).tensors()
    StepStatistics.of_tensors(LAYOUT, stored)
    wrong = {key: value for key, value in stored.items() if key != name}
    wrong |= {} if array is None else {name: array}
    with pytest.raises(ValueError, match="its "):
        StepStatistics.of_tensors(LAYOUT, wrong)


@pytest.mark.parametrize(
    "layout",
    [
        replace(LAYOUT, folds=2),
        replace(LAYOUT, folds=4),
        Layout(LAYOUT.sites[:1], 3),
        Layout((*LAYOUT.sites, LAYOUT.sites[0]), 3),
    ],
)
def test_arrays_of_another_layout_are_refused(layout):
    stored = statistics_of(LAYOUT, [np.ones((3, 2, 6)), np.ones((3, 2, 2))], [0, 1, 2]).tensors()
    with pytest.raises(ValueError, match="its array"):
        StepStatistics.of_tensors(layout, stored)
