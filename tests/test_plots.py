"""Figures: what is drawn is what the table says, readable, and the same bytes every time."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from taqdit import config
from taqdit.errors import StorageError
from taqdit.plots import latents, style
from taqdit.plots import options as plots
from taqdit.plots.drawing import figure_kinds

ROOT = Path(__file__).resolve().parent.parent
NUM_STEPS = 20
SIGMAS = np.append(np.linspace(1.0, 0.01, NUM_STEPS) ** 2, 0.0)
MEAN = 0.06 * (1 - SIGMAS)
STD = np.sqrt(SIGMAS**2 + 0.5 * (1 - SIGMAS) ** 2)
LOW, HIGH = MEAN - 4 * STD, MEAN + 3 * STD
SELECTED = [0, 5, 10, 19]


def curves(**changes):
    values = {"mean": MEAN, "std": STD, "low": LOW, "high": HIGH, "selected": SELECTED} | changes
    selected = values.pop("selected")
    return latents.latent_curves(SIGMAS, SimpleNamespace(**values), selected)


def by_label(figure):
    """label -> the line that carries it."""
    return {line.get_label(): line for axis in figure.axes for line in axis.get_lines()}


def drawn(figure):
    """The renderer after drawing, for extents in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas.get_renderer()


def pictures(count, size=16):
    ramp = np.arange(count * size * size * 3) % 251
    return ramp.reshape(count, size, size, 3).astype(np.uint8)


def test_latent_curves_draw_the_numbers_they_were_given():
    lines = by_label(curves())
    for name, values in (("mean", MEAN), ("max", HIGH), ("min", LOW), ("std", STD)):
        assert np.array_equal(lines[name].get_xdata(), SIGMAS)
        assert np.array_equal(lines[name].get_ydata(), values)


def test_the_band_is_one_std_around_the_mean():
    upper = curves().axes[0]
    corners = upper.collections[0].get_paths()[0].vertices
    for i in (0, 7, NUM_STEPS):
        at = corners[np.isclose(corners[:, 0], SIGMAS[i])][:, 1]
        assert at.min() == pytest.approx(MEAN[i] - STD[i])
        assert at.max() == pytest.approx(MEAN[i] + STD[i])


def test_time_runs_from_noise_on_the_left_to_the_image_on_the_right():
    figure = curves()
    for axis in figure.axes:
        left, right = axis.get_xlim()
        assert left > 1.0 > 0.0 > right
    drawn(figure)
    first, last = (figure.axes[0].transData.transform((x, 0))[0] for x in (SIGMAS[0], SIGMAS[-1]))
    assert first < last
    assert figure.axes[1].get_xlabel() == "sigma (noise → image)"


def test_axes_say_what_they_show():
    upper, lower = curves().axes
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("latent value", "latent std")
    assert lower.get_ylim()[0] == 0


def test_selected_steps_are_marked_at_their_sigma_and_explained():
    figure = curves()
    rug = by_label(figure)["calibration steps (4)"]
    assert np.array_equal(rug.get_xdata(), SIGMAS[SELECTED])
    assert "calibration steps (4)" in [t.get_text() for t in figure.legends[0].get_texts()]
    assert "calibration steps" not in " ".join(by_label(curves(selected=[])))


def test_steps_above_the_axis_stand_at_their_sigma():
    figure = curves()
    (top,) = figure.axes[0].child_axes
    drawn(figure)
    for place, label in zip(top.get_xticks(), top.get_xticklabels(), strict=True):
        assert SIGMAS[int(label.get_text())] == place


def test_series_differ_in_colour_and_in_line_style():
    lines = by_label(curves())
    names = ("mean", "max", "min")
    assert len({lines[name].get_color() for name in names}) == 3
    assert len({lines[name].get_linestyle() for name in names}) == 3
    for colour in (style.BLUE, style.VERMILLION, style.GREEN, style.PURPLE):
        assert colour.lower() in {"#0072b2", "#d55e00", "#009e73", "#cc79a7"}  # Okabe-Ito


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="'low': 3"):
        curves(low=LOW[:3])


