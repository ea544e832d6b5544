"""Stored statistics: shards by extent and step, and views of the cells that a selection names."""

import gc
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from open_files import few_open_files
from statistics_oracle import (
    assert_channels,
    assert_equal,
    assert_histogram,
    assert_same_bytes,
    statistics_of,
)

from taqdit.activations import Layout, Site
from taqdit.activations import stored as activations
from taqdit.activations.stored import Statistics
from taqdit.calibration.points import selections
from taqdit.errors import CorruptError, InputError
from taqdit.store import Stage
from taqdit.timestep_selection import rules as timestep_selection
from taqdit.timestep_selection.selection import Selection
from taqdit.timestep_selection.steps import TrajectorySteps

STEPS, EXTENT = 6, 5
LAYOUT = Layout((Site("embed.context_in", 3), Site("mm_00_img.post_gelu", 4)), 5)
SIGMAS = np.linspace(1, 0, STEPS + 1)


def open_stage(folder):
    return Stage.open(
        folder, "statistics", fingerprint="a" * 64, inputs={"num_steps": STEPS}, backend={}
    )


def rows_of(extent):
    """The trajectory of every row: each has a positive and a negative row."""
    return np.arange(2 * extent) % extent


def activations_of(step, *, extent=EXTENT):
    """Per site (2 extent, tokens, C): every trajectory and step has a range of its own."""
    rng = np.random.default_rng(step)
    scale = (1 + rows_of(extent) + 10 * step)[:, None, None]
    return [(rng.normal(size=(2 * extent, 7, s.width)) * scale).astype("f4") for s in LAYOUT.sites]


def made(step, *, extent=EXTENT, folds=5):
    layout = replace(LAYOUT, folds=folds)
    folds_of_rows = (rows_of(extent) % folds).tolist()
    return statistics_of(layout, activations_of(step, extent=extent), folds_of_rows)


def write(stage, step, name=None, *, extent=EXTENT, folds=5):
    name = name or activations.file_name(extent, step)
    found = made(step, extent=extent, folds=folds)
    numbers = {"sigma": float(SIGMAS[step]), "timestep": float(SIGMAS[step] * 1000)}
    activations.write_step(stage, name, found, extent=extent, step=step, **numbers)


