"""What rounding costs weights: against plain loops in float64, theory, and through the store."""

import shutil
import threading
import time
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taqdit import config
from taqdit.analysis import weights as module
from taqdit.analysis.weights import GRANULARITIES, WeightTable, analyse_weights
from taqdit.backend import mx
from taqdit.errors import NumericError, StorageError
from taqdit.models.linears import linear_paths, linears
from taqdit.models.options import tiny
from taqdit.quantizer import BITS
from taqdit.stages.context import StageContext
from taqdit.stages.weights import WEIGHTS, weight_inputs, weight_table

SIZES = (None, 128, 64, 32)
RNG = np.random.default_rng


def oracle(weight, size, bits):
    """SQNR, entropy and saturation, weight by weight in Python's own floats."""
    signal = noise = 0.0
    hits, ends, last = {}, 0, 2**bits - 1
    for row in weight.astype(float).tolist():
        for first in range(0, len(row), size or len(row)):
            group = row[first : first + (size or len(row))]
            low, high = min(*group, 0.0), max(*group, 0.0)
            scale = (high - low) / last or 1.0
            zero = round(-low / scale)
            for x in group:
                code = min(max(round(x / scale) + zero, 0), last)
                signal, noise = signal + x * x, noise + (x - scale * (code - zero)) ** 2
                hits[code] = hits.get(code, 0) + 1
                ends += code in (0, last) and low < high
    shares = np.array(list(hits.values())) / weight.size
    sqnr = 10 * np.log10(signal / noise) if noise else np.inf
    return sqnr, -(shares * np.log2(shares)).sum(), ends / weight.size


def assert_as_oracle(weight, *, away=0.0):
    """`away`: share of codes that float32 may round to the other side of a tie."""
    table = analyse_weights([("a", weight)])
    for g, size in enumerate(SIZES):
        for b, bits in enumerate(BITS):
            sqnr, entropy, saturation = oracle(weight, size, bits)
            if sqnr < 110:  # above, float32 shows
                assert table.sqnr[0, g, b] == pytest.approx(sqnr, abs=2e-3)
            else:
                assert table.sqnr[0, g, b] > 110
            assert table.entropy[0, g, b] == pytest.approx(entropy, abs=1e-9 + 20 * away)
            assert table.saturation[0, g, b] == pytest.approx(saturation, abs=1e-12 + away)


def special_weights():
    rng = RNG(1)
    normal = rng.normal(size=(6, 200)).astype(np.float32)
    rows, columns = np.arange(6)[:, None], np.arange(200)
    return {
        "normal": normal,
        "positive": np.abs(normal) + 3,
        "negative": -np.abs(normal) - 3,
        "outliers": np.where(rng.random(normal.shape) < 0.01, 1000, normal),
        "one short group": normal[:, :20],
        "one column": normal[:, :1],
        "groups of zeros": np.where(columns < 140, 0, normal),
        "rows of zeros": np.where(rows % 2, 0, normal),
        "constant rows": np.broadcast_to([[0.3], [-7], [0]], (3, 200)),
        "tiny": normal * 1e-30,
        "huge": normal * 1e30,
        "a subnormal row": np.where(rows == 2, normal * 1e-42, normal),
        "columns first": np.asfortranarray(normal),
    }


SPECIAL = {name: weight.astype(np.float32) for name, weight in special_weights().items()}


@pytest.mark.parametrize("name", SPECIAL)
def test_every_number_is_that_of_plain_loops(name):
    assert_as_oracle(SPECIAL[name])


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.sampled_from([1, 31, 32, 33, 64, 100, 128, 129, 161, 260]),
    st.floats(-12, 12),
)
@settings(max_examples=25, deadline=None)
def test_any_shape_and_scale_is_that_of_plain_loops(seed, rows, width, power):
    weight = RNG(seed).standard_t(3, size=(rows, width)) * 10**power
    assert_as_oracle(weight.astype(np.float32), away=1 / (rows * width))


@pytest.mark.parametrize("chunk", [400, 149])
def test_chunks_of_rows_change_nothing(monkeypatch, chunk):
    """Two rows at a time and one at the end; rows wider than a chunk, one at a time."""
    weight = RNG(0).normal(size=(37, 150)).astype(np.float32)
    whole = analyse_weights([("a", weight)])
    sizes, own = [], module._row
    monkeypatch.setattr(module, "_CHUNK", chunk)
    monkeypatch.setattr(
        module, "_row", lambda w: sizes.extend(map(len, module._chunks(w))) or own(w)
    )
    parts = analyse_weights([("a", weight)])
    assert sizes == ([2] * 18 + [1] if chunk == 400 else [1] * 37)
    np.testing.assert_allclose(parts.sqnr, whole.sqnr, atol=1e-4)
    assert np.array_equal(parts.entropy, whole.entropy)
    assert np.array_equal(parts.saturation, whole.saturation)


