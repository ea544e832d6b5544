"""SIGKILL while activations are traced, then the same command: statistics byte for byte."""

import json
import random
import signal
import subprocess
import time

import pytest
from conftest import command, tree
from ledger import shows

pytestmark = pytest.mark.slow

STEPS, BATCHES = 3, 4
SETTINGS = (
    f"schedule.num_steps={STEPS}",
    f"sampler.num_trajectories={BATCHES}",
    "sampler.batch_size=1",
    "sampler.images=false",
    "timestep_selection.count=2",
    "tracer._target_=eager.post_gelu",
    "model._target_=counted.tiny",
    "tracer.folds=2",
    "stages=[conditioning,trajectories,statistics]",
    "tracking=none",
    "plots=none",
)
MOMENTS = {  # a file whose appearance is the moment of the kill
    "before the first checkpoint": "trajectories/*/000000.safetensors",
    "within the first checkpoint": "statistics/*/checkpoint_0000001_step_0000.safetensors",
    "between checkpoints": "trajectories/*/000002.safetensors",
    "after the last checkpoint": "statistics/*/checkpoint_0000003_step_0002.safetensors",
    "while the results are published": "statistics/*/trajectories_0000004_step_0000.safetensors",
}


def start(cwd, *more):
    line, env = command(*SETTINGS, *more)
    told = {"TAQDIT_PLUGINS": "eager,counted", "TAQDIT_TEST_CALLS": str(cwd / "calls")}
    return subprocess.Popen(
        line,
        cwd=cwd,
        env={**env, **told, "TAQDIT_BLAS": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(cwd, *more):
    process = start(cwd, *more)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def kill_when(cwd, pattern, process):
    """Kill as soon as the file is there; whether it came to that."""
    while process.poll() is None:
        if any((cwd / "outputs" / "store").glob(pattern)):
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    process.communicate()
    return process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The store of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("reference")
    finish(folder)
    return tree(folder / "outputs" / "store")


def test_the_reference_is_complete(reference):
    names = [name for name in reference if name.startswith("statistics/")]
    shards = [f"trajectories_0000004_step_000{step}.safetensors" for step in range(3)]
    assert sorted(name.split("/")[2] for name in names) == ["SEALED.json", "stage.json", *shards]


@shows("P11", "a traced run killed before, within, between and after its checkpoints", trials=1)
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_chosen_moment(tmp_path, reference, moment):
    assert kill_when(tmp_path, MOMENTS[moment], start(tmp_path))
    finish(tmp_path)
    assert tree(tmp_path / "outputs" / "store") == reference


@shows(
    "P11", "a traced run killed again and again, each time a random while after its first new file"
)
def test_killed_again_and_again(tmp_path, reference):
    """Each time a random while after the first new file."""
    rng, kills = random.Random(0), 0
    for _ in range(4):
        process = start(tmp_path)
        before = set(tree(tmp_path / "outputs" / "store"))
        while process.poll() is None and set(tree(tmp_path / "outputs" / "store")) <= before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    finish(tmp_path)
    assert tree(tmp_path / "outputs" / "store") == reference
    return kills


def test_traced_while_sampled_replayed_and_extended_are_the_same(tmp_path, reference):
    """Trajectories first and statistics later, or two trajectories first: the same bytes."""
    finish(tmp_path, "stages=[conditioning,trajectories]")
    finish(tmp_path)
    assert tree(tmp_path / "outputs" / "store") == reference
    other = tmp_path / "extended"
    other.mkdir()
    finish(other, "sampler.num_trajectories=2")
    finish(other)
    found = tree(other / "outputs" / "store")
    assert {name: found.get(name) for name in reference if "SEALED" not in name} == {
        name: data for name, data in reference.items() if "SEALED" not in name
    }


def forwards(cwd):
    """How many forwards all processes made in all."""
    calls = [json.loads(line) for line in (cwd / "calls").read_text().splitlines()]
    return sum(each["call"] == "forward" for each in calls)


@shows("P11", "two processes trace one set together, sampling or replaying it", trials=1)
@pytest.mark.parametrize("first", [None, "stages=[conditioning,trajectories]"])
def test_two_processes_at_once_share_the_work(tmp_path, reference, first):
    """They sample and trace, or replay what is stored: each forward once, the same bytes."""
    if first:
        finish(tmp_path, first)
        (tmp_path / "calls").unlink()
    processes = [start(tmp_path), start(tmp_path)]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    assert tree(tmp_path / "outputs" / "store") == reference
    assert forwards(tmp_path) == BATCHES * STEPS


@shows("P11", "one of two that trace together is killed, the other one ends alone", trials=1)
def test_what_a_killed_process_held_is_taken_over(tmp_path, reference):
    """One of two is killed in the midst; the other one ends alone."""
    processes = [start(tmp_path), start(tmp_path)]
    assert kill_when(tmp_path, "statistics/*/*_step_0001.safetensors", processes[0])
    _, errors = processes[1].communicate(timeout=240)
    assert processes[1].returncode == 0, errors
    assert tree(tmp_path / "outputs" / "store") == reference
