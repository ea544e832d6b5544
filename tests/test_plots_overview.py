"""Figures of all sites: what is drawn is what the table says, in the right direction, readable."""

import csv
import itertools
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import slow_unless
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.text import Text

from taqdit.activations import Site
from taqdit.activations.overview import Overview, range_share
from taqdit.plots import heatmaps, outliers, overview, style, ticks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("qkv_in", "o_in", "fc1_in", "post_gelu")
HEATMAPS = {
    "heatmap_mean": "mean",
    "heatmap_std": "std",
    "negative_fraction_heatmap": "negative",
    "absmax_heatmap": "absmax",
    "kurtosis_heatmap": "kurtosis",
}


def names(blocks, unified=0):
    """The sites of SD3: the last block's text stream ends after the attention's input."""
    found = ["embed.context_in"]
    for block, stream in itertools.product(range(blocks), ("img", "txt")):
        places = PLACES[:1] if (block, stream) == (blocks - 1, "txt") else PLACES
        found += [f"mm_{block:02d}_{stream}.{place}" for place in places]
    found += [f"uni_{block:02d}.{place}" for block in range(unified) for place in PLACES]
    return [*found, "final.linear_in"]


def sigmas_of(steps):
    even = np.linspace(1, 0.003, steps)
    return 3 * even / (1 + 2 * even)


def synthetic(sites, steps, *, giant=1.0, seed=0):
    """Smooth curves over sigma, a level of its own per site, `giant` times it in a few."""
    rng = np.random.default_rng(seed)
    sites, sigmas = tuple(Site(name, 64) for name in sites), sigmas_of(steps)
    count = len(sites)
    level = np.exp(rng.normal(1, 0.5, (count, 1)))
    level[rng.random(count) < 0.08] *= giant
    curve = 1 + rng.uniform(-0.4, 0.4, (count, 1)) * sigmas + rng.uniform(0, 0.1, (count, steps))
    ranges, high, low = level * curve, 4 * level * curve, -3 * level * curve[:, ::-1]
    return Overview(
        sites=sites,
        sigmas=sigmas,
        timesteps=1000 * sigmas,
        low=low,
        high=high,
        mean=rng.normal(0, 0.1, (count, 1)) * curve,
        std=0.3 * ranges,
        median_range=ranges,
        max_range=high - low,
        negative=np.clip(rng.uniform(0.2, 0.9, (count, 1)) * curve, 0, 1),
        kurtosis=2 + level**2 * curve,
        p01=0.3 * low,
        p99=0.3 * high,
        p9999=0.8 * high,
        channel_ratio=1 + level * curve,
        token_ratio=1 + rng.permutation(level) * curve,
        large_share=rng.uniform(0, 1, (count, 1)) * np.ones(steps),
        top_channels=((0,),) * count,
    )


def constant_zero():
    """One site, one step, every value zero: no kurtosis and no ratio."""
    nothing, undefined = np.zeros((1, 1)), np.full((1, 1), np.nan)
    shapes = dict.fromkeys(Overview.__dataclass_fields__, nothing)
    shapes |= dict.fromkeys(("kurtosis", "channel_ratio", "token_ratio", "large_share"), undefined)
    site = (Site("mm_00_img.post_gelu", 64),)
    shapes["top_channels"] = ((),)
    return Overview(
        **(shapes | {"sites": site, "sigmas": np.ones(1), "timesteps": 1000 * np.ones(1)})
    )


def changed(made, **arrays):
    """The overview with other arrays."""
    fields = {name: getattr(made, name) for name in Overview.__dataclass_fields__}
    return Overview(**(fields | arrays))


def partly_known():
    """Channel extremes alone, and none of them at the third step."""
    made = synthetic(names(4), 8)
    known = {name: getattr(made, name).copy() for name in ("low", "high", "mean", "median_range")}
    for values in known.values():
        values[:, 2] = np.nan
    unknown = np.full(made.low.shape, np.nan)
    others = ("negative", "kurtosis", "p01", "p99", "p9999", "token_ratio", "large_share")
    return changed(made, **known, **dict.fromkeys(others, unknown))


