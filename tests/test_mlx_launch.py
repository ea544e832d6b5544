"""`mlx.launch` starts the same command several times: the processes meet in the store."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import command, tree

LAUNCH = shutil.which("mlx.launch", path=str(Path(sys.executable).parent))
SETTINGS = (
    "schedule.num_steps=3",
    "sampler.num_trajectories=4",
    "sampler.batch_size=1",
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
        env={**env, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return tree(cwd / "outputs" / "store")


@pytest.mark.skipif(LAUNCH is None, reason="this build of MLX brings no mlx.launch")
def test_two_processes_make_the_store_of_one(tmp_path):
    """Conditioning, trajectories, pictures and statistics, byte for byte."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    one = run(folders[0])
    assert run(folders[1], LAUNCH, "-n", "2", "--") == one
    assert len(list((folders[1] / "outputs").glob("runs/*/*/summary.json"))) == 2
