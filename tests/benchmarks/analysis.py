"""What the analysis of statistics costs: seconds and memory of each part, without a model.

    uv run python tests/benchmarks/analysis.py [FOLDER] [--sizes tiny sd3_medium] [--width 1]

tiny: statistics in FOLDER (`outputs/store/statistics/*`), or made ones of the embedded model's
default run: 47 sites, 30 steps. sd3_medium: made ones, 191 sites, 100 steps; `--width 8` gives
every site an eighth of its channels, which needs 0.5 GB less. Then the weights of the embedded
model, and what the histograms save: the candidate ranges of one site tried on activations.
Memory is the process's largest resident set so far.
"""

import argparse
import os
import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from taqdit import backend
from taqdit.activations import BinCounts, Layout, Site, StepStatistics
from taqdit.activations.bins import PER_ROW, ROWS, edges_of
from taqdit.activations.layer_json import layers_of
from taqdit.activations.opened import open_statistics
from taqdit.activations.overview import overview
from taqdit.analysis.bits import sqnr_bits
from taqdit.analysis.distribution import Distribution
from taqdit.analysis.drift import drift
from taqdit.analysis.outliers import outliers
from taqdit.analysis.profile import profile
from taqdit.analysis.selections import compare_rules, step_weights
from taqdit.analysis.static import StaticErrors, candidates
from taqdit.analysis.weights import analyse_weights
from taqdit.models import options
from taqdit.models.linears import linears
from taqdit.models.sites import site_paths
from taqdit.quantizer import BITS, Quantizer
from taqdit.schedule import flow

FOLDS, EXTENT, CFG_ROWS = 8, 16, 2
STEPS = {"tiny": 30, "sd3_medium": 100}
OCTAVES = 21  # of each sign: 42 rows of bins per site and step, as traced sites have 40
FAR, SHARE = 4.0, 1e-2  # outliers: so much wider than the others, and so many
RSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB here
TRIED, ROUNDS = 2**20, 3  # activations that a candidate is timed on, and how often


@dataclass(frozen=True)
class Made:
    """Statistics that look like traced ones: Gaussians with outliers, spread and centre of which
    drift; channels of unlike widths. What no part of the analysis depends on is shared by steps."""

    layout: Layout
    sigmas: np.ndarray
    steps: list
    extent: int = EXTENT

    @property
    def num_steps(self):
        return len(self.steps)

    @property
    def timesteps(self):
        return 1000 * self.sigmas

    def step(self, step):
        return self.steps[step]