def test_the_memory_is_that_of_a_chunk():
    """Rounding 16 MB takes a few chunks beside them."""
    weight = RNG(0).normal(size=(4096, 1024)).astype(np.float32)
    tracemalloc.start()
    analyse_weights([("a", weight)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < weight.nbytes / 2


# --- theory ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "expected"), [(8, 48.16), (6, 36.12), (4, 24.08)])
def test_uniform_weights_gain_six_decibels_a_bit(bits, expected):
    """6.02 b dB for values spread evenly over the range (Bennett, 1948): 2^b steps in theory,
    2^b - 1 between the outermost codes here."""
    weight = RNG(0).uniform(-1, 1, size=(16, 4096)).astype(np.float32)
    found = analyse_weights([("a", weight)]).sqnr[0, 0, BITS.index(bits)]
    loss = 20 * np.log10(2**bits / (2**bits - 1))
    assert found == pytest.approx(expected - loss, abs=0.1)


def test_codes_that_are_all_alike_frequent_have_all_bits():
    """Entropy b where every code of b bits is as frequent as any other; less for any other."""
    for b, bits in enumerate(BITS):
        codes = np.tile(np.arange(2**bits), 4) - 2 ** (bits - 1)
        table = analyse_weights([("a", codes[None].astype(np.float32))])
        assert table.entropy[0, 0, b] == pytest.approx(bits, abs=1e-12)
        assert table.saturation[0, 0, b] == pytest.approx(2 / 2**bits, abs=1e-12)
        assert table.sqnr[0, 0, b] > 120


def test_smaller_groups_and_more_bits_lose_less():
    weight = RNG(0).standard_t(4, size=(64, 512)).astype(np.float32)
    sqnr = analyse_weights([("a", weight)]).sqnr[0]
    assert (np.diff(sqnr, axis=0) > 0).all()
    assert (np.diff(sqnr, axis=1) < 0).all()


def test_a_weight_of_zeros_loses_nothing():
    table = analyse_weights([("a", np.zeros((3, 70), np.float32))])
    assert np.isposinf(table.sqnr).all()
    assert not table.entropy.any()
    assert not np.signbit(table.entropy).any()
    assert not table.saturation.any()


# --- the table ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(value):
    bad = np.ones((3, 4), np.float32)
    bad[2, 1] = value
    with pytest.raises(NumericError, match=r"the weight of mm_03_txt\.fc2 holds NaN or Inf"):
        analyse_weights([("embed.x", np.ones((3, 4), np.float32)), ("mm_03_txt.fc2", bad)])


def test_each_weight_is_asked_for_when_it_is_its_turn(monkeypatch):
    """Only one is held at a time."""
    order = []
    own = module._row
    monkeypatch.setattr(module, "_row", lambda w: order.append(f"row {len(w)}") or own(w))

    def weights():
        for rows in (1, 2):
            order.append(f"weight {rows}")
            yield f"layer_{rows}", RNG(rows).normal(size=(rows, 8)).astype(np.float32)

    table = analyse_weights(weights())
    assert order == ["weight 1", "row 1", "weight 2", "row 2"]
    assert table.layers == ("layer_1", "layer_2")
    assert table.shapes.tolist() == [[1, 8], [2, 8]]


def assert_same(one, other):
    assert one.layers == other.layers
    for name, array in one.tensors().items():
        assert np.array_equal(array, other.tensors()[name]), name


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_table_goes_through_plain_arrays(count):
    table = analyse_weights(
        (f"l{i}", RNG(i).normal(size=(4, 40)).astype(np.float32)) for i in range(count)
    )
    assert table.sqnr.shape == (count, len(GRANULARITIES), len(BITS))
    assert_same(WeightTable.of_tensors(table.layers, table.tensors()), table)


@pytest.mark.parametrize("name", ["shapes", "sqnr", "entropy", "saturation"])
@pytest.mark.parametrize(
    "change", [lambda a: None, lambda a: a[:1], lambda a: a.astype(np.float32)]
)
def test_arrays_that_do_not_fit_are_refused(name, change):
    table = analyse_weights([(x, np.ones((2, 3), np.float32)) for x in "ab"])
    with pytest.raises(ValueError, match=f"its array '{name}' is no"):
        WeightTable.of_tensors("ab", table.tensors() | {name: change(table.tensors()[name])})


# --- the stage ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mmdit():
    return tiny().load().mmdit


@pytest.fixture(scope="module")
def plan():
    composed = config.compose_config(["model=tiny"])
    return replace(config.plan(composed), stages=("weights",))


def with_model(bench, mmdit):
    bench.__dict__["model"] = SimpleNamespace(mmdit=mmdit)
    return bench


class NoModel(StageContext):
    @property
    def model(self):
        raise AssertionError("the model is loaded")


@pytest.fixture(scope="module")
def computed(plan, tmp_path_factory, mmdit):
    """A store with the stage, where in it that lies, and its table."""
    store = tmp_path_factory.mktemp("computed")
    bench = with_model(StageContext(plan, store), mmdit)
    table = weight_table(bench)
    return store, bench.report("weights").folder, table


@pytest.fixture
def made(computed, tmp_path):
    """The folder of a stage that is there, and its table."""
    store, folder, table = computed
    shutil.copytree(store, tmp_path, dirs_exist_ok=True)
    return tmp_path / folder, table


def shard(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def test_the_table_of_the_embedded_model(made, mmdit):
    folder, table = made
    assert table.layers == tuple(linear_paths(tiny()))
    assert table.shapes[table.layers.index("mm_02_img.fc2")].tolist() == [128, 512]
    assert np.isfinite(table.sqnr).all()
    assert (table.sqnr[:, 0, 0] > 30).all()
    assert (folder / "SEALED.json").exists()
    assert_same(table, analyse_weights(linears(mmdit, tiny())))


def test_a_stored_table_is_read_without_the_model(made, plan, tmp_path):
    bench = NoModel(replace(plan, stages=()), tmp_path)
    before = {path: path.read_bytes() for path in made[0].iterdir()}
    assert_same(weight_table(bench), made[1])
    report = bench.report("weights")
    assert (report.made, report.reused) == (0, 89)
    assert {path: path.read_bytes() for path in made[0].iterdir()} == before


def test_a_missing_table_needs_the_stage(plan, tmp_path):
    bench = NoModel(replace(plan, stages=("statistics",)), tmp_path)
    with pytest.raises(StorageError, match="add weights to stages"):
        weight_table(bench)


def test_a_corrupt_shard_is_moved_aside_and_made_again(made, plan, tmp_path, mmdit):
    path = shard(made[0])
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(AssertionError, match="the model is loaded"):
        weight_table(NoModel(plan, tmp_path))
    bench = with_model(StageContext(plan, tmp_path), mmdit)
    assert_same(weight_table(bench), made[1])
    assert bench.report("weights").made == 89
    assert path.read_bytes() == good  # byte for byte
    assert (made[0] / f"{path.name}.bad-1").exists()
    assert (made[0] / "SEALED.json").exists()


def test_a_table_of_other_layers_is_not_taken(made, plan, tmp_path, monkeypatch):
    """Intact by its digest, but not what this version names."""
    renamed = {"renamed": "x_embedder.proj"}
    monkeypatch.setattr("taqdit.stages.weights.linear_paths", lambda spec: renamed)
    bench = NoModel(plan, tmp_path)
    with pytest.raises(AssertionError, match="the model is loaded"):
        weight_table(bench)
    ((name, reason),) = bench.report("weights").moved_aside
    assert name == "weights.safetensors"
    assert "other layers" in reason


def test_a_run_waits_for_the_one_that_computes(made, plan, tmp_path):
    """Two processes never compute the same table: the second reads what the first wrote."""
    path = shard(made[0])
    hidden = path.rename(path.with_suffix(".hidden"))
    bench, found = NoModel(plan, tmp_path), []
    with bench.stage(WEIGHTS) as (stage, _), stage.claim("weights") as mine:
        assert mine
        waiting = threading.Thread(target=lambda: found.append(weight_table(bench)))
        waiting.start()
        time.sleep(0.1)
        assert not found
        hidden.rename(path)
    waiting.join(timeout=20)
    assert_same(found[0], made[1])


def test_the_folder_is_named_by_the_weights_and_their_precision(plan):
    changed = replace(plan, model=replace(plan.model, w16=True))
    assert weight_inputs(plan) != weight_inputs(changed)
    assert weight_inputs(plan)["weights"].keys() >= {"mmdit.safetensors"}
    numbers = replace(plan, sampler=None, schedule=None, prompts=None, tracer=None)
    assert weight_inputs(plan) == weight_inputs(numbers)  # one table for any sampling


def test_where_the_structure_is_unknown_the_table_is_empty(plan, tmp_path):
    bench = NoModel(replace(plan, model=replace(plan.model, blocks=0)), tmp_path)
    assert weight_table(bench).layers == ()
    assert weight_table(bench).sqnr.shape == (0, 4, 3)


def test_nan_in_the_model_leaves_no_table(plan, tmp_path):
    mmdit = tiny().load().mmdit
    mmdit.final_layer.linear.weight *= mx.array(float("nan"))
    bench = with_model(StageContext(plan, tmp_path), mmdit)
    with pytest.raises(NumericError, match=r"final\.linear"):
        weight_table(bench)
    folder = tmp_path / bench.report("weights").folder
    assert [path.name for path in folder.iterdir()] == ["stage.json"]
