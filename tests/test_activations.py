"""Stored statistics: shards by extent and step, and what several steps hold together."""

import gc
import subprocess
import sys
import weakref
from dataclasses import replace
from functools import reduce

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

from taqdit.activations import Layout, Site, StepStatistics
from taqdit.activations import step_shards as activations
from taqdit.activations.overview import histogram
from taqdit.activations.stored import Statistics
from taqdit.errors import CorruptError, InputError
from taqdit.store import Stage

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


# --- several steps ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [[2], [1, 4], [0, 5, 3], list(range(STEPS))])
@pytest.mark.parametrize("folds", [2, 5, 8])
def test_a_distribution_over_steps_is_that_of_all_their_activations(tmp_path, steps, folds):
    statistics = Statistics(written(tmp_path, folds=folds))
    together = [np.concatenate(arrays) for arrays in zip(*map(activations_of, steps), strict=True)]
    opened = [statistics.step(step) for step in steps]
    for site, values in enumerate(together):
        assert_histogram(histogram(opened, site), values)


def test_statistics_of_several_steps_merge_to_those_of_all_their_activations(statistics):
    steps = [replace(statistics.step(step), values=[], peaks=[]) for step in range(STEPS)]
    everything = zip(*map(activations_of, range(STEPS)), strict=True)
    assert_channels(reduce(StepStatistics.merged, steps), [np.concatenate(a) for a in everything])


def test_statistics_need_no_model(tmp_path):
    """Opening and reading work in a process that cannot import MLX."""
    folder = written(tmp_path).folder
    code = (
        "import sys; sys.modules['mlx'] = sys.modules['mlx.core'] = None\n"
        "from taqdit.activations.overview import histogram\n"
        "from taqdit.activations.stored import Statistics\n"
        f"statistics = Statistics.open({str(folder)!r})\n"
        "for step in range(statistics.num_steps):\n"
        "    opened = statistics.step(step)\n"
        "    print(histogram([opened], 0).total, opened.tokens[0])\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.stdout == "210 70\n" * STEPS
