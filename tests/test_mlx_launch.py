"""`mlx.launch` starts the same command several times: the processes meet in the store."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import command, tree

LAUNCH = shutil.which("mlx.launch", path=str(Path(sys.executable).parent))
STEPS, BATCHES = 3, 4
SETTINGS = (
    f"schedule.num_steps={STEPS}",
    f"sampler.num_trajectories={BATCHES}",
    "sampler.batch_size=1",
    "model._target_=counted.tiny",
    "tracer=post_gelu",
    "tracer.folds=2",
    "stages=[conditioning,trajectories,statistics]",
    "tracking=none",
)


def run(cwd, *launcher):
    line, env = command(*SETTINGS)
    done = subprocess.run(
        [*launcher, *line],
        cwd=cwd,
        env={
            **env,
            "OPENBLAS_NUM_THREADS": "1",
            "TAQDIT_PLUGINS": "counted",
            "TAQDIT_TEST_CALLS": str(cwd / "calls"),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return tree(cwd / "outputs" / "store")


@pytest.mark.skipif(LAUNCH is None, reason="this build of MLX brings no mlx.launch")
@pytest.mark.slow
def test_two_processes_make_the_store_of_one(tmp_path):
    """Conditioning, trajectories, pictures and statistics, byte for byte, nothing done twice."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one = run(folders[0])
    assert run(folders[1], LAUNCH, "-n", "2", "--") == one
    calls = [json.loads(line) for line in (folders[1] / "calls").read_text().splitlines()]
    counted = Counter(call["call"] for call in calls if call["call"] != "load")
    assert counted == {"forward": STEPS * BATCHES, "decode": BATCHES, "encode": BATCHES + 1}
    assert len(list((folders[1] / "outputs").glob("runs/*/*/summary.json"))) == 2