def written(folder, *, steps=range(STEPS), **options):
    stage = open_stage(folder)
    for step in steps:
        write(stage, step, **options)
    return stage


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """All steps of five trajectories, each in a fold of its own."""
    return written(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def statistics(stage):
    return Statistics(stage)


def chosen(rule, *, count=EXTENT, **options):
    return selections(partial(rule, **options), TrajectorySteps(SIGMAS), count)


# --- shards ---------------------------------------------------------------------------------


def test_a_step_is_read_as_it_was_written(stage):
    for step in range(STEPS):
        name = activations.file_name(EXTENT, step)
        found = activations.read_step(stage, name, extent=EXTENT, step=step, layout=LAYOUT)
        assert_same_bytes(found, made(step))
        assert_channels(found, activations_of(step))


def test_all_steps_are_found_with_their_noise_levels(stage):
    found = Statistics.open(stage.folder)
    assert (found.extent, found.num_steps, found.folds) == (EXTENT, STEPS, 5)
    assert (found.sites, found.layout) == (LAYOUT.sites, LAYOUT)
    assert (found.fingerprint, found.folder) == (stage.fingerprint, stage.folder)
    assert_equal(found.sigmas, SIGMAS[:-1])
    assert_equal(found.timesteps, 1000 * SIGMAS[:-1])
    assert found.step(2) is found.step(2)
    for step in (-1, STEPS):
        with pytest.raises(IndexError, match=f"step {step} of {STEPS}"):
            found.step(step)


def test_the_largest_extent_is_read_unless_one_is_named(tmp_path):
    stage = written(tmp_path)
    written(tmp_path, extent=10)
    write(stage, 0, activations.checkpoint_name(20, 0), extent=20)
    assert Statistics(stage).extent == 10
    assert Statistics(stage, extent=5).extent == 5
    there = activations.listed(stage)
    assert {each.number for each in there} == {5, 10, 20}
    (kept,) = [each for each in there if each.kind == activations.CHECKPOINT]
    assert kept == (activations.CHECKPOINT, 20, 0, activations.checkpoint_name(20, 0))
    with pytest.raises(InputError, match="lacks 6 of 6 steps of the statistics over 20"):
        Statistics(stage, extent=20)


@pytest.mark.parametrize("lost", [0, 2, 4, STEPS - 1])
def test_statistics_that_lack_a_step_are_refused(tmp_path, lost):
    stage = written(tmp_path, steps=[step for step in range(STEPS) if step != lost])
    with pytest.raises(InputError, match="holds no complete statistics"):
        Statistics(stage)
    with pytest.raises(InputError, match="lacks 1 of 6 steps of the statistics over 5"):
        Statistics(stage, extent=5)


def test_a_stage_without_statistics_is_refused(tmp_path):
    stage = open_stage(tmp_path)
    write(stage, 0, activations.checkpoint_name(EXTENT, 0))
    with pytest.raises(InputError, match="holds no complete statistics"):
        Statistics(stage)


@pytest.mark.parametrize("layout", [replace(LAYOUT, folds=4), Layout(LAYOUT.sites[:1], 5)])
def test_statistics_of_another_layout_are_not_read(stage, layout):
    name = activations.file_name(EXTENT, 0)
    with pytest.raises(CorruptError, match="other sites or folds"):
        activations.read_step(stage, name, extent=EXTENT, step=0, layout=layout)


@pytest.mark.parametrize("unit", [(EXTENT, 1), (10, 0)])
def test_a_shard_under_the_name_of_another_is_not_read(stage, unit):
    extent, step = unit
    name = activations.file_name(EXTENT, 0)
    with pytest.raises(CorruptError, match="it belongs to unit"):
        activations.read_step(stage, name, extent=extent, step=step)


GOOD = {"folds": 5, "sites": [[site.name, site.width] for site in LAYOUT.sites]}


@pytest.mark.parametrize(
    ("metadata", "tensors"),
    [
        (None, {}),
        ({"sites": None}, {}),
        ({"sites": [["a.o_in"]]}, {}),
        ({"sites": [["a.o_in", "wide"]]}, {}),
        ({"folds": None}, {}),
        ({"folds": 6}, {}),
        ({"sites": GOOD["sites"][::-1]}, {"mean": None}),
        ({}, {"mean": np.zeros(7, np.float32)}),
        ({}, {"values_ends": np.array([5, 4])}),
        ({}, {"peaks_counts": None}),
    ],
)
def test_shards_of_another_form_are_said_to_be_damaged(tmp_path, metadata, tensors):
    stage, index = open_stage(tmp_path), f"{EXTENT}/0"
    stored = made(0).tensors() | tensors
    stored = {name: array for name, array in stored.items() if array is not None}
    metadata = {} if metadata is None else GOOD | metadata
    stage.write("x.safetensors", stored, kind="statistics", index=index, metadata=metadata)
    with pytest.raises(CorruptError, match=r"x\.safetensors is damaged"):
        activations.read_step(stage, "x.safetensors", extent=EXTENT, step=0)


def test_more_steps_can_be_open_than_a_mac_allows_at_first(tmp_path):
    inputs = {"num_steps": 40}
    stage = Stage.open(tmp_path, "statistics", fingerprint="b" * 64, inputs=inputs, backend={})
    for step in range(40):
        name, numbers = activations.file_name(EXTENT, step), {"sigma": 1.0, "timestep": 1.0}
        activations.write_step(stage, name, made(0), extent=EXTENT, step=step, **numbers)
    with few_open_files():
        assert Statistics(stage).num_steps == 40


def test_statistics_let_go_of_their_files_at_once(stage):
    gc.disable()
    try:
        found = Statistics(stage)
        found.overview()
        gone = weakref.ref(found)
        shard = weakref.ref(found.step(1))
        del found
        assert gone() is None
        assert shard() is None
    finally:
        gc.enable()


def test_a_flipped_bit_is_found_when_the_statistics_are_opened(tmp_path):
    stage = written(tmp_path)
    path = stage.path(activations.file_name(EXTENT, 3))
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="sha256"):
        Statistics(stage)


# --- views ----------------------------------------------------------------------------------


def pooled(cells, site, *, extent=EXTENT, folds=5):
    """The values of the chosen (fold, step) cells."""
    rows = rows_of(extent) % folds
    return np.concatenate(
        [
            activations_of(step, extent=extent)[site][cells[rows, step]].ravel()
            for step in range(STEPS)
        ]
    )


