"""The grid of `sweep=cfg_steps_selection`, small, over a model that tells of every call."""

import itertools
import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from conftest import command, made_once, tree

SCALES, STEPS, RULES = ("1.5", "4", "7"), (3, 4, 6), ("paper_uniform", "dense_middle")
JOBS = list(itertools.product(SCALES, STEPS, RULES))  # in their order: a set's jobs are neighbours
TRAJECTORIES, BATCH = 4, 2
BATCHES = TRAJECTORIES // BATCH
FORWARDS = sum(steps * BATCHES for _ in SCALES for steps in STEPS)
SETTINGS = (
    "sweep=cfg_steps_selection",
    f"schedule.num_steps={','.join(map(str, STEPS))}",
    "model._target_=counted.tiny",
    f"sampler.num_trajectories={TRAJECTORIES}",
    f"sampler.batch_size={BATCH}",
    "tracer._target_=eager.post_gelu",
    "tracer.blocks=[mm_04]",
    "tracer.folds=2",
    f"analysis.compare=[{','.join(RULES)}]",
    "stages=[conditioning,trajectories,statistics,analysis]",
    "tracking=none",
    "plots=none",
    "preflight=off",
)


@dataclass
class Grid:
    """A folder in which the sweep runs, again and again, over one store."""

    folder: Path

    @property
    def store(self):
        return self.folder / "outputs" / "store"

    @property
    def calls_file(self):
        return self.folder / "calls.jsonl"

    def start(self, *more):
        """The sweep as a process, in a group of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        line, env = command("-m", *SETTINGS, *more)
        env |= {"TAQDIT_PLUGINS": "counted,eager", "TAQDIT_TEST_CALLS": str(self.calls_file)}
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
        return subprocess.Popen(
            line,
            cwd=self.folder,
            env=env | threads,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, *more):
        """Run the sweep to its end; the Sweep that it was."""
        before = set(self.sweeps())
        process = self.start(*more)
        try:
            _, errors = process.communicate(timeout=300)
        finally:
            kill(process)
        assert process.returncode == 0, errors
        (root,) = set(self.sweeps()) - before
        return Sweep(root, self.calls())

    def sweeps(self):
        """The folders of all sweeps so far, in time's order."""
        return sorted(self.folder.glob("outputs/sweeps/*/*"))

    def calls(self):
        """Every call of a model so far, in time's order."""
        if not self.calls_file.exists():
            return []
        return list(map(json.loads, self.calls_file.read_text().splitlines()))

    def sealed(self):
        """The sealed stages of the store: (name, first 12 digits of the fingerprint)."""
        return {path.parent.parts[-2:] for path in self.store.glob("*/*/SEALED.json")}


@dataclass
class Sweep:
    """One sweep's folder, and what its jobs asked of models."""

    root: Path
    everything: list

    @cached_property
    def calls(self):
        """Job number -> its calls, for all jobs."""
        own = [call for call in self.everything if Path(call["job"]).parent == self.root.resolve()]
        found = {number: [] for number in range(len(JOBS))}
        for call in own:
            found[int(Path(call["job"]).name)].append(call)
        return found

    def counted(self, number):
        """How many calls of each kind a job made."""
        return Counter(call["call"] for call in self.calls[number])

    def read(self, number, name):
        return json.loads((self.root / str(number) / name).read_text())

    def marks(self, number):
        """(stage, first 12 digits of its fingerprint) of the job's trajectories and statistics."""
        stages = self.read(number, "run.json")["stages"]
        return {(name, stages[name][:12]) for name in ("trajectories", "statistics")}

    @property
    def compared(self):
        """The part of comparison.json that the same runs always give, as bytes."""
        found = json.loads((self.root / "comparison.json").read_text())["compared"]
        return json.dumps(found, sort_keys=True, ensure_ascii=False).encode()


def kill(process):
    """SIGKILL to the whole group, unless it has ended; whether it was killed."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def whole(tmp_path_factory):
    """The sweep without any interruption, made once for all tests, in whatever process they run:
    its grid, the sweep, and its store's files as they were at its end."""

    def make(folder):
        grid = Grid(folder)
        grid.finish()
        shutil.copytree(grid.store, folder / "kept")

    grid = Grid(made_once(tmp_path_factory, "grid", make))
    return grid, Sweep(grid.sweeps()[0], grid.calls()), tree(grid.folder / "kept")
