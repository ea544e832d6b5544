"""Figures of the analysis: what is drawn is what the tables say, the right way round, readable."""

import csv
import itertools
import subprocess
import sys
import warnings
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import slow_unless
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_hex
from test_plots_overview import PLACES, names, panel, sigmas_of, texts_drawn

from taqdit.activations import Site
from taqdit.analysis import allocation
from taqdit.analysis.bits import BitWidths, LayerBits, protected
from taqdit.analysis.drift import Drift
from taqdit.analysis.selections import Curve
from taqdit.plots import bits, drift, scores, style

ROOT = Path(__file__).resolve().parent.parent
RULES = (
    "paper_uniform",
    "dense_middle",
    "every_nth",
    "midpoint",
    "interleaved",
    "stratified_random",
    "random_per_trajectory",
    "sigma_uniform",
    "normal",
    "coverage_optimal",
    "regret_optimal",
    "drift_weighted",
)


def scored(loss, *, own=1, gain=(1.2, 0.6, 0.04), count=17.0, half=0.3, sure=0.5):
    """Scores of losses (R,) at 8 bits, half at 6 and a twentieth at 4; intervals of +- `half` of
    the loss. Two are told apart if the smaller is less than `sure` times the larger."""
    loss = np.outer(loss, (1, 0.5, 0.05))

    def differ(one, other, bits):
        pair = sorted(loss[[one, other], (8, 6, 4).index(bits)])
        return bool(pair[0] < sure * pair[1])

    rules = tuple(itertools.islice(itertools.cycle(RULES), len(loss)))
    fitted, exact = np.arange(len(loss)) % 5 == 2, np.arange(len(loss)) % 4 != 1

    def label(place):
        return rules[place] + "†" * bool(fitted[place]) + "~" * (not exact[place])

    return SimpleNamespace(
        rules=rules,
        fitted=fitted,
        exact=exact,
        label=label,
        counts=count - np.arange(len(loss)) % 3 / 3,
        own=own,
        loss=loss,
        loss_low=(1 - half) * loss,
        loss_high=(1 + half) * loss,
        losses=SimpleNamespace(differ=differ),
        dynamic_gain=np.array(gain),
    )


def unknown():
    """One selection without a value, no interval at all, no gain known at 6 bits."""
    return scored([0.2, np.nan, 0.1, 0.4], half=np.nan, sure=0, gain=(1.2, np.nan, 0.04))


DECADES = 10 ** np.linspace(-3, 0.5, 12)[::-1]
SCORES = {
    "narrow": lambda: scored(np.linspace(0.3, 0.1, 6)),
    "decades": lambda: scored(np.where(DECADES < 0.002, 0, DECADES)),
    "many": lambda: scored(np.linspace(0.1, 3, 30), own=29),
    "one": lambda: scored([0.13], own=0),
    "zero": lambda: scored(np.zeros(3), own=None),
    "equal": lambda: scored(np.full(5, 0.2)),
    "huge": lambda: scored([40.0, 900.0, 0.01, 0.02, 0.03], count=100.0, half=1.0),
    "unknown": unknown,
}


def curve(place, counts=(2, 3, 4, 6, 8, 12, 17, 25, 50), *, level=3.0):
    """A loss that falls with the number of steps and is zero with all of them."""
    k = np.array(counts, float)
    fall = level * 0.8**place * (2 / k) ** (0.8 + 0.1 * place) * (k < 50)
    loss = np.outer(fall, (1, 0.6, 0.2))
    return Curve((RULES * 2)[place], k, loss, 0.7 * loss, 1.4 * loss, place == 3)


def unordered():
    made = curve(0)
    columns = (made.counts, made.loss, made.loss_low, made.loss_high)
    return Curve(made.rule, *(column[::-1] for column in columns))


def gaps():
    made = curve(1, (2, 5, 9, 14))
    low = np.full_like(made.loss, np.nan)
    return Curve(made.rule, made.counts, np.where(made.loss > 1, np.nan, made.loss), low, low)


CURVES = {
    "ten": lambda: ([curve(place) for place in range(10)], 17),
    "fifteen": lambda: ([curve(place) for place in range(15)], 17),
    "one": lambda: ([curve(0, level=0.2)], None),
    "points": lambda: ([curve(place, (17,)) for place in range(3)], 17),
    "mixed": lambda: ([curve(0), curve(1, (17,)), curve(6, (4, 8, 12))], 17),
    "few counts": lambda: ([curve(0, (4, 5, 6, 7))], 5),
    "zero": lambda: ([curve(0, (50, 60))], None),
    "unordered": lambda: ([unordered(), curve(3)], 8.5),
    "gaps": lambda: ([curve(0), gaps()], 9),
}


