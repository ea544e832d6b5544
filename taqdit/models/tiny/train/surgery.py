"""The denoiser's outliers: what `targets` asks for, by the changes of `exact`, and of hidden units
by a new fit of what their layer gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.backend import mx, nn
from taqdit.models.tiny.captions import captions
from taqdit.models.tiny.scenes import sample_scenes
from taqdit.models.tiny.train import exact, targets
from taqdit.models.tiny.train.exact import ATTENTION, FINAL, MLP, Array, Weights
from taqdit.models.tiny.train.targets import Target, factors, leaning, shares
from taqdit.models.tiny.train.trial import Call, Trial, calling, loaded

COUNT, SEED = 32, 101
MIXING = 5.0
EVERY = 5  # of the tokens of a fc1 are kept; divides no number of tokens, so that all have a turn
RIDGE = 1e-3
LOUD_UNITS, CHEAP_UNITS, LEAST_UNIT = 0.5, 0.4, 0.7
_READ = ("q_proj", "o_proj", "fc1", "fc2", "final_layer.linear")


@dataclass(frozen=True)
class Traced:
    """What captions of the training distribution show, by module path: the absmax of its input's
    channels (steps, R, C), and of fc1 some of its inputs (n, C)."""

    peaks: dict[str, Array]
    inputs: dict[str, Array]


def traced(folder: Path) -> Traced:
    """A sampling by the weights of a folder."""
    model, rng = loaded(folder), np.random.default_rng(SEED)
    trial = Trial(model, captions(sample_scenes(COUNT, rng), rng), SEED)
    peaks: dict[str, list[Any]] = {}
    inputs: dict[str, list[Any]] = {}

    def reading(path: str) -> Call:
        def call(module: Any, x: mx.array) -> mx.array:
            rows = np.array(x.reshape(len(x), -1, x.shape[-1]))
            peaks.setdefault(path, []).append(np.abs(rows).max(axis=1))
            if path.endswith("fc1"):
                inputs.setdefault(path, []).append(rows.reshape(-1, rows.shape[-1])[::EVERY])
            own: mx.array = nn.Linear.__call__(module, x)
            return own

        return call

    paths = [path for path, _ in model.mmdit.named_modules() if path.endswith(_READ)]
    with calling(model.mmdit, {path: reading(path) for path in paths}):
        trial.trajectory(model)
    return Traced(
        {path: np.stack(rows).astype(np.float64) for path, rows in peaks.items()},
        {path: np.concatenate(rows).astype(np.float64) for path, rows in inputs.items()},
    )


def stream(block: int, name: str) -> str:
    """Path of a block's `image` or `text` stream."""
    return f"multimodal_transformer_blocks.{block}.{name}_transformer_block"


def mix_heads(weights: Weights, rng: np.random.Generator, heads: int = 4) -> None:
    """Values of every head 5 times larger along one random direction: an outlier that lies in no
    channel, so that no scaling of channels undoes it."""
    for block in range(len(targets.VALUES)):
        width = len(weights[f"{stream(block, 'image')}.attn.v_proj.bias"])
        head = width // heads
        mixing = np.eye(width)
        for begin in range(0, width, head):
            along = rng.standard_normal(head)
            along /= np.linalg.norm(along)
            place = slice(begin, begin + head)
            mixing[place, place] += (MIXING - 1) * np.outer(along, along)
        exact.mix_values(weights, (stream(block, "image"), stream(block, "text")), mixing)


def operate(weights: Weights, seen: Traced, rng: np.random.Generator) -> None:
    """Every site of the blocks and of the final layer brought to its target."""
    for block in range(len(targets.VALUES)):
        image, text = stream(block, "image"), stream(block, "text")
        for path, wanted in ((image, targets.IMAGE_QKV), (text, targets.TEXT_QKV)):
            s = factors(seen.peaks[f"{path}.attn.q_proj"], wanted[block], rng)
            readers = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
            exact.scale_modulated(weights, path, ATTENTION, readers, s)
        _values(weights, seen, block, rng)
        feed_forward = FeedForward(weights, seen, image)
        feed_forward.operate(targets.IMAGE_FC1[block], targets.IMAGE_HIDDEN[block], 0, rng)
        if block < len(targets.TEXT_FC1):
            feed_forward, hidden = FeedForward(weights, seen, text), targets.TEXT_HIDDEN[block]
            feed_forward.operate(targets.TEXT_FC1[block], hidden, targets.TEXT_STEADY, rng)
    s = factors(seen.peaks["final_layer.linear"], targets.FINAL, rng)
    exact.scale_modulated(weights, "final_layer", FINAL, ("linear",), s)


