"""Stage `hardness`: how far the weights are from SD3's outliers, and what quantizing them costs.

Scales and Hessians come from captions of the training distribution, as the surgery's do; figures
from held-out ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from taqdit.backend import mx
from taqdit.models.pipeline import PipelineModel
from taqdit.models.tiny.captions import captions
from taqdit.models.tiny.scenes import sample_scenes
from taqdit.models.tiny.train import sd3
from taqdit.models.tiny.train.recipes import RECIPES, Seen, block_linears, quantized, seen
from taqdit.models.tiny.train.run import Run, log
from taqdit.models.tiny.train.trial import Floats, Trial, decibels, loaded, psnr
from taqdit.prompts.options import shapes
from taqdit.store import publish_bytes

COUNT = 16


def hardness(run: Run) -> None:
    """Writes hardness.json and prints its tables; beside the plain weights where they are known."""
    plain = run.without_outliers
    measured = {"weights": figures(run.weights)}
    if plain is not None:
        measured["plain"] = figures(plain)
    publish_bytes(run.work / "hardness.json", (json.dumps(measured, indent=1) + "\n").encode())
    print(tables(measured))


def figures(folder: Path) -> dict[str, Any]:
    """Sites beside SD3's and their distance; of every recipe the velocity error and the pictures'
    PSNR in dB, against the same weights in float32."""
    model = loaded(folder)
    prompts = shapes()
    sites = seen(model, Trial(model, [prompts.text(i) for i in range(COUNT)], seed=5))
    peaks = {site: each.peaks for site, each in sites.items()}
    modules = dict(model.mmdit.named_modules())
    weights = {p: np.array(modules[p].weight).astype(np.float64) for p in block_linears(model)}
    kinds, rest = sd3.of_kinds(peaks), sd3.of_rest(peaks, weights)
    return {
        "distance to SD3": round(sd3.distance(kinds, rest), 4),
        "kinds": {kind: each._asdict() for kind, each in kinds.items()},
        "rest": rest._asdict(),
        "recipes": _recipes(model, seen(model, _trial(model, "train", 101))),
    }


def _recipes(model: PipelineModel, sites: Mapping[str, Seen]) -> dict[str, dict[str, float]]:
    trial = _trial(model, "tuple", 11)
    latents, velocities = trial.trajectory(model)
    pictures, costs = _drawn(model, latents), {}
    for name, recipe in RECIPES.items():
        with quantized(model, recipe, sites):
            error = decibels(velocities, trial.velocities(model, latents))
            similar = psnr(_drawn(model, trial.trajectory(model)[0]), pictures)
        costs[name] = {"velocity": round(error, 2), "pictures": round(float(similar.mean()), 2)}
        log.info("%s: %s", name, costs[name])
    return costs


def _trial(model: PipelineModel, split: Any, seed: int) -> Trial:
    rng = np.random.default_rng(seed)
    return Trial(model, captions(sample_scenes(COUNT, rng, split), rng), seed)


def _drawn(model: PipelineModel, latents: list[Floats]) -> Any:
    return model.decode(mx.array(latents[-1]))


def tables(measured: Mapping[str, Any]) -> str:
    """The figures as Markdown: SD3's beside them, and the recipes."""
    columns = [name for name in ("plain", "weights") if name in measured]
    lines = [_row("tensor", "figure", *columns, "SD3"), _row(*["---"] * (len(columns) + 3))]
    for kind, published in sd3.KINDS.items():
        for figure, value in published._asdict().items():
            ours = [f"{measured[name]['kinds'][kind][figure]:.3g}" for name in columns]
            lines.append(_row(kind, figure, *ours, f"{value:g}"))
    for figure, value in sd3.REST._asdict().items():
        ours = [f"{measured[name]['rest'][figure]:.3g}" for name in columns]
        lines.append(_row("all", figure, *ours, f"{value:g}"))
    distances = [f"{measured[name]['distance to SD3']:.3f}" for name in columns]
    lines += [_row("all", "distance", *distances, "0"), ""]
    lines += [_row("recipe", *columns), _row(*["---"] * (len(columns) + 1))]
    for recipe in RECIPES:
        costs = [measured[name]["recipes"][recipe] for name in columns]
        lines.append(_row(recipe, *(f"{c['velocity']:.1f} / {c['pictures']:.1f}" for c in costs)))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
