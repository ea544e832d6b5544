"""The data set `images_10`, killed ten times and run again: the same files, all in the manifest."""

import json
import random
import time
from subprocess import DEVNULL, PIPE, Popen

import pytest
from conftest import command, tree
from grid import kill
from ledger import shows

from taqdit.cli import dispatch

IMAGES, KILLS = 10, 10
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


@pytest.mark.slow
@shows("P1", "the data set images_10, SIGKILL at random moments, then to its end")
def test_killed_ten_times_the_data_set_is_the_same_and_the_manifest_lists_all(tmp_path, whole):
    store, seconds = whole
    rng = random.Random(0)
    killed = 0
    while killed < KILLS:
        process = start(tmp_path)
        time.sleep(rng.uniform(0.2, 0.9) * seconds)
        if kill(process):
            killed += 1
            continue
        for path in (tmp_path / "outputs").glob("store/trajectories/*/00000[5-9].*"):
            path.unlink()  # it came to its end: there is to be something left to do
    finish(tmp_path)
    assert tree(tmp_path / "outputs" / "store") == store
    run = sorted(tmp_path.glob("outputs/runs/*/*/run.json"))[-1].parent
    assert dispatch(["store", "manifest", str(run), "--into", str(tmp_path / "manifest.json")]) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert len(manifest["images"]) == IMAGES
    return killed
