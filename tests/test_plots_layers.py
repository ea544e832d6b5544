"""Figures of one layer: the artists hold the table's numbers, nothing overlaps, time runs right."""

import csv
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import slow_unless
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, to_hex
from matplotlib.patches import StepPatch
from matplotlib.text import Text
from scipy.special import ndtr

from taqdit.activations import Site
from taqdit.activations.overview import LayerTable
from taqdit.plots import channels, distribution, layers, style

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
GIANT = 412.0


def sigmas_of(steps):
    grid = np.linspace(1, 0.003, steps)
    return 3 * grid / (1 + 2 * grid)


def make(channels, steps, kind="normal", *, giant=None, tokens=6, name="mm_20_txt.post_gelu"):
    """A table of random activations; channel `giant` reaches 412 at step 0 and shrinks."""
    random = np.random.default_rng(0)
    sigmas = sigmas_of(steps)
    values = random.standard_normal((steps, tokens, channels))
    values *= np.exp(random.normal(0, 0.3, channels)) * (1 + sigmas[:, None, None])
    if kind == "gelu":
        values = (values - 0.8) * ndtr(values - 0.8)
    if kind == "zero":
        values[:] = 0
    if kind == "small":
        values *= 0.01
        values[:, 1] *= -GIANT / np.abs(values[:, 1]).max()
    if giant is not None:
        values[:, 0, giant] = GIANT * (0.4 + 0.6 * sigmas)
    edges = np.sinh(np.linspace(-8, 8, 401))  # up to ±1490, narrow about zero
    counts = np.stack([np.histogram(step, edges)[0] for step in values]).astype(float)
    share = np.zeros((steps, channels))
    low, high = values.min(axis=1), values.max(axis=1)
    mean, std = values.mean(axis=1), values.std(axis=1)
    site, times = Site(name, channels), 1000 * sigmas
    return LayerTable(site, sigmas, times, low, high, mean, std, share, share, edges, counts)


NORMAL = make(192, 30)
GELU = make(768, 30, "gelu")
PLANTED = make(6144, 30, giant=3003, tokens=2)
CASES = {
    "normal": NORMAL,
    "gelu": GELU,
    "planted": PLANTED,
    "planted gelu": make(4096, 100, "gelu", giant=4095, tokens=2),
    "long": make(192, 100, giant=0),
    "one step": make(768, 1, "gelu", giant=700, name="embed.context_in"),
    "zero": make(192, 30, "zero"),
    "both signs": make(192, 30, "small", giant=100, tokens=30),
    "narrow": make(8, 5),
}
QUICK = ("normal", "planted", "one step", "zero", "narrow")
STEPS = [0, 3, 5, 8, 11, 13, 16, 18, 21, 24, 26, 29]


def some(table, most):
    return np.unique(np.linspace(0, len(table.sigmas) - 1, most).astype(int))


FIGURES = {
    "histogram": lambda table: layers.histogram_panels(table, some(table, 12)),
    "ridgeline": lambda table: layers.ridgeline(table, some(table, 16)),
    "channel_ranges": channels.channel_ranges,
    "channel_time": channels.channel_time,
}