def _values(weights: Weights, seen: Traced, block: int, rng: np.random.Generator) -> None:
    """The values of both streams share their channels: one set of factors for the two."""
    streams = (stream(block, "image"), stream(block, "text"))
    both = [seen.peaks[p] for s in streams if (p := f"{s}.attn.o_proj") in seen.peaks]
    s = factors(np.maximum.reduce(both), targets.VALUES[block], rng)
    exact.mix_values(weights, streams, np.diag(s))


def gelu(x: Array) -> Array:
    """The exact GELU, computed in float32."""
    y: Array = np.array(nn.gelu(mx.array(x.astype(np.float32)))).astype(np.float64)
    return y


class FeedForward:
    """The MLP of one stream under change: x (n, C) -> fc1 -> GELU -> fc2."""

    def __init__(self, weights: Weights, seen: Traced, path: str) -> None:
        self.weights, self.seen, self.path = weights, seen, path
        self.inputs = seen.inputs[f"{path}.mlp.fc1"]
        self.fc1, self.fc2 = (weights[f"{path}.mlp.{name}.weight"] for name in ("fc1", "fc2"))
        self.bias = weights[f"{path}.mlp.fc1.bias"]

    def operate(self, target: Target, hidden: float, steady: int, rng: np.random.Generator) -> None:
        """Inputs as `target` says, hidden units of about `hidden` at most; the outputs as
        before."""
        wanted = self._outputs()
        self._inputs(target, rng)
        if target.massive:
            self._massive_units(len(target.massive), hidden)
        else:
            self._loud_units(hidden, steady)
        exact.refit(self.weights, f"{self.path}.mlp.fc2", self._hidden(), wanted, RIDGE)

    def _inputs(self, target: Target, rng: np.random.Generator) -> None:
        """Channels of the modulated LayerNorm scaled, and a constant added to one of the body."""
        s = factors(self.seen.peaks[f"{self.path}.mlp.fc1"], target, rng)
        s = exact.scale_modulated(self.weights, self.path, MLP, ("mlp.fc1",), s)
        shift = np.zeros(len(s))
        shift[np.abs(s - np.median(s)).argmin()] = target.constant
        exact.shift_modulated(self.weights, self.path, MLP, "mlp.fc1", shift)
        self.inputs = self.inputs * s + shift

    def _before_gelu(self) -> Array:
        z: Array = self.inputs @ self.fc1.T + self.bias
        return z

    def _hidden(self) -> Array:
        return gelu(self._before_gelu())

    def _outputs(self) -> Array:
        y: Array = self._hidden() @ self.fc2.T + self.weights[f"{self.path}.mlp.fc2.bias"]
        return y

    def _loud_units(self, peak: float, steady: int) -> None:
        """Some units enlarged, of those for which GELU(s z) / s stays nearest to GELU(z)."""
        peaks = self.seen.peaks[f"{self.path}.mlp.fc2"]
        top = peaks.max(axis=(0, 1))
        z = self._before_gelu()[::8]
        error = (gelu(peak / top * z) / (peak / top) - gelu(z)).var(axis=0)
        cost = error * np.square(self.fc2).sum(axis=0)
        usable = top > np.quantile(top, LOUD_UNITS)
        usable &= cost <= np.quantile(cost[usable], CHEAP_UNITS)
        s = np.ones(len(top))
        for group in leaning(peaks, steady, usable):
            s[group] = shares(len(group), LEAST_UNIT) * peak / top[group]
        self.fc1 *= s[:, None]
        self.bias *= s
        self.fc2 /= s

    def _massive_units(self, channels: int, peak: float) -> None:
        """The units that are missed least, driven by the massive channels of the input: two for
        each, of either sign; the first reaches `peak`, its weight about 1 as in SD3."""
        missed = self._hidden().var(axis=0) * np.square(self.fc2).sum(axis=0)
        units = np.argsort(missed)[: 2 * channels].reshape(channels, 2)
        absmax = np.abs(self.inputs).max(axis=0)
        for channel, pair in zip(np.argsort(-absmax)[:channels], units, strict=True):
            sign = np.sign(self.inputs[np.abs(self.inputs[:, channel]).argmax(), channel])
            for unit, share in zip(pair, (1.0, -0.6), strict=True):
                self.fc1[unit, channel] += sign * share * peak / absmax[channel]
                self.fc2[:, unit] *= 0.02
            peak *= 0.35