MAKERS = {
    "tiny": lambda: synthetic(names(4), 30),
    "sd3_medium": lambda: synthetic(names(24), 100, giant=40.0),
    "sd35_large": lambda: synthetic(names(38), 28, giant=1e4, seed=1),
    "unified": lambda: synthetic(names(5, unified=9), 10, seed=2),
    "post_gelu": lambda: synthetic([n for n in names(24) if "gelu" in n], 50, seed=3),
    "two_steps": lambda: synthetic(names(1), 2),
    "one_site": lambda: synthetic(["mm_03_txt.o_in"], 12),
    "outside": lambda: synthetic(["embed.context_in", "final.linear_in"], 5),
    "one_step": lambda: synthetic(names(4), 1),
    "zero": constant_zero,
    "partly_known": partly_known,
}
SMALL = ("tiny", "one_step", "zero")
MADE = cache(lambda name: MAKERS[name]())
SELECTED = {"tiny": [0, 4, 9, 14, 19, 24, 29], "sd3_medium": list(range(0, 100, 4))}
DRAW = {
    "range_vs_timestep": overview.range_vs_timestep,
    "range_vs_sigma": overview.range_vs_sigma,
    "outliers": outliers.outliers,
    **{name: getattr(heatmaps, name) for name in HEATMAPS},
}


def draw(figure_name, made):
    """The figure; a warning is an error."""
    name = next(name for name in MAKERS if MADE(name) is made)
    chosen = (SELECTED.get(name, [0]),) if figure_name == "range_vs_sigma" else ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return DRAW[figure_name](made, *chosen)


def texts_drawn(figure, monkeypatch):
    """Text -> its box in pixels, of all texts that drawing really puts on the page."""
    found, original = [], Text.draw

    def recorded(self, renderer):
        if self.get_visible() and self.get_text().strip():
            found.append(self)
        original(self, renderer)

    with monkeypatch.context() as patch, style.style(), warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(Text, "draw", recorded)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return [(text.get_text(), Text.get_window_extent(text)) for text in found]


def panel(figure, title):
    return next(axis for axis in figure.axes if axis.get_title(loc="left").startswith(title))


def lines(axis):
    """Every curve in the collections of a panel, as (n, 2) points."""
    return [
        np.asarray(segment)
        for collection in axis.collections
        if isinstance(collection, LineCollection)
        for segment in collection.get_segments()
    ]


def bar_of(figure, label):
    return next(axis for axis in figure.axes if axis.get_ylabel().replace("\n", " ") == label)


