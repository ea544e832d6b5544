"""18 jobs of guidance x steps x selection: nine sample, nine only look; the calls are counted."""

import json
import math
from collections import Counter

import pytest
from conftest import tree
from grid import BATCH, BATCHES, JOBS, SCALES, STEPS, TRAJECTORIES, Sweep, whole

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Where the uninterrupted sweep ran."""
    return whole(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The uninterrupted sweep."""
    return whole(tmp_path_factory)[1]


def test_every_job_is_the_one_that_its_number_says(sweep):
    for number, (scale, steps, rule) in enumerate(JOBS):
        config = sweep.read(number, "run.json")["config"]
        assert sweep.read(number, "summary.json")["status"] == "ok"
        assert config["sampler"]["cfg_scale"] == float(scale)
        assert config["schedule"]["num_steps"] == steps
        assert config["timestep_selection"]["_target_"].endswith(f".{rule}")


def test_there_are_nine_sets_of_trajectories_and_nine_of_statistics(grid, sweep):
    every = set().union(*map(sweep.marks, range(len(JOBS))))
    for stage in ("trajectories", "statistics"):
        found = {path.name for path in (grid.store / stage).iterdir()}
        assert len(found) == len(SCALES) * len(STEPS) == 9
        assert found == {mark for name, mark in every if name == stage}
        assert {(stage, mark) for mark in found} <= grid.sealed()
    shards = [name for name in tree(grid.store) if name.endswith(".safetensors")]
    folders = Counter(name.split("/")[0] for name in shards)
    assert folders["trajectories"] == 9 * TRAJECTORIES
    assert folders["statistics"] == len(SCALES) * sum(STEPS)


def test_one_job_of_each_set_calls_the_model_and_the_other_never(sweep):
    """Counted where the transformer, the text encoder and the decoder are entered."""
    for number, (_, steps, rule) in enumerate(JOBS):
        counted = sweep.counted(number)
        if rule == JOBS[0][2]:
            assert counted["forward"] == steps * BATCHES  # tracing rides on sampling
            assert counted["decode"] == TRAJECTORIES
            assert counted["load"] == 1
        else:
            assert not sweep.calls[number]
        if number:
            assert counted["encode"] == 0  # all jobs share the prompts
    texts = {*sweep.read(0, "run.json")["prompts"][:TRAJECTORIES], ""}
    assert sweep.counted(0)["encode"] == len(texts)


def test_no_forward_is_made_twice(sweep):
    """Each timestep of the grid once per batch, positives and negatives together."""
    for number in range(0, len(JOBS), 2):
        forwards = [call for call in sweep.calls[number] if call["call"] == "forward"]
        assert {call["rows"] for call in forwards} == {2 * BATCH}
        times = Counter(call["timestep"] for call in forwards)
        assert len(times) == JOBS[number][1]
        assert set(times.values()) == {BATCHES}


def test_the_same_sweep_again_calls_no_model_and_compares_alike(grid, sweep):
    before = tree(grid.store)
    again = grid.finish()
    assert again.root != sweep.root
    assert not any(again.calls.values())
    assert again.compared == sweep.compared
    assert tree(grid.store) == before


def test_the_compared_part_says_what_every_job_found(sweep):
    """Equality of two such parts would be worth little if they were empty."""
    found = json.loads(sweep.compared)
    assert len(found["runs"]) == len(JOBS)
    assert found["differ_in"] == ["sampler.cfg_scale", "schedule.num_steps", "timestep_selection"]
    assert {run["status"] for run in found["runs"]} == {"ok"}
    losses = [run["numbers"]["selection/loss_4bit_db"] for run in found["runs"]]
    assert all(map(math.isfinite, losses))
    assert len(set(losses)) > 9
    text = sweep.compared.decode()
    assert sweep.root.name not in text
    assert sweep.read(0, "run.json")["run_id"] not in text


def test_calls_of_other_sweeps_are_not_taken_for_ones_own(tmp_path):
    calls = [{"call": "forward", "job": str(tmp_path / name / "0")} for name in "ab"]
    assert Sweep(tmp_path / "a", calls).counted(0) == {"forward": 1}
