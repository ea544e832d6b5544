"""What an export of a stored run costs: peak memory and MB/s beside `numpy.savez`.

    uv run python tests/benchmarks/export.py [--trajectories 122] [--full] [--folder .]

A store of made latents, 50 steps of (32, 32, 16) in float16 to a trajectory and the final one, as
sampling stores them: by default 122 trajectories, 204 MB; `--full` are 1,000, 51,000 latents of
1.67 GB. Their conditioning is that of few and short texts. Two seconds later (a shard is hashed
once where its file's times tell of every change, and they do not yet of one just written), each
in a process of its own:
the calibration set of all steps as .npz (float32, twice the bytes), `numpy.savez` of as many bytes
in one array, `taqdit store verify`, and reading every latent as a run does. "Peak" is the most
that the process held (ru_maxrss: mapped pages of files count), beside it that of a process which
has only imported what is needed.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from taqdit.calibration.calibration_set import CalibrationSet
from taqdit.prompts.options import Prompts
from taqdit.store import Stage
from taqdit.store_tools.survey import Survey
from taqdit.store_tools.verification import verify
from taqdit.timestep_selection import rules as timestep_selection
from taqdit.trajectories import conditioning
from taqdit.trajectories.shards import KIND, shard_name
from taqdit.trajectories.trajectory_set import TrajectorySet

STEPS, SHAPE, MARK = 50, (32, 32, 16), "0" * 64
DEFAULT, FULL = 122, 1000
TEXTS = ("a red ball", "a blue ring")


def stage_of(root, name):
    """A stage of the made store."""
    return Stage.open(
        Path(root, "store"), name, fingerprint=MARK, inputs={}, backend={"device": "none"}
    )


def make(root, count):
    """Store `count` trajectories of noise, and the rows of the texts."""
    stage, random = stage_of(root, "trajectories"), np.random.default_rng(0)
    sigmas = np.linspace(1, 0, STEPS + 1, dtype=np.float32)
    latents = random.standard_normal((STEPS + 1, *SHAPE), np.float32).astype(np.float16)
    for index in range(count):
        latents.reshape(-1)[index] += 1
        stage.write(
            shard_name(index),
            {"latents": latents, "sigmas": sigmas, "timesteps": 1000 * sigmas},
            kind=KIND,
            index=index,
            metadata={
                "prompt_index": 0,
                "prompt_sha256": MARK,
                "seed": index,
                "batch": [index] * 2,
            },
        )
    rows = stage_of(root, "conditioning")

    def row(text):
        return random.random((4, 4096), np.float32), random.random(2048, np.float32)

    list(conditioning.encode(rows, ["", *TEXTS], row))


def trajectories(root, count):
    """What a run reads the latents through."""
    return TrajectorySet(
        stage_of(root, "trajectories"), count=count, prompts=Prompts(TEXTS, (None,) * len(TEXTS))
    )


def points(root, count):
    """The calibration set of all steps."""
    return CalibrationSet(
        trajectories(root, count),
        timestep_selection.all,
        cfg_scale=2.0,
        seed=0,
        conditioning=conditioning.Conditioning(stage_of(root, "conditioning")).row,
    )


def export(root, count):
    """It as .npz."""
    path = Path(root, "calibration.npz")
    points(root, count).export_npz(path)
    return path.stat().st_size


def savez(root, count):
    """As many bytes as the export's latents, by numpy, synced."""
    whole = np.ones((count * STEPS, *SHAPE), np.float32)
    begin = time.perf_counter()
    with Path(root, "plain.npz").open("wb") as file:
        np.savez(file, xs=whole)
        file.flush()
        os.fsync(file.fileno())
    return whole.nbytes, time.perf_counter() - begin


def verified(root, count):
    """`taqdit store verify`, without its table."""
    return sum(checked.bytes for checked in verify(Survey.of(Path(root, "store")).stages))


def read(root, count):
    """Every latent, trajectory by trajectory."""
    found = trajectories(root, count)
    return sum(int(np.array(found.latents(index)).nbytes) for index in range(count))


def nothing(root, count):
    """What importing takes."""
    return 0


TASKS = {
    "import": nothing,
    "export": export,
    "numpy.savez": savez,
    "store verify": verified,
    "read": read,
}


def measured(task, root, count):
    """Bytes, seconds and peak memory of a task in this process."""
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        found = TASKS[task](root, count)
    seconds = time.perf_counter() - begin
    size, seconds = found if isinstance(found, tuple) else (found, seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return {"bytes": size, "seconds": seconds, "peak": peak}


def apart(task, root, count):
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--task", task, "--folder", str(root)]
    command += ["--trajectories", str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main():
    """Make the store, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trajectories", type=int, default=DEFAULT)
    parser.add_argument("--full", action="store_true", help=f"{FULL} trajectories")
    parser.add_argument("--folder", default=".")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    count = FULL if options.full else options.trajectories
    if options.task:
        print(json.dumps(measured(options.task, options.folder, count)))
        return
    stored = count * (STEPS + 1) * int(np.prod(SHAPE)) * 2
    print(f"{count:,} trajectories, {count * (STEPS + 1):,} latents, {stored / 1e6:,.0f} MB")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix=".export-") as root:
        make(root, count)
        time.sleep(2)
        for task in TASKS:
            found = apart(task, root, count)
            speed = found["bytes"] / found["seconds"] / 1e6
            print(
                f"  {task:<13} peak {found['peak'] / 1e6:6.0f} MB"
                + (f"; {found['seconds']:6.2f} s, {speed:5.0f} MB/s" if found["bytes"] else "")
            )


if __name__ == "__main__":
    main()
