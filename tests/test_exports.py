"""Statistics in the formats of older tools: what is written, and what is read back."""

import json
from dataclasses import replace
from types import SimpleNamespace

import exported
import numpy as np
import pytest
from exported import GELU, LAYOUT, OUTLIER, TIMESTEPS
from hypothesis import given
from hypothesis import strategies as st
from statistics_oracle import binned, codes_of

import taqdit
from taqdit.activations import BinCounts
from taqdit.activations import opened as exports
from taqdit.activations.diagnostics_cell import Cell
from taqdit.activations.overview import layer_table, overview, top_channels
from taqdit.activations.stored import Statistics
from taqdit.errors import CorruptError, InputError, NumericError

NAMES = ("count", "mean", "std", "min", "max", "histogram", "outside")
PERCENTS = {"p01": 1, "p05": 5, "p10": 10, "p25": 25, "p50": 50} | {
    "p75": 75,
    "p90": 90,
    "p95": 95,
    "p99": 99,
}
BIN = 1 / 32
EXACT = (
    *("low", "high", "mean", "std", "median_range", "max_range", "negative", "channel_ratio"),
    *("sigmas", "timesteps"),
)


@pytest.fixture(scope="module")
def raw():
    return exported.activations()


@pytest.fixture(scope="module")
def statistics(raw, tmp_path_factory):
    return exported.stored(tmp_path_factory.mktemp("store"), exported.reduced(raw))


@pytest.fixture(scope="module")
def written(statistics, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "diagnostics.npz"
    exports.export_npz(statistics, path)
    return path


@pytest.fixture(scope="module")
def imported(written):
    return exports.open_statistics(written)


def key(site, step, name):
    return f"{LAYOUT.sites[site].label}::t={np.float32(TIMESTEPS[step]):.6f}::{name}"


def duck(steps, **changes):
    """Statistics without files."""
    plain = {
        "num_steps": len(steps),
        "timesteps": TIMESTEPS[: len(steps)],
        "sites": LAYOUT.sites,
        "folds": LAYOUT.folds,
        "fingerprint": "ab" * 32,
        "extent": 4,
        "step": steps.__getitem__,
    }
    return SimpleNamespace(**plain | changes)


# --- the .npz of diagnostics ------------------------------------------------------------------


def test_the_npz_has_exactly_the_older_keys_and_ours_beside_them(written):
    once = {"timesteps_unique": (3,), "histogram_bin_edges": (513,), "format": ()}
    expected = dict(once)
    for number, site in enumerate(LAYOUT.sites):
        for step in range(3):
            for name in NAMES:
                lengths = {"histogram": (512,), "outside": (2,)}
                expected[key(number, step, name)] = lengths.get(name, (site.width,))
    with np.load(written) as found:
        assert {name: found[name].shape for name in found.files} == expected
        assert found["mm_00_img::t=1000.000000::mean"].shape == (8,)
        assert found["mm_00_img_qkv_in::t=612.345581::max"].shape == (6,)
        dtypes = {name.rpartition("::")[2]: found[name].dtype.str for name in found.files}
    assert dtypes["count"] == "<i8"
    assert {dtypes[name] for name in NAMES[1:]} == {"<f8"}
    assert dtypes["timesteps_unique"] == dtypes["histogram_bin_edges"] == "<f4"


def test_the_npz_is_what_numpy_computes(written, raw):
    with np.load(written) as found:
        for step, arrays in enumerate(raw):
            for site, array in enumerate(arrays):
                flat = array.reshape(-1, array.shape[-1])
                assert (found[key(site, step, "count")] == len(flat)).all()
                np.testing.assert_array_equal(found[key(site, step, "min")], flat.min(axis=0))
                np.testing.assert_array_equal(found[key(site, step, "max")], flat.max(axis=0))
                exact = flat.astype(np.float64)
                for name, value in (("mean", exact.mean(axis=0)), ("std", exact.std(axis=0))):
                    np.testing.assert_allclose(found[key(site, step, name)], value, rtol=1e-9)


def test_the_histogram_keeps_its_total_its_negatives_and_what_lies_outside(written, raw):
    with np.load(written) as found:
        for step, arrays in enumerate(raw):
            for site, array in enumerate(arrays):
                counts = found[key(site, step, "histogram")]
                below, above = found[key(site, step, "outside")]
                assert counts.min() >= 0
                assert (below, above) == ((array <= -8).sum(), (array >= 8).sum())
                assert counts.sum() + below + above == pytest.approx(array.size, abs=1e-6)
                negative = counts[:256].sum() + below
                assert negative == pytest.approx((array < 0).sum(), abs=1e-6)


def test_the_histogram_is_near_the_true_one(written, raw):
    """Both agree at the edges of our bins, which are powers of two and sixteenths between."""
    array = raw[0][GELU]
    with np.load(written) as found:
        counts, edges = found[key(GELU, 0, "histogram")], found["histogram_bin_edges"]
        below = found[key(GELU, 0, "outside")][0]
    true = np.histogram(array, edges)[0]
    fine = np.isin(np.abs(edges), np.arange(0, 8.1, 0.5))
    assert fine.sum() == 33
    np.testing.assert_allclose(
        below + np.r_[0, np.cumsum(counts)][fine],
        (array < edges[0]).sum() + np.r_[0, np.cumsum(true)][fine],
        atol=1e-6,
    )
    assert np.abs(counts - true).sum() < 0.4 * true.sum()


def test_a_planted_outlier_is_in_max_and_outside_and_in_no_bin(written, raw):
    with np.load(written) as found:
        assert found["mm_00_img::t=612.345581::max"].max() == OUTLIER
        assert found["mm_00_img::t=612.345581::max"].argmax() == 2
        assert found["mm_00_img::t=612.345581::outside"].tolist() == [0, 1]
        assert found["mm_00_img::t=612.345581::histogram"].sum() == raw[1][GELU].size - 1


def test_timesteps_ascend_and_give_the_keys(written):
    with np.load(written) as found:
        timesteps = found["timesteps_unique"]
        assert (np.diff(timesteps) > 0).all()
        for timestep in timesteps:
            assert f"mm_00_img::t={timestep:.6f}::mean" in found
            assert f"mm_00_img::t={float(timestep):.6f}::mean" in found
        note = json.loads(str(found["format"]))
    assert "interpolated" in note["note"]
    assert (note["fingerprint"], note["trajectories"], note["steps"]) == ("ab" * 32, 4, [0, 1, 2])


def test_the_same_statistics_give_the_same_bytes(statistics, written, tmp_path):
    exports.export_npz(Statistics.open(statistics.folder), tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == written.read_bytes()


def test_some_steps(statistics, tmp_path):
    exports.export_npz(statistics, tmp_path / "some.npz", steps=[2, 0, 2])
    exports.export_npz(statistics, tmp_path / "same.npz", steps=[0, 2])
    assert (tmp_path / "some.npz").read_bytes() == (tmp_path / "same.npz").read_bytes()
    found = exports.open_statistics(tmp_path / "some.npz")
    np.testing.assert_array_equal(found.timesteps, TIMESTEPS[[0, 2]])
    full = overview(statistics)
    np.testing.assert_array_equal(found.overview().high, full.high[:, [0, 2]])


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        ([], InputError, "must be some of 0 .. 2"),
        ([3], IndexError, r"steps=\[3\]"),
        ([-1, 1], IndexError, "must be"),
    ],
)
def test_steps_that_do_not_exist(statistics, tmp_path, steps, error, message):
    with pytest.raises(error, match=message):
        exports.export_npz(statistics, tmp_path / "a.npz", steps=steps)
    assert list(tmp_path.iterdir()) == []


