"""Traces the embedded model and keeps the activations themselves beside their statistics."""

from contextlib import contextmanager

import numpy as np

from taqdit.activations import Layout, StepStatistics
from taqdit.backend import mx
from taqdit.models.sites import site_paths
from taqdit.prompts.options import Prompts
from taqdit.sampler import euler
from taqdit.schedule import flow
from taqdit.tracer.options import block_inputs
from taqdit.tracer.probe import Probe
from taqdit.tracer.taps import Taps
from taqdit.trajectories import sampling

TEXTS = (
    "a large red circle at the center on a white background",
    "a small blue ring at the top on a black background",
    "a green square on a gray background",
    "two words",
)
PROMPTS = Prompts(TEXTS, (None,) * len(TEXTS))
CFG_SCALE = 2.0


class Conditioned:
    """The conditioning of texts for guided forwards, each text encoded once."""

    def __init__(self, model, texts=TEXTS):
        self._rows = {text: model.encode(text) for text in ("", *texts)}

    def __call__(self, texts):
        rows = [self._rows[text] for text in (*texts, *[""] * len(texts))]
        return tuple(mx.array(np.stack(part)) for part in zip(*rows, strict=True))


class KeepingTaps(Taps):
    """Taps that keep what they read, name -> array for each forward in `kept`.

    `change` alters what is read.
    """

    def __init__(self, *arguments, change=None, **options):
        super().__init__(*arguments, **options)
        self.kept, self._change = [], change or (lambda _name, array: array)

    @contextmanager
    def reading(self, read):
        forward = {}

        def keep(name, array):
            forward[name] = self._change(name, array)
            read(name, forward[name])

        with super().reading(keep):
            yield
        self.kept.append(forward)


class Tracing:
    """What one model, tracer and grid give: latents, statistics by step, activations by step.

    `told` holds the steps in the order in which a probe told of them. After `sample_and_keep`,
    `activations[step][site]` is (rows, tokens, C) of all batches, and `folds` the fold of each row.
    """

    def __init__(
        self, model, guided, *, num_steps=3, sampler=None, folds=3, tracer=None, prompts=PROMPTS
    ):
        self.model, self.guided, self.prompts = model, guided, prompts
        self.sampler = sampler or euler(cfg_scale=CFG_SCALE, batch_size=2, num_trajectories=4)
        self.sigmas = flow(num_steps=num_steps).sigmas()
        paths = {each.site: each.path for each in site_paths(model.spec)}
        sites = (tracer or block_inputs()).chosen(paths)
        self.layout = Layout(sites, folds)
        self._paths = {site.name: paths[site] for site in sites}
        self.steps, self.activations, self.folds, self.told = {}, {}, [], []

    def batch(self, number=0):
        return sampling.Batch.of(number, sampler=self.sampler, prompts=self.prompts)

    def taps(self, **options):
        return KeepingTaps(self.model.mmdit, self._paths, **options)

    def probe(self, number=0, *, taps=None, masked=False, found=None):
        def merge(step, sums):
            self.told.append(step)
            part = StepStatistics.of_batch(self.layout, sums)
            self.steps[step] = self.steps[step].merged(part) if step in self.steps else part

        taps, batch = taps or self.taps(), self.batch(number)
        add, texts = found or merge, batch.texts
        return Probe(taps, self.layout, batch.indices, add, texts=texts, masked=masked)

    def sample(self, number=0, probe=None, guided=None):
        """Latents (num_steps + 1, N, h, w, 16) of a batch."""
        found = self.sampling(guided or self.guided).sample(self.batch(number), probe)
        return np.stack([rows for _, rows in found])

    def sample_and_keep(self, number=0, *, change=None, masked=False):
        """Sample a batch and keep what was read of it."""
        taps = self.taps(change=change)
        self.sample(number, probe=self.probe(number, taps=taps, masked=masked))
        self.folds += [index % self.layout.folds for index in self.batch(number).indices] * 2
        for step, forward in enumerate(taps.kept):
            parts = [numpy_of(forward[site.name]) for site in self.layout.sites]
            known = self.activations.get(step)
            pairs = zip(known, parts, strict=True) if known else [(each,) for each in parts]
            self.activations[step] = [np.concatenate(pair) for pair in pairs]

    def replay(self, latents, steps, number=0, probe=None):
        """Read the steps of a batch again, from latents as `sample` gave them."""
        probe = probe or self.probe(number)
        rows = latents.swapaxes(0, 1)
        return list(self.sampling(self.guided).replay(self.batch(number), rows, steps, probe))

    def sampling(self, guided):
        return sampling.Sampling(self.model, guided, self.sigmas, self.sampler)


def numpy_of(activation):
    """(rows, tokens, C) float32, the very values of an activation (rows, tokens, 1, C)."""
    values = np.array(activation.astype(mx.float32))
    return values.reshape(len(values), -1, values.shape[-1])
