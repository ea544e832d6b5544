"""Stage `export`: the trained modules as fp16 files in DiffusionKit's names and layout."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from taqdit.errors import NumericError
from taqdit.models.tiny import tokenizer
from taqdit.models.tiny.train.files import Arrays, exported, widened
from taqdit.models.tiny.train.run import Run, log
from taqdit.models.tiny.train.stage_classifier import load_classifier
from taqdit.models.tiny.train.stage_flow import load_flow
from taqdit.models.tiny.train.stage_vae import load_vae
from taqdit.store import publish_bytes


def export(run: Run) -> None:
    """Writes `plain/` in the run's folder, the same files as the package's; `config.json` last."""
    net, config = load_flow(run), run.config
    context = config["mmdit"]["token_level_text_embed_dim"]
    parts = {
        "clip_l": exported(net.clip_l),
        "clip_g": exported(net.clip_g),
        "mmdit": widened(exported(net.mmdit), context),
        "vae": exported(load_vae(run, "decoder")),
        "classifier": exported(load_classifier(run)),
    }
    folder = run.plain
    folder.mkdir(parents=True, exist_ok=True)
    for name, arrays in parts.items():
        _write(folder / f"{name}.safetensors", arrays)
    for name, text in tokenizer.files().items():
        publish_bytes(folder / name, text.encode())
    publish_bytes(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())


def _write(path: Path, arrays: Arrays) -> None:
    _refuse_infinite(path.name, arrays)
    publish_bytes(path, save(arrays))
    count = sum(array.size for array in arrays.values())
    log.info("%s: %d tensors, %d parameters", path.name, len(arrays), count)


def _refuse_infinite(file: str, arrays: Mapping[str, np.ndarray]) -> None:
    """float16 ends at 65504, and a training may have gone astray."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NumericError(f"{name} of {file} is not finite in float16; train again")