def test_two_steps_of_one_timestep_have_no_keys_of_their_own(raw, tmp_path):
    steps = exported.reduced(raw)
    twice = duck(steps, timesteps=np.array([1000, 999.9999999, 8.9]))
    with pytest.raises(InputError, match="same timestep"):
        exports.export_npz(twice, tmp_path / "a.npz")


def test_one_step_is_held_at_a_time_and_read_once(raw, tmp_path):
    steps, read = exported.reduced(raw), []

    def step(number):
        read.append(number)
        if number == 2:  # by now, all of the first step is in the temporary file
            (partial,) = tmp_path.glob(".*.tmp")
            sizes.append(partial.stat().st_size)
        return steps[number]

    sizes = []
    exports.export_npz(duck(steps, step=step), tmp_path / "a.npz")
    assert read == [0, 1, 2]
    assert sizes[0] > 0.3 * (tmp_path / "a.npz").stat().st_size


def test_a_damaged_step_leaves_no_file(raw, tmp_path):
    def step(number):
        if number == 2:
            raise CorruptError("step 2 is damaged")
        return steps[number]

    steps = exported.reduced(raw)
    with pytest.raises(CorruptError):
        exports.export_npz(duck(steps, step=step), tmp_path / "a.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_channel_without_values_is_zeros_with_count_zero(raw, tmp_path):
    (step,) = exported.reduced(raw[:1])
    span = LAYOUT.span(GELU)
    missing, low, high = np.zeros(LAYOUT.channels, np.uint32), step.low.copy(), step.high.copy()
    missing[span.start] = step.tokens[GELU]
    low[span.start], high[span.start] = np.inf, -np.inf
    keep = raw[0][GELU][..., 1:]
    counted = binned({0: codes_of(keep)}, folds=2)
    values = [counted if number == GELU else each for number, each in enumerate(step.values)]
    holed = replace(step, missing=missing, low=low, high=high, values=values)
    exports.export_npz(duck([holed]), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as found:
        assert found[key(GELU, 0, "count")].tolist() == [0] + [120] * 7
        for name in ("mean", "std", "min", "max"):
            assert found[key(GELU, 0, name)][0] == 0
    table = exports.open_statistics(tmp_path / "a.npz").layer_table(GELU)
    assert (table.low[0, 0], table.high[0, 0]) == (np.inf, -np.inf)
    assert np.isfinite(table.low[0, 1:]).all()


def negative_bounds(imported):
    """Least and largest possible share of negative values, (S, n) each."""
    sites, steps = range(len(imported.sites)), range(imported.num_steps)
    bounds = [[imported._cell(site, step).negative for step in steps] for site in sites]
    return np.moveaxis(np.array(bounds), 2, 0)


# --- and back ---------------------------------------------------------------------------------


def test_an_export_comes_back_with_the_same_numbers(imported, statistics):
    ours, back = overview(statistics), imported.overview()
    assert back.sites == imported.sites == statistics.sites
    assert imported.num_steps == 3
    for name in EXACT:
        np.testing.assert_allclose(getattr(back, name), getattr(ours, name), rtol=1e-12)
    assert back.top_channels == ours.top_channels
    assert np.isnan(back.token_ratio).all()
    assert np.isnan(back.large_share).all()
    least, most = negative_bounds(imported)
    np.testing.assert_array_equal(least, most)  # `outside` tells the sides


def test_percentiles_and_kurtosis_come_back_where_the_bins_know_them(imported, raw, statistics):
    back, ours = imported.overview(), overview(statistics)
    for step, arrays in enumerate(raw):
        for site, array in enumerate(arrays):
            for name, percent in (("p01", 1), ("p99", 99), ("p9999", 99.99)):
                found = getattr(back, name)[site, step]
                true = np.percentile(array, percent, method="inverted_cdf")
                if abs(true) >= 8:
                    assert np.isnan(found)
                else:  # a bin of the file and one of ours, which is up to 1/16 wide
                    assert abs(found - true) <= BIN + abs(true) / 16
            inside = np.abs(array).max() < 8
            assert np.isnan(back.kurtosis[site, step]) == (not inside)
    assert np.isnan(back.kurtosis[GELU, 1])
    np.testing.assert_allclose(back.kurtosis[GELU, 0], ours.kurtosis[GELU, 0], rtol=0.02)
    assert np.isfinite(back.kurtosis).sum() == 3 * 6 - 1  # two sites and the outlier reach out


@pytest.mark.parametrize("site", range(len(LAYOUT.sites)))
def test_a_site_comes_back_in_detail(imported, statistics, raw, site):
    back, ours = imported.layer_table(site), layer_table(statistics, site)
    assert back.site == ours.site
    for name in ("sigmas", "timesteps", "low", "high", "mean", "std"):
        np.testing.assert_allclose(getattr(back, name), getattr(ours, name), rtol=1e-12)
    assert np.isnan(back.negative).all()
    assert back.negative.shape == back.large_share.shape == ours.negative.shape
    assert back.counts.shape == (3, len(back.edges) - 1)
    assert (np.diff(back.edges) > 0).all()
    np.testing.assert_allclose(back.counts.sum(axis=1), [each[site].size for each in raw])
    values = np.stack([each[site] for each in raw])
    assert back.edges[0] <= values.min() < back.edges[1]
    assert back.edges[-2] <= values.max() <= back.edges[-1]


def test_some_steps_of_a_site(imported, raw):
    table = imported.layer_table(GELU, steps=[2, 1])
    np.testing.assert_array_equal(table.timesteps, TIMESTEPS[[2, 1]])
    np.testing.assert_array_equal(table.high[1], raw[1][GELU].max(axis=(0, 1)))
    assert table.edges[-1] == OUTLIER
    assert table.counts[:, -1].tolist() == [(raw[2][GELU] >= 8).sum(), 1]


def test_a_file_of_the_older_tools(tmp_path):
    """Compressed, one count per site, nothing on what lay outside; inputs of fc1 as `pre::`."""
    rng = np.random.default_rng(0)
    one_side = rng.normal(0.5, 2, (3, 200, 6)).clip(-7.9, None)
    one_side[1, 3, 2] = OUTLIER
    both = rng.normal(0.1, 4, (3, 200, 6))
    narrow = rng.normal(0, 0.002, (3, 200, 4))
    narrow[..., :3] = 0
    file = exported.older({"mm_23_txt": one_side, "pre::mm_03_img": both, "mm_03_img": narrow})
    (tmp_path / "old.npz").write_bytes(exported.saved(file, compressed=True))
    found = exports.open_statistics(tmp_path / "old.npz")
    names = [site.name for site in found.sites]
    assert names == ["mm_03_img.fc1_in", "mm_03_img.post_gelu", "mm_23_txt.post_gelu"]
    np.testing.assert_array_equal(found.timesteps, TIMESTEPS)
    np.testing.assert_array_equal(found.sigmas, TIMESTEPS / 1000)

    table, (least, most) = found.overview(), negative_bounds(found)
    for site, values in enumerate((both, narrow, one_side)):
        np.testing.assert_array_equal(table.low[site], values.min(axis=(1, 2)))
        np.testing.assert_allclose(table.std[site], np.median(values.std(axis=1), axis=1))
        share = (values < 0).mean(axis=(1, 2))
        assert (least[site] <= share).all()
        assert (share <= most[site]).all()
        dropped = (np.abs(values) > 8).mean(axis=(1, 2)) if site == 0 else 0
        np.testing.assert_allclose(most[site] - least[site], dropped, atol=1e-12)
        np.testing.assert_allclose(table.negative[site], (least + most)[site] / 2)
        ranges = np.ptp(values, axis=1)
        tops = {int(channel) for each in ranges for channel in top_channels(each)}
        assert table.top_channels[site] == tuple(sorted(tops))
    assert table.channel_ratio[1].tolist() == [1, 1, 1]  # channels of zeros are left out
    assert np.isnan(table.kurtosis[0]).all()
    assert np.isnan(table.kurtosis[1]).all()  # all in two bins: they do not show the shape
    assert np.isnan(table.p01[0]).all()  # how many of those dropped lay below is not known
    true = np.percentile(one_side, 99, axis=(1, 2), method="inverted_cdf")
    np.testing.assert_allclose(table.p99[2], true, atol=BIN)


def test_bins_of_unknown_sides_are_left_out_of_the_detail(tmp_path):
    both = np.random.default_rng(0).normal(0, 6, (3, 200, 6))
    (tmp_path / "old.npz").write_bytes(exported.saved(exported.older({"mm_00_img": both})))
    table = exports.open_statistics(tmp_path / "old.npz").layer_table(0)
    assert np.abs(table.edges).max() == 8
    np.testing.assert_array_equal(table.counts.sum(axis=1), (np.abs(both) <= 8).sum(axis=(1, 2)))


scale = st.sampled_from([0.01, 0.3, 1.0, 3.0, 8.0])


@given(seed=st.integers(0, 2**32), spread=scale, shift=st.floats(-9, 9), known=st.booleans())
def test_what_a_cell_says_is_true(seed, spread, shift, known):
    """Whatever was measured: a number that is given is right to within a bin."""
    rng = np.random.default_rng(seed)
    values = rng.normal(shift, spread, (rng.integers(1, 400), 3)).round(rng.integers(0, 6))
    file = exported.older({"mm_00_img": [values]})
    arrays = {name: file[f"mm_00_img::t=1000.000000::{name}"] for name in NAMES[:-1]}
    if known:
        arrays["outside"] = np.array([(values < -8).sum(), (values > 8).sum()], float)
    cell = Cell.of(arrays)
    least, most = cell.negative
    assert least - 1e-12 <= (values < 0).mean() <= most + 1e-12
    one_side = values.min() >= -8 or values.max() <= 8
    assert least == most or not (known or one_side)
    for percent, extreme in ((0, values.min()), (100, values.max())):
        found = cell.percentile(percent)
        assert found == extreme or (np.isnan(found) and abs(extreme) >= 8)
    for percent in (0.01, 1, 50, 99, 99.99):
        found = cell.percentile(percent)
        true = np.percentile(values, percent, method="inverted_cdf")
        assert np.isnan(found) or abs(found - true) <= BIN
        assert not (known and abs(true) < 8 and np.isnan(found))
    found = cell.kurtosis()
    if (np.abs(values) > 8).any():
        assert np.isnan(found)
    if np.isfinite(found):
        apart = values - values.mean()
        true = (apart**4).mean() / (apart**2).mean() ** 2
        assert found == pytest.approx(true, rel=0.15, abs=0.15)


# --- per layer --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layers(statistics):
    return exports.layer_statistics(statistics)


READERS = {
    "embed.context": 0,
    **dict.fromkeys(("mm_00_img.q_proj", "mm_00_img.k_proj", "mm_00_img.v_proj"), 1),
    "mm_00_img.o_proj": 2,
    "mm_00_img.fc1": 3,
    "mm_00_img.fc2": 4,
    **dict.fromkeys(("mm_00_txt.q_proj", "mm_00_txt.k_proj", "mm_00_txt.v_proj"), 5),
    "uni_00.fc2": 6,
    "final.linear": 7,
}


def test_every_linear_with_a_traced_input_has_an_entry_of_the_older_shape(layers):
    assert set(layers) == set(READERS)
    for entry in layers.values():
        assert list(entry) == ["min", "max", "mean", "std", "percentiles", "num_samples"]
        assert list(entry["percentiles"]) == list(PERCENTS)
        assert type(entry["num_samples"]) is int
        numbers = [*entry["percentiles"].values(), *(entry[k] for k in list(entry)[:4])]
        assert {type(number) for number in numbers} == {float}


@pytest.mark.parametrize("layer", READERS)
def test_layer_statistics_are_what_numpy_computes(layers, raw, layer):
    assert_entry(layers[layer], np.stack([each[READERS[layer]] for each in raw]))


def assert_entry(entry, values):
    assert (entry["min"], entry["max"]) == (values.min(), values.max())
    assert entry["num_samples"] == values.size
    whole = values.astype(np.float64)
    assert entry["mean"] == pytest.approx(whole.mean(), rel=1e-9)
    assert entry["std"] == pytest.approx(whole.std(), rel=1e-9)
    for name, percent in PERCENTS.items():
        true = float(np.percentile(values, percent, method="inverted_cdf"))
        assert abs(entry["percentiles"][name] - true) <= abs(true) / 16


def test_zeros_have_percentiles_of_zero(layers):
    assert layers["embed.context"]["percentiles"]["p50"] == 0
    assert layers["embed.context"]["percentiles"]["p01"] < 0


def test_the_files_of_layer_statistics(statistics, layers, tmp_path):
    config, versions = {"tracer": {"folds": 2}}, {"taqdit": "0.1.0"}
    exports.export_layer_statistics(statistics, tmp_path, config=config, versions=versions)
    names = {"layer_statistics.json", "collection_metadata.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    found = json.loads((tmp_path / "layer_statistics.json").read_text())
    assert found == layers
    about = json.loads((tmp_path / "collection_metadata.json").read_text())
    assert about["config"] == config
    assert about["versions"] == versions
    assert about["statistics"]["fingerprint"] == "ab" * 32
    assert (about["statistics"]["trajectories"], about["statistics"]["folds"]) == (4, 2)
    assert about["statistics"]["sites"] == [[site.name, site.width] for site in LAYOUT.sites]
    assert (about["view"]["steps"], about["view"]["complete"]) == ([0, 1, 2], True)
    assert about["view"]["cells"] == {str(step): [0, 1] for step in range(3)}
    assert about["view"]["timesteps"] == TIMESTEPS.tolist()
    assert about["layers"] == {k: LAYOUT.sites[site].name for k, site in READERS.items()}
    assert about["percentile_error"]["relative"] == 1 / 16

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    exports.export_layer_statistics(statistics, tmp_path, config=config, versions=versions)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_site_without_finite_values_has_no_statistics(raw):
    (step,) = exported.reduced(raw[:1])
    values = [BinCounts.empty(2) if n == GELU else each for n, each in enumerate(step.values)]
    plain = duck([replace(step, values=values)])
    with pytest.raises(NumericError, match=r"mm_00_img\.post_gelu has no finite value"):
        exports.layer_statistics(plain)


# --- opening ----------------------------------------------------------------------------------


def test_open_statistics_takes_folders_and_files(statistics, written):
    assert taqdit.open_statistics is exports.open_statistics
    assert isinstance(exports.open_statistics(statistics.folder), Statistics)
    assert isinstance(exports.open_statistics(str(written)), exports.ImportedStatistics)


def test_open_statistics_refuses_the_rest(tmp_path):
    (tmp_path / "statistics.json").write_text("{}")
    for path, message in [
        (tmp_path, "no stage of a store"),
        (tmp_path / "statistics.json", "neither a folder of statistics nor an .npz"),
        (tmp_path / "none", "neither"),
        (tmp_path / "none.npz", "No such file"),
        ("a\0b.npz", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=message):
            exports.open_statistics(path)