def assert_view(view, cells, **options):
    assert_equal(view.cells, cells)
    assert view.steps == np.flatnonzero(cells.any(axis=0)).tolist()
    for site in range(len(LAYOUT.sites)):
        values = pooled(cells, site, **options)
        assert (view.low(site), view.high(site)) == (values.min(), values.max())
        assert_histogram(view.histogram(site), values)


RULES = [
    (timestep_selection.interleaved, {"count": 2}),
    (timestep_selection.random_per_trajectory, {"count": 1}),
    (timestep_selection.paper_uniform, {"count": 3}),
    (timestep_selection.explicit, {"steps": [4]}),
    (timestep_selection.all, {}),
]


@pytest.mark.parametrize(("rule", "options"), RULES, ids=[rule.__name__ for rule, _ in RULES])
def test_a_view_holds_the_selected_cells_and_no_other(statistics, rule, options):
    found = chosen(rule, **options)
    cells = np.zeros((5, STEPS), bool)
    for trajectory, selection in enumerate(found):
        cells[trajectory, selection.indices] = True
    assert_view(statistics.view(found), cells)


def test_trajectories_of_one_fold_are_selected_together(tmp_path):
    statistics = Statistics(written(tmp_path, folds=2))
    found = [Selection.of([step]) for step in (0, 1, 2, 3, 3)]
    cells = np.zeros((2, STEPS), bool)
    cells[0, [0, 2, 3]] = True
    cells[1, [1, 3]] = True
    assert_view(statistics.view(found), cells, folds=2)


def test_trajectories_that_were_not_traced_select_nothing(statistics):
    found = [Selection.of([0])] * EXTENT + [Selection.of([3])] * 4
    assert statistics.view(found).steps == [0]


def test_folds_that_no_trajectory_is_in_hold_nothing(tmp_path):
    statistics = Statistics(written(tmp_path, folds=8))
    cells = np.zeros((8, STEPS), bool)
    cells[:EXTENT, 2] = True
    assert_view(statistics.view([Selection.of([2])] * EXTENT), cells, folds=8)
    assert_view(statistics.view(), np.ones((8, STEPS), bool), folds=8)


def test_the_view_of_all_steps_is_the_merge_of_all(statistics):
    view = statistics.view()
    assert_view(view, np.ones((5, STEPS), bool))
    together = [
        np.concatenate([activations_of(step)[site] for step in range(STEPS)])
        for site in range(len(LAYOUT.sites))
    ]
    channels = view.channels()
    assert_channels(channels, together)
    assert (channels.values, channels.peaks) == ([], [])


def test_channels_of_a_view_are_those_of_its_steps(statistics):
    view = statistics.view([Selection.of([1]), Selection.of([4])])
    assert view.steps == [1, 4]
    both = [np.concatenate(pair) for pair in zip(activations_of(1), activations_of(4), strict=True)]
    assert_channels(view.channels(), both)


def test_a_selection_without_a_step_is_refused(statistics):
    with pytest.raises(InputError, match="no step among the traced"):
        statistics.view([])


def test_views_do_not_disturb_each_other(statistics):
    one = statistics.view(chosen(timestep_selection.interleaved, count=2))
    first, whole = one.histogram(0).counts.copy(), statistics.step(0).tensors()
    before = {name: array.copy() for name, array in whole.items()}
    statistics.view().channels()
    statistics.view(chosen(timestep_selection.explicit, steps=[0, 5])).histogram(0)
    assert_equal(one.histogram(0).counts, first)
    assert all(np.array_equal(array, before[name]) for name, array in whole.items())


def test_views_run_no_model(tmp_path):
    """Opening, viewing and reading work in a process that cannot import MLX."""
    folder = written(tmp_path).folder
    code = (
        "import sys; sys.modules['mlx'] = sys.modules['mlx.core'] = None\n"
        "from taqdit.activations.stored import Statistics\n"
        "from taqdit.timestep_selection import Selection\n"
        f"statistics = Statistics.open({str(folder)!r})\n"
        "for step in range(statistics.num_steps):\n"
        "    view = statistics.view([Selection.of([step])])\n"
        "    print(view.histogram(0).total, view.channels().tokens[0])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.stdout == "42 70\n" * STEPS