def drifting(sites, steps, phases=(), *, seed=0):
    """Sites that change more towards the image, each with borders near those of all."""
    rng, sigmas = np.random.default_rng(seed), sigmas_of(steps)
    level = 0.01 * np.exp(rng.normal(0, 1, (len(sites), 1)))
    distance = level * (1 + 10 * (1 - sigmas[1:]) ** 4) * rng.uniform(0.8, 1.2, (1, steps - 1))
    moved = [np.clip(np.array(phases, int) + rng.integers(-2, 3), 1, steps - 1) for _ in sites]
    borders = tuple(tuple(sorted(set(each.tolist()))) for each in moved)
    named = tuple(Site(name, 8) for name in sites)
    none = np.zeros_like(distance)
    return Drift(named, sigmas, 1000 * sigmas, none, none, none, distance, borders, tuple(phases))


def changed(made, **arrays):
    fields = {name: getattr(made, name) for name in Drift.__dataclass_fields__}
    return Drift(**(fields | arrays))


def partly():
    """A site without values, one that does not move."""
    made = drifting(names(4), 30, (9, 21))
    distance = made.distance.copy()
    distance[3], distance[5] = np.nan, 0
    return changed(made, distance=distance)


def still(value):
    made = drifting(["mm_00_img.post_gelu"], 5)
    return changed(made, distance=np.full_like(made.distance, value))


DRIFTS = {
    "tiny": lambda: drifting(names(4), 30, (9, 21)),
    "sd3_medium": lambda: drifting(names(24), 100, (30, 70)),
    "unified": lambda: drifting(names(5, unified=9), 28, (2, 4, 8, 14, 20)),
    "post_gelu": lambda: drifting([n for n in names(24) if "gelu" in n], 50, (15, 35)),
    "one_site": lambda: drifting(["mm_03_txt.o_in"], 12, (4, 8)),
    "outside": lambda: drifting(["embed.context_in", "final.linear_in"], 6, (3,)),
    "two_steps": lambda: drifting(names(1), 2),
    "partly": partly,
    "still": lambda: still(0.0),
    "empty": lambda: still(np.nan),
}


def linears(blocks, unified=0):
    """The linears of SD3."""
    made = [f"embed.{name}" for name in ("context", "x", "y_0", "y_2", "t_0", "t_2")]
    for block, stream in itertools.product(range(blocks), ("img", "txt")):
        last = (block, stream) == (blocks - 1, "txt")
        kinds = ("q_proj", "k_proj", "v_proj", "adaln") if last else bits.KINDS
        made += [f"mm_{block:02d}_{stream}.{kind}" for kind in kinds]
    made += [f"uni_{block:02d}.{kind}" for block in range(unified) for kind in bits.KINDS]
    return [*made, "final.linear", "final.adaln"]


def layer(name, weight=4, activation=6, **changes):
    fields = dict.fromkeys(LayerBits.__dataclass_fields__)
    fields |= {"layer": name, "weight_bits": weight, "activation_bits": activation}
    fields |= {"weight_sqnr": 25.0, "activation_sqnr": 25.0, "clips": False, "met": True}
    return LayerBits(**(fields | {"why": "", "floored": False, "severity": 0.0} | changes))


def widths(layers, target=20.0):
    return BitWidths("seed" if target is None else "sqnr", target, "channel", tuple(layers))


def recommended(layers, *, seed=0, weights=True, activations=True):
    """Random widths; adaLN and embedders are protected and not traced, some inputs miss 20 dB."""
    rng, made = np.random.default_rng(seed), []
    for name in layers:
        kept = protected(name)
        traced = activations and (name in ("embed.context", "final.linear") or not kept)
        weight, activation = rng.choice((4, 6, 8), 2).tolist()
        missed = traced and not kept and activation == 8 and rng.random() < 0.3
        pair = 8 if kept else weight, 8 if kept else activation
        sqnr = {"activation_sqnr": 15.0 if missed else 25.0} if traced else {}
        flags = {"met": not missed, "floored": kept, **sqnr}
        made.append(layer(name, pair[0] if weights else None, pair[1] if traced else None, **flags))
    return widths(made)


