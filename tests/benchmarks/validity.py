"""Does the predicted velocity error hold? Predicted against measured, on captions and seeds apart.

    uv run python tests/benchmarks/validity.py [--points 12] [--measured 4] [--probes 1] [--totals]

The embedded model, 30 steps, CFG 2. From 16 trajectories of the captions in `shapes`, at --points
of their steps, of 8 and of the other 8 by turns: ranges of least squared error (what the analysis
picks), and the sensitivity of every site and weight, with what that costs. Then 8 trajectories of
other captions and seeds, at --measured of those steps: the velocity error of every site quantized
alone at 8, 6 and 4 bits, of every weight rounded to nearest alone, and of everything together;
steps weighted by their length in sigma. "off" is predicted less measured.
"""

import argparse
import os
import time

import numpy as np
from scipy.stats import spearmanr

from taqdit import backend
from taqdit.activations import Layout, StepStatistics
from taqdit.analysis.distribution import Distribution
from taqdit.analysis.static import StaticErrors
from taqdit.backend import mx
from taqdit.models.linears import linears
from taqdit.models.options import tiny
from taqdit.models.sites import site_paths
from taqdit.models.tiny.captions import captions
from taqdit.models.tiny.scenes import sample_scenes
from taqdit.prompts.options import Prompts, shapes
from taqdit.quantizer import BITS, Quantizer
from taqdit.sampler import euler
from taqdit.schedule import flow
from taqdit.sensitivity.gradients import Projections
from taqdit.sensitivity.layout import SensitivityLayout
from taqdit.sensitivity.measured import ErrorProbe, FakeQuantized
from taqdit.sensitivity.prediction import site_error, velocity_decibel, weight_error
from taqdit.sensitivity.reader import SensitivityProbe
from taqdit.sensitivity.rounded import round_to_nearest
from taqdit.tracer.probe import Probe
from taqdit.tracer.taps import Taps
from taqdit.trajectories.sampling import Batch, Sampling

ENDS = ("low", "high")
STEPS, SIZE, CFG, FOLDS, HELD_SEED = 30, 8, 2.0, 8, 1000
WEIGHTS = ((8, None), (6, None), (4, None), (4, 64))  # bits, group size
ALONE = WEIGHTS[2:]  # of these every weight is measured alone
TOGETHER = {"W8A8": (WEIGHTS[0], 8), "W6A6": (WEIGHTS[1], 6), "W4A8": (WEIGHTS[2], 8)}


class Trajectories:
    """One batch of sampled trajectories, to be replayed for a probe."""

    def __init__(self, model, texts, *, seed):
        prompts = Prompts(tuple(texts), (None,) * len(texts))
        sampler = euler(cfg_scale=CFG, num_trajectories=SIZE, batch_size=SIZE, seed=seed)
        self._rows = {text: model.encode(text) for text in ("", *texts)}
        self.sigmas = flow(num_steps=STEPS).sigmas()
        self.sampling = Sampling(model, self.guided, self.sigmas, sampler)
        self.batch = Batch.of(0, sampler=sampler, prompts=prompts)
        self.latents = np.stack([rows for _, rows in self.sampling.sample(self.batch)], axis=1)

    def guided(self, texts):
        """Conditioning of a guided batch."""
        rows = [self._rows[text] for text in (*texts, *[""] * len(texts))]
        return tuple(mx.array(np.stack(part)) for part in zip(*rows, strict=True))

    def replay(self, steps, probe):
        """Show some steps to a probe."""
        for _ in self.sampling.replay(self.batch, self.latents, steps, probe):
            pass


