"""What a second process on the same machine brings: `mlx.launch -n 2` beside one process.

    uv run python tests/benchmarks/sharing.py [--images 16] [--steps 30] [--batch 4] [--rounds 3]

A: one process. B: two processes that meet in the store. Each has one BLAS thread, starts from an
empty store, and does the same work: first the trajectories alone, then traced as well. The rounds
alternate A B; the ratios are of the best rounds, of whole commands (with start-up) and of the
stages. The stores are compared byte for byte.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAUNCH = shutil.which("mlx.launch", path=str(Path(sys.executable).parent))
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
KINDS = {
    "trajectories": ("stages=[conditioning,trajectories]",),
    "trajectories, traced": ("stages=[conditioning,trajectories,statistics]",),
}


def run(folder, overrides, processes):
    """Seconds of the whole command, and of the stages of its slowest process."""
    prefix = [LAUNCH, "-n", str(processes), "--"] if processes > 1 else []
    command = [*prefix, sys.executable, "-m", "taqdit.cli", *overrides, f"output_dir={folder}"]
    environment = {**os.environ, **dict.fromkeys(BLAS_THREADS, "1")}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    whole = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    summaries = [json.loads(p.read_text()) for p in Path(folder).glob("runs/*/*/summary.json")]
    assert len(summaries) == processes
    named = [{each["name"]: each["seconds"] for each in summary["stages"]} for summary in summaries]
    return whole, max(stages["trajectories"] for stages in named)  # tracing is within it


def store(folder):
    """Every file of a store, name -> bytes."""
    files = [path for path in sorted(Path(folder, "store").rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    common = (
        f"sampler.num_trajectories={options.images}",
        f"sampler.batch_size={options.batch}",
        f"schedule.num_steps={options.steps}",
        "tracking=none",
    )
    print(
        f"tiny model, {options.images} images x {options.steps} steps in batches of"
        f" {options.batch}, one BLAS thread per process, {os.cpu_count()} cores"
    )
    for kind, overrides in KINDS.items():
        times = {1: [], 2: []}
        for _ in range(options.rounds):
            stores = {}
            for processes in times:
                with tempfile.TemporaryDirectory() as folder:
                    times[processes].append(run(folder, (*common, *overrides), processes))
                    stores[processes] = store(folder)
            assert stores[1] == stores[2], "the stores differ"
        whole, stages = zip(*(map(min, zip(*times[n], strict=True)) for n in times), strict=True)
        print(
            f"{kind:<22} one process {whole[0]:6.2f} s, two {whole[1]:6.2f} s: ratio"
            f" {whole[0] / whole[1]:.2f}; its stages {stages[0]:6.2f} s, {stages[1]:6.2f} s: ratio"
            f" {stages[0] / stages[1]:.2f}; same bytes"
        )


if __name__ == "__main__":
    main()
