"""Long sums: no overflow in half precision, as good as float64, the same in any split."""

import ast

import numpy as np
import pytest
from conftest import ROOT
from ledger import shows
from statistics_oracle import statistics_of as on_host
from test_reduce import as_numpy, both
from test_reduce import statistics_of as reduced_by

from taqdit.activations import Histogram, Layout, Site
from taqdit.backend import mx

TYPES = {"float16": mx.float16, "float32": mx.float32, "bfloat16": mx.bfloat16}
ROWS = 1_000_000
CHANNELS = {  # mean, standard deviation: the largest half; squares beyond it; a massive activation
    "the largest of float16": (65_504, 0),
    "both signs of it": (0, 65_504),
    "squares beyond it": (0, 300),
    "a mean beyond its square root": (300, 30),
}


def channel(name, rng, size):
    mean, std = CHANNELS[name]
    if std == 65_504:
        return np.where(rng.random(size) < 0.5, std, -std)
    return np.clip(mean + std * rng.normal(size=size), -65_504, 65_504)


@both
@pytest.mark.parametrize("type_", TYPES)
@shows("P9", "a million rows of 65,504, of both signs, of deviation 300: within 1e-6 of float64")
def test_a_million_rows_do_not_overflow(reader, type_):
    rng = np.random.default_rng(1)
    columns = [channel(name, rng, ROWS) for name in CHANNELS]
    activation = mx.array(np.stack(columns, axis=-1).astype(np.float32)).astype(TYPES[type_])
    found, _ = reduced_by(reader, activation.reshape(4, ROWS // 4, 1, len(CHANNELS)))
    exact = as_numpy(activation[None]).reshape(ROWS, -1).astype(np.float64)
    assert np.isfinite(found.mean).all()
    np.testing.assert_allclose(found.variance, exact.var(axis=0), rtol=1e-6)
    scale = np.maximum(np.abs(exact.mean(axis=0)), exact.std(axis=0))
    assert (np.abs(found.mean - exact.mean(axis=0)) <= 1e-6 * scale).all()
    return len(CHANNELS)


FAR = {"plain": (0, 1), "near 10": (10, 0.1), "near 300": (300, 30), "near 1000": (1000, 0.1)}
BATCHES, TOKENS = 256, 800  # 204,800 values a channel


@pytest.fixture(scope="module")
def stream():
    """(256, 800, 4) float32: the four channels of the older tools' worst cases."""
    rng = np.random.default_rng(2)
    columns = [mean + std * rng.normal(size=(BATCHES, TOKENS)) for mean, std in FAR.values()]
    return np.stack(columns, axis=-1).astype(np.float32)


def merged(stream, parts, layout):
    first, *others = [
        on_host(layout, [rows], [0] * len(rows)) for rows in np.array_split(stream, parts)
    ]
    for other in others:
        first = first.merged(other)
    return first


LAYOUT = Layout((Site("a.fc1_in", len(FAR)),), 1)


@shows("P10", "split in 1 to 64 parts: moments within 1e-12, extremes and counts equal")
def test_any_number_of_parts_gives_the_same(stream):
    stream = stream[:128, :100]
    whole, trials = merged(stream, 1, LAYOUT), 0
    scale = np.maximum(np.abs(whole.mean), whole.std)
    ratio = np.maximum(1, np.abs(whole.mean) / whole.std)
    for parts in range(1, 65):
        found = merged(stream, parts, LAYOUT)
        assert (np.abs(found.mean - whole.mean) <= 1e-12 * scale).all()
        assert (np.abs(found.variance - whole.variance) <= 1e-12 * ratio * whole.variance).all()
        for name in ("low", "high", "negative"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
        np.testing.assert_array_equal(found.values[0].counts, whole.values[0].counts)
        trials += 1
    return trials


@both
@shows("P10", "channels of mean up to 10,000 deviations, merged of 256 batches on the device")
def test_the_variance_is_that_of_float64(reader, stream):
    found = None
    for number in range(0, BATCHES, 8):
        part, _ = reduced_by(reader, mx.array(stream[number : number + 8]))
        found = part if found is None else found.merged(part)
    exact = stream.reshape(-1, len(FAR)).astype(np.float64)
    error = np.abs(found.variance / exact.var(axis=0) - 1)
    bound = [1e-4 if mean / std >= 10_000 else 1e-6 for mean, std in FAR.values()]
    print("largest relative error of the variance:", dict(zip(FAR, error, strict=True)))
    assert (error <= bound).all(), error
    return len(FAR)


NANS = np.uint32(
    [sign << 31 | 0xFF0 << 19 | part << 19 for sign in (0, 1) for part in range(1, 16)]
)
SPECIAL = np.concatenate([NANS.view(np.float32), np.float32([np.inf, -np.inf])])


@both
@shows("P10", "every bin of a histogram, zeros, NaN, Inf: they sum to the count exactly")
def test_the_bins_sum_to_the_count(reader):
    rng, trials = np.random.default_rng(3), 0
    for odd in range(5):
        size = (3, 50, 2)
        values = np.float32(10.0 ** rng.uniform(-9, 4, size) * rng.choice([-1.0, -0.0, 1.0], size))
        places = rng.choice(values.size, len(SPECIAL) * min(odd, 1) + odd, replace=False)
        values.ravel()[places] = np.resize(SPECIAL, len(places))
        found, _ = reduced_by(reader, mx.array(values), masked=True)
        finite = values[np.isfinite(values)]
        assert (np.signbit(finite) & (finite == 0)).any()
        shown = Histogram.of([found.values[0]], low=finite.min(), high=finite.max())
        assert shown.total + shown.nan + shown.inf == values.size
        assert (shown.nan, shown.inf) == (np.isnan(values).sum(), np.isinf(values).sum())
        trials += 1
    return trials


def test_sums_on_the_device_are_taken_in_one_place():
    """`mx.sum` and its like keep the type of float16: only the tracer's reductions use them."""
    allowed = {"tracer", "models"}
    for path in sorted((ROOT / "taqdit").rglob("*.py")):
        if path.relative_to(ROOT / "taqdit").parts[0] in allowed:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "mx":
                assert node.attr not in ("sum", "mean", "var", "std", "cumsum", "prod"), path
