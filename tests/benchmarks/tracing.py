"""What tracing activations costs, beside sampling without it in the same process.

    uv run python tests/benchmarks/tracing.py [--images 16] [--steps 30] [--rounds 3]

A: sampling at the default batch of 8, latents only.
B: the same, reading the activations after GELU.    C: the same, reading every block input.
D: C's statistics by a tracer that hands each activation to numpy as it is computed.
E: C's statistics of the stored trajectories, replayed.
The rounds alternate A B C D E; ratios are of the best rounds. Then what B and C do beside
the sampling. Printed with each: the peak of MLX's memory. TAQDIT_BLAS=0 runs without a fast BLAS.
"""

import argparse
import os
import time
from collections import defaultdict

import numpy as np

from taqdit import backend
from taqdit.activations import Layout, StepStatistics
from taqdit.backend import mx
from taqdit.models.options import tiny
from taqdit.models.sites import site_paths
from taqdit.prompts.options import shapes
from taqdit.sampler import euler
from taqdit.schedule import flow
from taqdit.tracer.background import Background
from taqdit.tracer.options import block_inputs, post_gelu
from taqdit.tracer.probe import Probe
from taqdit.tracer.taps import Taps
from taqdit.trajectories import sampling

CFG_SCALE, BATCH = 2.0, 8


class Workload:
    """The model, the prompts and the grid; every variant samples the same trajectories."""

    def __init__(self, *, images, steps):
        self.model, self.prompts = tiny().load(), shapes()
        self.sigmas = flow(num_steps=steps).sigmas()
        self.sampler = euler(cfg_scale=CFG_SCALE, num_trajectories=images, batch_size=BATCH)
        rows = {text: self.model.encode(text) for text in ("", *self.prompts.texts)}
        self.rows = {text: [np.array(part) for part in pair] for text, pair in rows.items()}

    def guided(self, texts):
        """Conditioning of a guided batch."""
        rows = [self.rows[text] for text in (*texts, *[""] * len(texts))]
        return tuple(mx.array(np.stack(part)) for part in zip(*rows, strict=True))

    def batches(self):
        """The batches of the run."""
        for number in range(self.sampler.num_batches):
            yield sampling.Batch.of(number, sampler=self.sampler, prompts=self.prompts)

    def sites(self, tracer):
        """What a tracer reads: site -> path, and the layout."""
        paths = {each.site: each.path for each in site_paths(self.model.spec)}
        chosen = tracer.chosen(paths)
        layout = Layout(chosen, tracer.folds)
        return {site.name: paths[site] for site in chosen}, layout

    def sample(self, probe_of=None):
        """All latents (images, steps + 1, h, w, 16), with a probe per batch or none."""
        found = []
        for batch in self.batches():
            probe = probe_of(batch) if probe_of else None
            steps = self.sampling().sample(batch, probe)
            found.append(np.stack([rows for _, rows in steps], axis=1))
        return np.concatenate(found)

    def sampling(self):
        return sampling.Sampling(self.model, self.guided, self.sigmas, self.sampler)

    def traced(self, tracer, totals):
        """A function that gives each batch its probe; `totals` collects the statistics."""
        paths, layout = self.sites(tracer)

        def add(step, sums):
            part = StepStatistics.of_batch(layout, sums)
            totals[step] = totals[step].merged(part) if step in totals else part

        def probe_of(batch):
            taps = Taps(self.model.mmdit, paths)
            return Probe(taps, layout, batch.indices, add, texts=batch.texts)

        return probe_of

    def replayed(self, tracer, latents, totals):
        """The statistics of stored latents."""
        probe_of = self.traced(tracer, totals)
        for batch in self.batches():
            rows, steps = [latents[index] for index in batch.indices], range(len(self.sigmas) - 1)
            for _ in self.sampling().replay(batch, rows, steps, probe_of(batch)):
                pass

    def by_numpy(self, tracer):
        """The same statistics, each activation handed to numpy as soon as it is computed."""
        paths, _ = self.sites(tracer)
        bins = defaultdict(lambda: np.zeros(8192, np.int64))

        def read(name, activation):
            rows = np.array(activation).reshape(-1, activation.shape[-1])
            rows.mean(axis=0, dtype=np.float64)
            rows.var(axis=0, dtype=np.float64)
            rows.min(axis=0), rows.max(axis=0), (rows < 0).sum(axis=0)
            np.abs(rows).max(axis=1)
            codes = rows.view(np.uint32).reshape(-1) >> 19
            bins[name] += np.bincount(codes, minlength=8192)

        class Naive:
            pending = ()
            taps = Taps(self.model.mmdit, paths)

            def watch(self, denoise):
                def watched(latent, step):
                    with self.taps.reading(read):
                        return denoise(latent, step)

                return watched

            def collect(self):
                pass

            def finish(self):
                pass

        self.sample(lambda _batch: Naive())


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
    work = Workload(images=options.images, steps=options.steps)
    latents = work.sample()
    points = options.images * options.steps
    print(f"tiny model, {options.images} images x {options.steps} steps, CFG {CFG_SCALE}")
    runs = {
        "A sampling alone": work.sample,
        "B with post_gelu": lambda: work.sample(work.traced(post_gelu(), {})),
        "C with block_inputs": lambda: work.sample(work.traced(block_inputs(), {})),
        "D block_inputs by numpy": lambda: work.by_numpy(block_inputs()),
        "E block_inputs replayed": lambda: work.replayed(block_inputs(), latents, {}),
    }
    times, peaks = defaultdict(list), {}
    for _ in range(options.rounds):
        for name, run in runs.items():
            backend.reset_peak_memory()
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
            peaks[name] = backend.peak_memory()
    base = min(times["A sampling alone"])
    for name, found in times.items():
        print(
            f"{name:<26} {min(found):7.2f} s  ratio {min(found) / base:.3f}"
            f"  {1e3 * min(found) / points:6.2f} ms/point  MLX peak {peaks[name] / 1e6:6.1f} MB"
            f"   (rounds {' '.join(f'{t:.2f}' for t in found)})"
        )
    for name, tracer in (("B", post_gelu()), ("C", block_inputs())):
        spent = work_beside(lambda t=tracer: work.sample(work.traced(t, {})))
        print(f"{name}: reducing, counting and merging take {spent:.2f} s of a thread beside it")


def work_beside(run):
    """Processor seconds of what a run's probes do beside the sampling."""
    spent, begin = [], Background.run

    def measured(self, job):
        def timed():
            started = time.thread_time()
            job()
            spent.append(time.thread_time() - started)

        begin(self, timed)

    Background.run = measured
    try:
        run()
    finally:
        Background.run = begin
    return sum(spent)


if __name__ == "__main__":
    main()