def test_the_grid_shows_every_image_above_its_own_caption():
    images, captions = pictures(6), [f"caption {i}" for i in range(6)]
    figure = latents.image_grid(images, captions, columns=4)
    assert len(figure.axes) == 6
    for axis, image, caption in zip(figure.axes, images, captions, strict=True):
        assert np.array_equal(axis.get_images()[0].get_array(), image)
        assert axis.get_xlabel() == caption
    corners = [axis.get_position() for axis in figure.axes]
    assert corners[0].y0 == pytest.approx(corners[3].y0)  # four in a row, reading order
    assert corners[4].y0 < corners[0].y0
    assert corners[4].x0 == pytest.approx(corners[0].x0)


@pytest.mark.parametrize("count", [1, 3, 16, 20])
def test_captions_are_whole_and_overlap_nothing(count):
    long = "two wide mauve hexagons mirrored in a swimming pool with many more words " * 3
    figure = latents.image_grid(pictures(count), [long] * count)
    renderer = drawn(figure)
    width, height = figure.get_size_inches() * figure.dpi
    texts = [axis.xaxis.label.get_window_extent(renderer) for axis in figure.axes]
    boxes = [axis.get_window_extent(renderer) for axis in figure.axes]
    for i, text in enumerate(texts):
        assert 0 <= text.x0 < text.x1 <= width
        assert 0 <= text.y0 < text.y1 <= height
        assert not any(text.overlaps(box) for box in boxes)
        assert not any(text.overlaps(other) for other in texts[:i])


def test_captions_are_text_not_formulas():
    figure = latents.image_grid(pictures(1), [r"$\oops$ & <b>"])
    drawn(figure)  # as a formula this is a syntax error
    assert figure.axes[0].get_xlabel() == r"$\oops$ & <b>"


def test_long_captions_wrap_at_words_and_end_in_an_ellipsis():
    figure = latents.image_grid(pictures(4), ["word " * 100] * 4)
    lines = figure.axes[0].get_xlabel().split("\n")
    assert len(lines) == 4
    assert lines[-1].endswith("…")
    assert set(" ".join(lines).split()) == {"word", "…"}


def test_a_shared_selection_is_one_row():
    by_step, by_sigma = latents.selection_strip(SIGMAS, [SELECTED] * 16).axes
    cells = by_step.get_images()[0].get_array()
    assert cells.shape == (1, NUM_STEPS)
    assert np.flatnonzero(cells[0]).tolist() == SELECTED
    assert by_step.get_title(loc="left") == "64 points from 16 trajectories, 4 of 20 steps used"
    assert by_sigma.get_xlim()[0] > by_sigma.get_xlim()[1]


def test_different_selections_are_one_row_each_and_counted_per_sigma():
    steps = [[0, 5, 19], [1, 5, 19], [2, 5, 19]]
    by_step, by_sigma = latents.selection_strip(SIGMAS, steps).axes
    cells = by_step.get_images()[0].get_array()
    assert [np.flatnonzero(row).tolist() for row in cells] == steps
    heights = {x: top for (x, _), (_, top) in by_sigma.collections[0].get_segments()}
    assert heights == {SIGMAS[s]: n for s, n in {0: 1, 1: 1, 2: 1, 5: 3, 19: 3}.items()}


def test_the_first_trajectory_is_the_top_row():
    by_step, _ = latents.selection_strip(SIGMAS, [[0], [1]]).axes
    bottom, top = by_step.get_ylim()
    assert bottom > top


def test_a_step_outside_the_trajectory_is_refused():
    with pytest.raises(IndexError):
        latents.selection_strip(SIGMAS, [[0, NUM_STEPS]])
    with pytest.raises(ValueError, match="at least one trajectory"):
        latents.selection_strip(SIGMAS, [])


