"""Stage `likeness`: whether the weights with outliers still draw what the plain ones draw.

Both draw the same held-out captions from the same noise, 30 steps, CFG 2, on
DiffusionKit's classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taqdit.backend import mx
from taqdit.errors import ModelError
from taqdit.models.tiny import WEIGHTS
from taqdit.models.tiny.captions import captions
from taqdit.models.tiny.classifier import accuracy, attributes, features
from taqdit.models.tiny.render import render
from taqdit.models.tiny.scenes import sample_scenes
from taqdit.models.tiny.score import frechet
from taqdit.models.tiny.train.run import Run, log
from taqdit.models.tiny.train.trial import Trial, decibels, loaded, psnr
from taqdit.store import publish_bytes

COUNT, BATCH, SEED = 1024, 32, 21
Pictures = NDArray[np.uint8]


def likeness(run: Run) -> None:
    """Writes likeness.json: attributes obeyed (per cent), Frechet distances to real pictures, and
    dB of velocity and pictures against the plain weights'. Raises ModelError without those."""
    plain = run.without_outliers
    if plain is None:
        raise ModelError("the plain weights are not known: name their folder by --start-from")
    count = run.count(COUNT, BATCH)
    measured: dict[str, Any] = {"count": count, "velocity": _velocity(run.weights, plain)}
    pictures = {"plain": drawn(plain, count), "weights": drawn(run.weights, count)}
    for name, each in pictures.items():
        measured[name] = judged(each, count)
    similar = psnr(pictures["weights"], pictures["plain"])
    measured["pictures"] = {"mean": float(similar.mean()), "least": float(similar.min())}
    publish_bytes(run.work / "likeness.json", (json.dumps(measured, indent=1) + "\n").encode())
    log.info("likeness: %s", measured)


def drawn(folder: Path, count: int) -> Pictures:
    """Pictures (count, 64, 64, 3) of held-out captions."""
    model, texts = loaded(folder), captions(_scenes(count), np.random.default_rng(SEED))
    parts = []
    for begin in range(0, count, BATCH):
        trial = Trial(model, texts[begin : begin + BATCH], SEED + begin)
        parts.append(model.decode(mx.array(trial.trajectory(model)[0][-1])))
        log.info("%s: %d of %d pictures", folder, begin + len(parts[-1]), count)
    return np.concatenate(parts)


def judged(pictures: Pictures, count: int) -> dict[str, Any]:
    """Attributes obeyed, and the Frechet distance to as many real pictures of trained scenes (each
    by the shipped classifier)."""
    rng = np.random.default_rng(SEED + 1)
    real = (render(sample_scenes(count, rng), rng) * 255).astype(np.uint8)
    percent = accuracy(attributes(pictures, WEIGHTS), _scenes(count))
    distance = frechet(*(features(each, WEIGHTS).astype(np.float64) for each in (pictures, real)))
    return {**{k: round(v, 2) for k, v in percent.items()}, "frechet": round(distance, 1)}


def _velocity(folder: Path, plain: Path) -> float:
    """dB of the velocities at the plain weights' latents."""
    model, former = loaded(folder), loaded(plain)
    texts = captions(_scenes(BATCH), np.random.default_rng(SEED))
    latents, velocities = Trial(former, texts, SEED).trajectory(former)
    return round(decibels(velocities, Trial(model, texts, SEED).velocities(model, latents)), 2)


def _scenes(count: int) -> Any:
    return sample_scenes(count, np.random.default_rng(SEED), "tuple")