class Calibrated:
    """What is known from the calibration trajectories: ranges and sensitivity."""

    def __init__(self, model, *, points, probes):
        self.steps = [round(step) for step in np.linspace(0, STEPS - 1, points)]
        texts = shapes().texts
        batches = [
            Trajectories(model, texts[i : i + SIZE], seed=i) for i in range(0, 2 * SIZE, SIZE)
        ]
        shown = [(batch, self.steps[i::2]) for i, batch in enumerate(batches)]
        self.dt = -np.diff(batches[0].sigmas)
        extremes, self.picked = self._ranges(model, shown)
        self.layout = SensitivityLayout.of(model, extremes, folds=FOLDS)
        self.errors = rounding_errors(model, self.layout)
        self.sums = {}
        self.read(model, shown, Projections(probes=probes))

    def read(self, model, shown, projections):
        """The sensitivity at every point; prints what it costs."""
        backend.reset_peak_memory()
        started, busy = time.perf_counter(), time.process_time()
        for trajectories, steps in shown:
            probe = SensitivityProbe(
                self.layout.taps(model),
                self.layout,
                trajectories.batch.indices,
                self.sums.__setitem__,
                sigmas=trajectories.sigmas,
                tokens=trajectories.guided(trajectories.batch.texts)[0],
                projections=projections,
            )
            trajectories.replay(steps, probe)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        kept = sum(array.nbytes for array in self.sums[self.steps[0]].tensors().values())
        print(
            f"sensitivity at {len(self.steps)} steps, of {SIZE} trajectories each,"
            f" {projections.probes} probes: {seconds:.1f} s, {busy:.1f} s of processor time;"
            f" MLX peak {backend.peak_memory() / 1e6:.0f} MB, kept {kept / 1e6:.1f} MB a step"
        )

    def _ranges(self, model, shown):
        """Extremes of every site, and by bits the quantizer that an observer of all picks."""
        paths = {each.site: each.path for each in site_paths(model.spec)}
        layout, found = Layout(tuple(paths), FOLDS), {}
        taps = Taps(model.mmdit, {site.name: path for site, path in paths.items()})

        def add(step, sums):
            found[step] = StepStatistics.of_batch(layout, sums)

        for trajectories, chosen in shown:
            batch = trajectories.batch
            probe = Probe(taps, layout, batch.indices, add, texts=batch.texts)
            trajectories.replay(chosen, probe)
        steps = [found[step] for step in self.steps]
        extremes, picked = {}, {bits: {} for bits in BITS}
        for number, site in enumerate(layout.sites):
            span = layout.span(number)
            low, high = (np.concatenate([getattr(s, e)[span] for s in steps]) for e in ENDS)
            extremes[site.name] = low.min(), high.max()
            for bits in BITS:
                errors = StaticErrors.of(Distribution.of(steps, number), bits=bits)
                weights = np.tile(self.dt[self.steps], (FOLDS, 1))
                best = int(errors.pooled(weights).argmin())
                ends = errors.low[best], errors.high[best]
                picked[bits][site.name] = Quantizer.of_range(*ends, bits=bits)
        return extremes, picked

    def site_errors(self, site, bits, steps):
        """Predicted, by step."""
        quantizer = self.picked[bits][site]
        return [site_error(self.sums[s], self.layout, site, quantizer).sum() for s in steps]

    def weight_errors(self, linear, kind, steps):
        """Predicted, by step."""
        error = self.errors[kind][linear]
        return [weight_error(self.sums[s], self.layout, linear, error).sum() for s in steps]


def rounding_errors(model, layout):
    """(bits, group size) -> linear -> error of its weight."""
    weights = dict(linears(model.mmdit, model.spec))
    return {
        (bits, group): {
            each.name: round_to_nearest(weights[each.name], bits=bits, group_size=group)
            - weights[each.name]
            for each in layout.linears
        }
        for bits, group in WEIGHTS
    }


def schemes_of(known, *, alone):
    """Everything that is measured, by name; `alone`: single sites and weights, too."""
    sites = [site.name for site in known.layout.sites]
    schemes = {}
    for bits, picked in known.picked.items():
        if alone:
            schemes |= {(site, bits): FakeQuantized({site: picked[site]}) for site in sites}
        schemes[f"A{bits}"] = FakeQuantized(picked)
    for kind, errors in known.errors.items():
        schemes["W", kind] = FakeQuantized(weights=errors)
        if alone and kind in ALONE:
            one = {(name, kind): FakeQuantized(weights={name: e}) for name, e in errors.items()}
            schemes |= one
    for name, (kind, bits) in TOGETHER.items():
        schemes[name] = FakeQuantized(known.picked[bits], known.errors[kind])
    return schemes