@pytest.mark.parametrize("figure_name", DRAW)
@pytest.mark.parametrize("name", slow_unless(SMALL, MAKERS))
def test_no_text_overlaps_another_or_leaves_the_page(name, figure_name, monkeypatch):
    figure = draw(figure_name, MADE(name))
    assert figure.get_figwidth() <= style.PAGE
    texts = texts_drawn(figure, monkeypatch)
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in texts:
        assert -0.5 <= box.x0 < box.x1 <= width + 0.5, text
        assert -0.5 <= box.y0 < box.y1 <= height + 0.5, text
    for (one, a), (other, b) in itertools.combinations(texts, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 0.5 or along < 0.5, (one, other)


@pytest.mark.parametrize("name", ["tiny", "sd3_medium"])
def test_ranges_are_a_line_per_site_in_the_panel_of_its_place(name):
    made = MADE(name)
    figure = draw("range_vs_timestep", made)
    for place in (*PLACES, overview.OUTSIDE):
        inside = [i for i, s in enumerate(made.sites) if s.place == place]
        sites = inside or [i for i, s in enumerate(made.sites) if s.place not in PLACES]
        drawn = lines(panel(figure, place))
        assert len(drawn) == len(sites)
        assert all(np.array_equal(line[:, 0], made.timesteps) for line in drawn)
        ends = sorted(line[:, 1].tolist() for line in drawn)
        assert ends == sorted(made.median_range[sites].tolist())


def test_streams_differ_in_line_style_and_blocks_in_colour():
    made = MADE("tiny")
    figure = draw("range_vs_timestep", made)
    image, text = panel(figure, "fc1_in").collections
    assert image.get_linestyle() != text.get_linestyle()
    assert len({tuple(colour) for colour in image.get_colors()}) == len(image.get_segments()) == 4
    assert np.array_equal(image.get_colors()[:3], text.get_colors())  # a block, a colour
    legend = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert legend == ["mm_00", "mm_01", "mm_02", "mm_03", "image", "text"]


def test_many_blocks_get_a_colour_bar_with_their_names():
    figure = draw("range_vs_timestep", MADE("sd3_medium"))
    bar = bar_of(figure, "block")
    labels = [label.get_text() for label in bar.get_yticklabels()]
    assert labels[0] == "mm_00"
    assert labels[-1] == "mm_23"
    colours = panel(figure, "qkv_in").collections[0].get_colors()
    assert np.allclose(colours[0], overview._depth_map()(0.0))
    assert np.allclose(colours[-1], overview._depth_map()(1.0))


@pytest.mark.parametrize(("stream", "label"), [("img", "image"), ("txt", "text")])
def test_one_stream_alone(stream, label):
    made = MADE("tiny")
    figure = overview.range_vs_timestep(made, stream)
    drawn = sum(len(lines(axis)) for axis in figure.axes)
    assert drawn == sum(site.stream == stream for site in made.sites) > 0
    assert figure.legends[0].get_texts()[-1].get_text() == label
    table = overview.site_table(made, "median_range", stream)
    assert list(table)[3:] == [site.name for site in made.sites if site.stream == stream]


def test_a_stream_without_sites_is_refused():
    with pytest.raises(ValueError, match="no site of stream 'joint'"):
        overview.range_vs_timestep(MADE("tiny"), "joint")


def test_timesteps_run_from_noise_on_the_left_to_the_image_on_the_right():
    figure = draw("range_vs_timestep", MADE("tiny"))
    FigureCanvasAgg(figure).draw()
    for place in (*PLACES, overview.OUTSIDE):
        axis = panel(figure, place)
        left, right = axis.get_xlim()
        assert left > 1000 > 0 > right
        assert axis.transData.transform((1000, 0))[0] < axis.transData.transform((0, 0))[0]
    assert figure.get_supxlabel() == "timestep (noise → image)"
    assert figure.get_supylabel() == "median channel range"


def test_ranges_over_more_than_two_decades_are_logarithmic():
    wide = panel(draw("range_vs_timestep", MADE("sd35_large")), "qkv_in")
    assert wide.get_yscale() == "log"
    low, high = wide.get_ylim()
    values = np.concatenate(lines(wide))[:, 1]
    assert low <= values.min() < values.max() <= high
    narrow = panel(draw("range_vs_timestep", MADE("tiny")), "qkv_in")
    assert narrow.get_yscale() == "linear"
    assert narrow.get_ylim()[0] == 0
    assert narrow.get_ylim()[1] >= np.concatenate(lines(narrow))[:, 1].max()


def test_a_line_at_zero_stands_off_the_axis():
    made = MADE("tiny")
    ranges = made.median_range.copy()
    ranges[0] = 0
    axis = panel(overview.range_vs_timestep(changed(made, median_range=ranges)), "outside")
    assert axis.get_ylim()[0] < 0
    assert panel(overview.range_vs_timestep(made), "outside").get_ylim()[0] == 0


def test_a_single_step_is_drawn_as_points():
    made = MADE("one_step")
    axis = panel(draw("range_vs_timestep", made), "qkv_in")
    points = np.concatenate([c.get_offsets() for c in axis.collections])
    assert sorted(points[:, 1]) == sorted(made.median_range[made.where(place="qkv_in"), 0])


def small(**changes):
    """Two sites, four steps, with the given arrays."""
    made = synthetic(["mm_00_img.o_in", "mm_00_txt.o_in"], 4)
    return changed(made, **{name: np.array(values, float) for name, values in changes.items()})


LOW = [[-1, -2, -1, 0], [-3, -3, -3, -3]]
HIGH = [[1, 1, 2, 1], [3, 2, 1, 7]]


def test_shares_of_the_range_are_the_width_of_a_step_over_that_of_all():
    share = range_share(np.array(LOW, float), np.array(HIGH, float))
    assert np.allclose(share, [[2 / 4, 3 / 4, 3 / 4, 1 / 4], [0.6, 0.5, 0.4, 1.0]])
    assert np.array_equal(range_share(np.zeros((1, 3)), np.zeros((1, 3))), [[1, 1, 1]])


def test_range_against_sigma_draws_each_site_its_median_and_the_selected_steps():
    made = MADE("tiny")
    chosen = SELECTED["tiny"]
    figure = overview.range_vs_sigma(made, chosen)
    ends = ((made.low, made.high), (made.p01, made.p99))
    for axis, (low, high) in zip(figure.axes, ends, strict=True):
        share = range_share(low, high)
        drawn = lines(axis)
        assert len(drawn) == len(made.sites)
        assert sorted(line[:, 1].tolist() for line in drawn) == sorted(share.tolist())
        assert all(np.array_equal(line[:, 0], made.sigmas) for line in drawn)
        image, text, rug = axis.get_lines()
        for line, stream in ((image, "img"), (text, "txt")):
            median = np.median(share[made.where(stream=stream)], axis=0)
            assert np.array_equal(line.get_ydata(), median)
        assert np.array_equal(rug.get_xdata(), made.sigmas[chosen])
        assert axis.get_xlim()[0] > 1 > 0 > axis.get_xlim()[1]
        assert axis.get_ylim()[0] == 0
        assert axis.get_ylim()[1] > 1
        assert image.get_linestyle() != text.get_linestyle()
    legend = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert legend == [
        "image: 17 sites, median bold",
        "text: 14 sites, median bold",
        "calibration steps (7)",
    ]
    assert [axis.get_ylabel().split(",")[0] for axis in figure.axes] == ["min to max", "p01 to p99"]
    (top,) = figure.axes[0].child_axes
    FigureCanvasAgg(figure).draw()
    for place, label in zip(top.get_xticks(), top.get_xticklabels(), strict=True):
        assert made.sigmas[int(label.get_text())] == place


def test_titles_say_what_the_selected_steps_see():
    made = small(low=LOW, high=HIGH, p01=HIGH, p99=HIGH)  # the bulk is a point: seen whole
    whole, bulk = overview.range_vs_sigma(made, [0, 1]).axes
    # the first site sees -2 .. 1 of -2 .. 2, the second -3 .. 3 of -3 .. 7
    assert whole.get_title(loc="left") == (
        "the calibration steps cover 67.5 % of the median site's range, "
        "60.0 % at worst (mm_00_txt.o_in)"
    )
    bulk = overview.range_vs_sigma(made, [0, 1, 2, 3]).axes[0]
    assert "100.0 % of the median" in bulk.get_title(loc="left")
    assert overview.range_vs_sigma(made).axes[0].get_title(loc="left") == ""


def test_what_is_not_known_is_not_drawn():
    made = MADE("partly_known")
    (whole,) = overview.range_vs_sigma(made, [0, 2]).axes  # no panel of percentiles
    known = np.delete(np.arange(8), 2)
    image = whole.get_lines()[0]
    assert np.flatnonzero(np.isnan(image.get_ydata())).tolist() == [2]
    share = range_share(made.low[:, known], made.high[:, known])
    median = np.median(share[made.where(stream="img")], axis=0)
    assert np.array_equal(image.get_ydata()[known], median)
    title = f"cover {100 * np.median(share[:, 0]):.1f} % of the median site's range"
    assert title in whole.get_title(loc="left")
    assert overview.range_vs_sigma(made, [2]).axes[0].get_title(loc="left") == ""
    axis = panel(overview.range_vs_timestep(made), "qkv_in")
    assert all(np.array_equal(line[:, 0], made.timesteps[known]) for line in lines(axis))
    highest = np.concatenate(lines(axis))[:, 1].max()
    assert highest < axis.get_ylim()[1] < 2 * highest


def test_the_table_of_shares_has_a_row_per_site_and_step():
    made = small(low=LOW, high=HIGH)
    table = overview.range_share_table(made, [1, 3])
    assert table["site"] == ["mm_00_img.o_in"] * 4 + ["mm_00_txt.o_in"] * 4
    assert table["step"].tolist() == [0, 1, 2, 3] * 2
    assert table["selected"].tolist() == [0, 1, 0, 1] * 2
    assert np.allclose(table["min_to_max"], [0.5, 0.75, 0.75, 0.25, 0.6, 0.5, 0.4, 1.0])
    assert np.array_equal(table["sigma"], np.tile(made.sigmas, 2))
    assert np.array_equal(table["p01_to_p99"], range_share(made.p01, made.p99).ravel())


@pytest.mark.parametrize("name", ["tiny", "sd3_medium", "unified"])
@pytest.mark.parametrize("figure_name", HEATMAPS)
def test_every_cell_is_the_value_of_its_layer_and_step(name, figure_name):
    made = MADE(name)
    figure = draw(figure_name, made)
    values = getattr(made, HEATMAPS[figure_name])
    order = sorted(made.sites, key=lambda s: ("img", "txt", "joint").index(s.stream))
    rows = list(dict.fromkeys(s.name.split(".")[0] for s in order if s.place in PLACES))
    number = {site.name: i for i, site in enumerate(made.sites)}
    for place in PLACES:
        (image,) = panel(figure, place).get_images()
        cells = np.ma.filled(image.get_array(), np.nan)
        assert cells.shape == (len(rows), len(made.sigmas))
        for row, layer in zip(cells, rows, strict=True):
            site = number.get(f"{layer}.{place}")
            missing = np.full(len(made.sigmas), np.nan)
            assert np.array_equal(row, missing if site is None else values[site], equal_nan=True)
    (image,) = panel(figure, overview.OUTSIDE).get_images()
    assert np.array_equal(image.get_array(), values[[0, -1]])


@pytest.mark.parametrize("figure_name", HEATMAPS)
def test_heatmaps_run_from_noise_to_image_and_from_the_first_block_down(figure_name):
    made = MADE("tiny")
    figure = draw(figure_name, made)
    FigureCanvasAgg(figure).draw()
    for title in (*PLACES, overview.OUTSIDE):
        axis = panel(figure, title)
        first, last = (axis.transData.transform((step, 0))[0] for step in (0, 29))
        assert first < last
        labels = [label.get_text() for label in axis.get_xticklabels()]
        steps = [int(label.split("\n")[0]) for label in labels]
        assert (steps[0], steps[-1]) == (0, 29)
        assert steps == list(axis.get_xticks())
        assert labels == [f"{step}\n{made.sigmas[step]:.2f}" for step in steps]
    names_at = panel(figure, "qkv_in").get_yticklabels()
    assert [label.get_text() for label in names_at] == [
        *(f"mm_{i:02d}_img" for i in range(4)),
        *(f"mm_{i:02d}_txt" for i in range(4)),
    ]
    assert list(panel(figure, "qkv_in").get_yticks()) == list(range(8))
    bottom, top = panel(figure, "qkv_in").get_ylim()
    assert bottom > top  # row 0 is the top one
    assert figure.get_supxlabel().endswith("(noise → image)")


def test_thinned_row_labels_name_their_row_and_the_first_of_each_stream():
    axis = panel(draw("heatmap_std", MADE("sd35_large")), "qkv_in")
    rows = [f"mm_{i:02d}_{stream}" for stream in ("img", "txt") for i in range(38)]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == [rows[int(tick)] for tick in axis.get_yticks()]
    assert {"mm_00_img", "mm_00_txt"} < set(labels)
    assert 10 < len(labels) < len(rows)


@pytest.mark.parametrize("figure_name", HEATMAPS)
def test_panels_share_one_labelled_scale(figure_name):
    figure = draw(figure_name, MADE("sd3_medium"))
    images = [image for axis in figure.axes for image in axis.get_images()]
    assert len(images) == 5
    assert len({(image.norm.vmin, image.norm.vmax, type(image.norm)) for image in images}) == 1
    label = {
        "heatmap_mean": "median channel mean",
        "heatmap_std": "median channel std",
        "negative_fraction_heatmap": "share of values below zero",
        "absmax_heatmap": "largest absolute value",
        "kurtosis_heatmap": "kurtosis",
    }[figure_name]
    assert len(bar_of(figure, label).get_yticks()) >= 2


def norm_of(figure_name, name):
    figure = draw(figure_name, MADE(name))
    image = panel(figure, "qkv_in").get_images()[0]
    return image.norm, image.cmap.name


def test_scales_fit_their_quantity():
    made = MADE("sd3_medium")
    norm, colours = norm_of("heatmap_mean", "sd3_medium")
    assert (-norm.vmin, norm.vmax) == (np.abs(made.mean).max(), np.abs(made.mean).max())
    assert colours == "RdBu_r"
    norm, _ = norm_of("heatmap_std", "sd3_medium")
    assert (norm.vmin, norm.vmax) == (0, made.std.max())
    norm, _ = norm_of("negative_fraction_heatmap", "sd3_medium")
    assert (norm.vmin, norm.vmax) == (0, 1)
    for name, values in (("absmax_heatmap", made.absmax), ("kurtosis_heatmap", made.kurtosis)):
        norm, _ = norm_of(name, "sd3_medium")
        assert isinstance(norm, LogNorm)
        assert min(values.min(), 2.0) <= norm.vmin <= values.min()
        assert norm.vmax == values.max()


@pytest.mark.parametrize("name", ["tiny", "sd3_medium", "zero"])
def test_the_kurtosis_of_a_gaussian_is_marked(name):
    bar = bar_of(draw("kurtosis_heatmap", MADE(name)), "kurtosis")
    labels = {
        tick: text.get_text()
        for tick, text in zip(bar.get_yticks(), bar.get_yticklabels(), strict=True)
    }
    assert labels[3.0] == "3: Gaussian"
    assert all(list(line.get_ydata()) == [3, 3] for line in bar.get_lines())
    assert bar.get_lines()
    low, high = bar.get_ylim()
    assert low < 3 < high


def test_grey_is_explained_where_it_occurs():
    explained = {
        name: [
            t.get_text()
            for legend in draw("heatmap_std", MADE(name)).legends
            for t in legend.get_texts()
        ]
        for name in ("tiny", "one_site", "post_gelu")
    }
    note = ["no such site or no value"]
    assert explained == {"tiny": note, "one_site": [], "post_gelu": []}


def test_outliers_are_drawn_at_their_worst_step():
    made = MADE("tiny")
    axis = draw("outliers", made).axes[0]
    table = outliers.outlier_table(made)
    assert np.array_equal(table["channel_ratio"], made.channel_ratio.max(axis=1))
    assert np.array_equal(table["token_ratio"], made.token_ratio.max(axis=1))
    rows = np.arange(len(made.sites))
    assert np.array_equal(made.channel_ratio[rows, table["channel_step"]], table["channel_ratio"])
    assert np.array_equal(made.token_ratio[rows, table["token_step"]], table["token_ratio"])
    assert np.array_equal(table["large_share"], made.large_share[rows, table["channel_step"]])
    expected = np.stack(
        [table["channel_ratio"], table["token_ratio"], table["large_share"]], axis=1
    )
    drawn = [np.column_stack([c.get_offsets(), c.get_array()]) for c in axis.collections]
    assert sorted(np.concatenate(drawn).tolist()) == sorted(expected.tolist())
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    for (low, high), ratios in (
        (axis.get_xlim(), expected[:, 0]),
        (axis.get_ylim(), expected[:, 1]),
    ):
        assert low < ratios.min() < ratios.max() < high


def test_markers_tell_the_places_and_the_colours_run_from_0_to_1():
    figure = draw("outliers", MADE("tiny"))
    axis = figure.axes[0]
    legend = axis.get_legend()
    assert [t.get_text() for t in legend.get_texts()] == [*PLACES, "context_in", "linear_in"]
    assert len({handle.get_marker() for handle in legend.legend_handles}) == 6
    assert len({c.get_paths()[0].vertices.tobytes() for c in axis.collections}) == 6
    assert all((c.norm.vmin, c.norm.vmax) == (0, 1) for c in axis.collections)
    label = "share of tokens on which the top channel is large"
    assert bar_of(figure, label).get_ylim() == (0, 1)


@pytest.mark.parametrize("name", ["tiny", "sd3_medium", "sd35_large"])
def test_the_most_extreme_sites_are_named_where_they_are(name):
    made = MADE(name)
    axis = draw("outliers", made).axes[0]
    table = outliers.outlier_table(made)
    ratios = np.stack([table["channel_ratio"], table["token_ratio"]], axis=1)
    extreme = np.argsort(-ratios.max(axis=1))[: outliers.NAMED]
    named = {text.get_text(): text.xy for text in axis.texts if hasattr(text, "xy")}
    assert set(named) == {made.sites[i].name for i in extreme}
    for i in extreme:
        assert np.array_equal(named[made.sites[i].name], ratios[i])


def test_a_crowd_is_named_without_overlap(monkeypatch):
    made = MADE("tiny")
    near = 1.01 ** np.arange(len(made.sites))[:, None] * np.full((1, 30), 20.0)
    crowd = changed(made, channel_ratio=near, token_ratio=near)
    figure = outliers.outliers(crowd)
    texts = dict(texts_drawn(figure, monkeypatch))
    boxes = [texts[site.name] for site in made.sites if site.name in texts]
    assert len(boxes) == outliers.NAMED
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_sites_without_ratios_are_counted_and_not_drawn():
    made = small(channel_ratio=[[np.nan] * 4, [3, np.inf, 4, np.nan]])
    figure = outliers.outliers(made)
    (points,) = figure.axes[0].collections
    assert points.get_offsets()[:, 0].tolist() == [4]
    assert [t.get_text() for t in figure.texts] == ["not drawn:\n1 site without\nfinite ratios"]
    assert outliers.outliers(small()).texts == []


@pytest.mark.parametrize("name", slow_unless([], ["tiny", "sd3_medium", "zero"]))
def test_files_are_made_and_are_the_same_bytes_twice(name, tmp_path):
    made = MADE(name)
    for figure_name in DRAW if name != "sd3_medium" else ("absmax_heatmap",):
        contents = []
        for folder in (tmp_path / "a", tmp_path / "b"):
            folder.mkdir(exist_ok=True)
            table = {"step": np.arange(3)}
            files = style.save(draw(figure_name, made), folder, figure_name, table)
            contents.append([path.read_bytes() for path in files])
        assert [path.name for path in files] == [
            f"{figure_name}.{k}" for k in ("png", "svg", "csv")
        ]
        assert contents[0] == contents[1]


def test_the_csv_of_a_heatmap_reads_back_exactly(tmp_path):
    made = MADE("tiny")
    table = overview.site_table(made, "absmax")
    figure = heatmaps.absmax_heatmap(made)
    *_, path = style.save(figure, tmp_path, "absmax_heatmap", table, formats=())
    rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
    assert len(rows) == 30
    assert list(rows[0]) == ["step", "sigma", "timestep", *(site.name for site in made.sites)]
    for i, site in enumerate(made.sites):
        assert [float(row[site.name]) for row in rows] == made.absmax[i].tolist()
    assert [float(row["timestep"]) for row in rows] == made.timesteps.tolist()


@pytest.mark.parametrize(
    ("low", "high", "most", "marks"),
    [
        (0.5, 20, 10, [0.5, 1, 2, 5, 10, 20]),
        (2, 5000, 5, [10, 100, 1000]),
        (1e-8, 1e8, 5, [1e-8, 1e-4, 1, 1e4, 1e8]),
        (1, 10, 2, [1, 10]),
    ],
)
def test_marks_of_a_logarithmic_axis(low, high, most, marks):
    assert np.allclose(ticks.log_marks(low, high, most=most), marks, rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ([3.0, 40.0], (2, 50)),
        ([1.0, 100.0], (1, 100)),
        ([0.0, 7.0], (5, 10)),
        ([5.0], (5, 50)),
        ([0.0], (1, 10)),
        ([np.nan, 0.03], (0.02, 0.05)),
    ],
)
def test_limits_of_a_logarithmic_axis(values, limits):
    assert np.allclose(ticks.log_limits(np.array(values)), limits, rtol=1e-12)


def test_tight_limits_of_a_logarithmic_axis_leave_room_for_three_marks():
    assert ticks.log_limits(np.array([2.4, 23.6]), tight=True) == (2.4, 23.6)
    assert ticks.log_limits(np.array([2.4, 11.0]), tight=True) == (2, 20)


def test_importing_the_figures_loads_no_matplotlib():
    code = (
        "import sys; from taqdit.plots import heatmaps, outliers, overview;"
        "print([m for m in ('matplotlib', 'mlx') if m in sys.modules])"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