def drawn(figure):
    """The renderer after drawing, for extents in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def visible_texts(figure):
    """Every text that is drawn: of ticks, those within the limits of their axis."""
    axes = [axis for axis in figure.findobj(Axis) if axis.axes.get_visible()]
    labels, shown = set(), []
    for axis in axes:
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks() + axis.get_minor_ticks():
            labels |= {tick.label1, tick.label2}
            if low <= tick.get_loc() <= high:
                shown += [text for text in (tick.label1, tick.label2) if text.get_visible()]
    others = [text for text in figure.findobj(Text) if text not in labels and text.get_visible()]
    return [text for text in shown + others if text.get_text().strip()]


@pytest.mark.parametrize("case", slow_unless(QUICK, CASES))
@pytest.mark.parametrize("name", FIGURES)
def test_texts_overlap_nothing_and_stay_inside_without_a_warning(name, case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = FIGURES[name](CASES[case])
        renderer = drawn(figure)
    wide, tall = figure.get_size_inches() * figure.dpi
    assert wide in (100 * style.PAGE, 100 * style.COLUMN)
    texts = visible_texts(figure)
    boxes = [Text.get_window_extent(text, renderer) for text in texts]  # without its arrow
    assert len(boxes) >= 8
    for i, (text, box) in enumerate(zip(texts, boxes, strict=True)):
        assert 0 <= box.x0 < box.x1 <= wide, text
        assert 0 <= box.y0 < box.y1 <= tall, text
        others = zip(texts[:i], boxes[:i], strict=True)
        wider = box.padded(2, 0)  # side by side, texts need a gap
        assert not [other for other, its in others if wider.overlaps(its)], text


def words(figure):
    return " | ".join(text.get_text() for text in visible_texts(figure))


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_names_its_layer(name):
    assert "mm_20_txt.post_gelu" in words(FIGURES[name](NORMAL))


def test_a_panel_per_step_noise_first_whatever_order_they_come_in():
    figure = layers.histogram_panels(NORMAL, STEPS[::-1])
    assert len(figure.axes) == 12
    for axis, step in zip(figure.axes, STEPS, strict=True):
        sigma = NORMAL.sigmas[step]
        title, ends = axis.get_title().split("\n")
        assert title == f"step {step} · t {1000 * sigma:.4g} · σ {sigma:.3g}"
        assert float(ends.split(" … ")[1]) == pytest.approx(NORMAL.high[step].max(), rel=0.01)
    drawn(figure)
    frames = [axis.get_window_extent() for axis in figure.axes]
    assert frames[0].x0 < frames[1].x0  # reading order
    assert frames[0].y0 > frames[4].y0
    titles = [axis.title.get_window_extent() for axis in figure.axes]
    assert not any(title.overlaps(frame) for title in titles for frame in frames)
    assert "noise → image in reading order" in words(figure)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 1), (4, 1), (5, 2), (7, 2), (9, 3)])
def test_panels_without_a_step_are_not_there_and_every_column_has_labels_below(count, rows):
    figure = layers.histogram_panels(NORMAL, range(count))
    assert len(figure.axes) == count
    assert len({round(axis.get_position().y0, 6) for axis in figure.axes}) == rows
    below = {}
    for axis in figure.axes:
        below[round(axis.get_position().x0, 6)] = axis  # the lowest comes last
    labelled = [axis for axis in figure.axes if axis.xaxis.get_tick_params()["labelbottom"]]
    assert set(labelled) == set(below.values())


def bars_of(axis):
    (bars,) = [patch for patch in axis.patches if isinstance(patch, StepPatch)]
    return bars.get_data()


def shared_out(edges, counts, ends):
    """Counts of bins `edges` given to bins `ends`, each by the part that lies in it."""
    left = np.maximum.outer(ends[:-1], edges[:-1])
    right = np.minimum.outer(ends[1:], edges[1:])
    width = np.diff(edges)
    part = np.maximum(right - left, 0) / np.where(width > 0, width, np.inf)
    return part @ counts


@pytest.mark.parametrize("table", [NORMAL, GELU, PLANTED], ids=["normal", "gelu", "planted"])
def test_panels_and_ridges_hold_the_counts_of_the_table(table):
    panels = layers.histogram_panels(table, STEPS).axes
    ridges = [p for p in layers.ridgeline(table, STEPS).axes[0].patches if p.get_fill()]
    most = max(bars_of(axis).values.max() for axis in panels)
    for place, (axis, ridge, step) in enumerate(zip(panels, ridges, STEPS, strict=True)):
        values, ends, _ = bars_of(axis)
        inside = np.clip(table.edges, table.low[step].min(), table.high[step].max())
        assert np.allclose(values, shared_out(inside, table.counts[step], ends), atol=1e-6)
        assert values.sum() == pytest.approx(table.counts[step].sum())
        widths, its_ends, base = ridge.get_data()
        assert np.array_equal(its_ends, ends)
        assert base == place
        assert np.allclose(widths - place, 0.9 * np.log10(1 + values) / np.log10(1 + most))


@pytest.mark.parametrize("table", [NORMAL, PLANTED], ids=["linear", "asinh"])
def test_bins_are_equally_wide_as_drawn_on_shared_axes_with_log_counts(table):
    figure = layers.histogram_panels(table, STEPS)
    drawn(figure)
    for axis in figure.axes:
        ends = bars_of(axis).edges
        places = axis.transData.transform(np.stack([ends, np.ones_like(ends)], axis=1))[:, 0]
        assert np.allclose(np.diff(places), np.diff(places).mean(), rtol=1e-6)
        assert axis.get_xlim() == figure.axes[0].get_xlim()
        assert axis.get_ylim() == figure.axes[0].get_ylim()
        assert axis.get_yscale() == "log"
        assert axis.get_ylim()[0] < 1 < bars_of(axis).values.max() < axis.get_ylim()[1]
    assert f"values per bin\n({distribution.BINS} equally wide bins)" in words(figure)


def test_range_lines_are_the_exact_extremes_and_lie_inside():
    figure = layers.histogram_panels(PLANTED, STEPS)
    for axis, step in zip(figure.axes, STEPS, strict=True):
        lines = {line.get_label(): line.get_xdata()[0] for line in axis.get_lines()}
        assert lines == {"min": PLANTED.low[step].min(), "max": PLANTED.high[step].max()}
        left, right = axis.get_xlim()
        assert left < lines["min"] < lines["max"] < right
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"min", "max"}


@pytest.mark.parametrize("figure", [layers.histogram_panels, layers.ridgeline])
def test_values_far_beyond_the_bulk_get_an_axis_that_shows_both_and_says_so(figure):
    far, near = figure(PLANTED, STEPS), figure(NORMAL, STEPS)
    scales = [far.axes[0].get_xscale(), far.axes[0].get_yscale()]
    assert "asinh" in scales
    axis = far.axes[-1].xaxis if scales[0] == "asinh" else far.axes[-1].yaxis
    ticks = {
        tick: label.get_text()
        for tick, label in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
    }
    assert ticks[0] == "0"
    assert ticks[100] == "100"
    assert "activation" in words(far)
    assert "logarithmic beyond ±" in words(far)
    assert "asinh" not in (near.axes[0].get_xscale(), near.axes[0].get_yscale())
    assert "logarithmic" not in words(near)
    bulk = np.abs(distribution.distribution(PLANTED, STEPS).edges) < 3
    assert 0.1 < bulk.mean() < 0.6


def test_all_figures_of_a_layer_share_one_axis_whichever_steps_they_draw():
    (one,) = layers.histogram_panels(PLANTED, [29]).axes  # 412 is reached at step 0
    (all_steps,) = layers.ridgeline(PLANTED, range(30)).axes
    assert one.get_xscale() == all_steps.get_yscale() == "asinh"
    assert one.get_xlim() == all_steps.get_ylim()
    assert one.get_xlim()[1] > GIANT > 2 * PLANTED.high[29].max()


def test_the_bulk_of_a_gaussian_has_one_peak_on_the_asinh_axis():
    found = distribution.distribution(make(768, 2, giant=5, tokens=400), [0])
    assert found.scale.linear
    smooth = np.convolve(found.counts[0], np.ones(3) / 3, "same")
    middle = np.searchsorted(found.edges, 0) - 1
    assert smooth[middle] > 0.97 * smooth.max()  # a narrow linear part would hollow it out


def test_an_asinh_axis_of_few_decades_has_marks_between_the_powers():
    scale = distribution.ValueScale(-0.3, 13.0, 0.8)
    assert list(scale.ticks(14).values()) == ["0", "0.5", "1", "2", "5", "10"]
    assert list(scale.ticks(5).values()) == ["0", "1", "10"]
    both = distribution.ValueScale(-600.0, 600.0, 0.4)
    assert list(both.ticks(14).values()) == ["−100", "−10", "−1", "0", "1", "10", "100"]
    assert list(both.ticks(6).values()) == ["−100", "0", "100"]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_histogram_keeps_its_values_and_its_extremes_in_view(data):
    finite = st.floats(-1e6, 1e6, width=32)
    edges = np.unique(data.draw(st.lists(finite, min_size=2, max_size=30, unique=True)))
    sizes = {"min_size": len(edges) - 1, "max_size": len(edges) - 1}
    counts = np.array(data.draw(st.lists(st.integers(0, 10**6), **sizes)), float)
    low, high = sorted(data.draw(st.tuples(finite, finite)))
    at = np.array([[low], [low]]), np.array([[high], [high]])
    sigmas, none = np.array([1.0, 0.5]), np.zeros((2, 1))
    both = np.stack([counts, counts])
    table = LayerTable(Site("x", 1), sigmas, sigmas, *at, none, none, none, none, edges, both)
    found = distribution.distribution(table, [1])
    assert np.isclose(found.counts.sum(), counts.sum())
    assert found.edges[0] < low <= found.p01[0] <= found.p99[0] <= high < found.edges[-1]
    assert (np.diff(found.edges) > 0).all()
    if found.scale.linear:
        ticks = np.array(list(found.scale.ticks(6)))
        assert len(ticks) >= 2
        gaps = np.diff(found.scale.forward(ticks)) / np.ptp(found.scale.forward(found.edges))
        assert gaps.min() >= 0.999 / 6


def test_ridges_run_from_noise_on_the_left_to_the_image_on_the_right():
    figure = layers.ridgeline(NORMAL, STEPS[::-1])
    (axis,) = figure.axes
    drawn(figure)
    ridges = [patch for patch in axis.patches if isinstance(patch, StepPatch)]
    pixels = [axis.transData.transform((ridge.get_data().baseline, 0))[0] for ridge in ridges]
    assert pixels == sorted(pixels)
    assert axis.get_xlabel() == "step (noise → image)"
    assert [label.get_text() for label in axis.get_xticklabels()] == [str(step) for step in STEPS]
    (top,) = axis.child_axes
    assert top.get_xlabel() == "sigma"
    labels = [float(label.get_text()) for label in top.get_xticklabels()]
    assert np.allclose(labels, NORMAL.sigmas[STEPS], rtol=0.06)
    assert labels == sorted(labels, reverse=True)


def test_ridges_stand_on_their_extremes_and_percentiles():
    table = make(192, 30, tokens=300)
    whole, central = layers.ridgeline(table, STEPS).axes[0].collections
    for place, step in enumerate(STEPS):
        ends = whole.get_segments()[place]
        assert ends.tolist() == [[place, table.low[step].min()], [place, table.high[step].max()]]
    assert whole.get_label() == "min … max"
    assert central.get_label() == "central 98 %"
    (_, p01), (_, p99) = central.get_segments()[0]
    deviation = np.sqrt(((table.std[0] ** 2) + table.mean[0] ** 2).mean())
    assert -p01 == pytest.approx(p99, rel=0.1)
    assert 2.2 * deviation < p99 < 2.9 * deviation  # 2.33 of one Gaussian, more of a mixture


def bars_by_colour(axis):
    """colour -> {channel: height} of the upright lines."""
    made = {}
    for line in axis.get_lines():
        x, y = line.get_xdata().reshape(-1, 3), line.get_ydata().reshape(-1, 3)
        assert np.isnan(x[:, 2]).all()
        assert np.array_equal(x[:, 0], x[:, 1])
        made[to_hex(line.get_color()).upper()] = dict(
            zip(x[:, 0].astype(int), y[:, 1], strict=True)
        )
    return made


@pytest.mark.parametrize("case", ["normal", "planted", "planted gelu", "narrow"])
def test_a_bar_per_channel_and_the_top_two_percent_in_red(case):
    table = CASES[case]
    ranges = table.high.max(axis=0) - table.low.min(axis=0)
    count = max(1, int(0.02 * len(ranges)))
    bars, _ = channels.channel_ranges(table).axes
    found = bars_by_colour(bars)
    red, blue = found[style.VERMILLION], found[style.BLUE]
    assert set(red) == set(np.argsort(ranges)[-count:].tolist())
    assert len(red) == count
    assert set(red) | set(blue) == set(range(len(ranges)))
    assert len(red) + len(blue) == len(ranges)
    both = blue | red
    assert np.allclose([both[channel] for channel in range(len(ranges))], ranges)
    assert bars.get_title(loc="left").endswith(f"top 2 % ({count:,} of {len(ranges):,}) in red")


@pytest.mark.parametrize(
    ("case", "giant"), [("planted", 3003), ("planted gelu", 4095), ("long", 0)]
)
def test_the_planted_channel_is_red_and_named_and_its_bar_is_not_cut(case, giant):
    bars, ranks = channels.channel_ranges(CASES[case]).axes
    assert giant in bars_by_colour(bars)[style.VERMILLION]
    named = {text.get_text(): text for text in bars.texts}
    assert named[str(giant)].xy[0] == giant
    assert named[str(giant)].xy[1] > GIANT
    assert bars.get_yscale() == "log"
    assert bars.get_ylim()[1] > 1.1 * named[str(giant)].xy[1]
    assert ranks.get_ylim() == bars.get_ylim()


def test_the_largest_channels_are_named_once_each_in_the_order_of_the_bars():
    bars, _ = channels.channel_ranges(GELU).axes
    ranges = GELU.high.max(axis=0) - GELU.low.min(axis=0)
    assert {int(text.get_text()) for text in bars.texts} == set(np.argsort(ranges)[-6:].tolist())
    places = [text.xyann[0] for text in bars.texts]
    assert places == sorted(places)
    assert [int(text.get_text()) for text in bars.texts] == sorted(
        int(text.get_text()) for text in bars.texts
    )
    for text in bars.texts:
        assert text.xy == (int(text.get_text()), ranges[int(text.get_text())])


@pytest.mark.parametrize("first", [0, 2000, 6138])
def test_names_of_neighbouring_channels_do_not_overlap(first):
    table = make(6144, 2, tokens=2)
    table.high[:, first : first + 6] = 300 + np.arange(6)
    figure = channels.channel_ranges(table)
    renderer = drawn(figure)
    boxes = [Text.get_window_extent(text, renderer) for text in figure.axes[0].texts]
    assert len(boxes) == 6
    frame = figure.axes[0].get_window_extent(renderer)
    for i, box in enumerate(boxes):
        assert frame.x0 - 1 <= box.x0 < box.x1 <= frame.x1 + 1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_ranges_of_one_size_stand_on_a_linear_axis_from_zero():
    bars, _ = channels.channel_ranges(NORMAL).axes
    assert bars.get_yscale() == "linear"
    assert bars.get_ylim()[0] == 0


def test_the_second_panel_sorts_the_ranges_by_rank():
    _, ranks = channels.channel_ranges(PLANTED).axes
    whole, top, median = ranks.get_lines()
    ranges = np.sort(PLANTED.high.max(axis=0) - PLANTED.low.min(axis=0))[::-1]
    assert np.array_equal(whole.get_ydata(), ranges)
    assert np.array_equal(whole.get_xdata(), np.arange(1, 6145))
    assert np.array_equal(top.get_ydata(), ranges[:122])
    assert median.get_ydata()[0] == np.median(ranges)
    assert ranks.get_xscale() == "log"


def test_dead_channels_and_constant_layers_have_no_bar():
    table = make(192, 3, giant=7)
    table.low[:, 50:] = table.high[:, 50:] = 0
    bars, _ = channels.channel_ranges(table).axes
    heights = bars_by_colour(bars)[style.BLUE]
    assert {heights[channel] for channel in range(50, 192)} == {bars.get_ylim()[0]}
    constant, _ = channels.channel_ranges(CASES["zero"]).axes
    assert not constant.texts
    assert constant.get_title(loc="left").endswith("all 192 channels constant")


@pytest.mark.parametrize(("case", "count"), [("normal", 192), ("planted", 128), ("narrow", 8)])
def test_rows_are_the_largest_channels_from_the_top(case, count):
    table = CASES[case]
    absmax = np.maximum(np.abs(table.low), np.abs(table.high))
    *axes, _ = channels.channel_time(table).axes
    cells = np.ma.concatenate([axis.get_images()[0].get_array() for axis in axes])
    names = {}
    first = 0
    for axis in axes:
        bottom, top = axis.get_ylim()
        assert bottom > top  # row 0 above
        for row, label in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True):
            names[first + int(row)] = int(label.get_text())
        first += len(axis.get_images()[0].get_array())
    assert cells.shape == (count, len(table.sigmas))
    order = np.argsort(-absmax.max(axis=0), kind="stable")[:count]
    assert np.array_equal(cells, absmax.T[order])
    assert set(range(min(16, count))) <= set(names)
    assert all(order[row] == channel for row, channel in names.items())


def test_the_heatmap_is_logarithmic_and_time_runs_left_to_right():
    figure = channels.channel_time(PLANTED)
    upper, lower, bar = figure.axes
    drawn(figure)
    for axis in (upper, lower):
        (image,) = axis.get_images()
        assert isinstance(image.norm, LogNorm)
        assert np.allclose((image.norm.vmin, image.norm.vmax), bar.get_ylim())
        left, right = axis.get_xlim()
        assert left < 0 < 29 < right
        assert image.get_extent()[:2] == [left, right]
    assert image.norm.vmin <= image.get_array().min()
    assert image.norm.vmax >= GIANT
    assert upper.get_yticklabels()[0].get_text() == "3003"
    assert upper.get_images()[0].get_array()[0, 0] == GIANT
    assert lower.get_xlabel() == "step (noise → image)"
    assert bar.get_ylabel() == "max |value|"
    (top,) = upper.child_axes
    for place, label in zip(top.get_xticks(), top.get_xticklabels(), strict=True):
        assert float(label.get_text()) == pytest.approx(PLANTED.sigmas[int(place)], rel=0.06)
    assert {0, 29} <= set(lower.get_xticks().tolist())


def test_zeros_are_grey_and_said_to_be():
    table = make(32, 4)
    table.low[2], table.high[2] = 0, 0
    upper, lower, bar = channels.channel_time(table).axes
    for axis in (upper, lower):
        assert axis.get_images()[0].get_array().mask[:, 2].all()
        assert not axis.get_images()[0].get_array().mask[:, [0, 1, 3]].any()
        assert to_hex(axis.get_facecolor()) == style.GREY
    assert bar.get_ylabel() == "max |value| (grey: 0)"


@pytest.mark.parametrize("steps", [[], [30], [-1], [0, 99]])
def test_steps_that_are_not_there_are_refused(steps):
    for figure in (layers.histogram_panels, layers.ridgeline, distribution.distribution_table):
        with pytest.raises(ValueError, match=r"steps must lie in 0 \.\. 29"):
            figure(NORMAL, steps)


def test_the_numbers_beside_the_histograms():
    table = distribution.distribution_table(PLANTED, STEPS)
    style.same_length(**table)
    panels = layers.histogram_panels(PLANTED, STEPS).axes
    for axis, step in zip(panels, STEPS, strict=True):
        rows = table["step"] == step
        values, ends, _ = bars_of(axis)
        assert np.array_equal(table["values"][rows], values)
        assert np.array_equal(table["bin_low"][rows], ends[:-1])
        assert np.array_equal(table["bin_high"][rows], ends[1:])
        assert set(table["max"][rows]) == {PLANTED.high[step].max()}
        assert set(table["min"][rows]) == {PLANTED.low[step].min()}
        assert set(table["sigma"][rows]) == {PLANTED.sigmas[step]}
        assert set(table["timestep"][rows]) == {PLANTED.timesteps[step]}
        assert (table["p01"][rows] < table["p99"][rows]).all()


def test_the_numbers_beside_the_channel_figures():
    table = channels.channel_range_table(PLANTED)
    style.same_length(**table)
    assert table["top"].sum() == 122
    assert table["top"][3003] == 1
    assert table["range"].argmax() == 3003
    assert table["max"][3003] == GIANT
    assert np.array_equal(table["range"], table["max"] - table["min"])
    table = channels.channel_time_table(PLANTED)
    style.same_length(**table)
    assert len(table["step"]) == 128 * 30
    assert table["channel"][0] == 3003
    for row in (0, 29, 30, 3839):
        step, channel = table["step"][row], table["channel"][row]
        ends = PLANTED.low[step, channel], PLANTED.high[step, channel]
        assert table["absmax"][row] == np.abs(ends).max()
        assert table["sigma"][row] == PLANTED.sigmas[step]
        assert table["timestep"][row] == PLANTED.timesteps[step]


@pytest.mark.slow
def test_files_exist_and_are_the_same_bytes_twice(tmp_path):
    tables = (
        distribution.distribution_table(NORMAL, STEPS),
        distribution.distribution_table(NORMAL, STEPS),
        channels.channel_range_table(NORMAL),
        channels.channel_time_table(NORMAL),
    )
    for name, table in zip(FIGURES, tables, strict=True):
        contents = []
        for folder in (tmp_path / "one", tmp_path / "two"):
            folder.mkdir(exist_ok=True)
            made = style.save(FIGURES[name](NORMAL), folder, f"{name}_mm_20_txt", table)
            assert [path.suffix for path in made] == [".png", ".svg", ".csv"]
            contents.append([path.read_bytes() for path in made])
        assert contents[0] == contents[1]
        rows = list(csv.reader(made[-1].read_text("utf-8").splitlines()))
        assert rows[0] == list(table)
        assert len(rows) == 1 + len(next(iter(table.values())))


def test_dense_bars_are_a_picture_inside_the_vector_file(tmp_path):
    size = {}
    for name, table in (("few", NORMAL), ("many", PLANTED)):
        _, svg, _ = style.save(channels.channel_ranges(table), tmp_path, name, {"x": [0]})
        size[name] = len(svg.read_bytes())
        assert (b"<image" in svg.read_bytes()) == (name == "many")
    assert size["many"] < 300_000


def test_importing_the_figures_loads_no_matplotlib_and_drawing_no_pyplot():
    code = (
        "import sys; from taqdit.plots import layers; print('matplotlib' in sys.modules);"
        "sys.path.insert(0, 'tests'); from test_plots_layers import FIGURES, NORMAL;"
        "[figure(NORMAL) for figure in FIGURES.values()];"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
