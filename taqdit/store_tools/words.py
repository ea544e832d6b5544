"""What made a stage, in a few words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from taqdit.store_tools.stage_folder import Surveyed

_PLAIN = (  # inputs that are short, in the order in which they are told
    "model",
    "num_steps",
    "shift",
    "cfg_scale",
    "seed",
    "batch_size",
    "latent_shape",
    "latents",
    "latents_dtype",
    "folds",
    "weighting",
    "count",
    "rule",
    "kind",  # the last two: of imported files
    "file",
)
_INPUTS = {"num_prompts": "prompts", "num_sites": "sites", "sampler": "sampler_option"}
_SHORT = 12  # digits of a fingerprint, for people


def counted(count: int, name: str) -> str:
    """A number of things: `1 run`, `2 trajectories`."""
    if count != 1:
        name = f"{name[:-1]}ies" if name.endswith("ory") else f"{name}s"
    return f"{count} {name}"


def made_of(stage: Surveyed) -> dict[str, Any]:
    """The settings that tell one stage from another; no texts of prompts."""
    inputs = stage.inputs
    found = {key: inputs[key] for key in _PLAIN if _is_short(inputs.get(key))}
    if isinstance(options := inputs.get("options"), dict):
        found["options"] = sorted(str(name) for name, on in options.items() if on is True)
    for key, name in (("prompts", "num_prompts"), ("sites", "num_sites")):
        if isinstance(listed := inputs.get(key), list):
            found[name] = len(listed)
    if option := inputs.get("sampler_option"):
        found["sampler"] = str(option).rpartition(".")[2]
    if isinstance(mark := inputs.get("trajectories"), str):
        found["trajectories"] = mark[:_SHORT]
    return found


def words(stage: Surveyed, *, without: Collection[str] = ()) -> str:
    """The same for people: `tiny, 16 prompts, 30 steps, euler, CFG 2, seed 0`. `without` the inputs
    of these names (of an option: `options.w16`)."""
    found = {
        key: each for key, each in made_of(stage).items() if _INPUTS.get(key, key) not in without
    }
    parts = [
        found.get("model"),
        found.get("kind"),
        found.get("file"),
        *(name for name in found.get("options", ()) if f"options.{name}" not in without),
        _told(found, "num_prompts", "{} prompts"),
        _told(found, "num_steps", "{} steps"),
        found.get("sampler"),
        _told(found, "cfg_scale", "CFG {:g}"),
        _told(found, "seed", "seed {}"),
        _told(found, "latents", "{} latents"),
        found.get("latents_dtype"),
        _told(found, "num_sites", "{} sites"),
        _told(found, "folds", "{} folds"),
        _told(found, "trajectories", "of trajectories {}"),
        _told(found, "weighting", "weighting {}"),
        str(found["rule"]).rpartition(".")[2] if "rule" in found else None,
    ]
    return ", ".join(str(part) for part in parts if part)


def _is_short(value: object) -> bool:
    if isinstance(value, list):
        return len(value) <= 4 and all(type(each) is int for each in value)
    return isinstance(value, str | int | float) and len(str(value)) <= 100


def _told(found: Mapping[str, Any], key: str, form: str) -> str | None:
    try:
        return form.format(found[key]) if key in found else None
    except (ValueError, TypeError):
        return str(found[key])
