"""Stage `measure`: how well the exported weights obey captions, and how good their pictures are.

Pictures come from the torch twin, which `verify` ties to DiffusionKit; 30 steps, shift 3.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from taqdit.models.tiny.captions import captions
from taqdit.models.tiny.render import render
from taqdit.models.tiny.scenes import ATTRIBUTES, Scenes, Split, sample_scenes, take
from taqdit.models.tiny.score import accuracy, frechet, read
from taqdit.models.tiny.train import files
from taqdit.models.tiny.train.run import Run, log
from taqdit.models.tiny.train.sampling import Sampler
from taqdit.store import publish_bytes

GUIDANCE = (2.0, 1.5, 4.0)
HELD_OUT, PAIRS, SEEN = 256, 128, 1024
Pictures = NDArray[np.uint8]
Figures = dict[str, float]


def measure(run: Run) -> None:
    """Writes measure.json: accuracies by set and guidance, Frechet distances, PSNR."""
    folder = run.plain
    measured = figures(Bench(folder, folder, run.count(SEEN, 32)))
    publish_bytes(run.work / "measure.json", (json.dumps(measured, indent=1) + "\n").encode())


@dataclass(frozen=True)
class Bench:
    """Exported weights to be measured, the folder of the classifier that judges (two models are
    comparable only before the same judge), and the number of pictures of the largest set."""

    weights: Path
    judge: Path
    count: int = SEEN

    @cached_property
    def sampler(self) -> Sampler:
        """The measured model."""
        return Sampler(files.load_text_to_image(self.weights), files.load_vae(self.weights))

    @torch.no_grad()
    def judged(self, pictures: Pictures) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Features `(N, 128)` and logits `(N, 52)`."""
        net = files.load_classifier(self.judge)
        hidden = net.features(as_input(pictures))
        return hidden.double().numpy(), net.head(hidden).numpy()

    def obeyed(self, pictures: Pictures, scenes: Scenes) -> Figures:
        """Accuracies in per cent."""
        rates = accuracy(read(self.judged(pictures)[1]), scenes)
        return {name: round(rate, 1) for name, rate in rates.items()}

    def distance(self, a: Pictures, b: Pictures) -> float:
        """Frechet distance of two sets of pictures."""
        return round(frechet(self.judged(a)[0], self.judged(b)[0]), 1)

    @torch.no_grad()
    def reconstructed(self, pictures: Pictures) -> Pictures:
        """Through the autoencoder and back."""
        decoded = self.sampler.vae.decoder(
            self.sampler.vae.encoder.posterior(as_input(pictures))[0]
        )
        pixels = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        return np.asarray(pixels * 255).astype(np.uint8)


def as_input(pictures: Pictures) -> torch.Tensor:
    """`(N, 64, 64, 3)` uint8 to `(N, 3, 64, 64)` in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def drawn(scenes: Scenes, seed: int) -> Pictures:
    """Real pictures of the scenes."""
    return np.asarray(render(scenes, np.random.default_rng(seed)) * 255).astype(np.uint8)


def figures(bench: Bench, guidance: Sequence[float] = GUIDANCE) -> dict[str, Any]:
    """Everything that is measured, by name."""
    measured: dict[str, Any] = {}
    share = bench.count / SEEN
    sets = {
        "held-out tuples": held_out_tuples(max(8, round(HELD_OUT * share)), 11),
        "held-out pairs": _scenes(max(8, round(PAIRS * share)), "pair", 13),
        "trained captions": _scenes(bench.count, "train", 42),
    }
    for number, (name, (scenes, texts)) in enumerate(sets.items()):
        measured[f"{name}, real pictures"] = bench.obeyed(drawn(scenes, 12), scenes)
        for scale in guidance:
            pictures = bench.sampler(texts, cfg_scale=scale, seed=21 + number)
            key = f"{name}, CFG {scale:g}"
            measured[key] = bench.obeyed(pictures, scenes)
            if name == "trained captions":
                measured[key]["frechet"] = bench.distance(pictures, _real(bench, 0))
            log.info("%s: %s", key, measured[key])
    return measured | _pictures(bench)


def _pictures(bench: Bench) -> dict[str, float]:
    """What the autoencoder loses, and the noise floor of the Frechet distance."""
    real, other = _real(bench, 0), _real(bench, 1)
    copies = bench.reconstructed(other)
    error = (copies.astype(np.float64) - other) / 255
    decibels = -10 * np.log10((error**2).mean((1, 2, 3)).clip(1e-10))
    return {
        "frechet, real against real": bench.distance(other, real),
        "frechet, reconstructions": bench.distance(copies, real),
        "psnr of reconstructions": round(float(decibels.mean()), 2),
    }


def _real(bench: Bench, which: int) -> Pictures:
    return drawn(_scenes(bench.count, "train", 51 + which)[0], 61 + which)


def _scenes(count: int, split: Split, seed: int) -> tuple[Scenes, list[str]]:
    """Scenes of a split with a complete caption in a random template each."""
    rng = np.random.default_rng(seed)
    scenes = sample_scenes(count, rng, split)
    return scenes, captions(scenes, rng)


def held_out_tuples(count: int, seed: int) -> tuple[Scenes, list[str]]:
    """Scenes held out from this run and from the earlier one whose weights it may start from, so
    that no weights have ever seen them."""
    rng = np.random.default_rng(seed)
    scenes = sample_scenes(30 * count, rng, "tuple")
    scenes = take(scenes, np.flatnonzero(_held_out_earlier(scenes))[:count])
    return scenes, captions(scenes, rng)


def _held_out_earlier(scenes: Scenes) -> NDArray[np.bool_]:
    """The rule of the earlier run: a tenth of the tuples by an integer hash (uneven over the
    backgrounds: 2 to 3 per cent of white, navy and mint, 15 to 17 of the others)."""
    key = np.zeros(len(scenes["rel"]), np.int64)
    for name, size in ATTRIBUTES.items():
        key = key * size + scenes[name]
    chosen: NDArray[np.bool_] = key * 2654435761 % 2**32 // 64 % 10 == 0
    return chosen
