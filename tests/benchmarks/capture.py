"""What capturing every step costs, beside DiffusionKit's own sampler in the same process.

    uv run python tests/benchmarks/capture.py [--images 16] [--steps 30] [--rounds 3]

A: DiffusionKit's `sample_euler`, one image at a time, final latents only.
B: taqdit at batch 1, every step's latent captured, shards published and synced to disk.
C: taqdit at the default batch of 8, likewise.
The rounds alternate A B C; the ratio is of the best rounds. Then the peak memory of 16 and of 64
trajectories. TAQDIT_BLAS=0 runs without a fast BLAS.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np

from taqdit import backend
from taqdit.backend import mx
from taqdit.models.diffusionkit import dk
from taqdit.models.options import tiny
from taqdit.prompts.options import shapes
from taqdit.sampler import euler
from taqdit.schedule import flow
from taqdit.store import Stage
from taqdit.trajectories import conditioning, sampling, shards

CFG_SCALE = 2.0


def diffusionkit_images(model, guided, prompts, sigmas, count):
    """Final latents of `count` images through `sample_euler`, one at a time."""
    levels = mx.array(sigmas)
    for index in range(count):
        tokens, pooled = guided([prompts.text(index)])
        latent, _ = dk.sample_euler(
            dk.CFGDenoiser(model.pipeline),
            model.first_latent([index], levels[0]),
            levels,
            extra_args={
                "conditioning": tokens,
                "cfg_weight": CFG_SCALE,
                "pooled_conditioning": pooled,
            },
        )
        mx.eval(latent)
        tidy(model.mmdit)


def tidy(mmdit):
    """Remove what DiffusionKit leaves behind, as a user of it must before the next image."""
    mmdit.pop("to_offload", None)
    for _, module in mmdit.named_modules():
        module.pop("_modulation_params", None)


def captured(model, guided, prompts, sigmas, count, batch_size, folder):
    """The same images with every step kept and each trajectory published as a shard."""
    sampler = euler(cfg_scale=CFG_SCALE, num_trajectories=count, batch_size=batch_size)
    stage = open_stage(folder)
    for number in range(sampler.num_batches):
        batch = sampling.Batch.of(number, sampler=sampler, prompts=prompts)
        latents = np.empty((batch_size, len(sigmas), *model.latent_shape), np.float32)
        for step, rows in sampling.Sampling(model, guided, sigmas, sampler).sample(batch):
            latents[:, step] = rows
        for row in range(batch_size):
            shards.write_trajectory(
                stage,
                batch,
                row,
                latents=latents[row],
                sigmas=sigmas,
                timesteps=sigmas * 1000,
                prompts=prompts,
            )


def open_stage(folder):
    """A stage folder of its own for each call."""
    name = f"{len(list(Path(folder).iterdir())):064d}"[::-1]
    return Stage.open(
        Path(folder) / name[:8], "trajectories", fingerprint=name, inputs={}, backend={}
    )


def encode(model, prompts, folder):
    """Conditioning of all prompts."""
    stage = Stage.open(
        Path(folder) / "c", "conditioning", fingerprint="c" * 64, inputs={}, backend={}
    )
    list(conditioning.encode(stage, dict.fromkeys(["", *prompts.texts]), model.encode))
    return conditioning.Conditioning(stage).guided


def seconds(function, *arguments):
    """Wall time of one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def megabytes():
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    described = backend.describe()
    print(
        f"mlx {described['mlx']}, {described['device']}, BLAS {described['blas']}, "
        f"{backend.threads()} threads of {os.cpu_count()} cores"
    )
    print(f"tiny model, {options.images} images x {options.steps} steps, CFG {CFG_SCALE}")
    with tempfile.TemporaryDirectory() as folder:
        model, prompts = tiny().load(), shapes()
        sigmas = flow(num_steps=options.steps).sigmas()
        guided = encode(model, prompts, folder)
        common = (model, guided, prompts, sigmas)
        runs = {
            "A sample_euler, one at a time": (diffusionkit_images, *common, options.images),
            "B captured, batch 1": (captured, *common, options.images, 1, folder),
            "C captured, batch 8": (captured, *common, options.images, 8, folder),
        }
        diffusionkit_images(*common, 1)  # warm-up
        times = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, (function, *arguments) in runs.items():
                times[name].append(seconds(function, *arguments))
        base = min(times["A sample_euler, one at a time"])
        for name, found in times.items():
            best = min(found)
            print(
                f"{name:<32} {best:7.2f} s  {best / options.images:6.3f} s/image"
                f"  ratio {best / base:.3f}   (rounds {' '.join(f'{t:.2f}' for t in found)})"
            )
        for count in (16, 64):
            backend.reset_peak_memory()
            captured(*common, count, 8, folder)
            print(
                f"peak memory, {count} trajectories: MLX {backend.peak_memory() / 1e6:.1f} MB,"
                f" process {megabytes():.1f} MB"
            )


if __name__ == "__main__":
    main()