def made(spec, *, num_steps, width):
    """Statistics of a model's sites, each with 1 / width of its channels."""
    paths, rng = site_paths(spec), np.random.default_rng(0)
    sites = tuple(Site(each.site.name, max(1, each.site.width // width)) for each in paths)
    layout = Layout(sites, FOLDS)
    tokens = np.array([each.tokens * CFG_ROWS * EXTENT for each in paths])
    sizes = np.exp(rng.normal(0, 2, len(sites)))
    widths = np.exp(rng.normal(-0.5, 0.4, layout.channels)).astype(np.float32)
    shared = {
        "mean": rng.normal(0, 0.1, layout.channels) * layout.spread(sizes),
        "negative": layout.spread(tokens // 2).astype(np.uint32),
        "large": rng.integers(0, 50, (2, layout.channels)).astype(np.uint32),
    }
    sigmas = flow(num_steps=num_steps).sigmas()[:-1].astype(np.float64)
    steps = [_step(layout, tokens, sizes, widths, sigma, shared, rng) for sigma in sigmas]
    return Made(layout, sigmas, steps)


def _step(layout, tokens, sizes, widths, sigma, shared, rng):
    rates = np.linspace(-1, 1, len(sizes))  # of drift: sites narrow or widen
    spreads = sizes * np.exp(0.3 * rates * sigma) * rng.uniform(0.97, 1.03, (FOLDS, len(sizes)))
    numbers = tokens * [site.width for site in layout.sites] / FOLDS
    far = FAR * rng.uniform(0.4, 1.6, len(sizes))
    tables = list(map(_counted, spreads.T, sizes, numbers, rates * rng.uniform(-1, 1), far))
    low, high = (np.stack(ends, axis=1) for ends in zip(*(t[1:] for t in tables), strict=True))
    reach = widths * rng.uniform(0.9, 1.0, layout.channels).astype(np.float32)
    peaks = [BinCounts(t.rows[14:18], t.counts[:1, 14:18]) for t, *_ in tables]
    return StepStatistics(
        layout=layout,
        tokens=tokens,
        missing=np.empty(0, np.uint32),
        m2=shared["large"][0] * layout.spread(sizes**2),
        low=layout.spread(low.min(axis=0)) * np.minimum(reach, 1),
        high=layout.spread(high.max(axis=0)) * np.minimum(reach, 1),
        fold_low=low,
        fold_high=high,
        values=[table for table, *_ in tables],
        peaks=peaks,
        **shared,
    )


def _counted(spreads, size, number, centre, far):
    """Bin counts of one site, and its extremes (F,), (F,)."""
    top = int(np.log2(size * FAR)) + 130  # biased exponent of the last octave
    rows = np.arange(top - OCTAVES + 1, top + 1)
    edges = edges_of(np.arange(rows[0] * PER_ROW, (top + 1) * PER_ROW + 1))
    place = np.concatenate([-edges[::-1], edges]) / spreads[:, None] - centre
    below = (1 - SHARE) * ndtr(place) + SHARE * ndtr(place / far)
    shares = np.diff(below)
    bins = len(edges) - 1
    signs = shares[:, bins + 1 :], shares[:, :bins][:, ::-1]  # by magnitude
    counts = np.rint(np.concatenate(signs, axis=1) * number).astype(np.uint32)
    last = [bins - (each[:, ::-1] > 0).argmax(axis=1) for each in np.split(counts, 2, axis=1)]
    high, low = (edges[each].astype(np.float32) for each in last)
    rows = np.concatenate([rows, rows + ROWS // 2]).astype(np.uint16)
    return BinCounts(rows, counts.reshape(FOLDS, -1, PER_ROW)), -low, high


class Clock:
    """Prints the seconds of each part and the largest resident set since the start."""

    def __init__(self):
        self.spent = {}

    def __call__(self, part, run):
        """What `run` gives."""
        started = time.perf_counter()
        found = run()
        self.spent[part] = time.perf_counter() - started
        print(f"  {part:<44} {self.spent[part]:8.2f} s   peak {megabytes():6.0f} MB", flush=True)
        return found


def megabytes():
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_PER_MB


def analyse(statistics):
    """Each part of the analysis in turn."""
    clock, before = Clock(), megabytes()
    weights = step_weights(statistics.sigmas)
    table = clock("overview", lambda: overview(statistics))
    found = clock("profile", lambda: profile(statistics, weights))
    clock(
        "comparison with scores and curves",
        lambda: compare_rules(statistics, known=found),
    )
    clock("drift and phases", lambda: drift(table, found.quantiles, np.ones(len(weights))))
    clock("outliers", lambda: outliers(statistics, table))
    readers = {layer: s.name for s in statistics.layout.sites for layer in layers_of(s)}
    clock("bits", lambda: sqnr_bits(found.noise, readers, None, target=20.0))
    whole = sum(clock.spent.values())
    print(f"  {'all':<44} {whole:8.2f} s   of which {megabytes() - before:.0f} MB are its own")


def one_site(statistics, number):
    """All candidates of a site at every width: from its histograms, and, extrapolated from one of
    them on TRIED numbers, on all its activations. Best of ROUNDS."""
    steps = [statistics.step(step) for step in range(statistics.num_steps)]
    distribution = Distribution.of(steps, number)
    low, high = candidates(distribution)
    values = np.random.default_rng(0).normal(0, high.max() / 8, TRIED)

    def from_histograms():
        found = Distribution.of(steps, number)
        for bits in BITS:
            StaticErrors.of(found, bits=bits)

    def on_activations():
        for bits in BITS:
            quantizer = Quantizer.of_range(low[0], high[0], bits=bits)
            np.square(values - quantizer.rounded(values)).sum()

    total = distribution.total.sum()
    histogram = best(from_histograms)
    raw = best(on_activations) * len(low) * total / TRIED
    name = statistics.layout.sites[number].name
    print(
        f"  {len(low)} ranges at {len(BITS)} widths for {name} ({total:.3g} values):"
        f" {histogram:.3f} s; on the activations {raw:.0f} s, {raw / histogram:.0f} times"
    )


def best(run):
    """Least seconds of ROUNDS runs."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--sizes", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--width", type=int, default=1)
    chosen = parser.parse_args()
    described = backend.describe()
    print(
        f"numpy {np.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f};"
        f" mlx {described['mlx']}"
    )
    for name in chosen.sizes:
        spec, folder = getattr(options, name)(), chosen.folder if name == "tiny" else None
        started = time.perf_counter()
        if folder:
            statistics = open_statistics(folder)
        else:
            width = 1 if name == "tiny" else chosen.width
            statistics = made(spec, num_steps=STEPS[name], width=width)
        layout = statistics.layout
        print(
            f"{name}: {len(layout.sites)} sites, {layout.channels} channels x"
            f" {statistics.num_steps} steps x {layout.folds} folds,"
            f" {rows_of(statistics):.0f} rows of bins; {'read' if folder else 'made'} in"
            f" {time.perf_counter() - started:.1f} s, peak {megabytes():.0f} MB"
        )
        analyse(statistics)
        one_site(statistics, layout.index("mm_03_img.fc1_in"))
        del statistics
    model = options.tiny().load()
    size = sum(weight.size for _, weight in linears(model.mmdit, model.spec))
    print(f"weights of tiny: {size / 1e6:.2f} M in linears")
    Clock()(
        "rounded at 4 granularities x 3 widths",
        lambda: analyse_weights(linears(model.mmdit, model.spec)),
    )


def rows_of(statistics):
    """Mean rows of bins per site, over the steps."""
    steps = map(statistics.step, range(statistics.num_steps))
    return np.mean([len(table.rows) for step in steps for table in step.values])


if __name__ == "__main__":
    main()