def measure(model, known, schemes, steps):
    """Scheme -> squared errors by step, and the power of the velocity by step."""
    rng = np.random.default_rng(HELD_SEED)
    texts = captions(sample_scenes(SIZE, rng, "all"), rng)
    held, found, power = Trajectories(model, texts, seed=HELD_SEED), {}, []

    def add(_step, powers, errors):
        power.append(powers.sum())
        for name, each in errors.items():
            found.setdefault(name, []).append(each.sum())

    taps = known.layout.taps(model)
    held.replay(steps, ErrorProbe(taps, known.layout, schemes, add, sigmas=held.sigmas))
    return {name: np.array(each) for name, each in found.items()}, np.array(power)


def compare(title, names, predicted, measured):
    """One line: rank correlation and offsets of (n,) errors; what has no effect is left out."""
    rank = spearmanr(predicted, measured).statistic
    moved = np.flatnonzero((predicted > 0) & (measured > 0))
    off = 10 * np.log10(predicted[moved] / measured[moved])
    total = 10 * np.log10(predicted.sum() / measured.sum())
    worst = np.abs(off).argmax()
    print(
        f"{title:<36} Spearman {rank:.3f}   off: median {np.median(off):+.2f} dB,"
        f" median size {np.median(np.abs(off)):.2f}, largest {off[worst]:+.1f}"
        f" ({names[moved[worst]]}), sum {total:+.2f}   ({len(predicted)})"
    )


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--measured", type=int, default=4)
    parser.add_argument("--probes", type=int, default=1)
    parser.add_argument(
        "--totals", action="store_true", help="measure nothing alone: 30 times less"
    )
    options = parser.parse_args()
    print(f"{backend.describe()['blas']}, {backend.threads()} threads of {os.cpu_count()} cores")
    model = tiny().load()
    known = Calibrated(model, points=options.points, probes=options.probes)
    every = max(1, options.points // options.measured)
    steps = known.steps[::-1][::every][: options.measured][::-1]
    schemes, started = schemes_of(known, alone=not options.totals), time.perf_counter()
    measured, power = measure(model, known, schemes, steps)
    spent = time.perf_counter() - started
    print(f"measured {len(schemes)} quantized forwards at steps {steps}: {spent:.0f} s\n")
    dt, own = known.dt[steps], np.array([known.sums[step].power.sum() for step in steps])
    sites, names = (
        [each.name for each in part] for part in (known.layout.sites, known.layout.linears)
    )
    by_site = {b: np.array([known.site_errors(s, b, steps) for s in sites]) for b in BITS}
    by_weight = {k: np.array([known.weight_errors(n, k, steps) for n in names]) for k in WEIGHTS}
    for bits in BITS if not options.totals else ():
        alone = np.array([measured[site, bits] for site in sites])
        compare(f"sites one by one, {bits} bits", sites, by_site[bits] @ dt, alone @ dt)
    for kind in ALONE if not options.totals else ():
        alone = np.array([measured[name, kind] for name in names])
        title = f"weights one by one, 4 bits, {'group 64' if kind[1] else 'channel'}"
        compare(title, names, by_weight[kind] @ dt, alone @ dt)
    print("\nvelocity error, dB                 predicted   measured      off")
    rows = {f"A{bits}": by_site[bits].sum(axis=0) for bits in BITS}
    rows |= {("W", kind): errors.sum(axis=0) for kind, errors in by_weight.items()}
    rows |= {
        name: by_weight[kind].sum(axis=0) + by_site[bits].sum(axis=0)
        for name, (kind, bits) in TOGETHER.items()
    }
    for name, errors in rows.items():
        said, truth = velocity_decibel(errors, own, dt), velocity_decibel(measured[name], power, dt)
        label = name if isinstance(name, str) else f"W{name[1][0]}, {name[1][1] or 'channel'}"
        print(f"{label:<34} {said:9.2f}  {truth:9.2f}  {said - truth:+7.2f}")


if __name__ == "__main__":
    main()
