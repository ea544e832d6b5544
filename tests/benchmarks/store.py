"""What the store costs beside `numpy.save`, and how long looking a stored data set over takes.

    uv run python tests/benchmarks/store.py [--count 6400 51000] [--dtype float32 float16] \
        [--rounds 3] [--folder .]

Made latents (32, 32, 16), 51 to a trajectory as sampling stores them: 6,400 make 126 shards, 51,000
make 1,000 of 3.3 MB in float32. Written by turns, in batches of 8: `Stage.write`, which hashes,
syncs file and folder and renames, one by one and the batch on threads; `numpy.save` of the same
latents with fsync, and afterwards without. Then, each time in a process of its own: verifying every
shard as a resumed run does (one call of `Stage.valid`), with the files in the page cache and after
the system was asked to drop them; hashing every file on one core, for comparison; and single
latents at random, of shards that were verified once and are mapped. "Own memory" is what the
process holds more at the end than at the start without the pages of the files, which the system
may take back; "peak" is all of it. The folder should be on the disk in question (10 GB are needed
for all); it is cleaned at the end.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from taqdit.store import Stage, parallel
from taqdit.trajectories.shards import KIND, read_trajectory, shard_name

PER_TRAJECTORY, SHAPE, BATCH = 51, (32, 32, 16), 8
MARK = "0" * 64


def open_stage(folder):
    """The stage that holds the made trajectories."""
    return Stage.open(
        Path(folder), "trajectories", fingerprint=MARK, inputs={}, backend={"device": "none"}
    )


def lengths(count):
    """Latents of each trajectory: 51, and what is left."""
    whole, rest = divmod(count, PER_TRAJECTORY)
    return [PER_TRAJECTORY] * whole + [rest] * bool(rest)


def batches(sizes, dtype):
    """Yield a batch's {index: latents} after the other: one array with a value changed for each."""
    noise = np.random.default_rng(0).standard_normal((PER_TRAJECTORY, *SHAPE)).astype(dtype)
    for begin in range(0, len(sizes), BATCH):
        rows = {}
        for index, length in enumerate(sizes[begin : begin + BATCH], start=begin):
            noise.reshape(-1)[index] += 1
            rows[index] = noise[:length].copy()
        yield rows


def write(stage, index, latents):
    """Publish a trajectory with what `write_trajectory` says of one."""
    sigmas = np.linspace(1, 0, len(latents), dtype=np.float32)
    stage.write(
        shard_name(index),
        {"latents": latents, "sigmas": sigmas, "timesteps": 1000 * sigmas},
        kind=KIND,
        index=index,
        metadata={"prompt_index": 0, "prompt_sha256": MARK, "seed": index, "batch": [index] * 2},
    )


def save(path, latents, *, sync):
    """`numpy.save`, durable or not."""
    with path.open("wb") as file:
        np.save(file, latents)
        if sync:
            file.flush()
            os.fsync(file.fileno())


def timed(function, *arguments, **flags):
    """Seconds of one call."""
    begin = time.perf_counter()
    function(*arguments, **flags)
    return time.perf_counter() - begin


def write_by_turns(root, sizes, dtype):
    """Seconds of every batch: by the store in two ways, by `numpy.save` synced and not."""
    kept, other, plain = open_stage(root), open_stage(Path(root, "other")), Path(root, "plain")
    plain.mkdir()

    def path(index):
        return plain / f"{index:06d}.npy"

    ways = {
        "numpy.save + fsync": lambda rows: [save(path(i), rows[i], sync=True) for i in rows],
        "store": lambda rows: [write(kept, i, rows[i]) for i in rows],
        "store, batch at once": lambda rows: [
            *parallel.each(lambda i: write(other, i, rows[i]), rows)
        ],
    }
    loose = {"numpy.save": lambda rows: [save(path(i), rows[i], sync=False) for i in rows]}
    times = {way: [] for way in (*ways, *loose)}
    for turn in (ways, loose):  # what is not synced would be flushed by the others' syncs
        for number, rows in enumerate(batches(sizes, dtype)):
            first = number % len(turn)
            for way in [*turn, *turn][first : first + len(turn)]:
                times[way].append(timed(turn[way], rows))
            for file in [*plain.iterdir(), *other.folder.glob("*.safetensors")]:
                file.unlink()
    return times


