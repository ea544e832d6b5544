"""What a job costs when all its stages are stored, and what a sweep costs beside its jobs.

    uv run python tests/benchmarks/sweep.py [--rounds 3] [--into FOLDER] [overrides]

A: a fully reused job in a process of its own, W&B offline: wall and processor time.
B: the same job in this process, where imports are paid, and where its time goes.
C: a sweep over timestep selections in this process, reused too, one job after the other: its time
less that of its jobs, and where that goes.
A and B alternate; the best rounds are shown. FOLDER (default: a temporary one) is an output_dir;
what it lacks is computed first. Overrides (`schedule.num_steps=50`) change the job: with none it
is the default run.
"""

import argparse
import contextlib
import io
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict

import taqdit
from taqdit import run
from taqdit.runs import outputs
from taqdit.runs import sweep as sweeping
from taqdit.runs.outputs import RunOutputs
from taqdit.tracking.options import Tracker

RULES = ("paper_uniform", "dense_middle", "midpoint", "sigma_uniform")
PARTS = {  # what of a job -> the functions that do it
    "compose and check": [
        (run.configuration, "compose_config"),
        (run.configuration, "plan"),
    ],
    "look up": [
        (run, "state_cost"),
        (run, "fingerprints"),
        (run, "encode_prompts"),
        (run, "sample_and_trace"),
        (run, "weight_table"),
    ],
    "analysis": [
        (run, "KeptAnalysis"),
        (run, "bound"),
        (run, "analyse_run"),
        (RunOutputs, "analysis"),
    ],
    "exports": [(RunOutputs, "calibration"), (RunOutputs, "export")],
    "figures": [(run, "run_figures"), (RunOutputs, "_draw")],
    "W&B and journal": [
        (RunOutputs, "track"),
        (outputs, "log_activations"),
        (outputs, "log_curves"),
        (Tracker, "_tell"),
        (Tracker, "finish"),
    ],
    "report": [(RunOutputs, "report")],
}
SWEEP = {
    "jobs": [(run, "run_plan")],
    "all jobs checked first": [(sweeping.SweepReport, "on_multirun_start")],
    "comparison": [(sweeping.SweepReport, "on_multirun_end")],
}
REST = "rest"


class Clock:
    """Wall time by part: of what a function calls, that of other parts does not count."""

    def __init__(self):
        self.seconds = defaultdict(float)
        self._part, self._since = REST, time.perf_counter()

    def turn(self, part):
        """From now on this part runs; the one that ran until now."""
        now, before = time.perf_counter(), self._part
        self.seconds[before] += now - self._since
        self._part, self._since = part, now
        return before

    def timed(self, function, part):
        """The function, its time counted for a part."""

        def wrapped(*arguments, **named):
            before = self.turn(part)
            try:
                return function(*arguments, **named)
            finally:
                self.turn(before)

        return wrapped


def measured(call, parts):
    """Seconds of a call, and of each of its parts."""
    clock = Clock()
    kept = [
        (owner, name, getattr(owner, name)) for all_of in parts.values() for owner, name in all_of
    ]
    for part, functions in parts.items():
        for owner, name in functions:
            setattr(owner, name, clock.timed(getattr(owner, name), part))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            call()
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)
    clock.turn(REST)
    return sum(clock.seconds.values()), {part: clock.seconds[part] for part in (*parts, REST)}


def alone(overrides):
    """Wall and processor seconds of the command in a process of its own."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    line = [sys.executable, "-m", "taqdit.cli", *overrides]
    ended = subprocess.run(line, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(ended.stderr)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def swept(overrides):
    """The multirun over RULES."""
    argv = sys.argv
    sys.argv = ["taqdit", "-m", *overrides, f"timestep_selection={','.join(RULES)}"]
    try:
        run.application()
    finally:
        sys.argv = argv


def show(name, seconds, whole):
    """One line: seconds, and their share of `whole`."""
    print(f"  {name:<28} {seconds:6.2f} s  {seconds / whole:6.1%}")


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--into")
    options, overrides = parser.parse_known_args()
    os.environ["WANDB_MODE"] = "offline"
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"output_dir={options.into or folder}", *overrides]
        with contextlib.redirect_stdout(io.StringIO()):
            swept(overrides)  # fills the store, and warms up
        apart, inside = [], []
        for _ in range(options.rounds):
            apart.append(alone(overrides))
            inside.append(measured(lambda: taqdit.launch(overrides), PARTS))
        whole, parts = measured(lambda: swept(overrides), SWEEP)
    (wall, processor), (seconds, shares) = min(apart), min(inside, key=lambda found: found[0])
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; best of {options.rounds} rounds")
    print(f"A reused job, its own process   {wall:6.2f} s  ({processor:.2f} s of processor time)")
    print(f"B reused job, imports paid      {seconds:6.2f} s  ratio {seconds / wall:.3f} to A")
    for name, found in shares.items():
        show(name, found, seconds)
    jobs = parts.pop("jobs")
    print(f"C sweep of {len(RULES)} reused jobs        {whole:6.2f} s  jobs {jobs:.2f} s")
    print(
        f"  beside its jobs              {whole - jobs:6.2f} s  ratio {(whole - jobs) / jobs:.3f}"
    )
    for name, found in parts.items():
        show(name, found, jobs)


if __name__ == "__main__":
    main()
