"""A clock that jumps, file times from another day, another time zone: the same bytes."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ANALYTIC, command, tree
from ledger import shows

DAY = 86_400
RUNS = [  # a seed for the clock and a time zone each
    ({"clock": 0, "zone": "Pacific/Kiritimati"}, {"clock": 1, "zone": "Etc/GMT+12"}),
    ({"clock": 2, "zone": "Asia/Kathmandu"}, {"clock": None, "zone": "UTC"}),
]


def run(folder, *settings, clock=None, zone="UTC"):
    """Run the command, under a wrong clock if a seed for it is given; the summaries so far."""
    folder.mkdir(exist_ok=True)
    line, env = command(*ANALYTIC, *settings)
    if clock is not None:
        worker = str(Path(__file__).with_name("clock_worker.py"))
        line = [sys.executable, worker, str(clock), *ANALYTIC, *settings]
    done = subprocess.run(
        line,
        cwd=folder,
        env={**env, "TZ": zone},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if clock is not None:
        assert int(re.search(r"looks at the clock: (\d+)", done.stdout)[1]) > 5
    return [json.loads(p.read_text()) for p in folder.glob("outputs/runs/*/*/summary.json")]


def times_of_another_day(folder, dice):
    """Give every file of the store a time up to a day off."""
    for path in (folder / "outputs" / "store").rglob("*"):
        then = path.stat().st_mtime + dice.uniform(-DAY, DAY)
        os.utime(path, (then, then))


@pytest.mark.slow
@shows("P22", "begun and extended under a clock that jumps by up to a day, in other time zones")
def test_a_clock_that_jumps_changes_no_byte(tmp_path):
    run(tmp_path / "right")
    reference = tree(tmp_path / "right" / "outputs" / "store")
    dice = random.Random(0)
    for number, (first, second) in enumerate(RUNS):
        folder = tmp_path / str(number)
        run(folder, "sampler.num_trajectories=2", **first)
        times_of_another_day(folder, dice)
        summaries = run(folder, **second)
        assert tree(folder / "outputs" / "store") == reference
        assert len(summaries) == 2
        for summary in summaries:
            took = [summary["seconds"], *(stage["seconds"] for stage in summary["stages"])]
            assert all(0 <= seconds < 1000 for seconds in took)
    return 2 * len(RUNS)