def own_memory():
    """Bytes this process holds without pages of files; None where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return 1024 * int(next(s for s in status.splitlines() if s.startswith("RssAnon")).split()[1])


def scan(folder, sizes):
    """What a resumed run does before it computes: every shard is verified, as its own."""
    stage = open_stage(folder)
    units = {shard_name(index): index for index in range(len(sizes))}
    before, begin = own_memory(), time.perf_counter()
    valid = stage.valid(units, verify=lambda path: read_trajectory(stage, units[path.name]))
    seconds, after = time.perf_counter() - begin, own_memory()
    assert valid == set(units)
    own = None if before is None or after is None else after - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": seconds,
        "own": own,
        "peak": peak * (1 if sys.platform == "darwin" else 1024),
    }


def hashed(folder, sizes):
    """The least that verifying can cost on one core: every byte is read and hashed."""
    begin = time.perf_counter()
    for path in open_stage(folder).folder.glob("*.safetensors"):
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    return {"seconds": time.perf_counter() - begin}


def reads(folder, sizes, number=2000):
    """Seconds of opening a shard, which verifies it, and of copying one latent of an open one."""
    stage, random = open_stage(folder), np.random.default_rng(1)
    chosen = random.choice(len(sizes), min(len(sizes), 64), replace=False).tolist()
    opened, first, again = {}, [], []
    for index in chosen:
        begin = time.perf_counter()
        opened[index] = read_trajectory(stage, index)["latents"]
        first.append(time.perf_counter() - begin)
    for index in random.choice(chosen, number).tolist():
        step = int(random.integers(sizes[index]))
        again.append(timed(lambda latents, step: latents[step].copy(), opened[index], step))
    slow = sorted(again)[int(0.99 * number)]
    return {"first": statistics.median(first), "again": statistics.median(again), "slow": slow}


def drop_pages(folder):
    """Ask the system to forget the files; False where it takes no such request."""
    if not hasattr(os, "posix_fadvise"):
        return False
    os.sync()
    for path in open_stage(folder).folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


TASKS = {"scan": scan, "hashed": hashed, "reads": reads}


def apart(task, folder, count):
    """The result of a task in a process of its own."""
    command = [sys.executable, __file__, "--task", task, "--folder", folder, "--count", str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def print_writing(times, total):
    """MB/s of all files; how many times as fast as a synced `numpy.save` the median batch is."""
    plain = statistics.median(times["numpy.save + fsync"])
    for way, each in times.items():
        median = statistics.median(each)
        print(
            f"  write, {way:<21} {total / sum(each) / 1e6:6.0f} MB/s; median"
            f" {1e3 * median / BATCH:5.2f} ms a file, {plain / median:.2f}x"
        )


def print_looking_over(folder, count, total, rounds):
    """Seconds of verifying everything and of single reads."""
    scans = [apart("scan", folder, count) for _ in range(rounds + 1)]  # the first one warms up
    best = min(scans, key=lambda found: found["seconds"])
    own = "" if best["own"] is None else f"; own memory {best['own'] / 1e6:+.1f} MB"
    plain = min(apart("hashed", folder, count)["seconds"] for _ in range(rounds))
    rows = {"scan, warm": best["seconds"], "hash on one core, warm": plain}
    if drop_pages(folder):
        rows["scan, dropped from the cache"] = apart("scan", folder, count)["seconds"]
    for name, seconds in rows.items():
        notes = f"{own}, peak {best['peak'] / 1e6:.0f} MB with the mapped files"
        print(
            f"  {name:<28} {seconds:6.2f} s, {total / seconds / 1e9:.2f} GB/s"
            + (notes if name == "scan, warm" else "")
        )
    found = apart("reads", folder, count)
    print(
        f"  a latent at random {1e6 * found['again']:.0f} us, 99th percentile"
        f" {1e6 * found['slow']:.0f}; opening its shard, verified, {1e3 * found['first']:.1f} ms"
    )


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, nargs="+", default=[6_400, 51_000])
    parser.add_argument("--dtype", nargs="+", default=["float32", "float16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=".")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(TASKS[options.task](options.folder, lengths(options.count[0]))))
        return
    print(f"{os.cpu_count()} cores")
    for count in options.count:
        for dtype in options.dtype:
            total = count * int(np.prod(SHAPE)) * np.dtype(dtype).itemsize
            print(
                f"{count:,} latents, {dtype}, {len(lengths(count)):,} shards, {total / 1e9:.2f} GB"
            )
            with tempfile.TemporaryDirectory(dir=options.folder, prefix=".store-") as root:
                print_writing(write_by_turns(root, lengths(count), dtype), total)
                print_looking_over(root, count, total, options.rounds)


if __name__ == "__main__":
    main()
