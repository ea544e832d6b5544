"""SIGKILL, SIGTERM and Ctrl-C at any moment, then the same command again: the same bytes."""

import json
import os
import random
import signal
import subprocess
import time

import pytest
from conftest import ANALYTIC, command, slow_unless, tree
from ledger import shows

SETTINGS = (*ANALYTIC, "model._target_=analytic.slow", "calibration.export=false")


def start(cwd):
    line, env = command(*SETTINGS)
    return subprocess.Popen(
        line,
        cwd=cwd,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a background shell without job control lets its children ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(cwd):
    process = start(cwd)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The store of an uninterrupted run."""
    os.environ["TAQDIT_PLUGINS"] = "analytic"
    folder = tmp_path_factory.mktemp("reference")
    finish(folder)
    return tree(folder / "outputs" / "store")


def records(folder):
    """How many runs have come as far as their run.json: what follows is their work."""
    return len(list(folder.glob("outputs/runs/*/*/run.json")))


def wait_for(condition, process):
    """Wait until the condition holds or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(0.01)


def kill_soon(folder, rng):
    """Start the run, kill it at a random moment of its work; whether it was killed."""
    before = records(folder)
    process = start(folder)
    wait_for(lambda: records(folder) > before, process)
    try:
        process.communicate(timeout=rng.uniform(0.0, 0.5))
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True


def kill_many(folder, reference, *, kills, seed=0):
    """So many kills or more over several stores: each resumed one equals the uninterrupted one."""
    rng, done, number = random.Random(seed), 0, 0
    while done < kills:
        store = folder / str(number)
        store.mkdir()
        number += 1
        done += sum(kill_soon(store, rng) for _ in range(min(5, kills)))
        finish(store)
        assert tree(store / "outputs" / "store") == reference
    return done


@shows("P1", "whole runs killed with SIGKILL at random moments")
def test_killed_at_random_moments_the_store_is_byte_identical(tmp_path, reference):
    return kill_many(tmp_path, reference, kills=3)


@shows("P1", "whole runs killed with SIGKILL at random moments, in more stores")
@pytest.mark.slow
def test_killed_in_more_stores_they_are_byte_identical(tmp_path, reference):
    return kill_many(tmp_path, reference, kills=20, seed=1)


@shows("P1", "whole runs killed with SIGKILL at random moments, in many stores")
@pytest.mark.long
def test_killed_many_times_the_store_is_byte_identical(tmp_path, reference):
    return kill_many(tmp_path, reference, kills=200, seed=2)


@shows(
    "P7",
    "Ctrl-C and SIGTERM after the first batch: exit 130, then the uninterrupted store",
    trials=1,
)
@pytest.mark.parametrize("number", slow_unless([signal.SIGINT], [signal.SIGINT, signal.SIGTERM]))
def test_an_interrupt_keeps_what_is_published(tmp_path, reference, number):
    process = start(tmp_path)
    shards = "outputs/store/trajectories/*/{}.safetensors"
    wait_for(lambda: any(tmp_path.glob(shards.format("000002"))), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    (summary,) = tmp_path.glob("outputs/runs/*/*/summary.json")
    told = json.loads(summary.read_text())
    assert told["status"] == "interrupted"
    made = {stage["name"]: stage["made"] for stage in told["stages"]}
    assert 2 <= made["trajectories"] <= len(list(tmp_path.glob(shards.format("*"))))
    finish(tmp_path)
    assert tree(tmp_path / "outputs" / "store") == reference