BITS = {
    "tiny": lambda: recommended(linears(4)),
    "sd3_medium": lambda: recommended(linears(24)),
    "sd35_large": lambda: recommended(linears(38)),
    "unified": lambda: recommended(linears(5, unified=9)),
    "weights": lambda: recommended(linears(24), activations=False),
    "activations": lambda: recommended(linears(4), weights=False),
    "one": lambda: widths([layer("mm_03_txt.fc2")]),
    "outside": lambda: widths([layer("final.linear", 8, 8, floored=True)]),
    "seed": lambda: widths([layer(name) for name in linears(4)], target=None),
    "nothing known": lambda: widths([layer("mm_03_txt.fc2", None, None)]),
}


def noises(count, spread=4.0, seed=0):
    """SQNR (count, 3) at 8, 6 and 4 bits."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(18, spread, (count, 1)) + np.array([24, 12, 0]) + rng.normal(0, 0.5, (count, 3))
    )


ERRORS = {
    "both": lambda: ((noises(47), noises(67, 2.0, 1)), [(5.1, 24.0), (5.6, 25.0)]),
    "sd3_medium": lambda: ((noises(191, 8.0), noises(342, 3.0, 1)), [(5.1, 24.0), (5.6, 25.0)]),
    "one": lambda: ((noises(1), None), []),
    "equal": lambda: ((np.tile([40.0, 30.0, 20.0], (9, 1)), None), [(6.0, 30.0)]),
    "weightless": lambda: ((noises(9), np.full((2, 3), np.inf)), [(6.0, 30.0), (4.0, np.inf)]),
    "unknown": lambda: ((np.full((2, 3), np.nan), None), []),
}
TABLES = {
    "selection_scores": SCORES,
    "score_versus_k": CURVES,
    "drift_heatmap": DRIFTS,
    "bits_per_layer": BITS,
    "error_versus_bits": ERRORS,
}
MODULES = dict(zip(TABLES, (scores, scores, drift, bits, bits), strict=True))
LARGE = ("sd3_medium", "sd35_large", "unified", "many", "fifteen", "mixed", "outside")
CASES = [(figure, case) for figure, cases in TABLES.items() for case in cases]
QUICK = [(figure, case) for figure, case in CASES if case not in LARGE]
MADE = cache(lambda figure, case: TABLES[figure][case]())


@cache
def call(figure, case, ending=""):
    """The figure, or with the ending `_table` its numbers; a warning is an error."""
    made, function = MADE(figure, case), getattr(MODULES[figure], figure + ending)
    if figure == "score_versus_k":
        function = partial(function, budget=made[1])
        made = made[0]
    elif figure == "error_versus_bits":
        function = partial(function, chosen=made[1])
        return strictly(lambda: function(*made[0]))
    return strictly(lambda: function(made))


def strictly(function):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function()


@pytest.mark.parametrize(("name", "case"), slow_unless(QUICK, CASES))
def test_no_text_overlaps_another_or_leaves_the_page(name, case, monkeypatch):
    figure = call(name, case)
    assert figure.get_figwidth() in (style.PAGE, style.COLUMN)
    texts = texts_drawn(figure, monkeypatch)
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in texts:
        assert -0.5 <= box.x0 < box.x1 <= width + 0.5, text
        assert -0.5 <= box.y0 < box.y1 <= height + 0.5, text
    for (one, a), (other, b) in itertools.combinations(texts, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across < 0.5 or along < 0.5, (one, other)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_csv_reads_back_as_the_table(name, case, tmp_path):
    table = call(name, case, "_table")
    assert all(isinstance(column, list) for column in table.values())
    path = tmp_path / "numbers.csv"
    style.publish_csv(path, table)
    rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
    for column, values in table.items():
        if all(isinstance(value, int | float) for value in values):
            assert np.array_equal([float(row[column]) for row in rows], values, equal_nan=True)
        else:
            assert [row[column] for row in rows] == [str(value) for value in values]


@pytest.mark.parametrize("name", slow_unless(["error_versus_bits", "selection_scores"], TABLES))
def test_files_are_made_and_are_the_same_bytes_twice(name, tmp_path):
    case = next(iter(TABLES[name]))
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        figure = call.__wrapped__(name, case)
        files = style.save(figure, folder, name, call(name, case, "_table"))
        contents.append([path.read_bytes() for path in files])
    assert [path.name for path in files] == [f"{name}.{k}" for k in ("png", "svg", "csv")]
    assert contents[0] == contents[1]


def legend(figure):
    return [text.get_text() for each in figure.legends for text in each.get_texts()]


def bars(axis):
    """The bars from the top down, without the tinted row."""
    return [bar for bar in axis.patches if bar.get_height() < 0.9]


@pytest.mark.parametrize("case", ["narrow", "decades", "equal", "many"])
def test_bars_are_as_long_as_the_losses_and_the_best_is_on_top(case):
    made, figure = MADE("selection_scores", case), call("selection_scores", case)
    order = sorted(range(len(made.rules)), key=lambda i: made.loss[i, 0])
    FigureCanvasAgg(figure).draw()
    for width, (axis, title) in enumerate(zip(figure.axes, ("8", "6", "4"), strict=True)):
        assert axis.get_title(loc="left") == f"{title} bits"
        assert [bar.get_width() for bar in bars(axis)] == made.loss[order, width].tolist()
        assert {bar.get_x() for bar in bars(axis)} == {0}
        heights = [bar.get_window_extent().y0 for bar in bars(axis)]
        assert heights == sorted(heights, reverse=True)
        (whiskers,) = axis.collections
        ends = [segment[:, 0].tolist() for segment in whiskers.get_segments()]
        assert ends == np.stack([made.loss_low, made.loss_high])[:, order, width].T.tolist()
        assert axis.get_xlim()[0] == 0
        assert axis.get_xlim() == figure.axes[0].get_xlim()
        assert axis.get_xlim()[1] > made.loss_high.max()
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [f"{made.label(i)} ({round(made.counts[i], 1):g})" for i in order]
    assert any("†" in label for label in labels)
    assert "† steps chosen from these statistics; ~ trajectories" in figure.get_supxlabel()
    table = call("selection_scores", case, "_table")
    assert table["rule"] == [made.rules[i] for i in order]
    assert table["loss_8bit"] == made.loss[order, 0].tolist()
    assert table["loss_high_4bit"] == made.loss_high[order, 2].tolist()
    assert set(table["dynamic_gain_6bit"]) == {0.6}


@pytest.mark.parametrize(("case", "own"), [("narrow", 1), ("many", 29), ("zero", None)])
def test_the_row_of_the_runs_own_selection_is_tinted(case, own):
    made, figure = MADE("selection_scores", case), call("selection_scores", case)
    order = np.argsort(made.loss[:, 0], kind="stable").tolist()
    for axis in figure.axes:
        rows = [patch for patch in axis.patches if patch.get_height() > 0.9]
        assert [row.get_y() + 0.5 for row in rows] == ([order.index(own)] if own else [])
    assert ("this run's selection" in legend(figure)) == (own is not None)
    assert sum(call("selection_scores", case, "_table")["own"]) == (own is not None)


def test_bars_are_grey_where_the_folds_tell_them_from_the_best():
    made = scored([0.2, 0.1, 0.3], half=0.9)  # all intervals overlap
    made.loss[:, 2] = [0.01, 0.06, 0.03]  # at 4 bits another one is the best
    assert scores.told_apart(made, 8).tolist() == [False, False, True]
    assert scores.told_apart(made, 4).tolist() == [False, True, True]
    grey = [
        [to_hex(bar.get_facecolor()) == scores.WORSE for bar in bars(axis)]
        for axis in scores.selection_scores(made).axes
    ]
    assert grey == [[False, False, True], [False, False, True], [True, False, True]]


def test_what_is_not_known_is_said():
    figure = call("selection_scores", "unknown")
    for axis in figure.axes:
        assert [text.get_text() for text in axis.texts].count("no value") == 1
        assert axis.texts[-1].get_text() == "no value"  # at the bottom
        assert {to_hex(bar.get_facecolor()).upper() for bar in bars(axis)} == {style.BLUE}
    assert "gains 1.20 dB at 8 bits, 0.040 dB at 4 bits\n" in figure.get_supxlabel()


def test_losses_over_decades_get_an_axis_that_is_linear_about_zero_and_says_so():
    wide, narrow = call("selection_scores", "decades"), call("selection_scores", "narrow")
    assert {axis.get_xscale() for axis in wide.axes} == {"symlog"}
    assert "linear up to 0.01, then logarithmic" in wide.get_supxlabel()
    ticks = wide.axes[0].get_xticks().tolist()
    assert ticks == [0, 0.01, 0.1, 1]
    assert {axis.get_xscale() for axis in narrow.axes} == {"linear"}
    assert "logarithmic" not in narrow.get_supxlabel()
    assert call("selection_scores", "zero").axes[0].get_xlim()[1] >= scores.SMALL


def test_every_bar_has_its_number():
    texts = [text.get_text() for text in call("selection_scores", "decades").axes[2].texts]
    assert texts[:3] == ["0", "<0.001", "<0.001"]
    assert texts[-1] == "0.16"


def handles_of(axis):
    return {line.get_label(): line for line in axis.get_lines() if len(line.get_xdata()) > 0}


@pytest.mark.parametrize("case", ["ten", "mixed", "unordered", "one", "few counts"])
def test_curves_hold_the_losses_in_the_order_of_their_counts(case):
    curves, budget = MADE("score_versus_k", case)
    figure = call("score_versus_k", case)
    for width, axis in enumerate(figure.axes):
        lines = handles_of(axis)
        for each in curves:
            order = np.argsort(each.counts)
            line = lines[each.rule + "†" * each.fitted]
            assert np.array_equal(line.get_xdata(), each.counts[order])
            assert np.array_equal(line.get_ydata(), each.loss[order, width])
        left, right = axis.get_xlim()
        counts = np.concatenate([each.counts for each in curves])
        assert left <= counts.min() < counts.max() <= right
        assert axis.get_ylim() == figure.axes[0].get_ylim()
        assert axis.get_ylim()[0] == 0
        assert axis.get_ylim()[1] > max(each.loss_high.max() for each in curves)
        marks = [line for label, line in lines.items() if label.startswith("compared")]
        assert [mark.get_xdata()[0] for mark in marks] == ([budget] if budget else [])
    looks = {(li.get_color(), str(li._dash_pattern)) for li in lines.values()}
    assert len(looks) == len(lines)


def test_bands_reach_from_one_end_of_the_interval_to_the_other():
    curves, _ = MADE("score_versus_k", "mixed")
    axis = call("score_versus_k", "mixed").axes[1]
    bands = [each for each in axis.collections if isinstance(each, PolyCollection)]
    (stick,) = [each for each in axis.collections if isinstance(each, LineCollection)]
    for each, band in zip(
        (curves[0], curves[2]),
        sorted(bands, key=lambda b: -len(b.get_paths()[0].vertices)),
        strict=True,
    ):
        drawn = {tuple(vertex) for vertex in band.get_paths()[0].vertices.tolist()}
        for ends in (each.loss_low, each.loss_high):
            assert set(zip(each.counts.tolist(), ends[:, 1].tolist(), strict=True)) <= drawn
    ends = [curves[1].loss_low[0, 1], curves[1].loss_high[0, 1]]
    assert stick.get_segments()[0].tolist() == [[17, ends[0]], [17, ends[1]]]


def test_the_legend_has_the_best_at_the_budget_first():
    curves, budget = MADE("score_versus_k", "ten")
    place = {each.rule: each.loss[list(each.counts).index(budget), 0] for each in curves}
    names = {each.rule: each.rule + "†" * each.fitted for each in curves}
    shown = legend(call("score_versus_k", "ten"))
    assert shown[-1] == "compared at 17 steps"
    assert shown[:-1] == [names[rule] for rule in sorted(place, key=place.get)]
    assert sum("†" in text for text in shown) == 1
    assert "† steps chosen" in call("score_versus_k", "ten").get_supxlabel()
    table = call("score_versus_k", "ten", "_table")
    assert list(dict.fromkeys(table["rule"])) == sorted(place, key=place.get)
    rows = [i for i, rule in enumerate(table["rule"]) if rule == RULES[4]]
    assert [table["steps_per_trajectory"][i] for i in rows] == curves[4].counts.tolist()
    assert [table["loss_low_6bit"][i] for i in rows] == curves[4].loss_low[:, 1].tolist()


def test_axes_of_curves_are_logarithmic_where_the_numbers_are_spread():
    wide, near = call("score_versus_k", "ten").axes[0], call("score_versus_k", "few counts").axes[0]
    assert (wide.get_xscale(), wide.get_yscale()) == ("log", "symlog")
    assert (near.get_xscale(), near.get_yscale()) == ("linear", "linear")
    ticks = [tick for tick in call("score_versus_k", "points").axes[0].get_xticks()]
    assert all(tick == int(tick) for tick in ticks)


def mesh(axis):
    (found,) = [each for each in axis.collections if isinstance(each, QuadMesh)]
    return found


@pytest.mark.parametrize("case", ["tiny", "sd3_medium", "unified", "partly"])
def test_every_cell_is_the_distance_of_its_layer_between_two_sigmas(case):
    made, figure = MADE("drift_heatmap", case), call("drift_heatmap", case)
    order = sorted(made.sites, key=lambda s: ("img", "txt", "joint").index(s.stream))
    rows = list(dict.fromkeys(s.name.split(".")[0] for s in order if s.place in PLACES))
    number = {site.name: i for i, site in enumerate(made.sites)}
    panels = {place: [f"{row}.{place}" for row in rows] for place in PLACES}
    panels["outside"] = ["embed.context_in", "final.linear_in"]
    for title, sites in panels.items():
        axis = panel(figure, title)
        cells = mesh(axis)
        low, high = cells.norm.vmin, cells.norm.vmax
        array = np.ma.filled(cells.get_array(), np.nan).reshape(len(sites), -1)
        missing = np.full(len(made.sigmas) - 1, np.nan)
        for row, name in zip(array, sites, strict=True):
            expected = made.distance[number[name]] if name in number else missing
            assert np.array_equal(row, np.where(expected < low, low, expected), equal_nan=True)
        edges = cells.get_coordinates()
        assert np.array_equal(edges[0, :, 0], made.sigmas)
        assert np.array_equal(edges[:, 0, 1], np.arange(len(sites) + 1) - 0.5)
        assert axis.get_xlim() == (made.sigmas[0], made.sigmas[-1])  # noise on the left
        assert axis.get_ylim()[0] > axis.get_ylim()[1]  # row 0 above
        assert low < np.nanmax(made.distance) <= high
    assert figure.get_supxlabel() == "sigma (noise → image)"


def test_borders_stand_between_the_last_step_of_a_phase_and_the_first_of_the_next():
    made = changed(drifting(["mm_00_img.o_in", "mm_00_txt.o_in"], 10, (4, 7)), borders=((2, 8), ()))
    axis = panel(drift.drift_heatmap(made), "o_in")
    middle = {
        border: (made.sigmas[border - 1] + made.sigmas[border]) / 2 for border in range(1, 10)
    }
    lines = [
        line.get_xdata()[0]
        for line in axis.get_lines()
        if line.get_xdata()[0] == line.get_xdata()[1]
    ]
    assert lines == [middle[4], middle[7]]
    ticks = [c for c in axis.collections if isinstance(c, LineCollection)]
    drawn = np.concatenate([c.get_segments() for c in ticks if len(c.get_segments())])
    assert drawn.tolist() == [[[middle[border], -0.5], [middle[border], 0.5]] for border in (2, 8)]
    table = drift.drift_heatmap_table(made)
    first = {name: column[:9] for name, column in table.items()}
    assert set(first["site"]) == {"mm_00_img.o_in"}
    assert [
        step for step, border in zip(first["to_step"], first["border"], strict=True) if border
    ] == [2, 8]
    assert [
        step for step, at in zip(first["to_step"], first["border_of_all"], strict=True) if at
    ] == [4, 7]
    assert first["distance"] == made.distance[0].tolist()
    assert first["to_sigma"] == made.sigmas[1:].tolist()
    assert sum(table["border"]) == 2


def strip(figure):
    (found,) = [axis for axis in figure.axes if axis.child_axes]
    return found


@pytest.mark.parametrize(
    ("case", "texts"),
    [
        ("tiny", ["early", "mid: steps 9–20", "late: steps 21–29"]),
        ("unified", ["1", "2", "3", "phase 4", "phase 5", "phase 6: steps 20–27"]),
        ("two_steps", ["phase 1: steps 0–1"]),
    ],
)
def test_phases_are_named_where_they_are(case, texts):
    made, axis = MADE("drift_heatmap", case), strip(call("drift_heatmap", case))
    assert [text.get_text() for text in axis.texts] == texts
    ends = [made.sigmas[0], *drift.border_sigmas(made.phases, made.sigmas), made.sigmas[-1]]
    assert [text.get_position()[0] for text in axis.texts] == [
        (begin + end) / 2 for begin, end in itertools.pairwise(ends)
    ]
    (top,) = axis.child_axes
    FigureCanvasAgg(axis.figure).draw()
    for place, label in zip(top.get_xticks(), top.get_xticklabels(), strict=True):
        assert made.sigmas[int(label.get_text())] == place


def test_grey_is_explained_where_it_occurs_and_borders_where_there_are_any():
    note = "no such site or no value"
    lines = ["phase border of all sites", "phase border of one site"]
    assert legend(call("drift_heatmap", "tiny")) == [*lines, note]
    assert legend(call("drift_heatmap", "outside")) == lines
    assert legend(call("drift_heatmap", "still")) == []
    assert legend(call("drift_heatmap", "empty")) == [note]


def test_drift_of_a_single_step_is_refused():
    for function in (drift.drift_heatmap, drift.drift_heatmap_table):
        with pytest.raises(ValueError, match="two steps, not 1"):
            function(drifting(names(1), 1))


def maps(figure):
    """Part -> (map, strip)."""
    axes = [axis for axis in figure.axes if axis.collections]
    found, part = {}, None
    for axis in axes:
        part = axis.get_title(loc="left").split(":")[0] or part
        found.setdefault(part, []).append(axis)
    return found


def labels(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


@pytest.mark.parametrize("case", ["tiny", "sd3_medium", "unified", "activations", "weights"])
def test_every_cell_is_the_width_of_its_linear(case):
    made, found = MADE("bits_per_layer", case), maps(call("bits_per_layer", case))
    drawn = {}
    for part, (main, side) in found.items():
        array = mesh(main).get_array()
        for row, kind in enumerate(labels(main)):
            stream, _, kind = kind.partition(".")
            for block in range(array.shape[1]):
                name = f"uni_{block:02d}" if stream == "uni" else f"mm_{block:02d}_{stream}"
                if not np.ma.getmaskarray(array)[row, block]:
                    drawn[part, f"{name}.{kind}"] = array[row, block]
        beside = mesh(side).get_array()[:, 0].tolist()
        drawn |= {(part, name): v for name, v in zip(labels(side), beside, strict=True)}
    expected = {}
    for each in made.layers:
        pair = {"weights": each.weight_bits, "activations": each.activation_bits}
        expected |= {(part, each.layer): pair[part] for part in found}
    codes = {4: 0, 6: 1, 8: 2, None: 3}
    assert drawn == {key: codes[width] for key, width in expected.items()}
    for part, (main, _) in found.items():
        mean = np.mean([w for (p, _), w in expected.items() if p == part and w is not None])
        assert main.get_title(loc="left") == f"{part}: {mean:.2f} bits on average"
        assert main.get_ylim()[0] > main.get_ylim()[1]
        assert main.get_xlim()[0] < main.get_xlim()[1]
        colours = mesh(main).cmap(mesh(main).norm(np.arange(4)))
        assert [to_hex(colour) for colour in colours] == [*bits.SHADES, style.GREY]
        light = colours[:3, :3].sum(axis=1)
        assert light[0] > light[1] > light[2]  # more bits are darker


def test_rows_are_the_kinds_of_each_stream_in_the_order_of_the_data_flow():
    (main, side), _ = maps(call("bits_per_layer", "unified")).values()
    assert labels(main) == [f"{s}.{kind}" for s in ("img", "txt", "uni") for kind in bits.KINDS]
    assert labels(side)[0] == "embed.context"
    assert labels(side)[-1] == "final.adaln"


def marked(axis):
    return {
        to_hex(c.get_facecolor()[0]): [tuple(place) for place in c.get_offsets().tolist()]
        for c in axis.collections
        if isinstance(c, PathCollection)
    }


def test_protected_and_missed_ones_are_marked_in_the_part_they_concern():
    made = widths(
        [
            layer("mm_00_img.q_proj", 8, 8, met=False, activation_sqnr=12.0),
            layer("mm_00_img.fc1", 8, 6, met=False, weight_sqnr=12.0),
            layer("mm_01_img.fc1", 8, None, floored=True, activation_sqnr=None),
        ]
    )
    figure = bits.bits_per_layer(made)
    found = maps(figure)
    red = to_hex(style.VERMILLION)
    assert marked(found["weights"][0]) == {"#ffffff": [(1, 1)], red: [(0, 1)]}
    assert marked(found["activations"][0]) == {red: [(0, 0)]}
    assert legend(figure) == [
        *("4 bits", "6 bits", "8 bits", "input not traced"),
        *("kept at 8 bits (protected)", "8 bits miss 20 dB"),
    ]
    table = bits.bits_per_layer_table(made)
    assert table["activation_bits"] == [8, 6, ""]
    assert table["protected"] == [0, 0, 1]
    assert table["met"] == [0, 0, 1]
    assert legend(call("bits_per_layer", "seed")) == ["4 bits", "6 bits", "8 bits"]


def test_no_layer_is_refused():
    with pytest.raises(ValueError, match="no layer"):
        bits.bits_per_layer(widths([]))


def slowly(sqnr):
    """Mean bits and dB, one step up after the other, whatever gains most next."""
    noise, level = 10 ** (-sqnr[:, ::-1] / 10), np.zeros(len(sqnr), int)
    points = []
    while True:
        now = noise[np.arange(len(noise)), level]
        points.append((4 + 2 * level.mean(), -10 * np.log10(now.mean())))
        if (level == 2).all():
            return np.array(points)
        after = noise[np.arange(len(noise)), np.minimum(level + 1, 2)]
        gain = np.where(level < 2, now - after, -np.inf)
        level[gain.argmax()] += 1


@given(st.integers(1, 6), st.integers(0, 10**6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_more_bits_go_to_the_site_that_gains_most(count, seed, odd):
    rng = np.random.default_rng(seed)
    steps = rng.uniform(0.1, 30 if odd else 14, (count, 2))  # odd: the second step may gain more
    sqnr = rng.uniform(-5, 40, (count, 1)) + np.cumsum(np.pad(steps, ((0, 0), (1, 0))), axis=1)
    found = np.stack(allocation.greedy(sqnr[:, ::-1]), axis=1)
    assert np.allclose(found, slowly(sqnr[:, ::-1]), rtol=1e-9)


def test_the_greedy_line_is_never_below_uniform_widths_and_meets_their_ends():
    sqnr = noises(50)
    mean, reached = allocation.greedy(sqnr)
    uniform = [allocation.mean_decibel(sqnr[:, column]) for column in (2, 1, 0)]
    assert np.allclose(np.interp([4, 8], mean, reached), [uniform[0], uniform[2]])
    assert reached[mean.index(6)] > uniform[1]
    assert len(mean) == 101


def test_mean_decibel_is_that_of_the_mean_noise():
    assert allocation.mean_decibel(np.array([10.0, 20.0])) == pytest.approx(-10 * np.log10(0.055))
    assert allocation.mean_decibel(np.array([10.0, np.nan])) == pytest.approx(10)
    assert allocation.mean_decibel(np.array([10.0, np.inf])) == pytest.approx(-10 * np.log10(0.05))
    assert np.isnan(allocation.mean_decibel(np.array([np.nan])))


@pytest.mark.parametrize("case", ["both", "equal"])
def test_points_are_those_of_the_table(case):
    table = call("error_versus_bits", case, "_table")
    figure = call("error_versus_bits", case)
    (axis,) = figure.axes
    rows = list(zip(*table.values(), strict=True))
    for line in axis.get_lines():
        wanted = [row[2:] for row in rows if f"{row[0]}: {row[1]}" == line.get_label()]
        assert np.array_equal(line.get_xydata(), wanted)
    (activations, weights), chosen = MADE("error_versus_bits", case)
    parts = 1 if weights is None else 2
    assert len(axis.get_lines()) == len(legend(figure)) == 3 * parts
    points = [row[2:] for row in rows if row[1] == "recommended"]
    assert points == chosen
    uniform = [row for row in rows if row[:2] == ("activations", "uniform")]
    assert [row[2] for row in uniform] == [4, 6, 8]
    assert uniform[0][3] == allocation.mean_decibel(activations[:, 2])
    low, high = axis.get_ylim()
    assert low < uniform[0][3] < uniform[2][3] < high
    assert axis.get_xlim() == (4, 8)


def test_sites_without_numbers_are_left_out():
    sqnr = noises(9)
    more = np.concatenate([sqnr, np.full((2, 3), np.nan)])
    assert allocation.greedy(more) == bits.greedy(sqnr)
    assert allocation.greedy(more[-2:]) == ([], [])
    assert len(call("error_versus_bits", "weightless").axes[0].get_lines()) == 3


@pytest.mark.slow
def test_importing_the_figures_loads_no_matplotlib_and_drawing_no_pyplot():
    code = (
        "import sys; from taqdit.plots import bits, drift, scores;"
        "print([m for m in ('matplotlib', 'mlx') if m in sys.modules]);"
        "sys.path.insert(0, 'tests'); from test_plots_analysis import TABLES, call;"
        "[call(name, next(iter(cases))) for name, cases in TABLES.items()];"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nFalse\n"
