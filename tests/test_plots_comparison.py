"""Figures of several runs: every number is drawn where it belongs, and nothing else."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection

from taqdit.plots import comparison as plots
from taqdit.plots.pictures import picture_table, picture_table_table
from taqdit.plots.style import rendered

NAN = float("nan")


def row(group, name, loss, half=0.1):
    return plots.LossRow(group, name, np.array([loss, loss / 2, loss / 4]), np.full(3, half))


ROWS = [row("cfg=1", "a", 0.4), row("cfg=1", "b", 0.05), row("cfg=2", "a", 0.2, NAN)]


def line(panel, name, x, loss, half):
    """Losses at 8 bits, half of them at 6, a quarter at 4."""
    widths = np.array([1.0, 0.5, 0.25])
    return plots.LossLine(panel, name, np.array(x), np.outer(loss, widths), np.outer(half, widths))


LINES = [
    line("steps=20", "a", [1.0, 4.0], [0.3, 0.5], [0.1, 0.1]),
    line("steps=20", "b", [1.0, 4.0], [0.2, 0.4], [0.9, 0.9]),
    line("steps=50", "a", [4.0], [0.1], [NAN]),
]


def segments(axis):
    """Ends (low, high) of every interval drawn, by x or y, whichever it runs along."""
    found = []
    for each in axis.collections:
        if isinstance(each, LineCollection):
            found += [np.asarray(part) for part in each.get_segments()]
    return [part for part in found if np.isfinite(part).all()]


def drawn(figure):
    FigureCanvasAgg(figure).draw()
    return figure


def test_every_loss_stands_at_its_place_with_its_interval():
    figure = drawn(plots.loss_by_selection(ROWS))
    for width, axis in enumerate(figure.axes):
        dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines]
        assert [x for x, _ in dots] == [each.loss[width] for each in ROWS]
        assert [y for _, y in dots] == [1, 2, 4]  # 0 and 3 are the titles of the groups
        ends = [(part[0, 0], part[1, 0]) for part in segments(axis)]
        low = [max(each.loss[width] - 0.1, 0) for each in ROWS[:2]]
        assert [end[0] for end in ends] == pytest.approx(low)
        assert [end[1] for end in ends] == pytest.approx([e.loss[width] + 0.1 for e in ROWS[:2]])
    labels = {
        label.get_text(): label.get_fontweight() for label in figure.axes[0].get_yticklabels()
    }
    assert labels == {"a": "normal", "b": "normal", "cfg=1": "bold", "cfg=2": "bold"}


def test_a_selection_looks_the_same_in_every_group_and_differs_from_others():
    axis = drawn(plots.loss_by_selection(ROWS)).axes[0]
    looks = [(line.get_color(), line.get_marker()) for line in axis.lines]
    assert looks[0] == looks[2] != looks[1]


def test_a_loss_that_is_not_known_is_said_not_drawn():
    rows = [ROWS[0], plots.LossRow("cfg=1", "c", np.full(3, NAN), np.full(3, NAN))]
    figure = drawn(plots.loss_by_selection(rows))
    assert len(figure.axes[0].lines) == 1
    assert [text.get_text() for text in figure.axes[0].texts] == ["no value"]


def test_without_groups_there_are_no_titles():
    figure = drawn(plots.loss_by_selection([row("", "a", 0.1), row("", "b", 0.2)]))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_losses_against_a_setting_have_a_row_per_width_and_a_column_per_rest():
    figure = drawn(plots.loss_against(LINES, "CFG scale"))
    axes = np.array(figure.axes).reshape(3, 2)
    assert [axis.get_title(loc="left") for axis in axes[0]] == ["steps=20", "steps=50"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["8 bits", "6 bits", "4 bits"]
    for axis, factor in zip(axes[:, 0], (1.0, 0.5, 0.25), strict=True):
        losses = [each.get_ydata() / factor for each in axis.lines]
        assert np.allclose(losses, [[0.3, 0.5], [0.2, 0.4]])
        ends = [part[1, 1] / factor for part in segments(axis)]
        assert ends == pytest.approx([0.4, 0.6, 1.1, 1.3])
        assert min(part[0, 1] for part in segments(axis)) == 0
        assert axis.get_ylim() == pytest.approx((0, 1.05 * 1.3 * factor))
    assert [axis.get_ylim() for axis in axes[:, 1]] == [axis.get_ylim() for axis in axes[:, 0]]
    first, second = axes[0, 0].lines
    assert np.round(first.get_xdata(), 1).tolist() == [1.0, 4.0]
    assert first.get_xdata()[0] != second.get_xdata()[0]  # set apart, or one hides the other
    assert axes[0, 1].lines[0].get_color() == first.get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_many_panels_go_on_below():
    figure = drawn(plots.loss_against([line(str(i), "a", [1, 2], [i, i], [0, 0]) for i in range(5)],
                                      "CFG scale"))  # fmt: skip
    shown = np.array(figure.axes).reshape(6, 3)
    titles = [axis.get_title(loc="left") for axis in shown.ravel() if axis.get_title(loc="left")]
    assert titles == ["0", "1", "2", "3", "4"]
    assert shown[3, 1].lines[0].get_ydata().tolist() == [4, 4]
    assert [len(axis.lines) for axis in shown[:, 2]] == [1, 1, 1, 0, 0, 0]
    assert not any(axis.axison for axis in shown[3:, 2])
    assert figure.get_figheight() <= plots.TALL


def test_sets_share_a_colour_by_their_first_setting_and_a_dash_by_the_rest():
    times = np.array([1000.0, 10.0])
    names = [f"cfg={a}, steps={b}" for a in (1, 4) for b in (20, 50)]
    curves = [plots.RangeCurve(name, times, times) for name in names]
    looks = [(each.get_color(), each.get_linestyle())
             for each in drawn(plots.ranges_over_time(curves, [])).axes[0].lines]  # fmt: skip
    colours, dashes = zip(*looks, strict=True)
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert dashes[0] == dashes[2] != dashes[1] == dashes[3]
    many = [plots.RangeCurve(f"cfg=1, steps={n}", times, times) for n in range(6)]
    lines = drawn(plots.ranges_over_time(many, [])).axes[0].lines
    assert len({(each.get_color(), each.get_linestyle()) for each in lines}) == 6


def test_ranges_have_a_line_per_set_and_a_row_of_ticks_per_selection():
    times = np.array([1000.0, 700.0, 10.0])
    curves = [plots.RangeCurve("cfg=1", times, np.array([1.0, 2.0, 3.0])),
              plots.RangeCurve("cfg=2", times, np.array([4.0, 5.0, 6.0]))]  # fmt: skip
    ticks = [plots.Ticks("a", times[:2]), plots.Ticks("b", times[2:])]
    figure = drawn(plots.ranges_over_time(curves, ticks))
    upper, lower = figure.axes
    assert [line.get_ydata().tolist() for line in upper.lines] == [[1, 2, 3], [4, 5, 6]]
    assert [line.get_xdata().tolist() for line in lower.lines] == [[1000, 700], [10]]
    assert [set(line.get_ydata()) for line in lower.lines] == [{0}, {1}]
    assert lower.get_xlim()[0] > lower.get_xlim()[1]  # from noise to image
    assert lower.get_ylim()[0] > lower.get_ylim()[1]  # the first selection on top


def test_pictures_stand_where_their_set_and_prompt_say():
    red, blue = (np.full((4, 4, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    figure = drawn(picture_table([[red, blue], [blue, None]], ["A", "$x"], ["p", "q"]))
    shown = [[image.get_array()[0, 0].tolist() for image in axis.images] for axis in figure.axes]
    assert shown == [[[255, 0, 0]], [[0, 0, 255]], [[0, 0, 255]], []]
    assert [axis.get_title() for axis in figure.axes[:2]] == ["A", "$x"]
    assert [figure.axes[place].get_ylabel() for place in (0, 2)] == ["p", "q"]


@pytest.mark.parametrize("columns", [1, 2, 6])
def test_no_prompt_is_cut(columns):
    text = "a large green triangle at the bottom on a brown background"
    grey = np.full((4, 4, 3), 128, np.uint8)
    figure = drawn(picture_table([[grey] * columns], ["cfg_scale=1.5"] * columns, [text]))
    box = figure.axes[0].yaxis.label.get_window_extent()
    assert box.x0 >= 0
    titles = [axis.title.get_window_extent() for axis in figure.axes]
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(titles))


def test_tables_hold_what_is_drawn():
    table = plots.loss_by_selection_table(ROWS)
    assert table["selection"] == ["a", "b", "a"]
    assert table["loss_6bit_db"] == [each.loss[1] for each in ROWS]
    table = plots.loss_against_table(LINES, "CFG scale")
    assert table["CFG scale"] == [1.0, 4.0, 1.0, 4.0, 4.0]
    assert table["loss_8bit_db"] == [0.3, 0.5, 0.2, 0.4, 0.1]
    assert table["loss_4bit_db"] == [0.075, 0.125, 0.05, 0.1, 0.025]
    assert table["half_width_6bit_db"][:4] == [0.05, 0.05, 0.45, 0.45]
    curve = plots.RangeCurve("c", np.array([2.0, 1.0]), np.array([5.0, 6.0]))
    table = plots.ranges_over_time_table([curve], [plots.Ticks("a", np.array([1.0]))])
    assert table["kind"] == ["range", "range", "selected"]
    assert table["timestep"] == [2.0, 1.0, 1.0]
    table = picture_table_table(["A", "B"], ["p", "q"])
    assert list(zip(*table.values(), strict=True))[1] == ("B", "p")


@pytest.mark.slow
def test_the_same_numbers_give_the_same_bytes():
    files = [
        rendered(plots.loss_against(LINES, "s"), plots.loss_against_table(LINES, "s"))
        for _ in range(2)
    ]
    assert files[0] == files[1]


def test_many_rows_stay_on_a_page():
    rows = [row(f"cfg={i // 4}", f"rule_{i % 4}", 0.1 + i / 100) for i in range(48)]
    assert drawn(plots.loss_by_selection(rows)).get_figheight() <= plots.TALL
