"""Stage `outliers`: gives the embedded model the outliers that were measured on SD3-medium.

Training leaves channels that differ by 2 to 4 times, SD3's differ by 10 to 160. Nothing is trained
here: sizes move between channels and the weights that read them, which changes nothing that the
model computes, and a few hidden units are enlarged or set free for massive values. The captions are
not those that anything is judged with.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from taqdit.errors import ModelError, NumericError
from taqdit.models.tiny import config
from taqdit.models.tiny.captions import captions, describe
from taqdit.models.tiny.scenes import sample_scenes
from taqdit.models.tiny.tokenizer import Encoder
from taqdit.models.tiny.train import begin_token, surgery
from taqdit.models.tiny.train.exact import Weights
from taqdit.models.tiny.train.run import Run, log
from taqdit.models.tiny.train.targets import CONTEXT_MEDIAN, CONTEXT_PEAKS
from taqdit.store import publish_bytes

PARTS = ("clip_l", "clip_g", "mmdit")
CONTEXT = "context_embedder.weight"
_AS_THEY_ARE = (
    "vae.safetensors",
    "classifier.safetensors",
    "vocab.json",
    "merges.txt",
    "config.json",
)


def outliers(run: Run) -> None:
    """Writes `weights/` from `plain/`, or from the weights that the run starts from."""
    source = run.without_outliers
    if source is None:
        raise ModelError(
            f"{run.plain} does not exist; run the stage 'export' first, or name a folder of weights"
            " without outliers by --start-from"
        )
    operated(source, run.weights, run.seed)


def operated(source: Path, folder: Path, seed: int) -> None:
    """Fills `folder` with the weights of `source` after the surgery; `config.json` last."""
    parts = {name: _read(source / f"{name}.safetensors") for name in PARTS}
    rng = np.random.default_rng(seed)
    text_outliers(parts, config(source), rng)
    surgery.mix_heads(parts["mmdit"], rng, config(source)["mmdit"]["num_heads"])
    log.info("outliers: the text encoders are done; a sampling to look at the denoiser")
    with TemporaryDirectory() as halfway:
        write(parts, source, Path(halfway))
        seen = surgery.traced(Path(halfway))
    surgery.operate(parts["mmdit"], seen, rng)
    (folder / "config.json").unlink(missing_ok=True)  # says that the others are there
    write(parts, source, folder)


def text_outliers(
    parts: dict[str, Weights], sizes: dict[str, Any], rng: np.random.Generator
) -> None:
    """Text rows as in SD3: channels about 1, and 854 in one of them at the begin token."""
    scenes = sample_scenes(504, rng)
    texts = captions(scenes, rng)[:384]
    texts += [describe(scenes, i, rng, drop=0.3, noise=0.1) for i in range(384, 504)] + [""] * 8
    ids, begin = dict(zip(CONTEXT_PEAKS, Encoder()(texts), strict=True)), 0
    for name, peak in CONTEXT_PEAKS.items():
        place = slice(begin, begin := begin + sizes[name]["model_dims"])
        rows = begin_token.states(parts[name], ids[name], sizes[name]).out
        factor = float(np.median(np.abs(rows).max(axis=(0, 1)))) / CONTEXT_MEDIAN
        begin_token.quieten(parts[name], factor)
        columns = parts["mmdit"][CONTEXT][:, place] * factor
        begin_token.make_massive(parts[name], columns, ids[name], sizes[name], peak)
        parts["mmdit"][CONTEXT][:, place] = columns


def write(parts: dict[str, Weights], source: Path, folder: Path) -> None:
    """The changed parts in float16, the others copied. Raises NumericError for what float16
    cannot hold."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, weights in parts.items():
        arrays = {key: array.astype(np.float16) for key, array in weights.items()}
        for key, array in arrays.items():
            if not np.isfinite(array).all():
                raise NumericError(f"{key} of {name} is not finite in float16: lower its target")
        publish_bytes(folder / f"{name}.safetensors", save(arrays))
    for name in _AS_THEY_ARE:
        publish_bytes(folder / name, (source / name).read_bytes())


def _read(path: Path) -> Weights:
    return {name: array.astype(np.float64) for name, array in load_file(path).items()}