def test_save_writes_picture_vector_and_the_numbers(tmp_path):
    table = {"step": np.arange(3), "sigma": np.float32([1, 0.1, 0]), "text": ["a,b", "=1+1", "ü"]}
    made = style.save(curves(), tmp_path, "latents", table)
    assert [path.name for path in made] == ["latents.png", "latents.svg", "latents.csv"]
    with Image.open(made[0]) as picture:
        assert picture.size[0] == 660  # 3.3 inches at 200 dpi
    rows = list(csv.reader(made[2].read_text("utf-8").splitlines()))
    assert rows == [
        ["step", "sigma", "text"],
        ["0", "1.0", "a,b"],
        ["1", "0.1", "'=1+1"],
        ["2", "0.0", "ü"],
    ]


def test_csv_numbers_read_back_exactly(tmp_path):
    *_, path = style.save(curves(), tmp_path, "x", {"mean": MEAN, "std": STD}, formats=())
    back = np.genfromtxt(path, delimiter=",", names=True)
    assert np.array_equal(back["mean"], MEAN)
    assert np.array_equal(back["std"], STD)


def test_a_full_disk_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError):
        style.save(curves(), tmp_path / "missing", "x", {"mean": MEAN})


SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from taqdit.plots import latents, style
from taqdit.trajectories.latents import LatentStatistics
sigmas = np.linspace(1, 0, 11)
out = Path(sys.argv[1])
values = LatentStatistics(*[sigmas * k for k in (1, 2, 3, 4)])
style.save(latents.latent_curves(sigmas, values, [0, 4]), out, "curves", {"s": sigmas})
style.save(latents.selection_strip(sigmas, [[0, 2], [1, 3]]), out, "strip", {"s": sigmas})
images = (np.arange(2 * 64 * 64 * 3) % 255).astype(np.uint8).reshape(2, 64, 64, 3)
style.save(latents.image_grid(images, ["a", "b"]), out, "grid", {"s": sigmas})
print("matplotlib.pyplot" in sys.modules)
"""


def python(code, *arguments, cwd=ROOT, **environment):
    """Run code in a fresh interpreter, warnings being errors."""
    line = [sys.executable, "-W", "error", "-c", code, *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_same_figure_is_the_same_bytes_in_any_process_under_any_matplotlibrc(tmp_path):
    contents = []
    for name, rc in (("one", ""), ("two", "ytick.direction: in\nsvg.hashsalt: other\n")):
        (folder := tmp_path / name).mkdir()
        (tmp_path / f"{name}.rc").write_text(rc)
        done = python(SCRIPT, str(folder), MATPLOTLIBRC=str(tmp_path / f"{name}.rc"))
        assert done.stderr == ""
        assert done.stdout == "False\n"  # pyplot would keep every figure alive
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert len(contents[0]) == 9
    assert contents[0] == contents[1]


def test_drawing_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn(curves())
    assert dict(matplotlib.rcParams) == before


def test_options_are_light():
    code = (
        "import sys; from taqdit import plots; plots.paper(figures=['outliers']); plots.none();"
        "print([m for m in ('matplotlib', 'PIL', 'mlx') if m in sys.modules])"
    )
    assert python(code).stdout == "[]\n"


def test_options():
    assert plots.none().drawn == ()
    assert set(plots.minimal().drawn) < set(plots.paper().drawn) == set(figure_kinds())
    assert plots.paper(layers=["mm_00_img"]).layers == ["mm_00_img"]


OPTIONS = sorted((ROOT / "conf" / "plots").glob("*.yaml"))


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: path.stem)
def test_every_yaml_holds_its_function_with_every_argument_commented(path):
    text = path.read_text("utf-8")
    node = dict(config.compose_config([f"plots={path.stem}"]).plots)
    assert node.pop("_target_") == f"taqdit.plots.{path.stem}"
    assert getattr(plots, path.stem)(**node) == getattr(plots, path.stem)()
    assert text.startswith("# ")
    assert all(
        " # " in line
        for line in text.splitlines()
        if not line.startswith(("#", "_target_", "defaults"))
    )
