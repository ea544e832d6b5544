"""What a second process on the same machine brings, started by hand or by `mlx.launch -n 2`.

    uv run python tests/benchmarks/sharing.py [--images 16] [--steps 30] [--batch 4] [--rounds 3]

A: one process. B: the same command twice. C: by mlx.launch. D: the same with its input pipes full:
mlx.launch 0.32 asks without pause whether its processes can take input, which keeps a core busy,
and waits where they cannot. The processes meet in the store. Each has one BLAS thread and starts
from an empty store; first the trajectories alone, then traced as well. The rounds alternate; the
ratios to A are of the best rounds, of whole commands (with start-up) and of the stages. The stores
are compared byte for byte.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

LAUNCH = shutil.which("mlx.launch", path=str(Path(sys.executable).parent))
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAYS = ONE, TWICE, LAUNCHED, FULL = (
    "one process",
    "the command twice",
    "mlx.launch -n 2",
    "mlx.launch, pipes full",
)
KINDS = {
    "trajectories": ("stages=[conditioning,trajectories]",),
    "trajectories, traced": ("stages=[conditioning,trajectories,statistics]",),
}


def start(folder, overrides, way):
    """The processes of one way to run the same command."""
    command = [sys.executable, "-m", "taqdit.cli", *overrides, f"output_dir={folder}"]
    if way.startswith("mlx.launch"):
        command = [LAUNCH, "-n", "2", "--", *command]
    return [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, **dict.fromkeys(BLAS_THREADS, "1")},
        )
        for _ in range(2 if way == TWICE else 1)
    ]


def run(folder, overrides, way):
    """Seconds of the whole command, and of the stages of its slowest process."""
    begin = time.perf_counter()
    processes = start(folder, overrides, way)
    if way == FULL:
        processes[0].stdin.write(bytes(300_000))  # more than two pipes hold; nobody reads it
        processes[0].stdin.flush()
    for process in processes:
        said = process.stderr.read()
        if process.wait():
            sys.exit(said.decode())
        with suppress(BrokenPipeError):
            process.stdin.close()
    whole = time.perf_counter() - begin
    summaries = [json.loads(p.read_text()) for p in Path(folder).glob("runs/*/*/summary.json")]
    assert len(summaries) == (1 if way == ONE else 2)
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
        times = {way: [] for way in WAYS}
        for _ in range(options.rounds):
            stores = {}
            for way in WAYS:
                with tempfile.TemporaryDirectory() as folder:
                    times[way].append(run(folder, (*common, *overrides), way))
                    stores[way] = store(folder)
            assert all(stores[way] == stores[ONE] for way in WAYS), "the stores differ"
        print(f"{kind}: same bytes")
        for way in WAYS:
            whole, stages = map(min, zip(*times[way], strict=True))
            alone, alone_stages = map(min, zip(*times[ONE], strict=True))
            print(
                f"  {way:<26} whole {whole:6.2f} s, ratio {alone / whole:.2f};"
                f" stages {stages:6.2f} s, ratio {alone_stages / stages:.2f}"
            )


if __name__ == "__main__":
    main()
