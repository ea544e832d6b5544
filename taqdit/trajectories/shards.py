"""A stored trajectory: one shard with `latents` (num_steps + 1, h, w, 16) float32, the last one the
final latent that the VAE decodes, and `sigmas`, `timesteps` (num_steps + 1,). One that keeps fewer
steps names them in a tensor `steps` (k,) int32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from taqdit.errors import NumericError
from taqdit.prompts.options import Prompts
from taqdit.sampler import ALL
from taqdit.store import Shard, Stage, sha256_hex
from taqdit.store.digest import STAGE, corrupt
from taqdit.trajectories.sampling import Batch

KIND = "trajectory"


def shard_name(index: int) -> str:
    """File name of trajectory `index`."""
    return f"{index:06d}.safetensors"


def write_trajectory(
    stage: Stage,
    batch: Batch,
    row: int,
    *,
    latents: np.ndarray,
    sigmas: np.ndarray,
    timesteps: np.ndarray,
    prompts: Prompts,
    steps: np.ndarray | None = None,
    dtype: str = "float32",
) -> None:
    """Publish one trajectory: sigmas, timesteps and of latents (num_steps + 1, h, w, 16) those of
    `steps` (None: all), rounded to `dtype`. Raises NumericError if one does not fit it."""
    index = batch.indices[row]
    kept = latents if steps is None else latents[steps]
    stage.write(
        shard_name(index),
        {
            "latents": _rounded(kept, dtype, index),
            "sigmas": sigmas,
            "timesteps": timesteps,
            **({} if steps is None else {"steps": steps.astype(np.int32)}),
        },
        kind=KIND,
        index=index,
        metadata={
            "prompt_index": index % len(prompts.texts),
            "prompt_sha256": sha256_hex(batch.texts[row].encode()),
            "seed": batch.seeds[row],
            "batch": [batch.indices.start, batch.indices.stop],
        },
    )


def _rounded(latents: np.ndarray, dtype: str, index: int) -> np.ndarray:
    if latents.dtype == dtype:
        return latents
    with np.errstate(over="ignore"):
        found = latents.astype(dtype, copy=False)
    if not np.isfinite(found).all():
        largest = float(np.abs(latents).max())
        raise NumericError(
            f"a latent of trajectory {index} reaches {largest:.4g}, beyond {dtype};"
            " set sampler.latents_dtype=float32"
        )
    return found


def read_trajectory(stage: Stage, index: int) -> dict[str, np.ndarray]:
    """latents, sigmas and timesteps of a stored trajectory. Raises CorruptError."""
    return trajectory_shard(stage, index).tensors


def trajectory_shard(stage: Stage, index: int) -> Shard:
    """The shard of a stored trajectory. Raises CorruptError."""
    found = stage.read(shard_name(index), kind=KIND, index=index)
    try:
        words = misfit(stage.inputs, found.tensors)
    except (TypeError, ValueError) as error:
        raise corrupt(stage.path(STAGE), f"its inputs make no sense: {error}") from error
    if words:
        raise corrupt(stage.path(shard_name(index)), words)
    return found


def misfit(inputs: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str | None:
    """Why arrays are no trajectory of a stage made of `inputs`; None if they are one.

    What the inputs do not say the arrays must agree on. TypeError or ValueError for odd inputs.
    """
    none = np.empty(0, np.float32)
    latents, sigmas = tensors.get("latents", none), tensors.get("sigmas", none)
    levels = int(inputs.get("num_steps", sigmas.size - 1)) + 1
    steps = tensors.get("steps")
    kept = levels if steps is None else steps.size
    expected = {
        "latents": (kept, *inputs.get("latent_shape", latents.shape[1:])),
        "sigmas": (levels,),
        "timesteps": (levels,),
        **({} if steps is None else {"steps": (kept,)}),
    }
    shapes = {name: array.shape for name, array in tensors.items()}
    if shapes != expected:
        return f"it holds {_told(shapes)}, expected {_told(expected)}"
    dtype = np.dtype(inputs.get("latents_dtype", "float32" if inputs else latents.dtype))
    if latents.dtype != dtype:
        return f"its latents are {latents.dtype}, expected {dtype}"
    if sigmas.dtype.kind != "f" or tensors["timesteps"].dtype != sigmas.dtype:
        return "its sigmas or timesteps are no numbers"
    stored = inputs.get("latents", ALL if inputs or steps is None else None)
    if (stored == ALL) != (steps is None) or not _are_steps(steps, levels):
        return f"its steps are not those of sampler.latents={stored}"
    return None


def _told(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name!r} {shape}" for name, shape in sorted(shapes.items())[:8])[:300]


def _are_steps(steps: np.ndarray | None, levels: int) -> bool:
    """Whether they ascend to the final latent; none stands for all."""
    return steps is None or bool(
        len(steps)
        and steps.dtype.kind == "i"
        and steps[0] >= 0
        and steps[-1] == levels - 1
        and (np.diff(steps) > 0).all()
    )


def final_latent(stage: Stage, index: int) -> np.ndarray:
    """The last latent (h, w, 16) float32 of a stored trajectory. Raises CorruptError."""
    return np.array(read_trajectory(stage, index)["latents"][-1], np.float32)
