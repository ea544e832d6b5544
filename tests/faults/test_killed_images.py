"""The data set `images_10`, killed ten times and run again: the same files, all in the manifest."""

import json
import random
import time
from subprocess import DEVNULL, PIPE, Popen

import pytest
from conftest import command, tree
from grid import kill
from ledger import shows

from taqdit.cli.verbs import dispatch

IMAGES, KILLS = 10, 10
RECORDS = "outputs/runs/*/*/run.json"
SHORT = ("schedule.num_steps=8", "sampler.batch_size=2", "tracking=none", "plots=none")


def start(folder):
    line, env = command("experiment=images_10", *SHORT)
    return Popen(
        line, cwd=folder, env=env, stdout=DEVNULL, stderr=PIPE, text=True, start_new_session=True
    )


def finish(folder):
    process = start(folder)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The store of a run that nobody stops, and how long that took."""
    folder, begin = tmp_path_factory.mktemp("whole"), time.monotonic()
    finish(folder)
    return tree(folder / "outputs" / "store"), time.monotonic() - begin


def kill_soon(folder, rng, within):
    """Kill a run at a random moment of its work; whether it still ran."""
    records = len(list(folder.glob(RECORDS)))
    process = start(folder)
    while process.poll() is None and len(list(folder.glob(RECORDS))) == records:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, within))
    return kill(process)


def listed(folder, into):
    """How many images the manifest of the last run lists."""
    run = sorted(folder.glob(RECORDS))[-1].parent
    assert dispatch(["store", "manifest", str(run), "--into", str(into)]) == 0
    return len(json.loads(into.read_text())["images"])


@pytest.mark.slow
@shows("P1", "the data set images_10, SIGKILL at random moments, then to its end: 10 of 10 listed")
def test_killed_ten_times_the_data_set_is_the_same_and_the_manifest_lists_all(tmp_path, whole):
    store, seconds = whole
    rng, killed, number = random.Random(0), 0, 0
    while killed < KILLS:
        folder = tmp_path / str(number)
        folder.mkdir()
        number += 1
        killed += sum(kill_soon(folder, rng, seconds / 6) for _ in range(KILLS))
        finish(folder)
        assert tree(folder / "outputs" / "store") == store
        assert listed(folder, folder / "manifest.json") == IMAGES
    print(f"{killed} kills in {number} stores")
    return killed
